"""Initial parameters: the distributions, and the bits that must never change."""

import hashlib
import math

import numpy as np
import pytest

from jobs.nn.architecture import parse_network
from jobs.nn.choices import INITS
from jobs.nn.initialise import initialise, normals, uniforms
from jobs.nn.parameters import views

LAYERS = parse_network("784-relu-200-sigmoid-80-softmax-10")
HE, GLOROT, LECUN = math.sqrt(2 / 784), math.sqrt(2 / 984), math.sqrt(1 / 784)


@pytest.mark.parametrize(
    ("scheme", "deviation"),
    [
        ("he-normal", HE),
        ("he-uniform", HE),
        ("glorot-normal", GLOROT),
        ("glorot-uniform", GLOROT),
        ("lecun-normal", LECUN),
        ("scaled", HE),
        ("normal-0.1", 0.1),
    ],
)
def test_weights_have_the_schemes_deviation(scheme: str, deviation: float) -> None:
    """The 156,800 weights of the first layer have mean 0 and the published deviation."""
    weights = views(initialise(scheme, LAYERS, 0, np.float64), LAYERS)[0][1:]
    np.testing.assert_allclose(weights.std(), deviation, rtol=0.01)
    np.testing.assert_allclose(weights.mean(), 0, atol=0.01 * deviation)


@pytest.mark.parametrize("scheme", INITS)
def test_biases_are_zero_except_in_the_notebooks_scheme(scheme: str) -> None:
    """Only normal-0.1 draws biases."""
    matrices = views(initialise(scheme, LAYERS, 0), LAYERS)
    assert (scheme == "normal-0.1") == any(matrix[0].any() for matrix in matrices)


def test_scaled_follows_each_layers_activation() -> None:
    """`scaled` is He's for the relu layer and Glorot's for the sigmoid and softmax layers."""
    scaled, he, glorot = (
        views(initialise(scheme, LAYERS, 7), LAYERS)
        for scheme in ("scaled", "he-normal", "glorot-normal")
    )
    np.testing.assert_array_equal(he[0], scaled[0])
    np.testing.assert_array_equal(glorot[1], scaled[1])
    np.testing.assert_array_equal(glorot[2], scaled[2])


def test_the_published_bits() -> None:
    """A uniform scheme uses exact arithmetic only: its digest is the same on every platform."""
    parameters = initialise("glorot-uniform", LAYERS, 0, np.float64)
    expected = "c48abfa7081e556fbcbe52025cd41f8db57e2d59a178e636b28401709f46ab0a"
    assert expected == hashlib.sha256(parameters.astype("<f8").tobytes()).hexdigest()


def test_the_published_normals() -> None:
    """Box-Muller's first numbers; the last bit may differ with another libm."""
    np.testing.assert_allclose(
        normals(3, 0, 0), [-0.865388427664861, -1.4433998639375207, 1.9941152526041128], rtol=1e-14
    )


def test_seed_and_layer_choose_the_stream() -> None:
    """The same seed and layer give the same numbers, others give different ones."""
    np.testing.assert_array_equal(uniforms(5, 0, 1), uniforms(5, 0, 1))
    assert not np.isin(uniforms(5, 0, 1), uniforms(5, 0, 0)).any()
    assert not np.isin(uniforms(5, 0, 1), uniforms(5, 1, 1)).any()


def test_normals_are_normal() -> None:
    """1,000,001 numbers have the moments and the tail of a normal distribution."""
    numbers = normals(1_000_001, 1, 0)
    np.testing.assert_allclose(
        [numbers.mean(), numbers.var(), (numbers**4).mean(), (np.abs(numbers) < 1.96).mean()],
        [0, 1, 3, 0.95],
        atol=0.04,
    )


@pytest.mark.parametrize("scheme", INITS)
def test_float32_is_float64_rounded(scheme: str) -> None:
    """Both dtypes round the same draws."""
    double = initialise(scheme, LAYERS, 0, np.float64)
    single = initialise(scheme, LAYERS, 0, np.float32)
    assert np.float32 == single.dtype
    np.testing.assert_array_equal(double.astype(np.float32), single)
