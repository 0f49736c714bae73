"""The figures of a scoring, against ones that were worked out by hand."""

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
"""Nothing is a yak, and nothing is taken for one."""
OF_TRUTH = [0.5, 0.75, 0.25, 0.125, 0.5, 1.0, 0.25, 0.5, 0.125, 0.0625]
"""The probability that was given to the true class: all of them powers of two but 3/4."""


def probabilities(truth: list[int], of_truth: list[float]) -> NDArray[np.float32]:
    """`(rows, classes)`: the true class has its probability, the others share the rest."""
    table = np.empty((len(truth), 4), np.float32)
    table[:] = (1 - np.array(of_truth)[:, None]) / 3
    table[np.arange(len(truth)), truth] = of_truth
    return table


def quality(*cuts: int) -> dict[str, Any]:
    """The figures of the example, counted in blocks that end at `cuts`."""
    count = ConfusionCounter(NAMES)
    table = probabilities(TRUTH, OF_TRUTH)
    predicted = np.array(PREDICTED, np.int32)
    targets = np.eye(4, dtype=np.uint8)[TRUTH]
    for start, stop in zip((0, *cuts), (*cuts, len(TRUTH)), strict=True):
        count.add(table[start:stop], predicted[start:stop], targets[start:stop])
    return count.result()


def test_confusion() -> None:
    """A row of the matrix per true class; right are two cats, two dogs and an owl of ten rows."""
    assert [[2, 1, 1, 0], [1, 2, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0]] == quality()["confusion"]
    assert 0.5 == quality()["accuracy"]


def test_cross_entropy() -> None:
    """Minus the mean logarithm: halvings 1 + 2 + 3 + 1 + 0 + 2 + 1 + 3 + 4 = 17, and log 3/4."""
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
    """Precision by the column's sum, recall by the row's, F1 twice the hits over both sums."""
    found = quality()["classes"][number]
    assert (NAMES[number], precision, recall, f1, rows) == tuple(found.values())
    assert ["name", "precision", "recall", "f1", "rows"] == list(found)


@pytest.mark.parametrize("cuts", [(1,), (5,), (3, 4, 9), (0, 10)])
def test_blocks(cuts: tuple[int, ...]) -> None:
    """The figures are the same in whatever blocks the rows come."""
    expected, found = quality(), quality(*cuts)
    assert pytest.approx(expected.pop("cross_entropy"), rel=1e-15) == found.pop("cross_entropy")
    assert expected == found


def test_probability_of_zero() -> None:
    """A probability that float32 has rounded to 0 costs much, and not infinitely much."""
    count = ConfusionCounter(NAMES)
    count.add(
        np.array([[0, 1, 0, 0]], np.float32),
        np.array([1], np.int32),
        np.array([[1, 0, 0, 0]], np.uint8),
    )
    # The smallest positive float32 is 2^-149.
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
    ],
)
def test_figures_that_are_none(change: dict[str, object]) -> None:
    """What is read back is a quality of that many classes, or is refused with its place."""
    document = quality(10)
    check_quality(document, 4, "metrics.json")
    with pytest.raises(BadDataError, match=r"^metrics\.json "):
        check_quality(document | change, 4, "metrics.json")
