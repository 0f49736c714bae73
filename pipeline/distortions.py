"""Distortions version 1: random affine and elastic distortions of images, in exact arithmetic.

A distorted row depends on the image, the strengths, the seed, the epoch and the row number alone.
A published version never changes; test vectors pin it. docs/explanation/distortions.md defines it.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.order import RowNumbers
from storage.errors import UsageError

DISTORTION_VERSION = 1
EXACT: Final = 2**24
"""float32 holds every integer up to this, so sums of integers that stay below it are exact."""
MOST_BITS, FEWEST_BITS = 16, 12
"""Fractional bits of a coordinate in pixels: as many as keep the sums below `EXACT`."""
BASIS_LIMIT = 2**27
"""The most bytes of the matrix that coefficients are multiplied with."""
BLOCK_PIXELS = 64 * 784
"""Pixels that are distorted at a time; their scratch arrays fit the cache."""
FREQUENCY_LIMIT = 0.9
"""Cosines of k half-periods are used for k * sigma <= 0.9 * size: smoothing leaves 1.8 % there."""
DRAWS = 1024
"""Values of a uniform draw, which has 10 bits."""

ROW_STEP, WORD_STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03)
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
EVEN_BYTES = np.uint64(0x00FF00FF00FF00FF)
SHORT = np.uint64(0xFFFF)
MEAN_SUM = 510
"""Mean of the sum of four bytes; also the largest deviation from it."""
SUM_DEVIATION = math.sqrt(4 * (256**2 - 1) / 12)
"""Standard deviation of the sum of four bytes, in which each value is equally likely."""
LANES = np.uint32(0x00FF00FF)
HALF_GREY = np.uint32(1 << 15)

Words = NDArray[np.uint64]
Field = NDArray[np.float32]


@dataclass(frozen=True)
class Distortions:
    """Strengths of distortions; 0 leaves a distortion out."""

    rotate: float = 0.0
    """Degrees: images are rotated by up to this, either way."""
    scale: float = 0.0
    """Width and height change apart, by up to this share."""
    shear: float = 0.0
    """Rows move sideways by up to this share of their distance from the centre."""
    shift: float = 0.0
    """Pixels: images move by up to this, in x and in y."""
    elastic: float = 0.0
    """Pixels: root mean square of a smooth random displacement in x, and of that in y."""
    elastic_sigma: float = 5.0
    """Pixels: standard deviation of the Gaussian that smooths the elastic displacement."""

    @property
    def any(self) -> bool:
        """Return whether any distortion has a strength other than 0."""
        return any((self.rotate, self.scale, self.shear, self.shift, self.elastic))

    def halved(self) -> "Distortions":
        """Return half the strengths, with the same smoothness."""
        return replace(
            self,
            rotate=self.rotate / 2,
            scale=self.scale / 2,
            shear=self.shear / 2,
            shift=self.shift / 2,
            elastic=self.elastic / 2,
        )


DIGITS = Distortions(rotate=15, scale=0.15, shear=0.15, shift=1, elastic=1.0, elastic_sigma=5)
SETS = {"none": Distortions(), "digits": DIGITS}


def check_distortable(
    strengths: Distortions, image_shape: tuple[int, ...], dtype: str, place: str
) -> None:
    """Raise `UsageError` unless the rows of `place` can be distorted with these strengths."""
    if not strengths.any:
        return
    if len(image_shape) != 2:
        shape = " x ".join(map(str, image_shape))
        raise UsageError(
            f"{place} has rows of shape {shape}, and only images of two dimensions can be "
            "distorted. Train without distortions."
        )
    if dtype != "uint8":
        raise UsageError(
            f"{place} has values of type {dtype}, and only images of bytes (uint8) can be "
            "distorted. Ingest bytes, or train without distortions."
        )
    _tables(strengths, *image_shape)


class Distorter:
    """Distort rows of a dataset. Holds scratch memory, so each thread needs its own."""

    def __init__(self, strengths: Distortions, image_shape: tuple[int, ...], seed: int) -> None:
        """Raise `UsageError` if sums would not be exact; see `check_distortable`."""
        self._height, self._width = height, width = image_shape
        self._tables = _tables(strengths, height, width)
        self._seed = seed
        self._scratch = _Scratch(_block_rows(height, width), height, width, self._tables)
        self._out = np.empty((0, 1 + height * width), np.uint8)

    def __call__(self, inputs: NDArray[Any], epoch: int, rows: RowNumbers) -> NDArray[Any]:
        """Return the distorted rows of `inputs` `(rows, 1 + features)` uint8, bias first.

        `rows` are their row numbers. The result is scratch memory, valid until the next call.
        """
        if len(self._out) < len(inputs):
            self._out = np.empty(inputs.shape, np.uint8)
        out, key = self._out[: len(inputs)], _key(self._seed, epoch)
        out[:, 0] = inputs[:, 0]
        step = len(self._scratch.images)
        for start in range(0, len(inputs), step):
            block = slice(start, start + step)
            field = self._field(key, rows[block])
            self._resample(inputs[block, 1:], field, out[block, 1:])
        return out

    def field(self, epoch: int, rows: RowNumbers) -> NDArray[np.float64]:
        """Return `(rows, 2, height, width)`: x and y in pixels of each pixel's origin."""
        field, key = np.empty((len(rows), 2, self._height, self._width)), _key(self._seed, epoch)
        for number in range(len(rows)):
            row = self._field(key, rows[number : number + 1]).astype(np.float64)
            field[number] = (row.reshape(field.shape[1:]) - 0.5) / 256 - 1
        return field

    def _field(self, key: Words, rows: RowNumbers) -> Field:
        """Return `(2 * rows, pixels)`: first the x, then the y from which each pixel comes.

        They are in 1/256 pixel, half a unit larger so that cutting rounds, and counted from the
        border of one pixel.
        """
        tables, count = self._tables, len(rows)
        coefficients = self._scratch.coefficients[: 2 * count]
        words = _words(key, rows, 1 + tables.modes)
        tables.write_affine(words[:, 0], coefficients)
        if tables.modes:
            # Each byte is a uniform draw; four of them add up to a nearly normal one. Here the
            # bytes of a word are added in pairs, then in fours: low half for x, high for y.
            sums = words[:, 1:]
            sums = (sums & EVEN_BYTES) + (sums >> np.uint64(8) & EVEN_BYTES)
            sums += sums >> np.uint64(16)
            elastic = coefficients[:, 3:]
            elastic[:count] = sums & SHORT
            elastic[count:] = sums >> np.uint64(32) & SHORT
            elastic -= MEAN_SUM
        # Exact in any order of summation: see `_Tables`.
        return np.matmul(coefficients, tables.basis, out=self._scratch.field[: 2 * count])

    def _resample(self, images: NDArray[Any], field: Field, out: NDArray[Any]) -> None:
        """Interpolate between the four neighbours of each origin, in integers.

        The neighbours are the four bytes of a uint32, and its even and odd bytes are two pairs
        that are blended at once: at most 255 * 256 needs 16 bits.
        """
        count, scratch = len(images), self._scratch
        quads = scratch.pack(images)
        x, fx, y, fy = (array[:count] for array in scratch.integers)
        left, right = (array[:count] for array in scratch.lanes)
        # What is more than a pixel away comes from the border, which is 0.
        for source, size, whole in (
            (field[:count], self._width, x),
            (field[count:], self._height, y),
        ):
            np.clip(source, 0, np.float32((size + 1) << 8), out=source)
            np.copyto(whole, source, casting="unsafe")
        np.bitwise_and(x, 255, out=fx)
        np.bitwise_and(y, 255, out=fy)
        x >>= 8
        y >>= 8
        y *= self._width + 1
        x += y
        x += scratch.offsets[:count]
        np.take(quads, x, out=left, mode="clip")
        np.right_shift(left, 8, out=right)
        right &= LANES
        left &= LANES
        _blend(left, right, fx.view(np.uint32))
        upper, lower = left, right
        np.right_shift(left, 16, out=lower)
        upper &= np.uint32(0xFFFF)
        _blend(upper, lower, fy.view(np.uint32))
        upper += HALF_GREY
        upper >>= np.uint32(16)
        np.copyto(out, upper, casting="unsafe")


def _blend(
    first: NDArray[np.uint32], second: NDArray[np.uint32], weight: NDArray[np.uint32]
) -> None:
    """Set `first` to first * (256 - weight) + second * weight, modulo 2^32."""
    second -= first
    second *= weight
    first <<= np.uint32(8)
    first += second


class _Scratch:
    """The arrays of a block of rows."""

    def __init__(self, rows: int, height: int, width: int, tables: "_Tables") -> None:
        pixels = height * width
        self.coefficients = np.empty((2 * rows, len(tables.basis)), np.float32)
        self.field = np.empty((2 * rows, pixels), np.float32)
        self.integers = [np.empty((rows, pixels), np.int32) for _ in range(4)]
        self.lanes = [np.empty((rows, pixels), np.uint32) for _ in range(2)]
        # A column of zeros left of each image is also the border right of the row above it, and a
        # row of zeros above it the border below the image before.
        stride = width + 1
        size = (height + 1) * stride
        self._flat = np.zeros(rows * size + 2 * stride + 2, np.uint8)
        self.images = self._flat[: rows * size].reshape(rows, height + 1, stride)
        self._inner = self.images[:, 1:, 1:]
        self._pairs = np.empty(rows * size + stride + 1, np.uint32)
        self._quads = np.empty(rows * size + stride + 1, np.uint32)
        self._stride = stride
        self.offsets = (np.arange(rows, dtype=np.int32) * size)[:, None]

    def pack(self, images: NDArray[Any]) -> NDArray[np.uint32]:
        """Return each pixel with its neighbours: right << 8, below << 16, below right << 24."""
        inner = self._inner[: len(images)]
        inner[:] = images.reshape(inner.shape)
        size = len(self._quads)
        flat, stride, quads, part = self._flat, self._stride, self._quads, self._pairs
        quads[:] = flat[:size]
        for shift, place in ((8, 1), (16, stride), (24, stride + 1)):
            np.left_shift(flat[place : place + size], np.uint32(shift), out=part, dtype=np.uint32)
            quads |= part
        return quads


class _Tables:
    """What depends on strengths and image size alone: integers, or integers times a power of 2.

    The origin of a pixel is a sum of products of integers. If the sum of their largest absolute
    values is below 2^24, every partial sum in any order is an integer that float32 holds, so BLAS
    returns the same bits whatever it does. The basis is divided by a power of 2, which changes no
    digit.
    """

    def __init__(self, strengths: Distortions, height: int, width: int, bits: int) -> None:
        self.bits = bits
        self.one = one = 1 << (bits - 1)
        self._centre = (width + 1) * one + (1 << (bits - 9)), (height + 1) * one + (1 << (bits - 9))
        # Draws from -1 to 1. The tables round float64 to integers: a library whose sine differs in
        # the last digit gives the same ones, because none is within 1e-9 of a half.
        draws = (2 * np.arange(DRAWS) - (DRAWS - 1)) / DRAWS
        angles = draws * math.radians(strengths.rotate)
        self._cos, self._sin = _rounded(np.cos(angles) * one), _rounded(np.sin(angles) * one)
        self._scale = _rounded((1 + draws * strengths.scale) * one)
        self._shear = _rounded(draws * strengths.shear * one)
        self._shift = _rounded(draws * strengths.shift * 2 * one)
        y, x = np.mgrid[:height, :width]
        affine = [2 * x - (width - 1), 2 * y - (height - 1), np.ones((height, width))]
        basis = np.array(affine).reshape(3, -1)
        self.modes = 0
        if strengths.elastic:
            vertical = _modes(height, strengths.elastic_sigma)
            horizontal = _modes(width, strengths.elastic_sigma)
            self.modes = len(vertical) * len(horizontal)
            products = vertical[:, None, :, None] * horizontal[None, :, None, :]
            unit = strengths.elastic * 2 * one / SUM_DEVIATION
            elastic = np.rint(products.reshape(self.modes, -1) * unit)
            basis = np.concatenate([basis, elastic])
        self.reach = float((np.abs(basis).T @ self._largest()).max())
        self.basis = np.ascontiguousarray(basis * 2.0 ** (8 - bits), np.float32)

    def _largest(self) -> NDArray[np.float64]:
        """Return the largest absolute value of each coefficient."""
        cos, sin, scale, shear, shift = (
            float(np.abs(table).max())
            for table in (self._cos, self._sin, self._scale, self._shear, self._shift)
        )
        linear = scale * (cos + sin + shear * max(cos, sin) / self.one) / self.one
        constant = shift + max(self._centre)
        return np.array([linear, linear, constant, *[MEAN_SUM] * self.modes])

    def write_affine(self, words: Words, coefficients: Field) -> None:
        """Write the coefficients of x and y, and the constants, of `(rows,)` words."""
        count = len(words)
        cos, sin, scale_x, scale_y, shear, shift_x, shift_y = self._drawn(words)
        shift = self.bits - 1
        for part, first, second, constant in (
            (coefficients[:count], cos, (cos * shear >> shift) - sin, shift_x + self._centre[0]),
            (coefficients[count:], sin, (sin * shear >> shift) + cos, shift_y + self._centre[1]),
        ):
            part[:, 0] = first * scale_x >> shift
            part[:, 1] = second * scale_y >> shift
            part[:, 2] = constant

    def _drawn(self, words: Words) -> list[NDArray[np.int64]]:
        draws = (
            words >> np.arange(0, 60, 10, dtype=np.uint64)[:, None] & np.uint64(DRAWS - 1)
        ).astype(np.int64)
        tables = (self._scale, self._scale, self._shear, self._shift, self._shift)
        drawn = [table[draw] for table, draw in zip(tables, draws[1:], strict=True)]
        return [self._cos[draws[0]], self._sin[draws[0]], *drawn]


@lru_cache(maxsize=8)
def _tables(strengths: Distortions, height: int, width: int) -> _Tables:
    """Return the tables with the most fractional bits that keep sums exact; shared by threads."""
    modes = 1
    if strengths.elastic:
        modes = _mode_count(height, strengths.elastic_sigma)
        modes *= _mode_count(width, strengths.elastic_sigma)
    if 4 * modes * height * width > BASIS_LIMIT:
        raise UsageError(
            f"An elastic sigma of {strengths.elastic_sigma:g} pixels is too small for images of "
            f"{height} x {width}: its table would need more than {BASIS_LIMIT:,} bytes. Use a "
            "larger --elastic-sigma."
        )
    for bits in range(MOST_BITS, FEWEST_BITS - 1, -1):
        tables = _Tables(strengths, height, width, bits)
        if tables.reach < EXACT:
            return tables
    raise UsageError(
        f"Distorted images of {height} x {width} reach to {tables.reach / 2**bits:,.0f} pixels; "
        f"expected less than {EXACT >> bits:,}, up to which coordinates are exact. Choose weaker "
        "distortions."
    )


def _modes(size: int, sigma: float) -> NDArray[np.float64]:
    """Return `(modes, size)`: cosines, damped as by a Gaussian, of joint unit mean square."""
    wave = np.arange(_mode_count(size, sigma))[:, None]
    damping = np.exp(-((sigma * math.pi * wave / size) ** 2) / 2) * np.where(wave, math.sqrt(2), 1)
    cosines = np.cos(math.pi / (2 * size) * (wave * (2 * np.arange(size) + 1)))
    # Over the pixels, each cosine of k > 0 has the mean square 1/2 and is orthogonal to the others.
    power = np.exp(-((sigma * math.pi * wave / size) ** 2)).sum()
    result: NDArray[np.float64] = damping * cosines / np.sqrt(power)
    return result


def _mode_count(size: int, sigma: float) -> int:
    return min(size, 1 + int(FREQUENCY_LIMIT * size / sigma))


def _rounded(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(values).astype(np.int64)


def _block_rows(height: int, width: int) -> int:
    return max(1, BLOCK_PIXELS // (height * width))


@lru_cache(maxsize=8)
def _key(seed: int, epoch: int) -> Words:
    """Return the two words that a seed and an epoch start from."""
    text = f"mnist-stream distortion {DISTORTION_VERSION}|{seed}|{epoch}"
    return np.frombuffer(hashlib.sha256(text.encode("ascii")).digest()[:16], "<u8").astype(
        np.uint64
    )


def _words(key: Words, rows: RowNumbers, count: int) -> Words:
    """Return `(rows, count)` random words: SplitMix64's mixer over a counter, twice.

    Steele et al., "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    row_words = _mix(rows.astype(np.uint64) * ROW_STEP + key[0])
    return _mix(row_words[:, None] + (np.arange(count, dtype=np.uint64) * WORD_STEP + key[1]))


def _mix(words: Words) -> Words:
    """Mix the bits of words in place."""
    words ^= words >> np.uint64(30)
    words *= MIX_1
    words ^= words >> np.uint64(27)
    words *= MIX_2
    words ^= words >> np.uint64(31)
    return words


def distorter_memory(strengths: Distortions, image_shape: tuple[int, ...], rows: int) -> int:
    """Return the bytes of a `Distorter` that distorts `rows` at a time."""
    if not strengths.any:
        return 0
    height, width = image_shape
    tables, block = _tables(strengths, height, width), _block_rows(height, width)
    scratch = block * (
        (height + 1) * (width + 1) * 9 + height * width * 32 + 40 * len(tables.basis)
    )
    return tables.basis.nbytes + scratch + rows * (1 + height * width)
