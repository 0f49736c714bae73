"""Scoring: a model's probabilities for every row, once, whatever happens on the way."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.nn.network import Network
from jobs.scoring.config import ScoreConfig
from jobs.scoring.job import run_batch, score
from jobs.scoring.promote import PromoteConfig, promote
from jobs.scoring.result import ScoreResult
from jobs.signals import StopSignal
from jobs.training.config import TrainConfig
from jobs.training.job import TrainResult, train
from jobs.training.model import model_of
from jobs.training.select_checkpoint import choose_checkpoint
from pipeline.ingest import ingest
from storage.checkpoints import STATE, CheckpointName
from storage.dataset import Split, open_dataset
from storage.errors import (
    BadDataError,
    InternalError,
    PipelineError,
    StoppedError,
    UsageError,
)
from storage.places import open_location
from storage.runs import SCORES, open_run
from tests.jobs.inboxes import Events
from tests.jobs.trainings import small
from tests.pipeline.datasets import watched_windows
from tests.storage.artefacts import stored_rows
from tests.storage.idx_files import write_idx

CONFIG = small(epochs=2, learning_rate=0.03, dtype="float32")


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run of two epochs."""
    return train(CONFIG, dataset=digits, run=tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def run(trained: TrainResult, tmp_path: Path) -> Path:
    """A copy of it without scores, to do as one likes with."""
    return shutil.copytree(trained.run.location.path, tmp_path / "run")


def predictions(result: ScoreResult) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """All probabilities `(rows, classes)` and predicted classes `(rows,)`."""
    chunks = [result.scores.read_chunk(number) for number in range(result.scores.schema.chunks)]
    return np.concatenate([one for one, _ in chunks]), np.concatenate([two for _, two in chunks])


def direct(
    run: Path, dataset: Path, split: str, checkpoint: str = "latest"
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities of all rows at once, in float64, and the labels."""
    stored = stored_rows(open_dataset(open_location(dataset)).split(split))
    assert stored.targets is not None
    trained = open_run(open_location(run))
    model = model_of(trained, choose_checkpoint(trained, checkpoint)[0])
    network = Network(model.network.layers, "float64")
    probabilities = network.forward(model.parameters.astype("float64"), stored.inputs / 255)
    return np.asarray(probabilities, np.float64), stored.targets.argmax(axis=1)


@pytest.mark.parametrize("split", ["train", "test"])
def test_scores(split: str, run: Path, digits: Path) -> None:
    """The scores are the network's probabilities, row by row, and the figures are theirs."""
    result = score(run=run, dataset=digits, split=split)
    probabilities, predicted = predictions(result)
    expected, labels = direct(run, digits, split)
    np.testing.assert_allclose(probabilities, expected, rtol=2e-4, atol=1e-7)
    assert expected.argmax(axis=1).tolist() == predicted.tolist()
    assert ("float32", "int32") == (str(probabilities.dtype), str(predicted.dtype))
    quality = result.metrics["quality"]
    assert float(np.mean(predicted == labels)) == quality["accuracy"]
    cross_entropy = -np.log(expected[np.arange(len(labels)), labels]).mean()
    assert pytest.approx(cross_entropy, rel=1e-5) == quality["cross_entropy"]
    assert len(labels) == sum(map(sum, quality["confusion"])) == result.metrics["rows"]


def test_figures_of_the_training(run: Path, digits: Path, trained: TrainResult) -> None:
    """Scoring the last checkpoint finds the accuracy that the training found."""
    result = score(run=run, dataset=digits)
    evaluation = trained.metrics[-1]["evaluation"]["test"]
    assert evaluation["accuracy"] == result.metrics["quality"]["accuracy"]
    found = result.metrics["quality"]["cross_entropy"]
    assert pytest.approx(evaluation["cross_entropy"], rel=1e-5) == found


def test_metrics_file(run: Path, digits: Path, trained: TrainResult) -> None:
    """metrics.json tells what was scored with what."""
    result = score(run=run, dataset=digits)
    document = json.loads((result.scores.location.path / "metrics.json").read_text())
    assert document.items() >= result.metrics.items()
    assert {
        "model_digest": trained.parameters_digest,
        "dataset_digest": open_dataset(open_location(digits)).digest,
        "split": "test",
        "rows": 211,
        "checkpoint": "000002-000000",
    }.items() <= result.metrics.items()
    assert run / "scores" == result.scores.location.path.parent


def test_already_done(run: Path, digits: Path) -> None:
    """What has been scored is found and said so; nothing is written again."""
    first = score(run=run, dataset=digits)
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    again = score(run=run, dataset=digits, checkpoint="2")
    assert (False, True) == (first.already_done, again.already_done)
    assert first.scores.digest == again.scores.digest
    assert files == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_done_by_another_in_the_meantime(run: Path, digits: Path, events: Events) -> None:
    """A scoring that another completes between the look and the lock is found done, no conflict."""
    others: list[ScoreResult] = []

    def another(name: str) -> None:
        if name == "memory":
            events.called = lambda name: None
            others.append(score(run=run, dataset=digits))

    events.called = another
    result = score(run=run, dataset=digits)
    assert [False, True] == [others[0].already_done, result.already_done]
    assert others[0].scores.digest == result.scores.digest


def test_threads(run: Path, digits: Path, tmp_path: Path) -> None:
    """The scores are the same to the bit on any number of threads."""
    digests = set()
    for threads in (1, 2, 3):
        copy = shutil.copytree(run, tmp_path / str(threads))
        result = score(run=copy, dataset=digits, split="train", threads=threads)
        digests.add(result.scores.digest)
    assert 1 == len(digests)


def stop_after(chunks: int, run: Path, dataset: Path) -> Path:
    """Score the training split but stop after so many chunks; the scoring's home."""
    stop = StopSignal()
    left = chunks

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        nonlocal left
        left -= 1
        if not left:
            stop.number = 15

    with pytest.raises(StoppedError, match="Run the same command to continue") as caught:
        score(run=run, dataset=dataset, split="train", progress=progress, stop=stop)
    assert 143 == caught.value.exit_code
    (home,) = (run / "scores").glob("train-*")
    return home


@pytest.mark.parametrize("chunks", [1, 2, 4, 5])
def test_goes_on(
    chunks: int, run: Path, trained: TrainResult, digits: Path, tmp_path: Path
) -> None:
    """A scoring that was stopped is continued from its chunks, which are not computed again."""
    whole = score(
        run=shutil.copytree(trained.run.location.path, tmp_path / "whole"),
        dataset=digits,
        split="train",
    )
    home = stop_after(chunks, run, digits)
    kept = {path: path.stat().st_mtime_ns for path in home.glob("*/c*") if path.is_file()}
    assert 2 * chunks <= len(kept)  # those that other threads had in hand, too
    result = score(run=run, dataset=digits, split="train")
    assert not result.already_done
    assert whole.scores.digest == result.scores.digest
    assert whole.metrics["quality"] == result.metrics["quality"]
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_goes_on_from_sound_chunks(run: Path, digits: Path, tmp_path: Path) -> None:
    """Of an unfinished scoring, damaged and missing chunks are scored again."""
    whole = score(run=shutil.copytree(run, tmp_path / "whole"), dataset=digits, split="train")
    home = stop_after(4, run, digits)
    chunks = sorted(path for path in home.glob("probabilities/c*") if path.is_file())
    assert 4 <= len(chunks)
    data = bytearray(chunks[1].read_bytes())
    data[len(data) // 2] ^= 1
    chunks[1].write_bytes(data)
    chunks[2].unlink()
    result = score(run=run, dataset=digits, split="train")
    assert whole.scores.digest == result.scores.digest
    assert whole.metrics["quality"] == result.metrics["quality"]


def test_damaged_scores(run: Path, digits: Path) -> None:
    """A complete scoring that has been damaged since is an error with the remedy."""
    result = score(run=run, dataset=digits)
    metrics = result.scores.location.path / "metrics.json"
    metrics.write_bytes(metrics.read_bytes().replace(b"0", b"1", 1))
    with pytest.raises(BadDataError, match="score again"):
        score(run=run, dataset=digits)


def unlabelled_test(digits: Path, directory: Path) -> Path:
    """A dataset with labelled training rows, and the test rows of `digits` without labels."""
    directory.mkdir()
    opened = open_dataset(open_location(digits))
    for prefix, split, labelled in (("train", "train", True), ("t10k", "test", False)):
        found = stored_rows(opened.split(split))
        assert found.targets is not None
        images = found.inputs[:, 1:].reshape(-1, 28, 28)
        write_idx(directory / f"{prefix}-images-idx3-ubyte", images)
        if labelled:
            labels = found.targets.argmax(axis=1).astype(np.uint8)
            write_idx(directory / f"{prefix}-labels-idx1-ubyte", labels)
    ingest(str(directory), directory / "data", rows_per_chunk=230)
    return directory / "data"


def test_unlabelled(run: Path, digits: Path, tmp_path: Path) -> None:
    """A split without labels is scored like any other, without figures."""
    result = score(run=run, dataset=unlabelled_test(digits, tmp_path / "set"))
    assert result.metrics["quality"] is None
    labelled = score(run=run, dataset=digits)
    assert labelled.scores.digest == result.scores.digest
    assert labelled.scores.location != result.scores.location


def test_output_of_what_is_done(run: Path, digits: Path, tmp_path: Path) -> None:
    """A plain file can be had of a scoring that was done before, too."""
    score(run=run, dataset=digits)
    result = score(run=run, dataset=digits, out=tmp_path / "late.csv")
    assert result.already_done
    assert 1 + 211 == len((tmp_path / "late.csv").read_text().splitlines())


@pytest.mark.parametrize("checkpoint", ["1", "2", "best", "latest"])
def test_checkpoint(checkpoint: str, run: Path, digits: Path, trained: TrainResult) -> None:
    """The model is that of the checkpoint that was asked for."""
    result = score(run=run, dataset=digits, checkpoint=checkpoint)
    epoch = 1 if checkpoint == "1" else 2
    assert str(CheckpointName(epoch, 0)) == result.metrics["checkpoint"]
    assert trained.metrics[epoch - 1]["parameters_digest"] == result.metrics["model_digest"]
    expected, _ = direct(run, digits, "test", checkpoint)
    np.testing.assert_allclose(predictions(result)[0], expected, rtol=2e-4, atol=1e-7)


def test_damaged_newest(run: Path, digits: Path) -> None:
    """Where the newest checkpoint is damaged, the one before scores only if it is named."""
    state = run / CheckpointName(2, 0).key / STATE
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(BadDataError, match="choose it by --checkpoint 000001-000000"):
        score(run=run, dataset=digits)
    result = score(run=run, dataset=digits, checkpoint="000001-000000")
    assert "000001-000000" == result.metrics["checkpoint"]


def other_set(directory: Path, side: int, classes: int) -> Path:
    """A dataset of noise with other shapes."""
    directory.mkdir()
    images = np.random.default_rng(1).integers(0, 256, (30, side, side), dtype=np.uint8)
    write_idx(directory / "train-images-idx3-ubyte", images)
    labels = (np.arange(30) % classes).astype(np.uint8)
    write_idx(directory / "train-labels-idx1-ubyte", labels)
    ingest(str(directory), directory / "data")
    return directory / "data"


def letters(directory: Path, labels: list[int], *, labelled: bool = True) -> Path:
    """A dataset of small images in two element types' worth of classes: the labels given."""
    directory.mkdir()
    images = np.random.default_rng(2).integers(0, 256, (len(labels), 3, 3), dtype=np.uint8)
    write_idx(directory / "train-images-idx3-ubyte", images)
    if labelled:
        write_idx(directory / "train-labels-idx1-ubyte", np.array(labels, np.uint8))
    ingest(str(directory), directory / "data")
    return directory / "data"


@pytest.fixture
def letters_run(tmp_path: Path) -> Path:
    """A run over the classes 4, 7 and 9."""
    config = TrainConfig(network="9-softmax-3", epochs=1, batch_size=5, evaluate="none")
    train(config, dataset=letters(tmp_path / "l", [9, 4, 7] * 5), run=tmp_path / "letters")
    return tmp_path / "letters"


def test_unlabelled_rows_get_the_names_of_the_model(letters_run: Path, tmp_path: Path) -> None:
    """Class names are those that the model was trained on, with and without labels."""
    dataset = letters(tmp_path / "u", [4, 7], labelled=False)
    result = score(
        run=letters_run,
        dataset=dataset,
        split="train",
        out=tmp_path / "u.csv",
        all_probabilities=True,
    )
    assert ("4", "7", "9") == result.scores.schema.class_names
    header, *rows = (tmp_path / "u.csv").read_text().splitlines()
    assert "row,predicted,probability,p_4,p_7,p_9" == header
    assert {row.split(",")[1] for row in rows} <= {"4", "7", "9"}


def test_a_dataset_that_lacks_a_class(letters_run: Path, tmp_path: Path) -> None:
    """Rows of some of the model's classes are judged by name, not by column."""
    dataset = letters(tmp_path / "some", [9, 7, 9, 9])
    result = score(run=letters_run, dataset=dataset, split="train", out=tmp_path / "some.csv")
    quality = result.metrics["quality"]
    assert [("4", 0), ("7", 1), ("9", 3)] == [
        (found["name"], found["rows"]) for found in quality["classes"]
    ]
    _, predicted = predictions(result)
    expected = np.mean(np.array(["4", "7", "9"])[predicted] == np.array(["9", "7", "9", "9"]))
    assert expected == quality["accuracy"]
    lines = (tmp_path / "some.csv").read_text().splitlines()
    assert ["true", "9", "7", "9", "9"] == [line.split(",")[3] for line in lines]


def test_rows_that_are_scaled_otherwise(letters_run: Path, tmp_path: Path) -> None:
    """A model of bytes does not score floats, and says so in the user's words."""
    directory = tmp_path / "floats"
    directory.mkdir()
    write_idx(directory / "train-images-idx3-float", np.ones((4, 3, 3), np.float32))
    ingest(str(directory), directory / "data")
    words = "data holds values of type float32; the run was trained on values of type uint8."
    with pytest.raises(BadDataError, match=words):
        score(run=letters_run, dataset=directory / "data", split="train")


@pytest.mark.parametrize(
    ("side", "classes", "kind", "words"),
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
    kind: type[PipelineError],
    words: tuple[str, ...],
    run: Path,
    tmp_path: Path,
) -> None:
    """A dataset of another shape than the model's is refused, both sides shown."""
    dataset = other_set(tmp_path / "set", side, classes)
    with pytest.raises(kind) as caught:
        score(run=run, dataset=dataset, split="train")
    assert [] == [word for word in words if word not in str(caught.value)]
    assert not (run / "scores").exists()


@pytest.mark.parametrize(
    ("missing", "kind", "message"),
    [
        ("run", BadDataError, "There is no run at"),
        ("dataset", BadDataError, "There is no dataset at"),
        ("split", UsageError, "no split 'absent'; .* one of: train, test"),
    ],
)
def test_missing(
    missing: str, kind: type[PipelineError], message: str, run: Path, digits: Path, tmp_path: Path
) -> None:
    """What is not there is named."""
    arguments: dict[str, Any] = {"run": run, "dataset": digits, "split": "test"}
    arguments[missing] = "absent" if missing == "split" else tmp_path / "absent"
    with pytest.raises(kind, match=message):
        score(**arguments)


@pytest.mark.parametrize("threads", [1, 2])
def test_two_windows_are_held(
    run: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """When a window is about to be loaded, one other is there: threads hold no rows of the last."""
    monkeypatch.setattr("pipeline.stream.PLAIN_WINDOW_CHUNKS", 2)
    there = watched_windows(monkeypatch)
    score(run=run, split="train", dataset=digits, threads=threads)
    assert 3 == len(there)
    assert 1 == max(there)


def test_probabilities_that_are_no_numbers(
    run: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are never published: the row is named, in each split and in a half-done scoring too."""
    forward = Network.forward

    def overflowing(network: Network, *arguments: Any) -> NDArray[np.float32]:
        probabilities = forward(network, *arguments)
        if len(probabilities) == 211:
            probabilities[7, 3] = np.nan
        return probabilities

    monkeypatch.setattr(Network, "forward", overflowing)
    for _ in range(2):
        with pytest.raises(BadDataError, match="Row 7 of split test gets probabilities that are"):
            score(run=run, dataset=digits, out=tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    monkeypatch.undo()
    assert not score(run=run, dataset=digits).already_done


def test_an_error_that_nobody_thought_of(
    run: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one split it does not keep the others from being scored."""
    read = Split.read_chunk

    def broken(split: Split, *arguments: Any) -> Any:
        if split.name == "test":
            raise ZeroDivisionError("of our own making")
        return read(split, *arguments)

    monkeypatch.setattr(Split, "read_chunk", broken)
    result = run_batch(ScoreConfig(run=run, dataset=digits, splits=("test", "train")))
    assert ["train"] == [one.scores.schema.split for one in result.results]
    assert isinstance(result.error, InternalError)
    assert "Split test could not be scored: internal error (please" in str(result.error)


def test_the_runs_dataset(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a dataset the one of the training is scored, wherever both have been moved to."""
    here = tmp_path / "here"
    shutil.copytree(digits, here / "data" / "mine")
    monkeypatch.chdir(here)
    train(small(epochs=1), dataset="data/mine", run="runs/mine")
    expected = score(run="runs/mine", dataset="data/mine").scores.digest
    monkeypatch.chdir(tmp_path)
    moved = here.rename(tmp_path / "moved") / "runs" / "mine"
    shutil.rmtree(moved / SCORES)
    result = score(run=moved)
    assert (expected, False) == (result.scores.digest, result.already_done)
    promote(PromoteConfig(moved, "champion", min_accuracy=0.0, not_worse_than="champion"))
    assert score(model="champion").already_done
    alone = moved.rename(tmp_path / "alone")
    with pytest.raises(BadDataError, match=r"no dataset at .*data/mine\..* pass --dataset"):
        score(run=alone)
    with pytest.raises(BadDataError, match=r"no dataset at .*data/mine\..* pass --dataset"):
        promote(PromoteConfig(alone, "champion", min_accuracy=0.0))
