"""One training, whole and in pieces, that the tests of resuming start from."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.training.job import TrainResult, train
from storage.checkpoints import CheckpointName
from tests.jobs.trainings import Log, outcome, small, stopped_at


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """`SMALL`, never stopped, with a checkpoint every four batches."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return train(small(checkpoint_every=4), dataset=digits, run=run)


@pytest.fixture(scope="module")
def expected(whole: TrainResult) -> dict[str, Any]:
    """What `whole` came to."""
    return outcome(whole)


@pytest.fixture
def finished(whole: TrainResult, tmp_path: Path) -> Path:
    """A copy of the run of `whole`, to do as one likes with."""
    return shutil.copytree(whole.run.location.path, tmp_path / "finished")


@pytest.fixture
def half_done(whole: TrainResult, tmp_path: Path) -> Path:
    """The run of `whole`, stopped in its fourth epoch; it has the two checkpoints before, too."""
    run = stopped_at(whole.run.location.path, CheckpointName(3, 4), tmp_path / "half-done")
    for name in (CheckpointName(2, 8), CheckpointName(3, 0)):
        shutil.copytree(whole.run.location.path / name.key, run / name.key)
    return run


@pytest.fixture
def log(caplog: Log) -> Log:
    """What a training logs, events too."""
    caplog.set_level("INFO")
    return caplog
