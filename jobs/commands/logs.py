"""Logging handlers: their base class, JSON for --log-json, a schedule's own log."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, tzinfo
from typing import Any, TypeVar

import click

from jobs.output import PLAIN_SECONDS, one_line, print_line
from storage.errors import RestartError, exit_code_of
from storage.events import local_time

LOGGERS = ("storage", "pipeline", "jobs")
"""Parents of all loggers of this project."""
COUNTED = ("scored", "found", "failed", "left", "unjudged")
"""Names of the events that the summary counts."""

Handler = TypeVar("Handler", bound=logging.Handler)


@contextmanager
def attached(handler: Handler) -> Iterator[Handler]:
    """Attach a handler to the project's loggers while the block runs, then close it."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(handler.level or logging.INFO)
    try:
        yield handler
    finally:
        handler.close()
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


class EventHandler(logging.Handler):
    """Base of the handlers. An error in one of them is raised, so failed output ends the job.

    A memory event is skipped unless it is the largest so far: an inbox has many files.
    """

    def __init__(self, level: int = logging.INFO) -> None:
        super().__init__(level)
        self._megabytes = -1

    def emit(self, record: logging.LogRecord) -> None:
        warns = record.levelno >= logging.WARNING
        name = getattr(record, "event", "warning" if warns else "note")
        facts: dict[str, Any] = getattr(record, "facts", {})
        if name == "memory":
            megabytes = round(facts["bytes"] / 1e6)
            if megabytes <= self._megabytes:
                return
            self._megabytes = megabytes
        self.show(name, getattr(record, "text", record.getMessage()), facts, warns=warns)

    def show(self, name: str, text: str, facts: dict[str, Any], *, warns: bool) -> None:
        """Print an event."""
        raise NotImplementedError


class JsonHandler(EventHandler):
    """Writes one JSON object per line, each with `time` and `event`; the last is `summary`."""

    def __init__(
        self, write: Callable[[str], object] = print_line, *, counting: bool = True
    ) -> None:
        """`write` is called with each line; with `counting` the summary has the totals."""
        super().__init__(logging.DEBUG)
        self._write = write
        self._counting = counting
        self._stage = ""
        self._opened = self._began = self._shown = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._rows = 0
        self._model_digest: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "for_people", False):
            super().emit(record)

    def show(self, name: str, text: str, facts: dict[str, Any], *, warns: bool = False) -> None:
        self._counts[name] += 1
        self._rows += facts["rows"] if name == "scored" else 0
        self._model_digest = facts.get("model_digest", self._model_digest)
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        document = {"time": moment, "event": name, **facts, "text": text or None}
        present = {key: value for key, value in document.items() if value is not None}
        self._write(json.dumps(present, default=datetime.isoformat))

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Print a line when a stage begins and ends, and every ten seconds."""
        moment = time.monotonic()
        begins, ends = stage != self._stage, done >= total
        if begins:
            self._stage, self._began = stage, moment
        if begins or ends or moment - self._shown > PLAIN_SECONDS:
            self._shown = moment
            rate = None if begins else round(done / max(moment - self._began, 1e-9))
            facts = {"stage": stage, "rows": done, "of": total, "rows_per_second": rate}
            self.show("progress", note, facts)
        if ends:
            self._stage = ""

    def summary(self, error: BaseException | None) -> None:
        """Print the last line: the exit code, the error, and the totals."""
        text = None if error is None else str(error) or repr(error)
        totals = self._totals() if self._counting else {}
        self.show("summary", "", {"exit": exit_code_of(error), "error": text} | totals)

    def _totals(self) -> dict[str, Any]:
        seconds = time.monotonic() - self._opened
        return {
            "seconds": round(seconds, 3),
            "model_digest": self._model_digest,
            **{name: self._counts[name] for name in COUNTED},
            "below_gate": self._counts["gate"],
            "rows": self._rows,
            "rows_per_second": round(self._rows / seconds) if seconds else 0,
        }

    def result(self, report: object) -> None:
        """Print nothing: the summary contains the result."""


@contextmanager
def json_log(*, counting: bool = True) -> Iterator[JsonHandler]:
    """Log in JSON while the block runs; the last line is always a summary.

    The summary of an error that click raised is printed by `main`, which also restarts the process.
    """
    log = JsonHandler(counting=counting)
    error: BaseException | None = None
    try:
        with attached(log):
            yield log
    except BaseException as raised:
        error = raised
        raise
    finally:
        if not isinstance(error, click.ClickException | RestartError):
            log.summary(error)


class ScheduleHandler(EventHandler):
    """Prints a line for each event, with the time in the schedule's time zone."""

    def __init__(self, zone: tzinfo) -> None:
        super().__init__()
        self._zone = zone

    def show(self, name: str, text: str, facts: dict[str, Any], *, warns: bool) -> None:
        line = f"Warning: {text}" if warns else text
        print_line(one_line(f"{local_time(datetime.now(UTC), self._zone)}  {line}"))
