"""The console: a command's events, progress and result, for people or for scripts."""

import json
import logging
import sys
import time
from dataclasses import dataclass
from typing import Any

from jobs.commands.logs import EventHandler
from jobs.commands.tables import settings_text, terminal_width
from jobs.output import PLAIN_SECONDS, one_line, print_aside, print_line

REDRAW_SECONDS = 0.1
"""Interval between updates of the progress on a terminal."""


@dataclass(frozen=True)
class Report:
    """A command's result, in each form in which it can be printed."""

    document: dict[str, Any]
    """The document of --json."""
    text: str
    """The default output."""
    summary: str
    """The line of --quiet."""
    details: str = ""
    """Lines that --verbose adds, such as full digests."""


class Console(EventHandler):
    """Prints events, progress and the result of a command.

    Results and events go to stdout, progress and warnings to stderr. An event without a text is
    not printed; the settings among its facts are listed below the text.
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
        self._stage = ""
        self._has_drawn = False
        self._began = self._last_line = time.monotonic()

    def show(self, name: str, text: str, facts: dict[str, Any], *, warns: bool) -> None:
        if text and warns:
            self.warn(text)
        elif text:
            lines = [one_line(text)]
            if settings := facts.get("settings"):
                lines.append(settings_text(settings))
            self.say("\n".join(lines))

    def say(self, text: str) -> None:
        """Print a line, unless quiet."""
        if not self._silent:
            self._end_stage()
            print_line(text)

    def warn(self, text: str) -> None:
        """Print a warning, even if quiet."""
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
        """Show how many rows of a stage are done: in place on a terminal, else now and then."""
        if self._silent:
            return
        moment, on_terminal = time.monotonic(), sys.stderr.isatty()
        if stage != self._stage:
            self._end_stage()
            self._stage, self._began = stage, moment
            self._last_line = -PLAIN_SECONDS if on_terminal else moment
        if moment - self._last_line > (REDRAW_SECONDS if on_terminal else PLAIN_SECONDS):
            self._last_line = moment
            parts = [f"{done:,} of {total:,} rows"] if done or not note else []
            if done and moment > self._began:
                rate = done / (moment - self._began)
                parts += [f"{rate:,.0f} rows/s", f"{duration((total - done) / rate)} left"]
            line = f"{one_line(stage)}: {', '.join(filter(None, [*parts, note]))}"
            if on_terminal:
                self._draw(line)
            else:
                print_aside(line)
        if done >= total:
            self._end_stage()

    def _draw(self, line: str) -> None:
        """Replace the last line of the terminal; the cursor stays at its start."""
        width = terminal_width() - 1
        print_aside(line[:width].ljust(width), end="\r")
        self._has_drawn = bool(line)

    def close(self) -> None:
        """Remove the progress from the terminal."""
        self._end_stage()
        super().close()

    def _end_stage(self) -> None:
        if self._has_drawn:
            self._draw("")
        self._stage = ""


def duration(seconds: float) -> str:
    """Return a time as `42 s`, `3 min 20 s`, `1 h 05 min`."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02} s"
    return f"{rounded // 3600:,} h {rounded % 3600 // 60:02} min"
