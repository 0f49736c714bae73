"""What the experiments with real processes work on: commands that last, and what they must give.

The subject is larger than that of the experiments inside one process: an undisturbed command
works for about a second after its start, so that a moment drawn at random falls anywhere.
"""

import hashlib
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from jobs.config import TrainConfig
from jobs.score import score
from jobs.train import train
from pipeline.digits import draw_digits
from pipeline.ingest import ingest
from storage.checkpoints import STATE, Checkpoint, list_checkpoints, load_checkpoint
from storage.dataset import open_dataset
from storage.idx import write_idx
from storage.location import open_location
from storage.predictions import open_scores
from storage.runs import Run, open_run
from tests.chaos.processes import Command

TRAIN_ROWS = 1210
TEST_ROWS = 410
CHUNK_ROWS = 30  # 41 and 14 chunks, the last ones short
CONFIG = TrainConfig(
    network="784-relu-8-softmax-10",
    epochs=5,
    batch_size=43,
    holdout=60,
    shuffle_memory=2**20,  # two windows: an epoch has several
    checkpoint_every=4,
    keep=2,
    threads=2,
)

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """A directory with sources, and what came of them where nothing was disturbed."""

    place: Path
    home: str
    """The directory of the scoring, below the run's `scores`."""
    dataset: Outcome
    other_dataset: Outcome
    """Made of the other source."""
    run: Outcome
    scores: Outcome

    def ingest(self, out: Path, *, other: bool = False, overwrite: bool = False) -> Command:
        """Make a dataset at `out` of the one source or the other."""
        arguments = ["ingest", str(self.place / ("other" if other else "source"))]
        arguments += ["--out", str(out), "--rows-per-chunk", str(CHUNK_ROWS)]
        arguments += ["--overwrite"] * overwrite
        return Command(tuple(arguments), self.place, out.parent / f".{out.name}.lock")

    def train(self, run: Path, dataset: Path | None = None) -> Command:
        """Begin the run, or go on with it."""
        settings = [
            f"--{name.replace('_', '-')}={value}"
            for name, value in CONFIG.to_json().items()
            if value != getattr(TrainConfig(), name)
        ]
        arguments = ["train", "--dataset", str(dataset or self.place / "dataset")]
        arguments += ["--run", str(run), "--resume", *settings]
        return Command(tuple(arguments), self.place, run / ".lock")

    def score(self, run: Path, dataset: Path | None = None) -> Command:
        """Score the test split with the run's best checkpoint."""
        arguments = ["score", "--dataset", str(dataset or self.place / "dataset")]
        arguments += ["--run", str(run), "--threads", "2"]
        return Command(tuple(arguments), self.place, run / "scores" / f".{self.home}.lock")

    def unscored_run(self, copy: Path) -> Path:
        """A copy of the finished run, without its scoring."""
        shutil.copytree(self.place / "run", copy, ignore=shutil.ignore_patterns("scores", ".lock"))
        return copy


@cache
def scene() -> Scene:
    """The one scene of this process; its directory goes when the process ends."""
    place = Path(mkdtemp(prefix="chaos-"))
    atexit_remove(place)
    for name, seed in (("source", 1), ("other", 2)):
        write_source(place / name, seed)
    dataset, other, run = place / "dataset", place / "other-dataset", place / "run"
    ingest(str(place / "source"), dataset, rows_per_chunk=CHUNK_ROWS)
    ingest(str(place / "other"), other, rows_per_chunk=CHUNK_ROWS)
    train(CONFIG, dataset=dataset, run=run)
    scores = score(run=run, dataset=dataset).scores.location.path
    return Scene(
        place,
        scores.name,
        dataset_outcome(dataset),
        dataset_outcome(other),
        run_outcome(run),
        scores_outcome(scores),
    )
