"""Trainings that fail: what is raised, what the run records, and its end by the next resume."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.training.job import train
from pipeline.ingest import ingest
from storage.checkpoints import list_checkpoints
from storage.errors import (
    BadDataError,
    QualityGateError,
    UnreachableError,
)
from storage.places import open_location
from storage.runs import Run, open_run
from tests.jobs.trainings import small
from tests.storage.idx_files import write_set

DIVERGING = small(
    network="784-relu-9-relu-9-relu-9-softmax-10",
    optimizer="sgd",
    schedule="constant",
    learning_rate=1e6,
    l2=1e6,
)


def refuse(*_: object) -> None:
    raise UnreachableError("The disk is full.")


@pytest.mark.parametrize("evaluate", ["test", "none"])
@pytest.mark.parametrize(
    ("settings", "what"),
    [({}, "loss of step 2"), ({"batch_size": 0}, "(cross-entropy of test|loss of step 2)")],
)
def test_divergence(
    settings: dict[str, Any], what: str, evaluate: str, digits: Path, tmp_path: Path
) -> None:
    """Divergence ends with advice, without NumPy's warnings."""
    config = replace(DIVERGING, threads=2, evaluate=evaluate, **settings)
    with pytest.raises(QualityGateError, match=f"{what} is .*--learning-rate below 1e") as caught:
        train(config, dataset=digits, run=tmp_path / "run")
    assert str(caught.value) == open_run(open_location(tmp_path / "run")).failure()


def test_divergence_of_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters that are not finite are not saved, even if no loss has shown it yet.

    The cause is data of an early release, which accepted any finite number.
    """
    images = np.full((150, 1, 1), 1e35, np.float32)
    labels = (np.arange(150) % 2).astype(np.uint8)
    monkeypatch.setattr("pipeline.convert.check_values", lambda *_: None)
    ingest(str(write_set(tmp_path / "set", images, labels)), tmp_path / "data", scale="none")
    config = replace(DIVERGING, network="1-softmax-2", batch_size=0, evaluate="none", l2=0.0)
    words = r"largest parameter is .* row 0 of the train split holds 1e\+35"
    with pytest.raises(BadDataError, match=words) as caught:
        train(config, dataset=tmp_path / "data", run=tmp_path / "run")
    run = open_run(open_location(tmp_path / "run"))
    assert [] == list_checkpoints(run)
    assert str(caught.value) == run.failure()


def test_a_failure_is_recorded_until_the_next_resume(digits: Path, tmp_path: Path) -> None:
    """A damaged chunk is recorded as the reason; a connection failure or a signal is not."""
    dataset, place = tmp_path / "data", tmp_path / "run"
    chunk = shutil.copytree(digits, dataset) / "train" / "inputs" / "c.0.0"
    intact = chunk.read_bytes()
    config = small(epochs=2)
    chunk.write_bytes(b"x" * len(intact))
    with pytest.raises(BadDataError, match="Chunk 0"):
        train(config, dataset=dataset, run=place)
    run = open_run(open_location(place))
    assert "Chunk 0" in str(run.failure())

    def lose_connection(*_: object) -> None:
        assert run.failure() is None
        raise UnreachableError("The disk is gone.")

    chunk.write_bytes(intact)
    with pytest.raises(UnreachableError):
        train(config, dataset=dataset, run=place, resume=True, progress=lose_connection)
    assert run.failure() is None
    assert 2 == len(train(config, dataset=dataset, run=place, resume=True).metrics)


def test_a_failure_that_cannot_be_recorded(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is the training's, even if its record cannot be written."""
    monkeypatch.setattr(Run, "record_failure", refuse)
    with pytest.raises(QualityGateError, match="diverged"):
        train(DIVERGING, dataset=digits, run=tmp_path / "run")
