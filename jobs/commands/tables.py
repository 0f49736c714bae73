"""Text for people, laid out to fit the terminal: tables, grids, lists of facts, units."""

import json
import re
import shutil
import unicodedata
from collections.abc import Collection, Sequence
from itertools import compress, zip_longest
from textwrap import TextWrapper
from typing import Any

from jobs.output import one_line
from storage.errors import counted

SHORT_DIGEST = 12
"""Digits of a digest in tables and summaries; --verbose and --json print all 64."""
GAP = "  "
"""Separator of the columns of a table."""
SHOWN_CLASSES = 100
"""Larger sets of classes are not listed one by one."""
NARROWEST = 8
"""Least width of a wrapped column."""
WORDS = re.compile(r"(\s+|[^\s/]*/+)")
"""Splits a text into pieces, after each of which a line may break."""


def terminal_width() -> int:
    """Return the terminal's width in columns; 80 if it is unknown."""
    return shutil.get_terminal_size().columns


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    left: Collection[str] = (),
    *,
    wrapped: Collection[str] | None = None,
    optional: Sequence[str] = (),
) -> str:
    """Return aligned columns that fit the terminal.

    The first column and those named in `left` are aligned left. If the table is too wide, it leaves
    out `optional` columns, the last one first, then wraps those that are `wrapped`, by default all
    aligned left.
    """
    cells = [list(header), *([one_line(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(width_of, column)) for column in zip(*cells, strict=True)]
    if optional and _total(widths) > terminal_width():
        keep = [name != optional[-1] for name in header]
        shorter = [list(compress(row, keep)) for row in cells]
        return table(shorter[0], shorter[1:], left, wrapped=wrapped, optional=optional[:-1])
    wrappable = {header[0], *left} if wrapped is None else wrapped
    shrinking = [number for number, name in enumerate(header) if name in wrappable]
    while shrinking and _total(widths) > terminal_width():
        widest = max(shrinking, key=widths.__getitem__)
        if widths[widest] <= NARROWEST:
            break
        widths[widest] -= 1
    align = [_left if name in (header[0], *left) else _right for name in header]
    lines = [
        [put(cell, width) for put, cell, width in zip(align, line, widths, strict=True)]
        for row in cells
        for line in zip_longest(*map(wrap, row, widths), fillvalue="")
    ]
    return "\n".join(GAP.join(line).rstrip() for line in lines)


def width_of(text: str) -> int:
    """Return the columns of a terminal that a text takes: two for a Chinese character."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def _left(text: str, width: int) -> str:
    return text + " " * (width - width_of(text))


def _right(text: str, width: int) -> str:
    return " " * (width - width_of(text)) + text


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def fits(text: str) -> bool:
    """Return whether no line of a text is longer than the terminal is wide."""
    return max(map(width_of, text.splitlines()), default=0) <= terminal_width()


def fit(line: str) -> str:
    """Return a line; if it is wider than the terminal, broken at semicolons, then at spaces."""
    if fits(line):
        return line
    wrapper = TextWrapper(terminal_width(), break_long_words=False, break_on_hyphens=False)
    *parts, last = line.split("; ")
    return "\n".join([*map(wrapper.fill, parts), last]) if parts else wrapper.fill(line)


def wrap(text: str, width: int) -> list[str]:
    """Break a text into lines, at spaces and after slashes if possible."""
    if width_of(text) <= width:
        return [text]
    wrapper = TextWrapper(max(1, width * len(text) // width_of(text)))
    wrapper.wordsep_re = WORDS
    return wrapper.wrap(text)


def grid(cells: Sequence[str]) -> str:
    """Return short texts in as many columns as fit the terminal, filled row by row."""
    width = max(map(width_of, cells))
    columns = max(1, (terminal_width() + len(GAP)) // (width + len(GAP)))
    return "\n".join(
        GAP.join(_left(cell, width) for cell in cells[start : start + columns]).rstrip()
        for start in range(0, len(cells), columns)
    )


def facts(pairs: Sequence[tuple[str, Any]]) -> str:
    """Return names and values, one pair a line, the values aligned.

    A value too long for its line, such as a digest, is put below its name.
    """
    width = max(len(name) for name, _ in pairs)
    lines = [(name, f"{name.ljust(width)}  {one_line(str(value))}") for name, value in pairs]
    return "\n".join(
        line if fits(line) else f"{name}\n  {line[width:].lstrip()}" for name, line in lines
    )


def settings_text(settings: dict[str, Any]) -> str:
    """Return settings as TOML lines, which `--config` reads back; TOML has no null."""
    given = {name: value for name, value in settings.items() if value is not None}
    return "\n".join(f"  {name} = {json.dumps(value)}" for name, value in given.items())


def size(count: int) -> str:
    """Return a number of bytes as `12.3 MB`."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return counted(count, "byte")
