"""The metrics of scores, compared with values computed by hand."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.scoring.metrics import ConfusionCounter, check_quality
from storage.errors import BadDataError

NAMES = ("cat", "dog", "owl", "yak")

TRUTH = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
PREDICTED = [0, 0, 1, 2, 1, 1, 0, 2, 1, 1]
"""No row is a yak, and none is predicted to be one."""
OF_TRUTH = [0.5, 0.75, 0.25, 0.125, 0.5, 1.0, 0.25, 0.5, 0.125, 0.0625]
"""The probability of each row's true class: powers of two except for 3/4."""


def probabilities(truth: list[int], of_truth: list[float]) -> NDArray[np.float32]:
    """Return `(rows, classes)`; the classes other than the true one share the rest equally."""
    table = np.empty((len(truth), 4), np.float32)
    table[:] = (1 - np.array(of_truth)[:, None]) / 3
    table[np.arange(len(truth)), truth] = of_truth
    return table


def quality(*cuts: int) -> dict[str, Any]:
    """Return the metrics of the example, counted in blocks that end at `cuts`."""
    count = ConfusionCounter(NAMES)
    table = probabilities(TRUTH, OF_TRUTH)
    predicted = np.array(PREDICTED, np.int32)
    targets = np.eye(4, dtype=np.uint8)[TRUTH]
    for start, stop in zip((0, *cuts), (*cuts, len(TRUTH)), strict=True):
        count.add(table[start:stop], predicted[start:stop], targets[start:stop])
    return count.result()


def test_confusion() -> None:
    """Rows of the matrix are true classes; two cats, two dogs and an owl of ten are correct."""
    assert [[2, 1, 1, 0], [1, 2, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0]] == quality()["confusion"]
    assert 0.5 == quality()["accuracy"]


def test_cross_entropy() -> None:
    """Cross-entropy is minus the mean log: 17 log 2 from the powers of two, and one log 3/4."""
    expected = (17 * math.log(2) - math.log(0.75)) / 10
    assert pytest.approx(expected, rel=1e-15) == quality()["cross_entropy"]


@pytest.mark.parametrize(
    ("number", "precision", "recall", "f1", "rows"),
    [
        (0, 2 / 3, 2 / 4, 4 / 7, 4),
        (1, 2 / 5, 2 / 3, 4 / 8, 3),
        (2, 1 / 2, 1 / 3, 2 / 5, 3),
        (3, 0.0, 0.0, 0.0, 0),
    ],
)
def test_classes(number: int, precision: float, recall: float, f1: float, rows: int) -> None:
    """Precision divides by the column's sum, recall by the row's; F1 is their harmonic mean."""
    metrics = quality()["classes"][number]
    assert (NAMES[number], precision, recall, f1, rows) == tuple(metrics.values())
    assert ["name", "precision", "recall", "f1", "rows"] == list(metrics)


@pytest.mark.parametrize("cuts", [(1,), (5,), (3, 4, 9), (0, 10)])
def test_blocks(cuts: tuple[int, ...]) -> None:
    """The metrics do not depend on the blocks."""
    expected, counted = quality(), quality(*cuts)
    assert pytest.approx(expected.pop("cross_entropy"), rel=1e-15) == counted.pop("cross_entropy")
    assert expected == counted


def test_probability_of_zero() -> None:
    """A probability that underflowed to 0 counts as the smallest positive float32, 2**-149."""
    count = ConfusionCounter(NAMES)
    count.add(
        np.array([[0, 1, 0, 0]], np.float32),
        np.array([1], np.int32),
        np.array([[1, 0, 0, 0]], np.uint8),
    )

    assert pytest.approx(149 * math.log(2)) == count.result()["cross_entropy"]


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": None},
        {"classes": []},
        {"classes": [{}] * 4},
        {"confusion": [[0] * 4] * 3},
        {"confusion": [[0] * 3] * 4},
        {"confusion": [None] * 4},
        {"confusion": [[0, 0, 0, [1]]] * 4},
        {"confusion": [[0, 0, 0, 1.5]] * 4},
    ],
)
def test_malformed_metrics(change: dict[str, object]) -> None:
    """Malformed metrics are refused, naming their file."""
    document = quality(10)
    check_quality(document, 4, "metrics.json")
    with pytest.raises(BadDataError, match=r"^metrics\.json "):
        check_quality(document | change, 4, "metrics.json")
