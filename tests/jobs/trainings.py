"""Small training runs, their comparable outcome, and a process that resumes them.

python -m tests.jobs.trainings RESUME DATASET RUN...
python -m tests.jobs.trainings PAUSE DATASET RUN STEP
"""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from jobs.signals import StopSignal, stop_on_signals
from jobs.training.config import TrainConfig
from jobs.training.job import train
from jobs.training.result import TrainResult
from storage.checkpoints import STATE, CheckpointName, list_checkpoints
from storage.errors import PipelineError
from storage.places import open_location
from storage.runs import open_run

REPOSITORY = Path(__file__).parents[2]

Log: TypeAlias = pytest.LogCaptureFixture

SMALL = TrainConfig(
    network="784-relu-9-softmax-10",
    epochs=6,
    batch_size=97,  # 11 batches of the 1,031 rows, the last of 61
    micro_batches=2,  # so that two processes share a step
    learning_rate=0.01,
    shuffle_memory=2**20,  # two windows of two chunks: an epoch has three
    keep=1000,
)
"""Settings for training on the dataset `digits`."""


def small(**settings: Any) -> TrainConfig:
    """`SMALL` with other settings."""
    return replace(SMALL, **settings)


def untimed(metrics: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics without the timing, which differs between runs."""
    return [{key: line[key] for key in line if key != "timing"} for line in metrics]


def outcome(result: TrainResult) -> dict[str, Any]:
    """The parts of a run that must not depend on interruptions, as a JSON object."""
    run = result.run
    last = run.location.path / list_checkpoints(run)[-1].key / STATE
    assert run.metrics() == list(result.metrics)
    return {
        "parameters_digest": result.parameters_digest,
        "order_digest": result.order_digest,
        "metrics": untimed(result.metrics),
        "best": str(result.best),
        "stopped_early": result.stopped_early,
        "optimizer_too": hashlib.sha256(last.read_bytes()).hexdigest(),
    }


def checkpoints(run: Path) -> list[CheckpointName]:
    """The names of a run's checkpoints, oldest first."""
    return list_checkpoints(open_run(open_location(run)))


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory with its content, except locks."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def stopped_at(run: Path, checkpoint: CheckpointName, copy: Path) -> Path:
    """A copy of a run, as after a crash right after that checkpoint.

    Its metrics.jsonl has all lines: a resume removes those after the checkpoint.
    """
    copy.mkdir()
    for name in ("run.json", "metrics.jsonl"):
        shutil.copy(run / name, copy)
    shutil.copytree(run / checkpoint.key, copy / checkpoint.key)
    return copy


class StopAt:
    """Progress that requests a stop in the given step of this process, as a signal would."""

    def __init__(self, step: int) -> None:
        self.signal = StopSignal()
        self._left = step

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        self._left -= 1
        if not self._left:
            self.signal.number = 15


def resumed_at(log: Log) -> list[str]:
    """The checkpoints from which training was resumed."""
    facts = [vars(record).get("facts", {}) for record in log.records]
    return [names["checkpoint"] for names in facts if "checkpoint" in names]


def warnings_in(log: Log) -> list[str]:
    """The warnings that were logged."""
    return [record.getMessage() for record in log.records if record.levelno == logging.WARNING]


def new_process(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """This module in a new Python process, with pipes for all three of its streams."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.jobs.trainings", *map(str, arguments)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def _recorded(run: Path) -> TrainConfig:
    return TrainConfig.from_json(open_run(open_location(run)).configuration, str(run))


class _PauseAt:
    """Progress that prints a line in the given step, and waits for one."""

    def __init__(self, step: int) -> None:
        self._left = step

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        self._left -= 1
        if not self._left:
            print("paused", flush=True)
            sys.stdin.readline()


def _main(action: str, dataset: str, *arguments: str) -> None:
    if action == "RESUME":
        for run in map(Path, arguments):
            # Without checkpoints within the epochs, which saves time.
            config = replace(_recorded(run), checkpoint_every=0)
            result = train(config, dataset=dataset, run=run, resume=True)
            print(json.dumps(outcome(result)))
        return
    run, step = Path(arguments[0]), int(arguments[1])
    with stop_on_signals() as stop:
        try:
            train(
                _recorded(run),
                dataset=dataset,
                run=run,
                resume=True,
                progress=_PauseAt(step),
                stop=stop,
            )
        except PipelineError as error:
            print(error)
            sys.exit(error.exit_code)


if __name__ == "__main__":
    _main(*sys.argv[1:])
