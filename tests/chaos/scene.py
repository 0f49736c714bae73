"""What the experiments with real processes share: commands that last, and what they must give.

The subject is larger than that of the experiments inside one process: an undisturbed command
writes for some time after its start, so that a moment drawn at random falls anywhere.
"""

import atexit
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from storage.location import open_location
from storage.runs import SCORES
from tests.chaos.processes import Command, Work, measure
from tests.chaos.subject import (
    SPLITS,
    Outcome,
    Subject,
    dataset_outcome,
    longer,
    new_subject,
    undisturbed,
)

TIMES = 10
"""900 training rows in 45 chunks, 310 test rows in 16."""
CONFIG = longer(epochs=6, batch_size=67, checkpoint_every=4)
"""An epoch has two windows, and 14 batches, the last of 19 rows."""


@dataclass(frozen=True)
class Scene:
    """A directory for the cases, and what comes of the three commands undisturbed."""

    place: Path
    oracle: Subject
    other: Subject
    """Of other rows: its dataset is another."""
    outcome: Outcome
    other_dataset: Outcome
    work: dict[str, Work]
    """How long each command takes."""

    @property
    def batches(self) -> int:
        """Mini-batches of an epoch."""
        return -(-(TIMES * SPLITS["train"][1] - CONFIG.holdout) // CONFIG.batch_size)

    def ingest(self, dataset: Path, *options: str, other: bool = False) -> Command:
        """Make a dataset of one source or the other."""
        return ingest(self.other if other else self.oracle, dataset, *options)

    def train(self, run: Path) -> Command:
        """Begin a run on the oracle's dataset, or go on with it."""
        return train(self.oracle, run)

    def score(self, run: Path) -> Command:
        """Score the test split with a run."""
        return score(self.oracle, run)

    @contextmanager
    def case(self) -> Iterator[Path]:
        """An empty directory for one case."""
        with TemporaryDirectory(dir=self.place) as directory:
            yield Path(directory)

    def unscored_run(self, directory: Path) -> Path:
        """The oracle's run, copied without its scoring."""
        names = shutil.ignore_patterns(SCORES, ".lock")
        return Path(shutil.copytree(self.oracle.run, directory / "run", ignore=names))


def ingest(subject: Subject, dataset: Path, *options: str) -> Command:
    """Make a subject's dataset elsewhere."""
    arguments = (*subject.ingest, "--out", str(dataset), *options)
    return Command(arguments, dataset.with_name(f".{dataset.name}.lock"))


def train(subject: Subject, run: Path) -> Command:
    """Do a subject's training in another run."""
    return Command((*subject.train, "--run", str(run)), run / ".lock")


def score(subject: Subject, run: Path) -> Command:
    """Score with another run of the same model."""
    home = subject.scoring
    return Command(
        (*subject.score, "--run", str(run)),
        run / SCORES / home.with_name(f".{home.name}.lock").name,
    )


@cache
def scene() -> Scene:
    """The one scene of this process: every command run once here, and once more to take its time.

    Its directory goes when the process ends. Worker processes are given it.
    """
    directory = TemporaryDirectory(prefix="chaos-")
    atexit.register(directory.cleanup)
    place = Path(directory.name)
    oracle = undisturbed(place / "oracle", CONFIG, times=TIMES)
    other = new_subject(place / "other", CONFIG, times=TIMES, seed=8)
    timed = place / "timed"
    work = {
        "ingest": measure(ingest(other, other.dataset)),
        "train": measure(train(oracle, timed)),
        "score": measure(score(oracle, timed)),
    }
    other_dataset = dataset_outcome(open_location(other.dataset))
    return Scene(place, oracle, other, oracle.outcome(), other_dataset, work)
