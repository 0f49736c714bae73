"""The fenced code blocks of a Markdown page, and the marks that say how a test runs them.

A mark is an HTML comment on the line before a block:

- `<!-- not run: REASON -->`: the block cannot run in a test.
- `<!-- exit CODE -->`: the block's last command ends with this code.
- `<!-- background -->`: the block runs until the page ends, as in a terminal of its own.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
LANGUAGES = {"sh", "python", "text", "toml", "json", "yaml", "markdown"}
"""Languages of blocks. Others are refused: a `bash` or `console` block would never be run."""

_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>[^\n]*) -->\n)?"
    r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=indent)``` *$"
    r"(?:\n+(?P=indent)```text\n(?P<output>.*?)^(?P=indent)``` *$)?",
    re.MULTILINE | re.DOTALL,
)
_MARK = re.compile(r"not run: (?P<reason>\S.*)|exit (?P<code>\d+)|(?P<background>background)")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    """The line number of its first line of code, from 1."""
    language: str
    code: str
    mark: str | None
    """The comment on the line before."""
    output: str | None
    """The expected output: the `text` block directly after the code, if any."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    def marked(self, name: str) -> str | None:
        """Return a field of the mark: its `reason`, `code` or `background`; None if absent."""
        match = _MARK.fullmatch(self.mark or "")
        return match[name] if match else None

    @property
    def is_run(self) -> bool:
        """Whether a test runs the code."""
        return self.language in ("sh", "python") and not self.marked("reason")


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page in order."""
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        start = match.start("code")
        yield Block(
            page,
            text.count("\n", 0, start) + 1,
            match["language"],
            _dedent(match["code"], match["indent"]),
            match["mark"],
            match["output"] and _dedent(match["output"], match["indent"]),
        )


def is_known(mark: str) -> bool:
    """Return whether a mark is one of those above."""
    return _MARK.fullmatch(mark) is not None


def _dedent(code: str, indent: str) -> str:
    return re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
