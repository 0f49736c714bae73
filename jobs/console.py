"""What people and scripts read while a job runs: results on stdout, all else on stderr."""

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""


class Console:
    """Progress bars on a terminal, plain lines elsewhere, one JSON document for scripts."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        """`quiet` leaves only the result; `as_json` prints that as JSON, and nothing besides."""
        self.as_json = as_json
        self._silent = quiet or as_json
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._began = self._last_line = time.monotonic()

    def say(self, text: str) -> None:
        """A line of what is going on."""
        if not self._silent:
            self._end_stage()
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Something that somebody should see to; shown even when quiet."""
        self._end_stage()
        print(f"Warning: {text}", file=sys.stderr, flush=True)

    def result(self, document: dict[str, Any], text: str) -> None:
        """What the job came to: the document where scripts read, the text where people do."""
        self._end_stage()
        if self.as_json:
            print(json.dumps(document, indent=2), flush=True)
        elif text:
            print(text, flush=True)

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Rows done of a stage, of how many."""
        if self._silent:
            return
        if stage != self._stage:
            self._begin_stage(stage, total)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif time.monotonic() - self._last_line > PLAIN_SECONDS:
            self._last_line = time.monotonic()
            rate = done / max(self._last_line - self._began, 1e-9)
            left = (total - done) / max(rate, 1e-9)
            print(
                f"{stage}: {done:,} of {total:,} rows, {rate:,.0f} rows/s, {left:,.0f} s left"
                f"{', ' + note if note else ''}",
                file=sys.stderr,
                flush=True,
            )
        if done >= total:
            self._end_stage()

    def _begin_stage(self, stage: str, total: int) -> None:
        self._end_stage()
        self._stage = stage
        self._began = self._last_line = time.monotonic()
        if sys.stderr.isatty():
            self._bar = _progress_bar()
            self._bar.start()
            self._task = self._bar.add_task(stage, total=total, note="")

    def _end_stage(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._task, self._stage = None, None, ""

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._end_stage()


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns as text: the first one to the left, the others to the right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)


def facts(pairs: Sequence[tuple[str, Any]]) -> str:
    """Names and values, one pair a line."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in pairs)


def size(count: int) -> str:
    """Bytes for people: `12.3 MB`."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def percent(share: float) -> str:
    """A share in [0, 1] for people: `98.21 %`."""
    return f"{100 * share:.2f} %"


def _progress_bar() -> "Progress":
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeLeft(),
        TextColumn("{task.fields[note]}"),
        console=RichConsole(stderr=True),
        transient=True,
    )
