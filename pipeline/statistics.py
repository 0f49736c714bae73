"""Statistics of images: nine numbers for each, counted in histograms that add up exactly.

The counts of chunks add up to those of a split, in any order. Ingest records those of the training
split; a scoring compares its rows with them.
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from storage.dataset import Dataset
from storage.documents import check_fields
from storage.errors import BadDataError
from storage.preparation import BYTES, ValueRange

STATISTICS = (
    "brightness",
    "contrast",
    "greyness",
    "roughness",
    "centre x",
    "centre y",
    "width",
    "height",
    "slant",
)
"""The statistics of an image, in the order of their histograms."""
BINS = 256
"""Equal bins of [0, 1] in each histogram."""
SAMPLED_ROWS = 5_000
"""About this number of rows of a larger split are counted."""
WEYL = 2_654_435_769
"""2**32 over the golden ratio: its multiples are spread evenly (Knuth, 1973)."""
BLOCK = 32_768
"""Values that are computed on at a time, so that they fit the cache."""
COUNTS = re.compile(r"([0-9]{1,15}( [0-9]{1,15})*)?", re.ASCII)


@dataclass(frozen=True, eq=False)
class ImageStatistics:
    """Histograms of the statistics of some images."""

    counts: NDArray[np.int64]
    """Images in each bin, `(statistics, BINS)`."""

    @classmethod
    def empty(cls) -> Self:
        """Return the histograms of no image, to add others to."""
        return cls(np.zeros((len(STATISTICS), BINS), np.int64))

    @classmethod
    def of(
        cls,
        images: NDArray[Any],
        shape: tuple[int, ...],
        scaling: ValueRange | None,
        sampled: NDArray[np.bool_] | None = None,
    ) -> Self:
        """Count stored images of a shape, `(rows, ...)`: all, or those that are `sampled`."""
        numbers = np.arange(len(images)) if sampled is None else np.flatnonzero(sampled)
        return cls(histograms(image_statistics(images, shape, scaling, numbers)))

    @property
    def rows(self) -> int:
        """The number of images."""
        return int(self.counts[0].sum())

    def add(self, other: "ImageStatistics") -> None:
        """Add the counts of other images."""
        np.add(self.counts, other.counts, out=self.counts)

    def to_json(self) -> dict[str, Any]:
        """Return the rows and the histograms by name, as stored in a document."""
        counts = zip(STATISTICS, self.counts, strict=True)
        return {"rows": self.rows, "counts": {name: counts_text(row) for name, row in counts}}

    @classmethod
    def from_json(cls, document: Any, place: str) -> Self:
        """Return the inverse of `to_json`; raise `BadDataError` that names `place`."""
        check_fields(document, {"rows": int, "counts": dict}, place)
        check_fields(document["counts"], dict.fromkeys(STATISTICS, str), place)
        counts = [parse_counts(document["counts"][name], BINS, place) for name in STATISTICS]
        if any(row.sum() != document["rows"] for row in counts):
            raise BadDataError(f"{place} has histograms of other rows than its {document['rows']}.")
        return cls(np.stack(counts))

    @classmethod
    def recorded(cls, dataset: Dataset) -> Self | None:
        """Return the statistics of a dataset's training split; None if it records none."""
        if dataset.statistics is None:
            return None
        return cls.from_json(dataset.statistics, f"The attribute statistics of {dataset.location}")


def counts_text(counts: NDArray[np.int64]) -> str:
    """Return a histogram as numbers with spaces, without the zeros at its end."""
    return " ".join(map(str, np.trim_zeros(counts, "b").tolist()))


def parse_counts(text: Any, bins: int, place: str) -> NDArray[np.int64]:
    """Return the inverse of `counts_text`; raise `BadDataError` that names `place`."""
    numbers = text.split(" ") if isinstance(text, str) and text else []
    if len(numbers) > bins or not COUNTS.fullmatch(" ".join(numbers)):
        raise BadDataError(
            f"{place} has a histogram {str(text)[:20]!r}...; expected up to {bins} numbers. "
            "Restore it from a copy, or create it again."
        )
    counts = np.zeros(bins, np.int64)
    counts[: len(numbers)] = list(map(int, numbers))
    return counts


def histograms(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Count values in [0, 1], `(rows, columns)`, in the bins of each column: `(columns, BINS)`."""
    columns = values.shape[1]
    bins = np.minimum((values * BINS).astype(np.int64), BINS - 1)
    bins += np.arange(columns) * BINS
    return np.bincount(bins.ravel(), minlength=columns * BINS).reshape(columns, BINS)


def is_sampled(start: int, stop: int, rows: int, most: int = SAMPLED_ROWS) -> NDArray[np.bool_]:
    """Return which rows [start, stop) of a split of `rows` are counted: all if they are few.

    Of more than `most`, about that number is counted.

    The choice follows from a row's number alone, and has no period that labels could share.
    """
    numbers = np.arange(start, stop, dtype=np.uint64)
    hashed = numbers * np.uint64(WEYL) & np.uint64(2**32 - 1)
    chosen: NDArray[np.bool_] = hashed * np.uint64(rows) < np.uint64(most * 2**32)
    return chosen


def image_statistics(
    images: NDArray[Any],
    shape: tuple[int, ...],
    scaling: ValueRange | None,
    numbers: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Return the statistics of the images with these numbers, in [0, 1]: `(rows, statistics)`.

    `images` are stored ones, `(rows, ...)`. Sums over the pixels of bytes are exact, so that they
    do not depend on the order of additions.
    """
    height, width = shape[:2] if len(shape) > 1 else (1, *shape)
    depth = math.prod(shape[2:])
    line, size = width * depth, height * width * depth
    flat, moments, unit = images.reshape(len(images), size), np.zeros((len(numbers), 8)), 1.0
    rows, lines = max(1, BLOCK // size), max(1, BLOCK // line)
    for top in range(0, height, lines):  # once, unless images are large
        powers = _powers(top, min(height, top + lines), width, depth)
        part = slice(top * line, top * line + len(powers))
        for start in range(0, len(numbers), rows):
            block = slice(start, start + rows)
            pixels, unit = _pixels(flat[numbers[block], part], scaling)
            steps = _steps(pixels, width, depth)
            moments[block, :6] += pixels @ powers
            for column, terms in ((6, pixels), (7, steps)):
                moments[block, column] += np.einsum("ij,ij->i", terms, terms)
    total, *centred, squares, of_steps = moments.T
    mean = total / size / unit
    mean_square = squares / size / unit**2
    step = of_steps / max(1, height * (width - 1) * depth) / unit**2
    x, y, xx, yy, xy = np.divide(centred, np.where(total > 0, total, 1.0))
    spread_x, spread_y = (np.sqrt(np.maximum(v, 0)) for v in (xx - x * x, yy - y * y))
    slant = (xy - x * y) / np.maximum(spread_x * spread_y, 1e-6)
    is_blank = total <= 0
    values = [
        np.sqrt(mean),
        2 * np.sqrt(np.maximum(mean_square - mean * mean, 0)),
        2 * np.sqrt(np.maximum(mean - mean_square, 0)),
        np.sqrt(step),
        np.where(is_blank, 0.5, (x + 0.5) / width),
        np.where(is_blank, 0.5, (y + 0.5) / height),
        2 * spread_x / width,
        2 * spread_y / height,
        0.5 + slant / 2,
    ]
    statistics: NDArray[np.float64] = np.clip(np.stack(values, axis=1), 0, 1)
    return statistics


@lru_cache(maxsize=1)
def _powers(top: int, bottom: int, width: int, depth: int) -> NDArray[np.float64]:
    """Return 1, x, y, x^2, y^2 and x y of each value of the lines [top, bottom)."""
    places: NDArray[np.intp] = np.mgrid[top:bottom, :width].reshape(2, -1)
    y, x = places.repeat(depth, axis=1).astype(np.float64)
    return np.column_stack([np.ones_like(x), x, y, x * x, y * y, x * y])


def _steps(pixels: NDArray[np.float64], width: int, depth: int) -> NDArray[np.float64]:
    """Return the differences to the next pixel of the same line; 0 at the end of a line."""
    steps = np.empty_like(pixels)
    np.subtract(pixels[:, depth:], pixels[:, :-depth], out=steps[:, :-depth])
    steps.reshape(len(steps), -1, width, depth)[:, :, -1] = 0
    return steps


def _pixels(stored: NDArray[Any], scaling: ValueRange | None) -> tuple[NDArray[np.float64], float]:
    """Return stored values as float64, and what stands for 1: bytes stay integers."""
    if stored.dtype == np.uint8 and scaling == BYTES:
        return stored.astype(np.float64), 255.0
    low, high = (0.0, 1.0) if scaling is None else (scaling.low, scaling.high)
    values = np.subtract(stored, low, dtype=np.float64)
    values /= high - low
    return np.clip(values, 0, 1, out=values), 1.0
