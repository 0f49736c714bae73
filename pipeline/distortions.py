"""Distortions version 1: random affine and elastic distortions of images, the same on any machine.

A distorted row depends on the image, the strengths, the seed, the epoch and the row number alone.
A published version never changes; test vectors pin it. docs/explanation/distortions.md defines it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.draws import Words, random_words
from pipeline.order import RowNumbers
from pipeline.resampling import PACKED_BYTES, PIXEL_BYTES, STEPS, Resampler
from storage.errors import UsageError

DISTORTION_VERSION = 1
EXACT = 2**24
"""float32 holds all integers up to this one."""
LARGEST_SIDE = 4096
"""The most pixels of a side; a larger image would leave too few fractional bits."""
MATRIX_LIMIT = 2**27
"""The most bytes of the matrix that makes displacements of coefficients."""
BLOCK_PIXELS = 128 * 28 * 28
"""Pixels that are distorted together: enough to outweigh NumPy's calls, few enough for a cache."""
MAKING_MEMORY = 2**19
"""Bytes that making the tables of draws needs; the matrix needs nine float64 more per pixel."""
DRAWS = 1024
"""Values of a uniform draw, which has 10 bits."""
FIRST_BITS = np.array([0, 0, 10, 20, 30, 40, 50], np.uint64)
"""The first bit of the draw for each table: cosine and sine have the same one."""
MEAN_SUM = 510
"""Mean of a sum of four random bytes, and its largest deviation from it."""
SUM_DEVIATION = math.sqrt(4 * (256**2 - 1) / 12)
"""Standard deviation of a sum of four random bytes."""
EVEN_BYTES, LOW_QUARTER = np.uint64(0x00FF00FF00FF00FF), np.uint64(0xFFFF)


@dataclass(frozen=True)
class Distortions:
    """Strengths of distortions; 0 leaves a distortion out."""

    rotate: float = 0.0
    """Degrees: images are rotated by at most this, either way."""
    scale: float = 0.0
    """Width and height are scaled, apart, by at most this share."""
    shear: float = 0.0
    """Rows are moved sideways by at most this share of their distance from the centre."""
    shift: float = 0.0
    """Pixels: images are moved by at most this, in x and in y."""
    elastic: float = 0.0
    """Pixels: root mean square of a smooth random displacement, in x and in y."""
    elastic_sigma: float = 5.0
    """Pixels: standard deviation of the Gaussian that smooths the elastic displacement."""

    @property
    def any(self) -> bool:
        """Whether any strength is not 0."""
        return any((self.rotate, self.scale, self.shear, self.shift, self.elastic))

    def halved(self) -> "Distortions":
        """Return half of each strength, with the same smoothness."""
        names = ("rotate", "scale", "shear", "shift", "elastic")
        return replace(self, **{name: getattr(self, name) / 2 for name in names})


DIGITS = Distortions(rotate=15, scale=0.15, shear=0.15, shift=1, elastic=1, elastic_sigma=5)
SETS = {"none": Distortions(), "digits": DIGITS}
"""Named sets of strengths."""


def check_distortable(
    strengths: Distortions, image_shape: tuple[int, ...], dtype: str, place: str
) -> None:
    """Raise `UsageError` unless images of this shape and element type can be distorted.

    `place` names the dataset in the message.
    """
    if not strengths.any:
        return
    shape = " x ".join(map(str, image_shape))
    if len(image_shape) != 2:
        raise UsageError(
            f"{place} has rows of {shape} values; only two-dimensional images can be distorted. "
            "Pass --distort none."
        )
    if dtype != "uint8":
        raise UsageError(
            f"{place} has {dtype} values; only images of bytes (uint8) can be distorted. Write "
            "the files as bytes and ingest them again, or pass --distort none."
        )
    if max(image_shape) > LARGEST_SIDE:
        raise UsageError(
            f"{place} has images of {shape} pixels; only images of at most {LARGEST_SIDE:,} pixels "
            "a side can be distorted. Pass --distort none."
        )
    height, width = image_shape
    modes = _waves(strengths, height, width).shape[1]
    if 4 * modes * height * width > MATRIX_LIMIT:
        raise UsageError(
            f"An elastic sigma of {strengths.elastic_sigma:g} pixels needs {modes:,} modes for "
            f"images of {shape} pixels, and their matrix more than {MATRIX_LIMIT:,} bytes. Choose "
            "a larger --elastic-sigma."
        )
    field = _field_of(strengths, height, width)
    if field.largest >= EXACT:
        unit = EXACT >> field.bits
        raise UsageError(
            f"These distortions of images of {shape} pixels need coordinates of up to "
            f"{field.largest / EXACT * unit:,.0f} pixels; the arithmetic is exact below {unit:,}. "
            "Choose weaker distortions."
        )


class Distorter:
    """Distort rows of a dataset. Holds scratch memory, so each thread needs its own."""

    def __init__(self, strengths: Distortions, image_shape: tuple[int, ...], seed: int) -> None:
        check_distortable(strengths, image_shape, "uint8", "The dataset")
        self._seed = seed
        height, width = image_shape
        self._field = _field_of(strengths, height, width)
        self._resampler = Resampler(_block_rows(height, width), height, width)
        rows, (terms, pixels) = self._resampler.rows, self._field.matrix.shape
        self._coefficients = np.empty((2 * rows, terms), np.float32)
        self._origins = np.empty((2 * rows, pixels), np.float32)
        self._out = np.empty((0, 1 + pixels), np.uint8)

    def __call__(self, inputs: NDArray[Any], epoch: int, rows: RowNumbers) -> NDArray[Any]:
        """Return the distorted rows of `inputs`, `(rows, 1 + features)` uint8, bias first.

        `rows` are their row numbers. The result is scratch memory, valid until the next call.
        """
        if len(self._out) < len(inputs):
            self._out = np.empty(inputs.shape, np.uint8)
        out = self._out[: len(inputs)]
        text = f"mnist-stream distortion {DISTORTION_VERSION}|{self._seed}|{epoch}"
        out[:, 0] = inputs[:, 0]
        for start in range(0, len(inputs), self._resampler.rows):
            block = slice(start, start + self._resampler.rows)
            words = random_words(text, rows[block], self._field.words)
            coefficients = self._coefficients[: 2 * len(words)]
            self._field.write_coefficients(words, coefficients)
            origins = self._origins[: 2 * len(words)]
            np.matmul(coefficients, self._field.matrix, out=origins)  # exact: see _Field
            columns, lines = origins[: len(words)], origins[len(words) :]
            self._resampler(inputs[block, 1:], columns, lines, out[block, 1:])
        return out


class _Field:
    """Where the pixels of distorted images come from: random coefficients times a matrix.

    The columns and the rows that pixels come from are sums of integers times integers, in
    1/2^`bits` pixel. If the largest possible sum of the absolute values is below 2^24, every
    partial sum in any order is an integer that float32 holds. So any BLAS returns the same bits,
    whichever terms it adds first. The matrix is divided by a power of 2, which changes no digit.
    """

    def __init__(self, strengths: Distortions, height: int, width: int) -> None:
        self.bits = 22 - max(6, (max(height, width) - 1).bit_length())
        half, unit = 2 ** (self.bits - 1), 2**self.bits / SUM_DEVIATION
        # cos, sin, exp and sqrt may differ in their last digit between machines. Rounded to
        # integers, they would differ only for a value within 1e-11 or so of a half.
        draws = (2 * np.arange(DRAWS) - (DRAWS - 1)) / DRAWS
        angles = draws * math.radians(strengths.rotate)
        scales, shifts = 1 + draws * strengths.scale, draws * strengths.shift * 2
        shears = draws * strengths.shear
        tables = [np.cos(angles), np.sin(angles), scales, scales, shears, shifts, shifts]
        self._tables = np.rint(np.array(tables) * half).astype(np.int64)
        # The centre of the image, and half a unit of the resampler so that its cut rounds.
        rounding = half // STEPS
        self._centres = [(width + 1) * half + rounding, (height + 1) * half + rounding]
        line, column = np.mgrid[:height, :width]
        half_pixels = [2 * column - (width - 1), 2 * line - (height - 1), np.ones_like(line)]
        self._modes = _waves(strengths, height, width).shape[1]
        self.words = 1 + self._modes
        self.matrix = np.empty((3 + self._modes, height * width), np.float32)
        cosine, sine, scale, _, shear, shift, _ = np.abs(self._tables).max(axis=1).tolist()
        linear = math.ceil((cosine + sine + shear) * scale / half) + 2  # as >> rounds down
        bounds = [linear, linear, shift + max(self._centres)] + [MEAN_SUM] * self._modes
        sums = np.zeros((height, width))
        modes = (np.rint(mode * unit) for mode in _modes(strengths, height, width))
        for row, bound, values in zip(self.matrix, bounds, chain(half_pixels, modes), strict=True):
            row[:] = values.reshape(-1) * (STEPS / (2 * half))
            sums += bound * np.abs(values)
        self.largest = float(sums.max())
        """An upper bound of the sums of absolute values."""

    def write_coefficients(self, words: Words, out: NDArray[np.float32]) -> None:
        """Write the coefficients of the columns, then those of the rows, `(2 * rows, terms)`."""
        columns, lines = out[: len(words)], out[len(words) :]
        draws = (words[:, 0] >> FIRST_BITS[:, None]).astype(np.int64) & (DRAWS - 1)
        drawn = self._tables[np.arange(len(draws))[:, None], draws]
        cosine, sine, scale_x, scale_y, shear, shift_x, shift_y = drawn
        bits = self.bits - 1  # the fractional bits of a table's values
        columns[:, 0] = cosine * scale_x >> bits
        columns[:, 1] = ((cosine * shear >> bits) - sine) * scale_y >> bits
        columns[:, 2] = shift_x + self._centres[0]
        lines[:, 0] = sine * scale_x >> bits
        lines[:, 1] = ((sine * shear >> bits) + cosine) * scale_y >> bits
        lines[:, 2] = shift_y + self._centres[1]
        if self._modes:
            # The sum of a half word's four bytes is nearly normal. Bytes are added to their
            # neighbours, then pairs to theirs: the low half is for columns, the high for rows.
            sums = (words & EVEN_BYTES) + (words >> np.uint64(8) & EVEN_BYTES)
            sums += sums >> np.uint64(16)
            columns[:, 3:] = (sums & LOW_QUARTER)[:, 1:]
            lines[:, 3:] = (sums >> np.uint64(32) & LOW_QUARTER)[:, 1:]
            out[:, 3:] -= MEAN_SUM


@lru_cache(maxsize=8)
def _field_of(strengths: Distortions, height: int, width: int) -> _Field:
    """Return the field, which threads share."""
    return _Field(strengths, height, width)


def _waves(strengths: Distortions, height: int, width: int) -> NDArray[np.intp]:
    """Return `(2, modes)`: the half-periods down and across of the elastic modes.

    A Gaussian filter leaves less than 2 % of the others.
    """
    if not strengths.elastic:
        return np.empty((2, 0), np.intp)
    down, across = np.ogrid[:height, :width]
    sigma = strengths.elastic_sigma
    is_mode = (down * sigma / height) ** 2 + (across * sigma / width) ** 2 <= 0.81
    return np.argwhere(is_mode).T


def _modes(strengths: Distortions, height: int, width: int) -> Iterator[NDArray[np.float64]]:
    """Yield `(height, width)` products of cosines, damped as by a Gaussian filter.

    The mean over the pixels of the sum of their squares is the square of the elastic strength.
    """
    down, across = _waves(strengths, height, width)
    sigma = strengths.elastic_sigma
    rates = (down * sigma / height) ** 2 + (across * sigma / width) ** 2
    damping = np.exp(-(math.pi**2) / 2 * rates)
    damping *= strengths.elastic / np.sqrt((damping**2).sum() or 1)
    waves = zip(damping, _cosines(down, height), _cosines(across, width), strict=True)
    for amplitude, vertical, horizontal in waves:
        yield np.outer(amplitude * vertical, horizontal)


def _cosines(waves: NDArray[np.intp], size: int) -> NDArray[np.float64]:
    """Return `(waves, size)`: cosines of so many half-periods, orthogonal and of mean square 1."""
    angles = math.pi / (2 * size) * np.outer(waves, 2 * np.arange(size) + 1)
    amplitudes = np.where(waves, math.sqrt(2), 1)
    cosines: NDArray[np.float64] = amplitudes[:, None] * np.cos(angles)
    return cosines


def _block_rows(height: int, width: int) -> int:
    return max(4, BLOCK_PIXELS // (height * width))  # fewer would read the matrix too often


def distorter_memory(strengths: Distortions, image_shape: tuple[int, ...], rows: int) -> int:
    """Return the bytes of a `Distorter` that is given up to `rows` rows at a time."""
    if not strengths.any:
        return 0
    height, width = image_shape
    field, block = _field_of(strengths, height, width), _block_rows(height, width)
    pixels, terms = height * width, len(field.matrix)
    scratch = pixels * (PIXEL_BYTES + 8) + (height + 2) * (width + 2) * PACKED_BYTES
    # A coefficient has 8 bytes, and up to six words of scratch memory while it is drawn.
    scratch += terms * (8 + 6 * 8)
    return (
        field.matrix.nbytes + MAKING_MEMORY + pixels * 9 * 8 + block * scratch + rows * (1 + pixels)
    )
