"""One training run, uninterrupted and stopped, for the tests of resuming."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.training.job import train
from jobs.training.result import TrainResult
from storage.checkpoints import CheckpointName
from tests.jobs.trainings import Log, outcome, small, stopped_at


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """An uninterrupted run of `SMALL`, with a checkpoint every four batches."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return train(small(checkpoint_every=4), dataset=digits, run=run)


@pytest.fixture(scope="module")
def expected(whole: TrainResult) -> dict[str, Any]:
    """The outcome of `whole`."""
    return outcome(whole)


@pytest.fixture
def finished(whole: TrainResult, tmp_path: Path) -> Path:
    """A copy of the run of `whole`, which a test may change."""
    return shutil.copytree(whole.run.location.path, tmp_path / "finished")


@pytest.fixture
def half_done(whole: TrainResult, tmp_path: Path) -> Path:
    """The run of `whole`, stopped in its fourth epoch, with the two checkpoints before."""
    run = stopped_at(whole.run.location.path, CheckpointName(3, 4), tmp_path / "half-done")
    for name in (CheckpointName(2, 8), CheckpointName(3, 0)):
        shutil.copytree(whole.run.location.path / name.key, run / name.key)
    return run


@pytest.fixture
def log(caplog: Log) -> Log:
    """The log of training, with its events."""
    caplog.set_level("INFO")
    return caplog
