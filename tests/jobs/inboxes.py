"""An inbox and a run to score it with: files of a few rows, and what came of them."""

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
"""When files were last written that have settled: in 2023."""


def put_images(path: Path, seed: int, rows: int = 20, *, labelled: bool = False) -> Path:
    """A settled file of drawn digits and, if wanted, its labels beside it."""
    images, labels = draw_digits(seed, "inbox", 0, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_idx(path, images)
    settle(path)
    if labelled:
        beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
        write_idx(beside, labels)
        settle(beside)
    return path


def settle(path: Path) -> Path:
    """Have a file look as if nobody had written to it for long."""
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


class Events(logging.Handler):
    """Keeps every event."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []
        self.called: Callable[[str], object] = lambda name: None
        """Called with the name of each event."""

    def emit(self, record: logging.LogRecord) -> None:
        name = getattr(record, "event", record.levelname)
        facts = {"text": record.getMessage(), **getattr(record, "facts", {})}
        self.events.append({"event": name, **facts})
        self.called(name)

    def named(self, name: str) -> list[dict[str, Any]]:
        """Return the events of a name."""
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
    """The lines of a run's ledger."""
    return Ledger(open_location(run)).entries()


def recorded(run: Path) -> Iterator[tuple[str, str]]:
    """What each line is, and of which file."""
    for line in ledger(run):
        yield line["event"], line["file"]
