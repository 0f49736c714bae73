"""Datasets that a model can score: shapes, types, classes, labels, and missing splits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.scoring.gates import Gates
from jobs.scoring.job import score
from jobs.training.config import TrainConfig
from jobs.training.job import train
from pipeline.ingest import ingest
from storage.dataset import open_dataset
from storage.errors import BadDataError, PipelineError, UsageError
from storage.places import open_location
from storage.runs import open_run
from tests.jobs.inboxes import Events
from tests.storage.artefacts import stored_rows
from tests.storage.idx_files import write_idx


def unlabelled_test(digits: Path, directory: Path) -> Path:
    """Ingest a copy of `digits` whose test split has no labels."""
    directory.mkdir()
    opened = open_dataset(open_location(digits))
    for prefix, split, labelled in (("train", "train", True), ("t10k", "test", False)):
        rows = stored_rows(opened.split(split))
        assert rows.targets is not None
        images = rows.inputs[:, 1:].reshape(-1, 28, 28)
        write_idx(directory / f"{prefix}-images-idx3-ubyte", images)
        if labelled:
            labels = rows.targets.argmax(axis=1).astype(np.uint8)
            write_idx(directory / f"{prefix}-labels-idx1-ubyte", labels)
    ingest(str(directory), directory / "data", rows_per_chunk=230)
    return directory / "data"


def test_unlabelled(run: Path, digits: Path, tmp_path: Path) -> None:
    """A split without labels gets the same scores, without metrics."""
    result = score(run=run, dataset=unlabelled_test(digits, tmp_path / "set"))
    assert result.metrics["quality"] is None
    labelled = score(run=run, dataset=digits)
    assert labelled.scores.digest == result.scores.digest
    assert labelled.scores.location != result.scores.location


def other_set(directory: Path, side: int, classes: int) -> Path:
    """Ingest random images of `side` x `side` pixels."""
    directory.mkdir()
    images = np.random.default_rng(1).integers(0, 256, (30, side, side), dtype=np.uint8)
    write_idx(directory / "train-images-idx3-ubyte", images)
    labels = (np.arange(30) % classes).astype(np.uint8)
    write_idx(directory / "train-labels-idx1-ubyte", labels)
    ingest(str(directory), directory / "data")
    return directory / "data"


def letters(directory: Path, labels: list[int], *, labelled: bool = True) -> Path:
    """Ingest random images of 3 x 3 pixels with the given labels."""
    directory.mkdir()
    images = np.random.default_rng(2).integers(0, 256, (len(labels), 3, 3), dtype=np.uint8)
    write_idx(directory / "train-images-idx3-ubyte", images)
    if labelled:
        write_idx(directory / "train-labels-idx1-ubyte", np.array(labels, np.uint8))
    ingest(str(directory), directory / "data")
    return directory / "data"


@pytest.fixture
def letters_run(tmp_path: Path) -> Path:
    """A run with the classes 4, 7 and 9."""
    config = TrainConfig(network="9-softmax-3", epochs=1, batch_size=5, evaluate="none")
    train(config, dataset=letters(tmp_path / "l", [9, 4, 7] * 5), run=tmp_path / "letters")
    return tmp_path / "letters"


def test_class_names_of_unlabelled_rows(letters_run: Path, tmp_path: Path) -> None:
    """The class names are the model's, for rows without labels too."""
    dataset = letters(tmp_path / "u", [4, 7], labelled=False)
    result = score(run=letters_run, dataset=dataset, split="train")
    assert ("4", "7", "9") == result.scores.schema.class_names


def test_a_dataset_that_lacks_a_class(letters_run: Path, tmp_path: Path) -> None:
    """Classes are compared by name: a dataset may lack some of the model's."""
    dataset = letters(tmp_path / "some", [9, 7, 9, 9])
    result = score(run=letters_run, dataset=dataset, split="train", out=tmp_path / "some.csv")
    quality = result.metrics["quality"]
    assert [("4", 0), ("7", 1), ("9", 3)] == [
        (one["name"], one["rows"]) for one in quality["classes"]
    ]
    _, predicted = result.scores.read_chunk(0)
    expected = np.mean(np.array(["4", "7", "9"])[predicted] == np.array(["9", "7", "9", "9"]))
    assert expected == quality["accuracy"]
    lines = (tmp_path / "some.csv").read_text().splitlines()
    assert ["true", "9", "7", "9", "9"] == [line.split(",")[3] for line in lines]


def test_other_element_type(letters_run: Path, tmp_path: Path) -> None:
    """A model trained on bytes refuses floats; the message names both types."""
    directory = tmp_path / "floats"
    directory.mkdir()
    write_idx(directory / "train-images-idx3-float", np.ones((4, 3, 3), np.float32))
    ingest(str(directory), directory / "data")
    words = "data holds values of type float32; the run was trained on values of type uint8."
    with pytest.raises(BadDataError, match=words):
        score(run=letters_run, dataset=directory / "data", split="train")


@pytest.mark.parametrize(
    ("side", "classes", "error", "words"),
    [
        (
            27,
            10,
            BadDataError,
            ("of 27 x 27; the run was trained on images of 28 x 28",),
        ),
        (28, 11, UsageError, ("not trained on: 10;", "the model has 0, 1, 2, 3, 4, 5, 6, 7, 8, 9")),
    ],
)
def test_model_that_does_not_fit(
    side: int,
    classes: int,
    error: type[PipelineError],
    words: tuple[str, ...],
    run: Path,
    tmp_path: Path,
) -> None:
    """A dataset whose shape or classes differ from the model's is refused; both are named."""
    dataset = other_set(tmp_path / "set", side, classes)
    with pytest.raises(error) as caught:
        score(run=run, dataset=dataset, split="train")
    assert [] == [word for word in words if word not in str(caught.value)]
    assert not (run / "scores").exists()


@pytest.mark.parametrize(
    ("missing", "error", "message"),
    [
        ("run", BadDataError, "There is no run at"),
        ("dataset", BadDataError, "There is no dataset at"),
        ("split", UsageError, "no split 'tset'; .* one of: train, test. Did you mean 'test'"),
    ],
)
def test_missing(
    missing: str, error: type[PipelineError], message: str, run: Path, digits: Path, tmp_path: Path
) -> None:
    """The message names a missing run, dataset or split, and the splits that exist."""
    arguments: dict[str, Any] = {"run": run, "dataset": digits, "split": "test"}
    arguments[missing] = "tset" if missing == "split" else tmp_path / "absent"
    with pytest.raises(error, match=message):
        score(**arguments)


def test_rows_that_arrive_separately(run: Path, tmp_path: Path) -> None:
    """Without a test split the message recommends an inbox."""
    dataset = other_set(tmp_path / "set", 28, 10)
    with pytest.raises(UsageError, match=r"no split 'test'; .* one of: train. .* --inbox DIRECT"):
        score(run=run, dataset=dataset)


@pytest.mark.parametrize("gates", [Gates(), Gates(min_accuracy=0.1)])
def test_held_out_rows_are_no_split(gates: Gates, run: Path, digits: Path) -> None:
    """The message explains the held-out rows, and names the command that shows their accuracy."""
    record = open_run(open_location(run))
    record.reconfigured(record.configuration | {"holdout": 1000})
    with pytest.raises(UsageError, match=r"held out its last 1,000 training rows .* inspect"):
        score(run=run, dataset=digits, split="validation", gates=gates)


def test_rows_that_were_trained_on(run: Path, digits: Path, tmp_path: Path, events: Events) -> None:
    """Scoring the run's own training rows causes a warning; another dataset causes none."""
    score(run=run, dataset=other_set(tmp_path / "set", 28, 10), split="train")
    score(run=run, dataset=digits, split="test")
    assert [] == events.named("WARNING")
    score(run=run, dataset=digits, split="train")
    (text,) = [warning["text"] for warning in events.named("WARNING")]
    assert f"includes the rows that {run} was trained on" in text
