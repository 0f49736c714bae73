"""Scale, bias column, one-hot: pure functions on blocks of rows."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import BadDataError
from storage.preparation import BYTES, ValueRange

MOST_OCCUPIED = 0.9
"""If a larger share of the columns is in use, leaving columns out costs more than it saves."""

BLOCK = 65_536
"""Values that are mapped at a time, as float64 that fit the cache."""


def add_bias(images: NDArray[Any], bias: float) -> NDArray[Any]:
    """Return images `(rows, *image_shape)` as `(rows, 1 + features)`, bias first."""
    rows = len(images)
    inputs = np.empty((rows, 1 + math.prod(images.shape[1:])), dtype=images.dtype)
    inputs[:, 0] = bias
    inputs[:, 1:] = images.reshape(rows, inputs.shape[1] - 1)
    return inputs


def one_hot(
    labels: NDArray[Any], classes: NDArray[np.int64], first_row: int = 0
) -> NDArray[np.uint8]:
    """Return labels `(rows,)` as `(rows, len(classes))` uint8; `classes` are sorted and distinct.

    Raises `BadDataError` that names the first row, counted from `first_row`, whose label is not
    among the classes.
    """
    columns = np.searchsorted(classes, labels)
    is_unknown = classes[np.minimum(columns, len(classes) - 1)] != labels
    if is_unknown.any():
        row = int(np.argmax(is_unknown))
        raise BadDataError(
            f"Row {first_row + row} has label {labels[row]}, which is not one of the classes."
        )
    targets = np.zeros((len(labels), len(classes)), dtype=np.uint8)
    targets[np.arange(len(labels)), columns] = 1
    return targets


def scale(
    inputs: NDArray[Any],
    dtype: np.dtype[Any],
    scaling: ValueRange | None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Return stored inputs `(rows, columns)`, bias first, scaled for the network.

    The bias becomes exactly 1, whatever is stored. `out` receives the result if it is given.
    """
    if out is None:
        out = np.empty(inputs.shape, dtype)
    if inputs.dtype == np.uint8 and scaling == BYTES:
        np.multiply(inputs, dtype.type(1 / 255), out=out, dtype=dtype)
    else:
        with np.errstate(over="ignore"):  # an overflow shows in the results
            _map(inputs, scaling, out)
    out[:, 0] = 1
    return out


def _map(inputs: NDArray[Any], scaling: ValueRange | None, out: NDArray[Any]) -> None:
    if scaling is None:
        np.copyto(out, inputs, casting="unsafe")
        return
    # In float64, which holds every stored value; float32 would blur a narrow range far from 0.
    rows = max(1, BLOCK // inputs.shape[1])
    for start in range(0, len(inputs), rows):
        values = np.subtract(inputs[start : start + rows], scaling.low, dtype=np.float64)
        values /= scaling.high - scaling.low
        out[start : start + rows] = values


def background(scaling: ValueRange | None, dtype: np.dtype[Any]) -> float:
    """Return the stored value nearest to the one that is scaled to 0; 0 without scaling."""
    low = 0.0 if scaling is None else scaling.low
    if dtype.kind == "f":
        return low
    limits = np.iinfo(dtype)
    return min(max(round(low), int(limits.min)), int(limits.max))


def shift_images(
    inputs: NDArray[Any],
    image_shape: tuple[int, ...],
    down: int,
    right: int,
    scaling: ValueRange | None,
) -> NDArray[Any]:
    """Return stored rows `(rows, 1 + features)` with their images moved by whole pixels.

    Pixels that move out of the image are lost; those that are vacated become the background.
    """
    moved = np.full_like(inputs, background(scaling, inputs.dtype))
    moved[:, 0] = inputs[:, 0]
    height, width = image_shape
    before, after = (rows[:, 1:].reshape(-1, height, width) for rows in (inputs, moved))
    down, right = max(-height, min(down, height)), max(-width, min(right, width))
    after[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = before[
        :, max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return moved


def occupied_columns(inputs: NDArray[Any], scaling: ValueRange | None) -> NDArray[np.intp] | None:
    """Return, in ascending order, the columns of byte inputs that have a value other than 0.

    None if leaving out the others would not pay, if 0 is not scaled to 0, and for other types.
    """
    if inputs.dtype != np.uint8 or (scaling is not None and scaling.low):
        return None
    columns = np.flatnonzero(np.bitwise_or.reduce(inputs, axis=0))
    return columns if len(columns) <= MOST_OCCUPIED * inputs.shape[1] else None
