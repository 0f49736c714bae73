"""Who is told of what a scoring job does: nobody, people, or a log that scripts read."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from jobs.commands.console import PLAIN_SECONDS, Console, print_line


class ScoreListener:
    """Told of what a scoring job does; every method may be left as it is."""

    def event(self, name: str, **facts: Any) -> None:
        """Something has happened: `scored`, `found`, `left`, `failed`, `retry`, `waiting`..."""

    def say(self, text: str) -> None:
        """What is going on, for people."""

    def warn(self, text: str) -> None:
        """Something that somebody should see to."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Rows done of a stage, of how many."""


class ConsoleListener(ScoreListener):
    """Prints for people; what happens to single files of an inbox, too."""

    def __init__(self, console: Console) -> None:
        """Over the console of the command."""
        self._console = console

    def event(self, name: str, **facts: Any) -> None:
        """Say in a line what is worth one."""
        if text := facts.get("text"):
            (self._console.warn if facts.get("warning") else self._console.say)(text)

    def say(self, text: str) -> None:
        """A line."""
        self._console.say(text)

    def warn(self, text: str) -> None:
        """A warning, also when quiet."""
        self._console.warn(text)

    def progress(self, stage: str, done: int, total: int) -> None:
        """A bar, or a line now and then."""
        self._console.progress(stage, done, total)


class JsonLog(ScoreListener):
    """One JSON object a line, each with `time` and `event`; the last one is `summary`."""

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        """`write` takes a line without its end; by default it is printed."""
        self._write = write or print_line
        self._stage = ""
        self._began = self._told = time.monotonic()

    def event(self, name: str, **facts: Any) -> None:
        """A line of its own."""
        # What is not known is left out; `warning` is how people are told.
        told = {
            key: value for key, value in facts.items() if key != "warning" and value is not None
        }
        self._write(json.dumps({"time": now(), "event": name} | told))

    def say(self, text: str) -> None:
        """What people would read."""
        self.event("note", text=text)

    def warn(self, text: str) -> None:
        """The same, to be seen to."""
        self.event("warning", text=text)

    def progress(self, stage: str, done: int, total: int) -> None:
        """A line when a stage begins and ends, and every ten seconds."""
        moment = time.monotonic()
        begins = stage != self._stage
        if begins:
            self._stage, self._began = stage, moment
        ends = done >= total
        if begins or ends or moment - self._told > PLAIN_SECONDS:
            self._told = moment
            seconds = max(moment - self._began, 1e-9)
            rate = None if begins else round(done / seconds)
            self.event("progress", stage=stage, rows=done, of=total, rows_per_second=rate)
        if ends:
            self._stage = ""


def now() -> str:
    """The time, UTC in ISO 8601 to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
