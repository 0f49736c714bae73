"""How images become stored rows, and what the stored values stand for."""

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
"""No value may be larger in size, neither as stored nor as scaled: the square of one that is ten
times as large no longer fits into the 32-bit floats that training computes with."""
NARROWEST = 1e-300
"""The least width of a range whose reciprocal is still a finite number."""

_RANGE = re.compile(r"scale\[([^,\]]+),([^,\]]+)\]")


@dataclass(frozen=True)
class ValueRange:
    """A linear map: stored values from `low` to `high` stand for 0 to 1."""

    low: float
    high: float

    def __post_init__(self) -> None:
        """Raise `ValueError` for a range that cannot be mapped."""
        if not (abs(self.low) <= LARGEST and abs(self.high) <= LARGEST):
            raise ValueError(f"expected numbers from -{LARGEST:g} to {LARGEST:g}")
        if not self.high - self.low >= NARROWEST:
            raise ValueError("expected LOW to be less than HIGH")

    @classmethod
    def covering(cls, low: float, high: float) -> Self:
        """Return the range from smallest to largest value; wider where they are the same."""
        low, high = low + 0.0, high + 0.0  # -0.0 is 0.0, whichever is met first
        return cls(low, high if high - low >= NARROWEST else low + max(1.0, abs(low)))

    @property
    def name(self) -> str:
        """Return the name of the transform in a dataset's attributes."""
        return BYTE_SCALE if self == BYTES else f"scale[{self.low!r},{self.high!r}]"

    @property
    def attributes(self) -> dict[str, float]:
        """Return the attributes of the CF convention that say the same.

        xarray decodes with these in float64, as JSON has no float32.
        """
        width = self.high - self.low
        return {"scale_factor": 1 / width, "add_offset": 0.0 - self.low / width}

    def __str__(self) -> str:
        low, high = (repr(value).removesuffix(".0") for value in (self.low, self.high))
        return f"{low} to {high}"


BYTES = ValueRange(0.0, 255.0)
"""The range of bytes."""


@dataclass(frozen=True)
class Preparation:
    """The transforms of images and labels: those before storing, and those after reading."""

    scaling: ValueRange | None
    """Applied when rows are read; None where values are kept as they are."""
    transposed: bool = False
    """Whether height and width were swapped."""
    one_hot: bool = True
    """Whether labels became one-hot targets: False where there are none."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the transforms by name, as a dataset and a run record them."""
        return (
            BIAS_COLUMN,
            *([TRANSPOSE] if self.transposed else []),
            *([self.scaling.name] if self.scaling else []),
            *([ONE_HOT] if self.one_hot else []),
        )

    @classmethod
    def from_names(cls, names: Iterable[str], place: str) -> Self:
        """Return the inverse of `names`; `BadDataError` says that `place` has an unknown name."""
        scaling, known = None, {BIAS_COLUMN, TRANSPOSE, ONE_HOT}
        names = tuple(names)
        for name in names:
            if name not in known:
                scaling = _range_called(name, place)
        return cls(scaling, TRANSPOSE in names, ONE_HOT in names)

    @property
    def attributes(self) -> dict[str, float]:
        """Return the CF attributes of stored inputs."""
        if self.scaling is None:
            return {"scale_factor": 1.0, "add_offset": 0.0}
        return self.scaling.attributes

    def bias(self, dtype: np.dtype[Any]) -> float:
        """Return the stored value of the bias column: the nearest one to what stands for 1.

        A bias of bytes is never 0, so that nobody takes its column for blank.
        """
        value = 1.0 if self.scaling is None else self.scaling.high
        if dtype.kind == "f":
            return value
        limits = np.iinfo(dtype)
        least = 1 if dtype == np.uint8 else int(limits.min)
        return min(max(round(value), least), int(limits.max))

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape in which an image of that shape is stored."""
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
            f"{place} has the transform {name!r}, which this release does not know. Install a "
            "newer mnist-stream, or ingest again with this one."
        ) from None


def parse_range(text: str) -> ValueRange | None:
    """Return the range in `--scale`, None for `none`; raise `ValueError` for anything else."""
    if text == "none":
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise ValueError("expected none, or two numbers LOW,HIGH such as -1024,2036") from None
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError("expected finite numbers")
    return ValueRange(low + 0.0, high + 0.0)
