"""The values of images: their range, and whether they fit the network's arithmetic."""

import math
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.splits import SplitSource
from storage.dataset import Split
from storage.errors import BadDataError
from storage.events import Progress
from storage.preparation import LARGEST, ValueRange
from storage.schema import SplitSchema


def check_values(
    images: NDArray[Any], scaling: ValueRange | None, place: str, first_row: int
) -> tuple[float, float]:
    """Return the smallest and the largest value of images `(rows, *image_shape)`.

    Raises `BadDataError` for a value that is not finite, or too large as stored or as scaled. It
    names `place`, the row, counted from `first_row`, and the value.
    """
    low, high = float(images.min()), float(images.max())  # NaN if any value is NaN
    if not (_fits(low, scaling) and _fits(high, scaling)):
        raise _misfit(images, scaling, place, first_row)
    return low, high


def _fits(values: Any, scaling: ValueRange | None) -> Any:
    """Return whether a value, or each value of a float64 array, fits the arithmetic."""
    fits = np.abs(values) <= LARGEST
    if scaling is None:
        return fits
    return fits & (np.abs(_scaled(values, scaling)) <= LARGEST)


def _scaled(values: Any, scaling: ValueRange) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.divide(np.subtract(values, scaling.low), scaling.high - scaling.low)


def _misfit(
    images: NDArray[Any], scaling: ValueRange | None, place: str, first_row: int
) -> BadDataError:
    """Return the error that names the first value that does not fit."""
    rows = images.reshape(len(images), -1)
    number, column = np.argwhere(~_fits(rows.astype(np.float64), scaling))[0]
    value = rows[number, column]
    scaled = ""
    if scaling is not None and _fits(float(value), None):
        scaled = f" ({_scaled(float(value), scaling):g} when {scaling} is mapped to [0, 1])"
    return BadDataError(
        f"{place}: row {first_row + number} holds the value {value!s}{scaled}; expected finite "
        f"numbers from -{LARGEST:g} to {LARGEST:g}. Replace the value, for example by 0 for "
        "missing data, or remove the row."
    )


def range_of(split: SplitSource, progress: Progress) -> ValueRange:
    """Return the range of a split's values, by reading all its images.

    Raises `BadDataError` like `check_values`.
    """
    features = int(np.prod(split.image_shape))
    plan = SplitSchema.plan(rows=split.rows, features=features, dtype=str(split.dtype), classes=0)
    ends: list[float] = []
    with closing(split.parts(plan.chunk_rows)) as parts:
        for part in parts:
            images, _ = part.load(part.start, part.stop)
            ends += check_values(images, None, split.origin, part.start)
            progress(f"range of {split.name}", part.stop, split.rows)
    return ValueRange.covering(min(ends), max(ends))


def largest_input(
    split: Split, scaling: ValueRange | None, chunks: int | None = None
) -> tuple[int, str, float]:
    """Return the row, the stored value and the scaled size of the largest input of a split.

    `chunks` limits the search to the first chunks. NaN counts as the largest value, with infinite
    size.
    """
    largest = (0, "0", 0.0)
    for number in range(chunks or split.schema.chunks):
        values = split.read_chunk(number).inputs[:, 1:]
        # The map is linear, so the largest is the minimum, the maximum or the first NaN.
        for place in (int(values.argmin()), int(values.argmax())):
            row, column = divmod(place, values.shape[1])
            value = values[row, column]
            size = abs(float(value) if scaling is None else float(_scaled(float(value), scaling)))
            if math.isnan(size) or size > largest[2]:
                first = split.schema.chunk_bounds(number)[0]
                largest = (first + row, str(value), math.inf if math.isnan(size) else size)
    return largest
