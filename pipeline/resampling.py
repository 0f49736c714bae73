"""Resample images at other coordinates: bilinear interpolation in integers, many rows at a time."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = 256
"""Coordinates are in 1/256 pixel: the weights of neighbours have 8 bits."""
PIXEL_BYTES = 5 * 4 + 8
"""Scratch memory of a resampled pixel: four integers, its image's start, `numpy.take`'s index."""
PACKED_BYTES = 1 + 2 * 4
"""Scratch memory of a pixel with its border: a byte, and twice its four neighbours."""
EVEN_BYTES = np.uint32(0x00FF00FF)
LOW_HALF = np.uint32(0xFFFF)
ROUNDING = np.uint32(STEPS**2 // 2)


class Resampler:
    """Resample up to `rows` byte images of `height` x `width`. Holds their scratch memory."""

    def __init__(self, rows: int, height: int, width: int) -> None:
        self.rows = rows
        self._height, self._width = height, width
        self._coordinates = [np.empty((rows, height * width), np.int32) for _ in range(4)]
        # The border is 0. Each image has a column of zeros on its left, which is right of the row
        # above too, and a row of zeros on top, which is below the image before it too.
        self._stride = width + 1
        self._size = (height + 1) * self._stride
        starts = np.arange(rows, dtype=np.int32) * self._size
        self._starts = np.repeat(starts, height * width).reshape(rows, -1)  # faster than broadcast
        self._bordered = np.zeros(rows * self._size + 2 * (self._stride + 1), np.uint8)
        self._packed = [np.empty(len(self._bordered), np.uint32) for _ in range(2)]

    def __call__(
        self,
        images: NDArray[Any],
        columns: NDArray[np.float32],
        rows: NDArray[np.float32],
        out: NDArray[Any],
    ) -> None:
        """Write to each pixel of `out` the value of `images` at its column and its row.

        All are `(images, pixels)`. Columns and rows are in 1/256 pixel, counted from the border's
        first pixel, cut to integers, and overwritten.
        """
        count = len(images)
        quads = self._pack(images)
        x, y, x_weight, y_weight = (array[:count] for array in self._coordinates)
        # Beyond the border everything is 0 too, so coordinates further away are moved onto it.
        np.clip(columns, 0, STEPS * (self._width + 1), out=columns)
        np.clip(rows, 0, STEPS * (self._height + 1), out=rows)
        np.copyto(x, columns, casting="unsafe")
        np.copyto(y, rows, casting="unsafe")
        np.bitwise_and(x, STEPS - 1, out=x_weight)
        np.bitwise_and(y, STEPS - 1, out=y_weight)
        x >>= 8
        y >>= 8
        y *= self._stride
        x += y
        x += self._starts[:count]
        left, right = y.view(np.uint32), x.view(np.uint32)  # the memory of what is used up
        np.take(quads, x, out=left, mode="clip")
        # Two pixels at a time: the left neighbours are in the even bytes, the right ones in the odd
        # bytes. A blend is at most 255 * 256, so the upper pair's fits the lower half of the word
        # and the lower pair's the upper half.
        np.right_shift(left, 8, out=right)
        left &= EVEN_BYTES
        right &= EVEN_BYTES
        _blend(left, right, x_weight)
        above, below = left, right
        np.right_shift(left, 16, out=below)
        above &= LOW_HALF
        _blend(above, below, y_weight)
        above += ROUNDING
        above >>= np.uint32(16)
        np.copyto(out, above, casting="unsafe")

    def _pack(self, images: NDArray[Any]) -> NDArray[np.uint32]:
        """Return each bordered pixel with its neighbours, so that one access reads all four.

        The bits are the pixel, right << 8, below << 16, below right << 24.
        """
        size = len(images) * self._size
        inner = self._bordered[:size].reshape(-1, self._height + 1, self._stride)[:, 1:, 1:]
        inner[:] = images.reshape(inner.shape)
        # One more row, the border below the last image. What follows has weight 0.
        size += 2 * (self._stride + 1)
        quads, shifted = (array[:size] for array in self._packed)
        quads[:] = self._bordered[:size]
        for bits, step in ((8, 1), (16, self._stride)):
            size -= step
            np.left_shift(quads[step:], bits, out=shifted[:size])
            quads = quads[:size]
            quads |= shifted[:size]
        return quads


def _blend(
    first: NDArray[np.uint32], second: NDArray[np.uint32], weight: NDArray[np.int32]
) -> None:
    """Set `first` to first * (256 - weight) + second * weight; `second` is overwritten.

    Modulo 2^32, so that a negative difference in one half is made good by the sum.
    """
    second -= first
    second *= weight.view(np.uint32)
    first <<= np.uint32(8)
    first += second
