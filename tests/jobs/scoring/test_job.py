"""Scoring a split: correct scores, computed once, even after interruptions and damage."""

import json
import logging
import shutil
import threading
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
from jobs.training.choose_model import choose_model
from jobs.training.job import train
from jobs.training.model import model_of
from jobs.training.result import TrainResult
from storage.checkpoints import STATE, CheckpointName
from storage.dataset import Split, open_dataset
from storage.errors import (
    BadDataError,
    InternalError,
    StoppedError,
)
from storage.places import open_location
from storage.runs import SCORES, open_run
from tests.jobs.inboxes import Events
from tests.jobs.trainings import Log, StopAt, small
from tests.pipeline.datasets import load_at_once, watched_windows
from tests.storage.artefacts import stored_rows

CONFIG = small(epochs=2, learning_rate=0.03, dtype="float32")


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run of two epochs."""
    return train(CONFIG, dataset=digits, run=tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def run(trained: TrainResult, tmp_path: Path) -> Path:
    """A copy of `trained` without scores."""
    return shutil.copytree(trained.run.location.path, tmp_path / "run")


def predictions(result: ScoreResult) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return all probabilities `(rows, classes)` and predicted classes `(rows,)`."""
    chunks = [result.scores.read_chunk(number) for number in range(result.scores.schema.chunks)]
    return np.concatenate([one for one, _ in chunks]), np.concatenate([two for _, two in chunks])


def direct(
    run: Path, dataset: Path, split: str, checkpoint: str = "latest"
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Compute the probabilities of all rows at once, in float64; return them and the labels."""
    stored = stored_rows(open_dataset(open_location(dataset)).split(split))
    assert stored.targets is not None
    trained = open_run(open_location(run))
    model = model_of(choose_model(trained, checkpoint)[0])
    network = Network(model.network.layers, "float64")
    probabilities = network.forward(model.parameters.astype("float64"), stored.inputs / 255)
    return np.asarray(probabilities, np.float64), stored.targets.argmax(axis=1)


@pytest.mark.parametrize("split", ["train", "test"])
def test_scores(split: str, run: Path, digits: Path) -> None:
    """The scores are the network's probabilities for each row, and the metrics follow from them."""
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


def test_metrics_of_the_training(run: Path, digits: Path, trained: TrainResult) -> None:
    """Scoring the last checkpoint gives the accuracy that the training measured."""
    result = score(run=run, dataset=digits)
    evaluation = trained.metrics[-1]["evaluation"]["test"]
    assert evaluation["accuracy"] == result.metrics["quality"]["accuracy"]
    cross_entropy = result.metrics["quality"]["cross_entropy"]
    assert pytest.approx(evaluation["cross_entropy"], rel=1e-5) == cross_entropy


def test_metrics_file(run: Path, digits: Path, trained: TrainResult) -> None:
    """metrics.json identifies the model, the dataset and the split."""
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
    """Existing scores are returned, and nothing is written."""
    first = score(run=run, dataset=digits)
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    again = score(run=run, dataset=digits, checkpoint="2")
    assert (False, True) == (first.already_done, again.already_done)
    assert first.scores.digest == again.scores.digest
    assert files == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_completed_by_another_job(run: Path, digits: Path, events: Events) -> None:
    """Scores that another job completes before this one takes the lock are used."""
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


@pytest.mark.slow
def test_unfinished_training(digits: Path, tmp_path: Path, caplog: Log) -> None:
    """Scoring a checkpoint within an epoch says so, as the training may go on; others do not."""
    place, stop = tmp_path / "run", StopAt(14)
    with pytest.raises(StoppedError):
        train(CONFIG, dataset=digits, run=place, progress=stop, stop=stop.signal)
    caplog.set_level(logging.INFO, "jobs")
    score(run=place)
    assert "Checkpoint 000001-000003 was saved within epoch 2 of 2; the" in caplog.text
    caplog.clear()
    score(run=place, checkpoint="1")
    assert "within epoch" not in caplog.text


def stop_after(chunks: int, run: Path, dataset: Path) -> Path:
    """Score the training split, stop after some chunks, and return the place of the scores."""
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
    # No thread still writes, although the traceback holds the stopped generator
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("compute")]
    (home,) = (run / "scores").glob("train-*")
    return home


def finished_files(home: Path) -> dict[Path, int]:
    """Return the files of the chunks of which both arrays were written, and when."""
    pairs = [(file, home / f"predicted/{file.name[:-2]}") for file in home.glob("probabilities/c*")]
    finished = [path for pair in pairs if pair[1].is_file() for path in pair]
    return {path: path.stat().st_mtime_ns for path in finished}


@pytest.mark.parametrize("chunks", [1, 2, 4, 5])
def test_continues(
    chunks: int, run: Path, trained: TrainResult, digits: Path, tmp_path: Path
) -> None:
    """A stopped scoring continues; its finished chunks are not computed again."""
    whole = score(
        run=shutil.copytree(trained.run.location.path, tmp_path / "whole"),
        dataset=digits,
        split="train",
    )
    home = stop_after(chunks, run, digits)
    kept = finished_files(home)
    assert 2 * chunks <= len(kept)  # other threads may have finished more
    result = score(run=run, dataset=digits, split="train")
    assert not result.already_done
    assert whole.scores.digest == result.scores.digest
    assert whole.metrics["quality"] == result.metrics["quality"]
    assert whole.drift == result.drift
    assert result.drift is not None
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_continues_after_damage(run: Path, digits: Path, tmp_path: Path) -> None:
    """Damaged and missing chunks of an unfinished scoring are computed again."""
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
    """Damaged scores are an error with a remedy."""
    result = score(run=run, dataset=digits)
    metrics = result.scores.location.path / "metrics.json"
    metrics.write_bytes(metrics.read_bytes().replace(b"0", b"1", 1))
    with pytest.raises(BadDataError, match="score again"):
        score(run=run, dataset=digits)


def test_output_of_existing_scores(run: Path, digits: Path, tmp_path: Path) -> None:
    """--out is also written for scores that existed before."""
    score(run=run, dataset=digits)
    result = score(run=run, dataset=digits, out=tmp_path / "late.csv")
    assert result.already_done
    assert 1 + 211 == len((tmp_path / "late.csv").read_text().splitlines())


@pytest.mark.parametrize("checkpoint", ["1", "2", "best", "latest"])
def test_checkpoint(checkpoint: str, run: Path, digits: Path, trained: TrainResult) -> None:
    """Scores come from the chosen checkpoint."""
    result = score(run=run, dataset=digits, checkpoint=checkpoint)
    epoch = 1 if checkpoint == "1" else 2
    assert str(CheckpointName(epoch, 0)) == result.metrics["checkpoint"]
    assert trained.metrics[epoch - 1]["parameters_digest"] == result.metrics["model_digest"]
    expected, _ = direct(run, digits, "test", checkpoint)
    np.testing.assert_allclose(predictions(result)[0], expected, rtol=2e-4, atol=1e-7)


def test_damaged_newest(run: Path, digits: Path) -> None:
    """If the newest checkpoint is damaged, the one before is used only if chosen explicitly."""
    state = run / CheckpointName(2, 0).key / STATE
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(BadDataError, match="choose it with --checkpoint 000001-000000"):
        score(run=run, dataset=digits)
    result = score(run=run, dataset=digits, checkpoint="000001-000000")
    assert "000001-000000" == result.metrics["checkpoint"]


@pytest.mark.parametrize("threads", [1, 2])
def test_two_windows_are_held(
    run: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """While a window is loaded, only one other is in memory: threads keep no older rows."""
    monkeypatch.setattr("pipeline.stream.PLAIN_WINDOW_CHUNKS", 2)
    load_at_once(monkeypatch)
    held = watched_windows(monkeypatch)
    score(run=run, split="train", dataset=digits, threads=threads)
    assert 3 == len(held)
    assert 1 == max(held)


def test_probabilities_that_are_not_finite(
    run: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN is never published: the row is named, even by a continued scoring."""
    forward = Network.forward_with_hidden

    def overflowing(network: Network, *arguments: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        probabilities, hidden = forward(network, *arguments)
        if len(probabilities) == 211:
            probabilities[7, 3] = np.nan
        return probabilities, hidden

    monkeypatch.setattr(Network, "forward_with_hidden", overflowing)
    for _ in range(2):
        with pytest.raises(BadDataError, match="Row 7 of split test has probabilities that are"):
            score(run=run, dataset=digits, out=tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    monkeypatch.undo()
    assert not score(run=run, dataset=digits).already_done


def test_a_bug(run: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in one split is reported, and the others are scored."""
    read = Split.read_chunk

    def broken(split: Split, *arguments: Any) -> Any:
        if split.name == "test":
            raise ZeroDivisionError("a bug")
        return read(split, *arguments)

    monkeypatch.setattr(Split, "read_chunk", broken)
    result = run_batch(ScoreConfig(run=run, dataset=digits, splits=("test", "train")))
    assert ["train"] == [one.scores.schema.split for one in result.results]
    assert isinstance(result.error, InternalError)
    assert "Split test could not be scored: internal error (please" in str(result.error)


def test_the_runs_dataset(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the training dataset is scored, even if it was moved along with the run."""
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
