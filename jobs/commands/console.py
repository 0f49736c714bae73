"""What people and scripts read while a job runs: results on stdout, all else on stderr."""

import json
import logging
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.commands.logs import EventHandler
from jobs.output import PLAIN_SECONDS, one_line, print_aside, print_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SHORT_DIGEST = 12
"""Digits of a digest in tables and summaries; --verbose and --json print all 64."""


@dataclass(frozen=True)
class Report:
    """A command's result, in each form in which it can be printed."""

    document: dict[str, Any]
    """The document of --json."""
    text: str
    """What is printed by default, the summary included."""
    summary: str
    """The line of --quiet."""
    details: str = ""
    """Lines that --verbose adds, such as full digests."""


class Console(EventHandler):
    """Prints progress bars on a terminal, plain lines elsewhere, one JSON document for scripts.

    An event that has a text is a line. The settings among its facts are listed below it.
    """

    def __init__(
        self, *, quiet: bool = False, as_json: bool = False, verbose: bool = False
    ) -> None:
        """Choose the form of the result, and which events are printed.

        `quiet` prints the result's summary and warnings, `as_json` its document and warnings.
        `verbose` adds the result's details and events of level DEBUG.
        """
        super().__init__(logging.DEBUG if verbose else logging.INFO)
        self._quiet = quiet
        self._as_json = as_json
        self._verbose = verbose
        self._silent = quiet or as_json
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._began = self._last_line = time.monotonic()

    def show(self, name: str, text: str, facts: dict[str, Any], *, warns: bool) -> None:
        if text and warns:
            self.warn(text)
        elif text:
            lines = [one_line(text)]
            if settings := facts.get("settings", facts.get("configuration")):
                lines.append(settings_text(settings))
            self.say("\n".join(lines))

    def say(self, text: str) -> None:
        """Print a line, unless quiet."""
        if not self._silent:
            self._end_stage()
            print_line(text)

    def warn(self, text: str) -> None:
        """Print a warning, even when quiet."""
        self._end_stage()
        print_aside(f"Warning: {one_line(text)}")

    def result(self, report: Report) -> None:
        """Print a command's result."""
        self._end_stage()
        if self._as_json:
            print_line(json.dumps(report.document, indent=2))
            return
        parts = [report.summary] if self._quiet else [report.text]
        parts += [report.details] if self._verbose else []
        if text := "\n".join(filter(None, parts)):
            print_line(text)

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show how many rows of a stage are done."""
        if self._silent:
            return
        if stage != self._stage:
            self._begin_stage(stage, total)
        moment = time.monotonic()
        rate = done / max(moment - self._began, 1e-9)
        if self._bar is not None and self._task is not None:
            shown = f"{rate:,.0f} rows/s  {note}"
            self._bar.update(self._task, completed=done, note=shown.rstrip())
        elif moment - self._last_line > PLAIN_SECONDS:
            self._last_line = moment
            left = f"{duration((total - done) / rate)} left" if done else ""
            parts = [f"{done:,} of {total:,} rows", f"{rate:,.0f} rows/s", left, note]
            print_aside(f"{one_line(stage)}: {', '.join(filter(None, parts))}")
        if done >= total:
            self._end_stage()

    def _begin_stage(self, stage: str, total: int) -> None:
        self._end_stage()
        self._stage = stage
        self._began = self._last_line = time.monotonic()
        if sys.stderr.isatty():
            self._bar = _progress_bar()
            self._bar.start()
            self._task = self._bar.add_task(one_line(stage), total=total, note="")

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._end_stage()
        super().close()

    def _end_stage(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._task, self._stage = None, None, ""


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], left: Collection[str] = ()) -> str:
    """Return aligned columns: the first one and those named in `left` to the left."""
    cells = [list(header), *([one_line(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    align = [str.ljust if name in (header[0], *left) else str.rjust for name in header]
    lines = [
        "  ".join(put(cell, width) for put, cell, width in zip(align, row, widths, strict=True))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def facts(pairs: Sequence[tuple[str, Any]]) -> str:
    """Return names and values, one pair a line."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}  {one_line(str(value))}" for name, value in pairs)


def settings_text(settings: dict[str, Any]) -> str:
    """Return settings as TOML lines, which `--config` reads back."""
    return "\n".join(f"  {name} = {json.dumps(value)}" for name, value in settings.items())


def size(count: int) -> str:
    """Return a number of bytes as `12.3 MB`."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def duration(seconds: float) -> str:
    """Return a time as `42 s`, `3 min 20 s`, `1 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"


def _progress_bar() -> "Progress":
    """Return a bar that fits into 80 columns: stage, bar, rows, time left, rate, note."""
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} rows"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
        console=RichConsole(stderr=True),
        transient=True,
        expand=True,
    )
