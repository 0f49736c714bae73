"""The transforms of images and labels, and the range that maps stored values to [0, 1]."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from storage.errors import BadDataError

BIAS_COLUMN = "bias-column"
TRANSPOSE = "transpose"
ONE_HOT = "one-hot"
BYTE_SCALE = "scale-1/255"
"""The name of the range 0 to 255."""

LARGEST = 1e18
"""The largest magnitude of a stored or scaled value: the square of 1e19 is near the limit of the
32-bit floats that training uses."""
NARROWEST = 1e-300
"""The least width of a range: its reciprocal must be finite."""

_RANGE = re.compile(r"scale\[([^,\]]+),([^,\]]+)\]")


@dataclass(frozen=True)
class ValueRange:
    """A linear map of stored values: `low` to 0 and `high` to 1."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (abs(self.low) <= LARGEST and abs(self.high) <= LARGEST):
            raise ValueError(f"expected numbers from -{LARGEST:g} to {LARGEST:g}")
        if not self.high - self.low >= NARROWEST:
            raise ValueError("expected LOW to be less than HIGH")

    @classmethod
    def covering(cls, low: float, high: float) -> Self:
        """Return the range from the smallest to the largest value; wider if they are equal."""
        low, high = low + 0.0, high + 0.0  # turns -0.0 into 0.0
        return cls(low, high if high - low >= NARROWEST else low + max(1.0, abs(low)))

    @property
    def name(self) -> str:
        """The transform's name in a dataset's attributes."""
        return BYTE_SCALE if self == BYTES else f"scale[{self.low!r},{self.high!r}]"

    @property
    def attributes(self) -> dict[str, float]:
        width = self.high - self.low
        return {"scale_factor": 1 / width, "add_offset": 0.0 - self.low / width}

    def __str__(self) -> str:
        ends = (self.low, self.high)
        texts = (f"{end:.6g}" if end % 1 else repr(end).removesuffix(".0") for end in ends)
        return " to ".join(texts)


BYTES = ValueRange(0.0, 255.0)
"""The range of bytes."""


@dataclass(frozen=True)
class Preparation:
    """The transforms of images and labels, before storing and after reading."""

    scaling: ValueRange | None
    """Applied when rows are read; None for no scaling."""
    transposed: bool = False
    """Whether height and width were swapped."""
    one_hot: bool = True
    """Whether labels were converted to one-hot targets; False if there are no labels."""

    @property
    def names(self) -> tuple[str, ...]:
        return (
            BIAS_COLUMN,
            *([TRANSPOSE] if self.transposed else []),
            *([self.scaling.name] if self.scaling else []),
            *([ONE_HOT] if self.one_hot else []),
        )

    @classmethod
    def from_names(cls, names: Iterable[str], place: str) -> Self:
        """Return the inverse of `names`; raise `BadDataError` for an unknown name at `place`."""
        scaling, known = None, {BIAS_COLUMN, TRANSPOSE, ONE_HOT}
        names = tuple(names)
        for name in names:
            if name not in known:
                scaling = _range_called(name, place)
        return cls(scaling, TRANSPOSE in names, ONE_HOT in names)

    @property
    def attributes(self) -> dict[str, float]:
        if self.scaling is None:
            return {"scale_factor": 1.0, "add_offset": 0.0}
        return self.scaling.attributes

    def bias(self, dtype: np.dtype[Any]) -> float:
        """Return the stored bias: the value nearest to the one that is scaled to 1.

        As uint8 it is at least 1, so that the column never looks blank.
        """
        value = 1.0 if self.scaling is None else self.scaling.high
        if dtype.kind == "f":
            return value
        limits = np.iinfo(dtype)
        least = 1 if dtype == np.uint8 else int(limits.min)
        return min(max(round(value), least), int(limits.max))

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the stored shape of images of a shape."""
        if not self.transposed or len(shape) < 2:
            return shape
        return (shape[1], shape[0], *shape[2:])

    def __str__(self) -> str:
        values = "values not scaled"
        if self.scaling is not None:
            values = f"values from {self.scaling} mapped to [0, 1]"
        return f"{values}, transposed" if self.transposed else values


def _range_called(name: str, place: str) -> ValueRange:
    if name == BYTE_SCALE:
        return BYTES
    try:
        match = _RANGE.fullmatch(name)
        if match is None:
            raise ValueError
        return ValueRange(float(match[1]), float(match[2]))
    except ValueError:
        raise BadDataError(
            f"{place} has the unknown transform {name!r}. Install a newer mnist-stream, or ingest "
            "again with this one."
        ) from None


def parse_range(text: str) -> ValueRange | None:
    """Return the range of `--scale`, None for `none`; raise `ValueError` for anything else."""
    if text == "none":
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise ValueError("expected none, or two numbers LOW,HIGH such as -1024,2036") from None
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError("expected finite numbers")
    return ValueRange(low + 0.0, high + 0.0)
