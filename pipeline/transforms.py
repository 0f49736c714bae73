"""Scale, bias column, one-hot: pure functions on blocks of rows."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import BadDataError

BIAS_COLUMN = "bias-column"
SCALE = "scale-1/255"
ONE_HOT = "one-hot"

MOST_OCCUPIED = 0.9
"""With more of the columns in use than this, narrowing costs more than it saves."""


def bias_value(dtype: np.dtype[Any]) -> int:
    """What the bias column holds: 255 for bytes, which are scaled by 1/255 when used, else 1."""
    return 255 if dtype == np.uint8 else 1


def add_bias(images: NDArray[Any]) -> NDArray[Any]:
    """`(rows, *image_shape)` to `(rows, 1 + features)` of the same type, bias first."""
    rows = len(images)
    features = math.prod(images.shape[1:])
    inputs = np.empty((rows, 1 + features), dtype=images.dtype)
    inputs[:, 0] = bias_value(images.dtype)
    inputs[:, 1:] = images.reshape(rows, features)
    return inputs


def one_hot(labels: NDArray[Any], classes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """`(rows,)` labels to `(rows, len(classes))` uint8; `classes` are sorted and distinct.

    Raises `BadDataError` that names the first row whose label is not among the classes.
    """
    columns = np.searchsorted(classes, labels)
    strange = classes[np.minimum(columns, len(classes) - 1)] != labels
    if strange.any():
        row = int(np.argmax(strange))
        raise BadDataError(f"Row {row} has label {labels[row]}; it is none of the classes found.")
    targets = np.zeros((len(labels), len(classes)), dtype=np.uint8)
    targets[np.arange(len(labels)), columns] = 1
    return targets


def scale(
    inputs: NDArray[Any], dtype: np.dtype[Any], out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Stored inputs as the network takes them: bytes to [0, 1], the bias to exactly 1.

    They are written to `out` where that is given.
    """
    if out is None:
        out = np.empty(inputs.shape, dtype)
    if inputs.dtype == np.uint8:
        np.multiply(inputs, dtype.type(1 / 255), out=out, dtype=dtype)
    else:
        np.copyto(out, inputs, casting="unsafe")
    return out


def occupied_columns(inputs: NDArray[Any]) -> NDArray[np.intp] | None:
    """The columns of byte inputs in which any row is not 0, ascending.

    None where leaving the others out would not pay, and for other types than bytes.
    """
    if inputs.dtype != np.uint8:
        return None
    columns = np.flatnonzero(np.bitwise_or.reduce(inputs, axis=0))
    return columns if len(columns) <= MOST_OCCUPIED * inputs.shape[1] else None
