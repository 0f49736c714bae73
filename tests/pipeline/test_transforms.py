"""Scale, bias column, one-hot: each on small blocks whose results are written out."""

from typing import Any

import numpy as np
import pytest

from pipeline.transforms import add_bias, bias_value, one_hot, scale
from storage.errors import BadDataError

ELEMENT_TYPES = ("uint8", "int8", "int16", "int32", "float32", "float64")


@pytest.mark.parametrize("dtype", ELEMENT_TYPES)
def test_add_bias(dtype: str) -> None:
    """Images of any shape become rows of their own type, the bias before the features."""
    images = np.arange(12, dtype=dtype).reshape(2, 3, 2)
    inputs = add_bias(images)
    bias = 255 if dtype == "uint8" else 1
    assert [[bias, 0, 1, 2, 3, 4, 5], [bias, 6, 7, 8, 9, 10, 11]] == inputs.tolist()
    assert np.dtype(dtype) == inputs.dtype
    assert bias == bias_value(np.dtype(dtype))


@pytest.mark.parametrize("shape", [(0, 4, 3), (5, 1), (1, 2, 3, 4), (3, 6)])
def test_add_bias_to_any_shape(shape: tuple[int, ...]) -> None:
    """Flat, deep and empty blocks keep their rows and gain one column."""
    images = np.ones(shape, np.int16)
    assert (shape[0], 1 + int(np.prod(shape[1:]))) == add_bias(images).shape


def test_add_bias_leaves_the_images_alone() -> None:
    """The images are copied, not written to, and may lie in memory in any way."""
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(0, 2, 1)
    before = images.copy()
    inputs = add_bias(images)
    inputs[:] = 0
    assert before.tolist() == images.tolist()


def test_one_hot() -> None:
    """A label's column is its place among the classes, which need not be 0, 1, 2."""
    targets = one_hot(np.array([26, 1, 5, 1], np.uint8), np.array([1, 5, 26]))
    assert [[0, 0, 1], [1, 0, 0], [0, 1, 0], [1, 0, 0]] == targets.tolist()
    assert np.uint8 == targets.dtype


def test_one_hot_of_negative_labels() -> None:
    """Labels below zero are classes like any other."""
    targets = one_hot(np.array([2**31 - 1, -3], np.int32), np.array([-3, 2**31 - 1]))
    assert [[0, 1], [1, 0]] == targets.tolist()


def test_one_hot_of_no_rows() -> None:
    """No labels give no targets, of the classes' width."""
    assert (0, 3) == one_hot(np.array([], np.uint8), np.arange(3)).shape


@pytest.mark.parametrize("label", [0, 2, 27, 255])
def test_a_label_that_is_no_class(label: int) -> None:
    """A label below, between or above the classes is refused with its row."""
    labels = np.array([1, 5, label, 5], np.uint8)
    with pytest.raises(BadDataError, match=f"Row 2 has label {label}; it is none of the classes"):
        one_hot(labels, np.array([1, 5, 26]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scale_bytes(dtype: Any) -> None:
    """Each byte becomes itself / 255 to the last bit but one; 0 and the bias come out exact."""
    stored = np.arange(256, dtype=np.uint8)
    scaled = scale(stored, np.dtype(dtype))
    assert np.dtype(dtype) == scaled.dtype
    assert (0.0, 1.0) == (scaled[0], scaled[255])
    np.testing.assert_array_max_ulp(stored.astype(dtype) / dtype(255), scaled, 1)


@pytest.mark.parametrize("stored", ELEMENT_TYPES[1:])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scale_other_types(stored: str, dtype: Any) -> None:
    """Values that are not bytes are taken as they are."""
    inputs = np.array([[1, -100, 100]], stored)
    scaled = scale(inputs, np.dtype(dtype))
    assert [[1.0, -100.0, 100.0]] == scaled.tolist()
    assert np.dtype(dtype) == scaled.dtype


@pytest.mark.parametrize("stored", ELEMENT_TYPES)
def test_the_bias_is_one(stored: str) -> None:
    """Whatever the element type, the network sees a bias of exactly 1."""
    inputs = add_bias(np.zeros((3, 2, 2), stored))
    assert [1.0, 1.0, 1.0] == scale(inputs, np.dtype(np.float32))[:, 0].tolist()
