"""The evaluator: exact metrics for the same rows, repeatedly, on any number of threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from jobs.nn.architecture import parse_network
from jobs.nn.initialise import initialise
from jobs.nn.network import Network
from jobs.nn.parameters import Floats
from jobs.training.environment import one_blas_thread
from jobs.training.evaluate import BLOCK_ROWS, Evaluation, Evaluator, Predictor, TrainedNetwork
from jobs.training.job import train
from pipeline.ingest import ingest
from storage.dataset import open_dataset
from storage.errors import UsageError
from storage.places import open_location
from storage.preparation import BYTES, ValueRange
from tests.jobs.trainings import SMALL
from tests.pipeline.datasets import load_at_once, watched_windows
from tests.storage.artefacts import stored_rows
from tests.storage.idx_files import write_set

LAYERS = parse_network(SMALL.network)


@contextmanager
def evaluator(
    dataset: Path,
    dtype: str,
    first_row: int,
    rows: int,
    threads: int = 1,
    times: int = 2,
    average_shifts: int = 0,
) -> Iterator[Evaluator]:
    """An evaluator over some of the training rows."""
    made = Evaluator(
        Network(LAYERS, dtype),
        open_dataset(open_location(dataset)),
        "train",
        first_row=first_row,
        rows=rows,
        times=times,
        threads=threads,
        average_shifts=average_shifts,
    )
    with one_blas_thread(), made:
        yield made


def direct(dataset: Path, parameters: Floats, first_row: int, rows: int) -> Evaluation:
    """The same metrics, from the probabilities of all rows at once."""
    split = open_dataset(open_location(dataset)).split("train")
    stored, chosen = stored_rows(split), slice(first_row, first_row + rows)
    assert stored.targets is not None
    inputs, labels = stored.inputs[chosen] / 255, stored.targets[chosen].argmax(axis=1)
    probabilities = Network(LAYERS, "float64").forward(parameters.astype("float64"), inputs)
    of_truth = probabilities[np.arange(rows), labels]
    accuracy = float(np.mean(probabilities.argmax(axis=1) == labels))
    return Evaluation(accuracy, float(-np.log(of_truth).mean()))


@pytest.mark.parametrize(
    ("first_row", "rows"), [(0, 1031), (0, 1), (1030, 1), (229, 2), (300, 600), (17, 500), (0, 501)]
)
@pytest.mark.parametrize(("dtype", "precision"), [("float32", 1e-5), ("float64", 1e-13)])
def test_figures(first_row: int, rows: int, dtype: str, precision: float, digits: Path) -> None:
    """The metrics of a range of rows equal those of a single forward pass."""
    parameters = initialise("scaled", LAYERS, 4, dtype)
    expected = direct(digits, parameters, first_row, rows)
    with evaluator(digits, dtype, first_row, rows) as judged:
        figures = judged.evaluate(parameters)
    assert expected.accuracy == figures.accuracy
    assert pytest.approx(expected.cross_entropy, rel=precision) == figures.cross_entropy


def test_again(digits: Path) -> None:
    """Each evaluation uses the parameters it is given."""
    one, other = (initialise("scaled", LAYERS, seed) for seed in (1, 2))
    with evaluator(digits, "float32", 5, 1000, times=3) as judged:
        figures = [judged.evaluate(parameters) for parameters in (one, other, one)]
    assert figures[0] == figures[2]
    assert figures[0] != figures[1]


@pytest.mark.parametrize("average_shifts", [0, 1])
def test_threads(average_shifts: int, digits: Path) -> None:
    """The metrics are the same to the bit on any number of threads."""
    assert 2 * BLOCK_ROWS < 1031
    parameters = initialise("scaled", LAYERS, 1)
    figures = []
    for threads in (1, 2, 3, 4):
        shifts = {"average_shifts": average_shifts}
        with evaluator(digits, "float32", 0, 1031, threads, **shifts) as judged:
            figures.append(judged.evaluate(parameters))
    assert [figures[0]] * 4 == figures


def test_probabilities_that_underflow(digits: Path) -> None:
    """A mean probability of 0 counts as the smallest positive number: the loss is finite."""
    parameters = 1e4 * initialise("scaled", LAYERS, 0)
    with evaluator(digits, "float32", 0, 100, average_shifts=1) as judged:
        figures = judged.evaluate(parameters)
    assert 0 < figures.accuracy < 1
    assert 10 < figures.cross_entropy < -np.log(np.finfo(np.float32).smallest_subnormal)


def test_background_of_another_range(digits: Path) -> None:
    """Images stored in another range are shifted alike: what is vacated is scaled to 0."""
    images = stored_rows(open_dataset(open_location(digits)).split("test")).inputs
    members = (TrainedNetwork(Network(LAYERS), initialise("scaled", LAYERS, 0)),)
    probabilities = [
        Predictor(members, scaling, (28, 28), 1)(stored)[0]
        for stored, scaling in (
            (images, BYTES),
            (images.astype(np.int16) * 12 - 1024, ValueRange(-1024, 12 * 255 - 1024)),
        )
    ]
    np.testing.assert_allclose(*probabilities, rtol=1e-4)


def test_members_of_different_networks(digits: Path) -> None:
    """Networks and dtypes may differ: the mean is that of each, the hidden layer the first's."""
    images = stored_rows(open_dataset(open_location(digits)).split("test")).inputs
    members = []
    for text, dtype in (("784-relu-8-softmax-10", "float32"), (SMALL.network, "float64")):
        layers = parse_network(text)
        network = Network(layers, dtype)
        members.append(TrainedNetwork(network, initialise("scaled", layers, 1, dtype)))
    each = [Predictor((member,), BYTES).with_hidden(images) for member in members]
    (probabilities, predicted), hidden = Predictor(tuple(members), BYTES).with_hidden(images)
    expected = np.mean([predictions[0] for predictions, _ in each], axis=0)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-6)
    assert probabilities.argmax(axis=1).tolist() == predicted.tolist()
    assert each[0][1].tobytes() == hidden.tobytes()


def test_images_that_cannot_be_shifted(tmp_path: Path) -> None:
    """Training refuses to average over shifts of anything but images of height and width."""
    labels = np.arange(70, dtype=np.uint8) % 2
    write_set(tmp_path / "set", np.zeros((70, 2, 2, 3), np.uint8), labels)
    ingest(str(tmp_path / "set"), tmp_path / "data")
    with pytest.raises(UsageError, match=r"images of 2 x 2 x 3; .*needs images of height x width"):
        train(
            {"average_shifts": 1, "batch_size": 9}, dataset=tmp_path / "data", run=tmp_path / "run"
        )


@pytest.mark.parametrize("threads", [1, 2])
def test_two_windows_are_held(digits: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """When a window is loaded, only one other is in memory: threads hold no earlier rows."""
    monkeypatch.setattr("jobs.training.evaluate.BLOCK_ROWS", 115)  # two of each window
    monkeypatch.setattr("pipeline.stream.PLAIN_WINDOW_CHUNKS", 1)
    load_at_once(monkeypatch)
    windows = watched_windows(monkeypatch)
    parameters = initialise("scaled", LAYERS, 0)
    with evaluator(digits, "float32", 0, 1031, threads, times=3) as judge:
        for _ in range(3):
            judge.evaluate(parameters)
    assert 15 == len(windows)
    assert 1 == max(windows)
