"""The subject of all experiments: a small set, a small training, and the oracle that judges them.

The oracle is the outcome of the run that nothing ever disturbed; whatever is done to another run
of the same commands, it must come to the same in the end.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs.nn.architecture import parse_network
from jobs.training.config import TrainConfig
from jobs.training.trainer import template
from pipeline.sources.digits import draw_digits
from storage.checkpoints import (
    Checkpoint,
    CheckpointName,
    load_checkpoint,
    load_newest,
    recorded_metrics,
)
from storage.dataset import open_dataset
from storage.location import Location
from storage.places import open_location
from storage.runs import SCORES, Run, open_run
from storage.scores import open_scores, scoring_homes
from tests.commands.process import run_here
from tests.storage.idx_files import write_idx

ROWS_PER_CHUNK = 20
SPLITS = {"train": ("train", 90), "test": ("t10k", 31)}
"""By split, how its files are called, and its rows: the last chunk is a short one."""

CONFIG = TrainConfig(
    network="784-relu-4-softmax-10",
    epochs=3,
    batch_size=32,  # three batches of the 80 rows that are left, the last of 16
    learning_rate=0.01,
    shuffle_memory=2**20,
    holdout=10,
    checkpoint_every=2,
    keep=2,
    threads=1,
)
"""A training that saves within epochs, prunes, and has a best checkpoint."""

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A directory in which the three commands have been, or are to be, run."""

    home: Path
    source: Path
    """The IDX files; may be another subject's."""
    config: TrainConfig = CONFIG

    @property
    def dataset(self) -> Path:
        """Where `ingest` publishes."""
        return self.home / "dataset"

    @property
    def run(self) -> Path:
        """Where `train` and `score` write."""
        return self.home / "run"

    @property
    def ingest(self) -> list[str]:
        """The arguments of `pipeline` that make the dataset."""
        chunks = ["--rows-per-chunk", str(ROWS_PER_CHUNK)]
        return ["ingest", str(self.source), "--out", str(self.dataset), *chunks, "--quiet"]

    @property
    def train(self) -> list[str]:
        """The arguments that train, or go on training."""
        places = ["--dataset", str(self.dataset), "--run", str(self.run)]
        return ["train", *places, "--resume", *config_options(self.config), "--quiet"]

    @property
    def score(self) -> list[str]:
        """The arguments that score the test split."""
        places = ["--dataset", str(self.dataset), "--run", str(self.run)]
        return ["score", *places, "--threads", "1", "--quiet"]

    @property
    def commands(self) -> dict[str, list[str]]:
        """The three by name, in the order in which each finds what it needs."""
        return {"ingest": self.ingest, "train": self.train, "score": self.score}

    @cached_property
    def scoring(self) -> Path:
        """The one scoring's directory."""
        (home,) = scoring_homes(open_location(self.run / SCORES))
        return self.run / SCORES / home

    def copy(self, home: Path) -> "Subject":
        """A copy of all that the commands made, with the same source."""
        shutil.copytree(self.home, home, symlinks=True, ignore=shutil.ignore_patterns("source"))
        return Subject(home, self.source, self.config)

    def outcome(self) -> Outcome:
        """All that must be the same in the end, of what there is: read, and checked.

        Keys are `dataset`, `run` and `scores`, where each is there. Raises `BadDataError` where
        one is damaged or incomplete.
        """
        found: dict[str, tuple[Path, Callable[[Location], Outcome]]] = {
            "dataset": (self.dataset, dataset_outcome),
            "run": (self.run, run_outcome),
            "scores": (self.run / SCORES, scores_outcome),
        }
        return {
            name: read(open_location(path)) for name, (path, read) in found.items() if path.exists()
        }


def new_subject(
    home: Path, config: TrainConfig = CONFIG, *, times: int = 1, seed: int = 7
) -> Subject:
    """A directory with a source of drawn digits, in which nothing has been run.

    The source has so many times the rows, for commands that are to last.
    """
    source = home / "source"
    source.mkdir(parents=True)
    for split, (name, rows) in SPLITS.items():
        images, labels = draw_digits(seed, split, 0, times * rows)
        write_idx(source / f"{name}-images-idx3-ubyte", images)
        write_idx(source / f"{name}-labels-idx1-ubyte", labels)
    return Subject(home, source, config)


def undisturbed(
    home: Path, config: TrainConfig = CONFIG, *, times: int = 1, seed: int = 7
) -> Subject:
    """A subject whose three commands have been run to their ends; its outcome is the oracle."""
    subject = new_subject(home, config, times=times, seed=seed)
    for arguments in subject.commands.values():
        run_well(arguments)
    return subject


def run_well(arguments: list[str]) -> None:
    """Run a command in this process, which is to end well."""
    ended = run_here(*arguments)
    assert 0 == ended.code, ended.err


def config_options(config: TrainConfig) -> list[str]:
    """Return the options of `pipeline train` for all settings that have an effect."""
    options = []
    for setting in fields(config):
        if setting in config.without_effect():
            continue
        name, value = "--" + setting.name.replace("_", "-"), getattr(config, setting.name)
        if isinstance(value, bool):
            options.append(name if value else f"--no-{name[2:]}")
        elif value is not None:
            options += [name, str(value)]
    return options


def dataset_outcome(location: Location) -> Outcome:
    """The dataset's digest and each split's rows, every chunk having been read and checked."""
    dataset = open_dataset(location)
    content = hashlib.sha256()
    for split in dataset.splits.values():
        for number in range(split.schema.chunks):
            content.update(split.read_chunk(number).digest())
    return {
        "digest": dataset.digest,
        "content": content.hexdigest(),
        "rows": {name: split.schema.rows for name, split in dataset.splits.items()},
    }


def run_outcome(location: Location) -> Outcome:
    """The newest checkpoint's name, tensors and order, and the metrics without how long they took.

    A checkpoint that is damaged is passed over, as a resume would.
    """
    run = open_run(location)
    config = TrainConfig.from_json(run.configuration, str(location))
    newest = None
    for found in load_newest(run, template(config, parse_network(config.network))):
        newest = found if isinstance(found, Checkpoint) else None
    metrics = {"metrics": untimed(recorded_metrics(run))}
    if newest is None:
        return {"checkpoint": None} | metrics
    return _of_checkpoint(newest) | metrics


def checkpoint_outcome(run: Run, name: CheckpointName) -> Outcome:
    """One checkpoint's name, tensors and order."""
    return _of_checkpoint(load_checkpoint(run, name))


def _of_checkpoint(checkpoint: Checkpoint) -> Outcome:
    tensors = hashlib.sha256()
    for name in sorted(checkpoint.tensors):
        tensors.update(name.encode() + checkpoint.tensors[name].tobytes())
    return {
        "checkpoint": str(checkpoint.name),
        "parameters_digest": checkpoint.parameters_digest,
        "tensors": tensors.hexdigest(),
        "order_digest": checkpoint.progress["stream"]["order_digest"],
    }


def scores_outcome(location: Location) -> Outcome:
    """Of each scoring of a run: its predictions, read and checked, and its untimed metrics."""
    return {home: _scoring_outcome(location.child(home)) for home in scoring_homes(location)}


def _scoring_outcome(location: Location) -> Outcome:
    scores = open_scores(location)
    content = hashlib.sha256()
    for number in range(scores.schema.chunks):
        probabilities, predicted = scores.read_chunk(number)
        content.update(probabilities.tobytes() + predicted.tobytes())
    metrics = {key: value for key, value in scores.metrics.items() if key != "seconds"}
    return {"digest": scores.digest, "content": content.hexdigest(), "metrics": metrics}


def untimed(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of metrics without how long they took, which no two runs share."""
    return [{key: line[key] for key in line if key != "timing"} for line in metrics]


def longer(**settings: Any) -> TrainConfig:
    """`CONFIG` with other settings, for a training that lasts."""
    return replace(CONFIG, **settings)
