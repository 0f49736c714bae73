"""Who is told of what a scoring job does: nobody, or a log that scripts read."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from jobs.output import PLAIN_SECONDS, print_line
from storage.files import exit_code_of

COUNTED = {name: name for name in ("scored", "found", "failed", "left", "unjudged")} | {
    "below_gate": "gate"
}
"""What a summary counts, and the event that it is a count of."""
MEMORY = re.compile(r"memory at most ([\d,]+) MB")
"""How each conversion and each scoring states what it will need."""


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


class LargestMemory(ScoreListener):
    """Passes all on, but for a memory that is no larger than one that was told before.

    An inbox has many files, and each of them is converted, then scored.
    """

    def __init__(self, listener: ScoreListener) -> None:
        """Over the one that is told of the rest."""
        self._listener = listener
        self._message = 0

    def event(self, name: str, **facts: Any) -> None:
        """As it is."""
        self._listener.event(name, **facts)

    def say(self, text: str) -> None:
        """A line, unless it tells a memory that has been told."""
        if stated := MEMORY.fullmatch(text):
            megabytes = int(stated[1].replace(",", ""))
            if megabytes <= self._message:
                return
            self._message = megabytes
        self._listener.say(text)

    def warn(self, text: str) -> None:
        """As it is."""
        self._listener.warn(text)

    def progress(self, stage: str, done: int, total: int) -> None:
        """As it is."""
        self._listener.progress(stage, done, total)


class JsonLog(ScoreListener):
    """One JSON object a line, each with `time` and `event`; the last one is `summary`."""

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        """`write` takes a line without its end; by default it is printed."""
        self._write = write or print_line
        self._stage = ""
        self._opened = self._began = self._message = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._rows = 0
        self._model_digest: str | None = None

    def event(self, name: str, **facts: Any) -> None:
        """A line of its own."""
        self._counts[name] += 1
        self._rows += facts["rows"] if name == "scored" else 0
        self._model_digest = facts.get("model_digest", self._model_digest)
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
        if begins or ends or moment - self._message > PLAIN_SECONDS:
            self._message = moment
            seconds = max(moment - self._began, 1e-9)
            rate = None if begins else round(done / seconds)
            self.event("progress", stage=stage, rows=done, of=total, rows_per_second=rate)
        if ends:
            self._stage = ""

    def summary(self, error: BaseException | None) -> None:
        """The last line: enough to raise an alarm by. It counts what the lines before it tell.

        So it is true of a job that was stopped, or failed, half-way as well.
        """
        seconds = time.monotonic() - self._opened
        self.event(
            "summary",
            exit=exit_code_of(error),
            error=None if error is None else str(error) or repr(error),
            seconds=round(seconds, 3),
            model_digest=self._model_digest,
            **{told: self._counts[event] for told, event in COUNTED.items()},
            rows=self._rows,
            rows_per_second=round(self._rows / seconds) if seconds else 0,
        )


def now() -> str:
    """The time, UTC in ISO 8601 to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
