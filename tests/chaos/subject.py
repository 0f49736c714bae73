"""The subject of all experiments: a small dataset, a small training, and their scores.

The oracle is the outcome of the undisturbed commands. Disturbed commands must end with the same
outcome.
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
from jobs.training.select_checkpoint import snapshots
from jobs.training.trainer import template
from pipeline.sources.digits import draw_digits
from storage.checkpoints import (
    Checkpoint,
    CheckpointName,
    list_checkpoints,
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
from tests.jobs.trainings import untimed
from tests.storage.idx_files import write_idx

ROWS_PER_CHUNK = 20
SPLITS = {"train": ("train", 90), "test": ("t10k", 31)}
"""For each split, the prefix of its files and its rows; the last chunk is short."""

CONFIG = TrainConfig(
    network="784-relu-4-softmax-10",
    epochs=3,
    batch_size=32,  # three batches of the 80 rows without the holdout, the last of 16
    learning_rate=0.01,
    shuffle_memory=2**20,
    holdout=10,
    checkpoint_every=2,
    keep=2,
    threads=1,
)
"""Settings of a run that saves within epochs, prunes, and has a best checkpoint."""

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A directory for the three commands."""

    home: Path
    source: Path
    """The directory of the IDX files; may be another subject's."""
    config: TrainConfig = CONFIG

    @property
    def dataset(self) -> Path:
        """The dataset that `ingest` makes."""
        return self.home / "dataset"

    @property
    def run(self) -> Path:
        """The run that `train` and `score` write."""
        return self.home / "run"

    @property
    def ingest(self) -> list[str]:
        """The arguments that make the dataset."""
        chunks = ["--rows-per-chunk", str(ROWS_PER_CHUNK)]
        return ["ingest", str(self.source), "--out", str(self.dataset), *chunks, "--quiet"]

    @property
    def train(self) -> list[str]:
        """The arguments that train, or resume training."""
        places = ["--dataset", str(self.dataset), "--run", str(self.run)]
        return ["train", *places, "--resume", *config_options(self.config), "--quiet"]

    @property
    def score(self) -> list[str]:
        """The arguments that score the test split."""
        return self.score_with(self.run)

    def score_with(self, run: Path) -> list[str]:
        """The arguments that score the test split with another run of the same model."""
        places = ["--dataset", str(self.dataset), "--run", str(run)]
        return ["score", *places, "--threads", "1", "--quiet"]

    @property
    def commands(self) -> dict[str, list[str]]:
        """The three commands by name, in the order to run them."""
        return {"ingest": self.ingest, "train": self.train, "score": self.score}

    @cached_property
    def scoring(self) -> Path:
        """The directory of the only scores."""
        (home,) = scoring_homes(open_location(self.run / SCORES))
        return self.run / SCORES / home

    def copy(self, home: Path) -> "Subject":
        """Copy all artefacts; the source is shared."""
        shutil.copytree(self.home, home, symlinks=True, ignore=shutil.ignore_patterns("source"))
        return Subject(home, self.source, self.config)

    def outcome(self) -> Outcome:
        """Read and check the artefacts that exist; return their reproducible content.

        The keys are `dataset`, `run` and `scores`. Raises `BadDataError` if one is damaged or
        incomplete.
        """
        readers: dict[str, tuple[Path, Callable[[Location], Outcome]]] = {
            "dataset": (self.dataset, dataset_outcome),
            "run": (self.run, run_outcome),
            "scores": (self.run / SCORES, scores_outcome),
        }
        return {
            name: read(open_location(path))
            for name, (path, read) in readers.items()
            if path.exists()
        }


def new_subject(
    home: Path, config: TrainConfig = CONFIG, *, times: int = 1, seed: int = 7
) -> Subject:
    """Create a directory with IDX files of drawn digits; `times` multiplies their rows."""
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
    """Create a subject and run its three commands; its outcome is the oracle."""
    subject = new_subject(home, config, times=times, seed=seed)
    for arguments in subject.commands.values():
        run_well(arguments)
    return subject


def run_well(arguments: list[str]) -> None:
    """Run a command in this process, and check that it succeeds."""
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
    """Return the dataset's digest, contents and rows, after reading and checking every chunk."""
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
    """Return the newest sound checkpoint's name, tensors and order, metrics and snapshots."""
    run = open_run(location)
    config = TrainConfig.from_json(run.configuration, str(location))
    newest = None
    for candidate in load_newest(run, template(config, parse_network(config.network))):
        newest = candidate if isinstance(candidate, Checkpoint) else None
    kept = set(list_checkpoints(run))
    rest = {
        "metrics": untimed(recorded_metrics(run)),
        "snapshots": [str(name) for name in snapshots(config, config.epochs) if name in kept],
    }
    if newest is None:
        return {"checkpoint": None} | rest
    return _of_checkpoint(newest) | rest


def checkpoint_outcome(run: Run, name: CheckpointName) -> Outcome:
    """Return a checkpoint's name, tensors and order."""
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
    """Return the checked predictions and untimed metrics of each scoring of a run."""
    return {home: _scoring_outcome(location.child(home)) for home in scoring_homes(location)}


def _scoring_outcome(location: Location) -> Outcome:
    scores = open_scores(location)
    content = hashlib.sha256()
    for number in range(scores.schema.chunks):
        probabilities, predicted = scores.read_chunk(number)
        content.update(probabilities.tobytes() + predicted.tobytes())
    metrics = {key: value for key, value in scores.metrics.items() if key != "seconds"}
    return {"digest": scores.digest, "content": content.hexdigest(), "metrics": metrics}


def longer(**settings: Any) -> TrainConfig:
    """Return `CONFIG` with other settings, for a longer training."""
    return replace(CONFIG, **settings)
