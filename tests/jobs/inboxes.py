"""Helpers for inboxes: put small files into one, score it, and read the events and the ledger."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jobs.scoring.config import ScoreConfig
from jobs.scoring.gates import Gates
from jobs.scoring.job import run_batch
from jobs.scoring.result import ScoringResult
from pipeline.sources.digits import draw_digits
from storage.ledger import Entry, Ledger
from storage.places import open_location
from tests.storage.idx_files import write_idx

LONG_AGO = 1_700_000_000
"""A modification time in 2023, which counts as settled."""


def put_images(path: Path, seed: int, rows: int = 20, *, labelled: bool = False) -> Path:
    """Write a settled file of drawn digits, with its labels if `labelled`."""
    images, labels = draw_digits(seed, "inbox", 0, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_idx(path, images)
    settle(path)
    if labelled:
        labels_path = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
        write_idx(labels_path, labels)
        settle(labels_path)
    return path


def settle(path: Path) -> Path:
    """Set a file's modification time to `LONG_AGO`."""
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


class Events(logging.Handler):
    """A logging handler that keeps all events."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.events: list[dict[str, Any]] = []
        self.called: Callable[[str], object] = lambda name: None
        """Called with the name of each event."""

    def emit(self, record: logging.LogRecord) -> None:
        name = getattr(record, "event", record.levelname)
        facts = {"text": record.getMessage(), **getattr(record, "facts", {})}
        self.events.append({"event": name, **facts})
        self.called(name)

    def named(self, name: str) -> list[dict[str, Any]]:
        """Return the events with this name."""
        return [event for event in self.events if event["event"] == name]


def score_inbox(
    run: Path, inbox: Path, gates: Gates | None = None, **options: Any
) -> ScoringResult:
    """Score an inbox."""
    how = {name: options.pop(name) for name in ("progress", "stop") if name in options}
    config = ScoreConfig(
        run=str(run), inbox=str(inbox), gates=gates or Gates(), **{"settle": 0.0} | options
    )
    return run_batch(config, **how)


def ledger(run: Path) -> list[Entry]:
    """Return the lines of a run's ledger."""
    return Ledger(open_location(run)).entries()


def recorded(run: Path) -> Iterator[tuple[str, str]]:
    """Yield the event and the file of each line of the ledger."""
    for line in ledger(run):
        yield line["event"], line["file"]
