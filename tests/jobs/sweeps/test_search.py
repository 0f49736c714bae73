"""The configurations of a sweep: the whole grid, or points drawn from lists and ranges."""

import math
from typing import Any

import pytest

from jobs.sweeps.search import Search
from storage.errors import UsageError


def test_grid() -> None:
    """All combinations, the last setting fastest, with values of the settings' own types."""
    search = Search({"learning_rate": [1, 0.5], "distort": ["digits", "none"]})
    assert [
        {"learning_rate": 1.0, "distort": "digits"},
        {"learning_rate": 1.0, "distort": "none"},
        {"learning_rate": 0.5, "distort": "digits"},
        {"learning_rate": 0.5, "distort": "none"},
    ] == search.configurations()
    assert isinstance(search.grid["learning_rate"][0], float)
    assert [{}] == Search().configurations()


def test_sample() -> None:
    """Draws depend on the seed alone: not on the order of the options, nor on the machine."""
    ranges = {"learning_rate": (0.001, 0.1), "batch_size": (50, 52), "dropout": (0, 0.5)}
    search = Search({"optimizer": ["adam", "sgd"]}, ranges, sample=3, sample_seed=7)
    assert [
        {"batch_size": 50, "dropout": 0.07542, "learning_rate": 0.02004, "optimizer": "adam"},
        {"batch_size": 51, "dropout": 0.1828, "learning_rate": 0.001306, "optimizer": "sgd"},
        {"batch_size": 50, "dropout": 0.2168, "learning_rate": 0.001379, "optimizer": "adam"},
    ] == search.configurations()
    turned = Search({"optimizer": ["adam", "sgd"]}, dict(reversed(ranges.items())), 3, 7)
    assert search.configurations() == turned.configurations()


def test_distribution() -> None:
    """Learning rates are even by their logarithm, other numbers even; all keep their bounds."""
    ranges = {"learning_rate": (0.001, 0.1), "dropout": (0.1, 0.3), "batch_size": (1, 3)}
    drawn = Search(ranges=ranges, sample=2000).configurations()
    logarithms = sorted(math.log10(one["learning_rate"]) for one in drawn)
    assert abs(logarithms[1000] + 2) < 0.1
    assert -3 <= logarithms[0] < logarithms[-1] <= -1
    dropouts = sorted(one["dropout"] for one in drawn)
    assert abs(dropouts[1000] - 0.2) < 0.01
    assert {1, 2, 3} == {one["batch_size"] for one in drawn}


def test_points_of_a_sample_differ() -> None:
    """A sample of a list has no point twice, and cannot have more points than there are."""
    grid = {"optimizer": ["adam", "sgd", "adamw"]}
    drawn = Search(grid, sample=3).configurations()
    assert {"adam", "sgd", "adamw"} == {one["optimizer"] for one in drawn}
    with pytest.raises(UsageError, match="have only 3 configurations"):
        Search(grid, sample=4).configurations()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"grid": {"seed": [1, 2]}}, "Use --seeds"),
        ({"grid": {"arithmetic": ["native", "portable"]}}, "computes in one way"),
        ({"grid": {"holdout": [1, 2]}}, "compared on the same rows"),
        ({"grid": {"threads": [1, 2]}}, "no result depends on it"),
        ({"grid": {"learning_rat": [1]}}, "Did you mean 'learning_rate'"),
        ({"grid": {"learning_rate": []}}, "has no values of learning_rate"),
        ({"grid": {"learning_rate": [0.1, 0.1]}}, "value of learning_rate twice"),
        ({"grid": {"learning_rate": [-1]}}, "gives learning_rate as -1"),
        ({"grid": {"optimizer": ["adm"]}}, "Did you mean 'adam'"),
        ({"grid": {"epochs": range(1, 20_000)}}, "at most 10,000"),
        ({"ranges": {"learning_rate": (0.1, 1)}}, "needs --sample N"),
        ({"ranges": {"network": (0.1, 1)}, "sample": 1}, "A range needs a numeric setting"),
        ({"ranges": {"dropuot": (0.1, 1)}, "sample": 1}, "Did you mean 'dropout'"),
        ({"ranges": {"dropout": (0.1, 1)}, "sample": 1}, "expected 0 to 0.9"),
        ({"ranges": {"dropout": (0.2, 0.1)}, "sample": 1}, "expected LOW below HIGH"),
        ({"ranges": {"batch_size": (0.2, 7)}, "sample": 1}, "expected a whole number"),
        ({"sample": 3}, "a --range or --grid to draw"),
        ({"grid": {"l2": [1]}, "ranges": {"l2": (1, 2)}, "sample": 1}, "leave one out"),
    ],
)
def test_refusals(asked: dict[str, Any], words: str) -> None:
    """Settings that cannot vary, and values that they cannot have, are refused with the reason."""
    with pytest.raises(UsageError, match=words):
        Search(**asked).configurations()
