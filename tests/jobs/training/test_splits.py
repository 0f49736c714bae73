"""Splits that are missing or have no labels: not evaluated, or refused with advice."""

from pathlib import Path

import numpy as np
import pytest

from jobs.training.job import train
from pipeline.ingest import ingest
from pipeline.sources.digits import draw_digits
from storage.errors import BadDataError, UsageError
from storage.places import open_location
from storage.runs import open_run
from tests.jobs.trainings import Log, small
from tests.storage.idx_files import write_idx, write_set


def test_missing_split(tmp_path: Path, log: Log) -> None:
    """A split to evaluate must exist; without a labelled one, the log recommends --holdout."""
    data, run = tmp_path / "data", tmp_path / "run"
    ingest("synthetic:60,0", data)
    with pytest.raises(UsageError, match=r"no split 'test' .* --evaluate train"):
        train({"evaluate": "test", "batch_size": 9}, dataset=data, run=run)
    assert not run.exists()
    result = train({"epochs": 1, "batch_size": 20}, dataset=data, run=run)
    assert ({}, "none") == (result.metrics[0]["evaluation"], result.config.evaluate)
    assert 1 == log.text.count("pass --holdout ROWS to keep training rows for it.")
    assert "none" == open_run(open_location(run)).configuration["evaluate"]


def test_test_split_without_labels(tmp_path: Path) -> None:
    """A test split without labels is not evaluated; asking for it is refused."""
    source, data = tmp_path / "set", tmp_path / "data"
    write_set(source, *draw_digits(0, "train", 0, 80))
    (source / "t10k-labels-idx1-ubyte").unlink()
    ingest(str(source), data)
    with pytest.raises(BadDataError, match=r"test split of .* has no labels to evaluate by"):
        train({"evaluate": "test", "batch_size": 9}, dataset=data, run=tmp_path / "run")
    result = train({"epochs": 1, "batch_size": 20}, dataset=data, run=tmp_path / "run")
    assert "none" == result.config.evaluate


def test_validation_split_without_labels(tmp_path: Path) -> None:
    """A validation split needs labels; leaving it out of --evaluate would not help."""
    images, labels = draw_digits(0, "train", 0, 80)
    write_set(tmp_path / "set", images, labels)
    write_idx(tmp_path / "set" / "validation-images-idx3-ubyte", images[:9])
    ingest(str(tmp_path / "set"), tmp_path / "data")
    with pytest.raises(BadDataError, match=r"validation split .* evaluate by\. Ingest"):
        train({"batch_size": 9}, dataset=tmp_path / "data", run=tmp_path / "run")


def test_unlabelled(tmp_path: Path) -> None:
    """A dataset without labels is refused: there is nothing to learn."""
    (tmp_path / "set").mkdir()
    write_idx(tmp_path / "set" / "train-images-idx3-ubyte", np.zeros((9, 2, 2), np.uint8))
    ingest(str(tmp_path / "set"), tmp_path / "data")
    with pytest.raises(BadDataError, match="no labels; there is nothing to learn"):
        train(small(network="4-softmax-2"), dataset=tmp_path / "data", run=tmp_path / "run")
