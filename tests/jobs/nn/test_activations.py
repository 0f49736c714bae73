"""Activations at points computed by hand and at the ends of their range."""

import numpy as np
import pytest

from jobs.nn.activations import ACTIVATIONS, softmax
from jobs.nn.parameters import Floats

every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
every_activation = pytest.mark.parametrize("name", ACTIVATIONS)


@pytest.mark.parametrize(
    ("name", "sums", "expected"),
    [
        ("relu", [-2, 0, 3], [0, 0, 3]),
        ("sigmoid", [0, np.log(3), -np.log(3)], [0.5, 0.75, 0.25]),
        ("tanh", [0, np.log(2)], [0, 0.6]),
    ],
)
def test_known_points(name: str, sums: Floats, expected: Floats) -> None:
    """relu cuts off below zero; sigmoid(log 3) = 3/4; tanh(log 2) = 3/5."""
    actual = ACTIVATIONS[name].apply(np.array([sums], np.float64), None)
    np.testing.assert_allclose(actual, [expected], rtol=1e-15)


def test_softmax_at_known_points() -> None:
    """Logits log 1, log 2, log 5 have the probabilities 1/8, 2/8, 5/8, with any constant added."""
    logits = np.log([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]) + [[0.0], [700.0]]
    np.testing.assert_allclose(softmax(logits), [[0.125, 0.25, 0.625]] * 2, rtol=1e-12)


@every_activation
@every_dtype
def test_every_finite_input_is_in_range(name: str, dtype: type[np.floating]) -> None:
    """The output is finite, without a warning, from the smallest to the largest float."""
    ends: list[float] = [float(np.finfo(dtype).max), 1e4, 89, 1, float(np.finfo(dtype).tiny), 0]
    sums = np.array([[sign * end for end in ends for sign in (1, -1)]], dtype)
    output = ACTIVATIONS[name].apply(sums, None)
    slope = ACTIVATIONS[name].derivative(output, None)
    assert np.isfinite(output).all()
    assert ((0 <= slope) & (slope <= 1)).all()


@every_activation
@every_dtype
def test_activations_keep_the_dtype_and_the_input(name: str, dtype: type[np.floating]) -> None:
    """Without `out` the input is unchanged; written to `out`, the bits are the same."""
    sums = np.random.default_rng(1).normal(size=(5, 7)).astype(dtype)
    before = sums.copy()
    output = ACTIVATIONS[name].apply(sums, None)
    slope = ACTIVATIONS[name].derivative(output, None)
    np.testing.assert_array_equal(before, sums)
    assert dtype == output.dtype == slope.dtype
    assert (5, 7) == output.shape == slope.shape
    np.testing.assert_array_equal(output, ACTIVATIONS[name].apply(sums, sums))
    assert ACTIVATIONS[name].derivative(output, before) is before
    np.testing.assert_array_equal(slope, before)


@every_dtype
def test_softmax_of_far_apart_logits(dtype: type[np.floating]) -> None:
    """Logits of +-1e4 have probabilities of exactly 1 and 0, without a warning."""
    probabilities = softmax(np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4]], dtype))
    expected = np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(probabilities, expected, rtol=1e-6)
    assert dtype == probabilities.dtype
