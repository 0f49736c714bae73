"""Cross-entropy at points computed by hand, and at points where a naive formula has log(0)."""

import math

import numpy as np
import pytest

from jobs.nn.loss import cross_entropy

ONE_HOT = np.eye(3, dtype=np.uint8)


def test_a_hand_worked_row() -> None:
    """Probabilities 1/8, 2/8, 5/8 and the last class: loss -log 5/8, delta p - target."""
    loss = cross_entropy(np.log([[1.0, 2.0, 5.0]]), ONE_HOT[[2]])
    assert math.isclose(-math.log(5 / 8), loss.loss_sum, rel_tol=1e-14)
    assert 1 == loss.correct
    np.testing.assert_allclose(loss.delta, [[1 / 8, 2 / 8, -3 / 8]], rtol=1e-14)


def test_losses_of_rows_are_summed() -> None:
    """Three rows of equal logits cost log 3 each; the first class wins the tie."""
    loss = cross_entropy(np.zeros((3, 3)), ONE_HOT)
    assert math.isclose(3 * math.log(3), loss.loss_sum, rel_tol=1e-14)
    assert 1 == loss.correct


def test_a_hand_worked_row_with_smoothed_labels() -> None:
    """With smoothing 0.3 the target is 0.1, 0.1, 0.8: the loss is its cross-entropy."""
    loss = cross_entropy(np.log([[1.0, 2.0, 5.0]]), ONE_HOT[[2]], smoothing=0.3)
    expected = -0.1 * math.log(1 / 8) - 0.1 * math.log(2 / 8) - 0.8 * math.log(5 / 8)
    assert math.isclose(expected, loss.loss_sum, rel_tol=1e-14)
    assert 1 == loss.correct
    np.testing.assert_allclose(loss.delta, [[0.025, 0.15, -0.175]], rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_certain_mistake_costs_its_margin(dtype: type[np.floating]) -> None:
    """If the target's probability rounds to 0, the loss is the logits' difference, not infinity."""
    loss = cross_entropy(np.array([[1e4, -1e4, 0]], dtype), ONE_HOT[[1]])
    assert 2e4 == loss.loss_sum
    assert 0 == loss.correct
    np.testing.assert_array_equal([[1, -1, 0]], loss.delta)
    assert dtype == loss.delta.dtype


@pytest.mark.parametrize("shape", [(1, 3), (4, 1), (1, 1), (4, 3)])
def test_the_logits_are_not_changed(shape: tuple[int, int]) -> None:
    """The logits are not changed, even with a single row or class."""
    logits = np.random.default_rng(3).normal(size=shape)
    before = logits.copy()
    cross_entropy(logits, np.eye(shape[1], dtype=np.uint8)[[0] * shape[0]])
    np.testing.assert_array_equal(before, logits)
