"""Scaling, bias column and one-hot, with small blocks and literal results."""

from typing import Any

import numpy as np
import pytest

from pipeline.transforms import add_bias, occupied_columns, one_hot, scale, shift_images
from storage.errors import BadDataError
from storage.preparation import BYTES, Preparation, ValueRange

ELEMENT_TYPES = ("uint8", "int8", "int16", "int32", "float32", "float64")


@pytest.mark.parametrize("dtype", ELEMENT_TYPES)
def test_add_bias(dtype: str) -> None:
    """Images of any shape become rows of the same type, the bias before the features."""
    images = np.arange(12, dtype=dtype).reshape(2, 3, 2)
    inputs = add_bias(images, 100)
    assert [[100, 0, 1, 2, 3, 4, 5], [100, 6, 7, 8, 9, 10, 11]] == inputs.tolist()
    assert np.dtype(dtype) == inputs.dtype


def test_add_bias_leaves_the_images_alone() -> None:
    """The images are copied, whatever their memory layout."""
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(0, 2, 1)
    before = images.copy()
    inputs = add_bias(images, 255)
    inputs[:] = 0
    assert before.tolist() == images.tolist()


def test_one_hot() -> None:
    """A label's column is its position among the classes, which need not be 0, 1, 2."""
    targets = one_hot(np.array([26, 1, 5, 1], np.uint8), np.array([1, 5, 26]))
    assert [[0, 0, 1], [1, 0, 0], [0, 1, 0], [1, 0, 0]] == targets.tolist()
    assert np.uint8 == targets.dtype


@pytest.mark.parametrize("label", [0, 2, 27, 255])
def test_a_label_that_is_no_class(label: int) -> None:
    """A label below, between or above the classes is refused with its row."""
    labels = np.array([1, 5, label, 5], np.uint8)
    with pytest.raises(
        BadDataError, match=f"Row 2 has label {label}, which is not one of the classes"
    ):
        one_hot(labels, np.array([1, 5, 26]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scale_bytes(dtype: Any) -> None:
    """Each byte becomes itself / 255 within one unit in the last place; 0 and bias are exact."""
    stored = add_bias(np.arange(256, dtype=np.uint8)[None], 255)
    scaled = scale(stored, np.dtype(dtype), BYTES)
    assert np.dtype(dtype) == scaled.dtype
    assert (1.0, 0.0, 1.0) == (scaled[0, 0], scaled[0, 1], scaled[0, 256])
    np.testing.assert_array_max_ulp(stored.astype(dtype) / dtype(255), scaled, 1)


@pytest.mark.parametrize("stored", ELEMENT_TYPES[1:])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scale_other_types(stored: str, dtype: Any) -> None:
    """A range is mapped to [0, 1], with values outside it; without a range nothing changes."""
    inputs = np.array([[1, -100, 100, 20]], stored)
    scaled = scale(inputs, np.dtype(dtype), ValueRange(-100, 60))
    assert [[1.0, 0.0, 1.25, 0.75]] == scaled.tolist()
    assert [[1.0, -100.0, 100.0, 20.0]] == scale(inputs, np.dtype(dtype), None).tolist()
    assert np.dtype(dtype) == scaled.dtype


@pytest.mark.parametrize("stored", ELEMENT_TYPES)
@pytest.mark.parametrize("scaling", [None, BYTES, ValueRange(-3.5, -0.25), ValueRange(0, 0.3)])
def test_the_bias_is_one(stored: str, scaling: ValueRange | None) -> None:
    """The network's bias is exactly 1, whatever the type and the stored value."""
    own = Preparation(scaling).bias(np.dtype(stored))
    for bias in (1, 100, own):
        inputs = add_bias(np.zeros((3, 2, 2), stored), bias)
        assert [1.0, 1.0, 1.0] == scale(inputs, np.dtype(np.float32), scaling)[:, 0].tolist()


def test_a_narrow_range_far_from_zero() -> None:
    """Values that float32 cannot distinguish are distinct after scaling."""
    inputs = 1e9 + np.array([[1.0, 0.0, 0.25, 1.0]])
    scaled = scale(inputs, np.dtype(np.float32), ValueRange(1e9, 1e9 + 1))
    assert [[1.0, 0.0, 0.25, 1.0]] == scaled.tolist()


def test_columns_are_blank_only_where_zero_stays_zero() -> None:
    """Columns of bytes 0 are kept if 0 is not scaled to 0."""
    stored = add_bias(np.zeros((2, 30), np.uint8), 255)
    columns = occupied_columns(stored, ValueRange(0, 100))
    assert columns is not None
    assert [0] == columns.tolist()
    assert occupied_columns(stored, ValueRange(-100, 100)) is None


@pytest.mark.parametrize("dtype", ["int16", "float32", "float64"])
def test_the_convention_says_the_same(dtype: str) -> None:
    """Decoding by the CF attributes gives the network's values, bias included."""
    preparation = Preparation(ValueRange(-1024, 2036))
    stored = add_bias(np.array([[-1024, 7, 2036]], dtype), preparation.bias(np.dtype(dtype)))
    attributes = preparation.attributes
    decoded = stored * np.float64(attributes["scale_factor"]) + attributes["add_offset"]
    seen = scale(stored, np.dtype(np.float64), preparation.scaling)
    np.testing.assert_allclose(decoded, seen, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "preparation",
    [
        Preparation(BYTES),
        Preparation(None, one_hot=False),
        Preparation(ValueRange(-0.1, 1 / 3), transposed=True),
    ],
)
def test_transforms_by_name(preparation: Preparation) -> None:
    """The recorded names of transforms restore the preparation exactly."""
    assert preparation == Preparation.from_names(preparation.names, "here")


@pytest.mark.parametrize("name", ["blur", "scale[1.0,0.0]", "scale[nan,1]", "scale[1]", "scale-1"])
def test_a_transform_of_another_release(name: str) -> None:
    """An unknown transform is refused."""
    with pytest.raises(BadDataError, match=r"here has the unknown transform"):
        Preparation.from_names(("bias-column", name), "here")


@pytest.mark.parametrize("by", [(0, 0), (-1, 0), (2, 0), (0, 1), (0, -3), (1, -2), (5, 0), (0, -4)])
def test_shift_images(by: tuple[int, int]) -> None:
    """Each pixel moves down and right; bytes from outside are 0, and the bias stays."""
    images = np.random.default_rng(1).integers(1, 256, (3, 2, 4), np.uint8)
    expected = np.zeros_like(images)
    for row, column in np.ndindex(2, 4):
        if 0 <= row + by[0] < 2 and 0 <= column + by[1] < 4:
            expected[:, row + by[0], column + by[1]] = images[:, row, column]
    inputs = add_bias(images, 255)
    inputs.flags.writeable = False
    moved = shift_images(inputs, (2, 4), *by, BYTES)
    np.testing.assert_array_equal(add_bias(expected, 255), moved)
    assert np.uint8 == moved.dtype


@pytest.mark.parametrize("dtype", ELEMENT_TYPES)
@pytest.mark.parametrize(
    ("scaling", "background"), [(None, 0), (ValueRange(-100, 27), -100), (ValueRange(7.4, 9), 7.4)]
)
def test_background(dtype: str, scaling: ValueRange | None, background: float) -> None:
    """A vacated pixel is the stored value nearest to the one that is scaled to 0."""
    moved = shift_images(add_bias(np.full((1, 2, 2), 50, dtype), 1), (2, 2), 0, 1, scaling)
    if np.dtype(dtype).kind != "f":
        background = max(round(background), np.iinfo(dtype).min)
    expected = [1, background, 50, background, 50]
    assert np.array([expected], dtype).tolist() == moved.tolist()
