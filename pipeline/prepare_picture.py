"""Prepare a picture of one digit as the authors of MNIST prepared theirs."""

import math
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import BadDataError

SIDE, BOX = 28, 20
"""Sides in pixels of a prepared image, and of the square that its digit fills."""
WORKING_SIDE = 128
"""The longer side at which the digit is searched; larger pictures are averaged down to it."""
ZOOMED_BELOW = WORKING_SIDE // 3
"""A digit that is smaller at that scale is searched again, in the part of the picture around it."""
FLAT_SHARE = 0.6
"""The share of the pixels to which the background is fitted: the ink is in the others."""
FITTED_PIXELS = 2048
"""Enough of them, spread evenly, to fit a surface to."""
LEAST_CONTRAST, LEAST_SIGNAL = 10.0, 6.0
"""The weakest ink: its contrast in grey levels, and as a multiple of the noise's deviation."""
SPECK = 0.03
"""A stroke with less than this share of the largest one's pixels is dirt."""
LINE, RULED_SIDE = 3, 64
"""The thickest ruled line, in pixels of a picture whose longer side is at least `RULED_SIDE`."""
THINNEST = 1.6
"""Thinner strokes, in pixels of the prepared image, are thickened to this width."""
WIDEST = 2.0
"""The largest width of a digit, as a multiple of its height.

Strokes one above the other are several digits if they are together higher than this multiple.
"""
FILLED_CORNER = 0.2
"""Ink on more than this share of two adjacent sides, and in their corner, is a shadow's."""

LARGEST_STRETCH = 1.6
"""A picture whose sides have a larger ratio is no stretched image of MNIST."""
EXACT_MARGINS, SIMILAR_MARGINS = 0.75, 2.0
"""How much a stretched image's box and centre differ at most from MNIST's, in MNIST's pixels.

Below the first it is surely stretched; up to the second, after rotation or a shift, it may be.
"""

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class PreparedPicture:
    """A picture as the network sees it."""

    image: NDArray[Any]
    steps: tuple[str, ...]
    """What was done to the picture, such as `inverted` and `cropped`."""


def prepare_digit(grey: NDArray[np.uint8], name: str) -> PreparedPicture:
    """Return a picture of one digit as an image of MNIST: light on 0, in 28 x 28 pixels.

    The background is a surface fitted to most of the pixels, and ink is what differs from it. The
    box around the ink is scaled into 20 x 20 pixels, with its proportions, and its centre of mass
    is moved to the image's centre.

    Raises `BadDataError`, which names the picture, if there is no ink or more than one digit.
    """
    return _finished(*_digit(grey, name))


def digit_candidates(grey: NDArray[np.uint8], name: str) -> list[PreparedPicture]:
    """Return the images of MNIST that a picture may show: one, or two for the model to choose from.

    A picture that looks like an image of MNIST, stretched to other proportions, is scaled to a
    square first. A closely cropped photo may look so too: unless the margins are exactly MNIST's,
    the picture with its own proportions is the first candidate.

    Raises `BadDataError` as `prepare_digit` does, if there is no candidate.
    """
    unstretched, error = _unstretched(grey, name)
    if unstretched is None:
        return [prepare_digit(grey, name)]
    if error <= EXACT_MARGINS:
        return [unstretched]
    try:
        return [prepare_digit(grey, name), unstretched]
    except BadDataError:
        return [unstretched]  # such as a zero that was stretched until it was too wide


def _unstretched(grey: NDArray[np.uint8], name: str) -> tuple[PreparedPicture | None, float]:
    """Return the image of a picture scaled to a square, and how much its margins are not MNIST's.

    It is None if the picture is a square, too long for a stretched one, or its margins differ more.
    """
    long, short = max(grey.shape), min(grey.shape)
    if not short < long <= LARGEST_STRETCH * short:
        return None, math.inf
    side = min(long, WORKING_SIDE)
    try:
        ink, steps = _digit(resized(grey, side, side), name)
    except BadDataError:
        return None, math.inf
    top, bottom, left, right = _box(ink > 0.5)
    pixel = side / SIDE
    errors = [max(bottom - top, right - left) / pixel - BOX]
    for axis in (0, 1):
        centre = np.average(np.arange(side) + 0.5, weights=ink.sum(axis)) / pixel
        errors.append(float(centre) - (SIDE + 1) / 2)  # pixel 14, right of and below the middle
    error = max(map(abs, errors))
    if error > SIMILAR_MARGINS:
        return None, error
    return _finished(ink, ["unstretched", *steps]), error


def _finished(ink: Floats, steps: list[str]) -> PreparedPicture:
    """Return the image of ink on a larger picture: cropped, scaled and centred."""
    top, bottom, left, right = _box(ink > 0.1)
    ink = ink[top:bottom, left:right]
    scale = BOX / max(ink.shape)
    height, width = (max(1, round(size * scale)) for size in ink.shape)
    ink, thickened = _thickened(ink, scale)
    steps += ["thickened"] if thickened else []
    image = _centred(np.clip(resized(ink, height, width), 0, 1))
    return PreparedPicture(np.round(255 * image).astype(np.uint8), (*steps, "cropped", "centred"))


def resized(image: NDArray[Any], height: int, width: int) -> Floats:
    """Return an image at another size: bilinear, and averaged where it gets smaller."""
    # Whole blocks first: the weights of a large picture would be large too.
    block = max(1, max(image.shape) // (4 * max(height, width)))
    if block > 1:
        rows, columns = (size // block for size in image.shape)
        if rows and columns:
            whole = image[: rows * block, : columns * block]
            image = whole.reshape(rows, block, columns, block).mean((1, 3), dtype=np.float32)
    down, right = _weights(image.shape[0], height), _weights(image.shape[1], width)
    scaled: Floats = down @ image.astype(np.float32) @ right.T
    return scaled


def _weights(size: int, new_size: int) -> Floats:
    """Return the weight of each old pixel in each new one, `(new_size, size)`: a triangle."""
    scale = size / new_size
    centres = (np.arange(new_size) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(size) - centres[:, None]) / max(scale, 1.0)
    weights = np.maximum(1 - distance, 0)
    normalised: Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised


def _digit(grey: NDArray[Any], name: str) -> tuple[Floats, list[str]]:
    """Return the digit's ink, about 1 in a stroke's middle and else 0, and what was done."""
    scale = max(1.0, max(grey.shape) / WORKING_SIDE)
    height, width = (max(1, round(size / scale)) for size in grey.shape)
    work = resized(grey, height, width) if scale > 1 else grey.astype(np.float32)
    strength, mask, inverted = _ink(work, name)
    if max(mask.shape) >= RULED_SIDE:
        mask = _without_lines(mask)
    kept = _painted(_one_digit(_strokes(mask), mask.shape, name), mask.shape)
    top, bottom, left, right = _box(kept)
    if scale > 1 and max(bottom - top, right - left) < ZOOMED_BELOW:
        margin = max(bottom - top, right - left) / 2
        rows, columns = (
            slice(max(0, int((start - margin) * scale)), math.ceil((stop + margin) * scale))
            for start, stop in ((top, bottom), (left, right))
        )
        return _digit(grey[rows, columns], name)
    full = np.quantile(strength[kept], 0.6)
    ink = np.clip(strength / full, 0, 1) * _grown(kept, 2)
    return ink, ["inverted"] if inverted else []


def _ink(work: Floats, name: str) -> tuple[Floats, Mask, bool]:
    """Return the strength of ink, where it is that of a stroke, and whether ink is dark."""
    surface, noise = _background(work)
    contrast = work - surface
    dark = bool((contrast**3).sum() < 0)
    strength = -contrast if dark else contrast
    strokes = strength[strength > _otsu(strength)]
    peak = float(np.median(strokes)) if strokes.size else 0.0
    if peak < max(LEAST_CONTRAST, LEAST_SIGNAL * noise):
        raise BadDataError(
            f"{name} is blank: nothing in it differs enough from the background. Give a picture of "
            "one digit with more contrast, without shadows; transparent pixels count as white."
        )
    return strength, strength > peak / 2, dark


def _background(work: Floats) -> tuple[Floats, float]:
    """Return the background, and the standard deviation of its noise.

    It is the surface of the second degree that fits most of the pixels: the nearest ones are kept,
    and the surface is fitted again (least trimmed squares).
    """
    height, width = work.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].reshape(2, -1)
    every = max(1, math.isqrt(work.size // FITTED_PIXELS))
    seen = np.zeros(work.shape, bool)
    seen[::every, ::every] = True
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    some, values = terms[seen.reshape(-1)], work[seen].astype(np.float64)
    distance = np.abs(values - np.median(values))
    for _ in range(10):
        near = distance <= np.quantile(distance, FLAT_SHARE)
        fit = np.linalg.lstsq(some[near], values[near], rcond=None)[0]
        distance = np.abs(values - some @ fit)
    surface = (terms @ fit).reshape(work.shape).astype(np.float32)
    return surface, 1.4826 * float(np.median(distance))


def _otsu(values: Floats) -> float:
    """Return the threshold that separates values best into two classes (Otsu 1979)."""
    counts, edges = np.histogram(values, 256)
    below = counts.cumsum()[:-1]
    above = np.maximum(values.size - below, 1)  # NaN would be the maximum
    below = np.maximum(below, 1)
    sums = (counts * (edges[1:] + edges[:-1]) / 2).cumsum()
    apart = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    return float(edges[1 + apart.argmax()])


def _without_lines(mask: Mask) -> Mask:
    """Return ink without ruled lines: two or more thin ones that cross the whole picture."""
    mask = mask.copy()
    for ink in (mask, mask.T):
        band = np.lib.stride_tricks.sliding_window_view(np.pad(ink, ((2, 2), (0, 0))), 5, axis=0)
        crossed = band.any(axis=2).mean(axis=1) > 0.9
        if np.count_nonzero(np.diff(crossed.astype(np.int8), prepend=0) == 1) >= 2:
            # A stroke that crosses a line is thicker than the line in the line's direction.
            core = ink
            for _ in range(LINE):
                core = core & np.pad(core[1:], ((0, 1), (0, 0)))
            thick = core.copy()
            for _ in range(LINE):
                core = np.pad(core[:-1], ((1, 0), (0, 0)))
                thick |= core
            ink[crossed] &= thick[crossed]
    return mask


@dataclass
class _Stroke:
    """A connected region of ink, as its runs of pixels within rows."""

    runs: list[tuple[int, int, int]] = field(default_factory=list)
    """Row, first column and the column after the last, from top to bottom."""

    @property
    def pixels(self) -> int:
        return sum(stop - start for _, start, stop in self.runs)

    @property
    def top(self) -> int:
        return self.runs[0][0]

    @property
    def bottom(self) -> int:
        return self.runs[-1][0] + 1

    @property
    def left(self) -> int:
        return min(start for _, start, _ in self.runs)

    @property
    def right(self) -> int:
        return max(stop for _, _, stop in self.runs)

    def surrounds(self, other: "_Stroke") -> bool:
        """Return whether the other stroke is inside this one's box, and no speck beside it."""
        return (
            self.top < other.top
            and self.left < other.left
            and self.bottom > other.bottom
            and self.right > other.right
            and 4 * (other.bottom - other.top) > self.bottom - self.top
        )


def _strokes(mask: Mask) -> list[_Stroke]:
    """Return the connected regions of ink, the largest first; neighbours may touch by corners."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    stops = np.nonzero(edges == -1)[1].tolist()
    starts = np.argwhere(edges == 1).tolist()
    runs = [(row, start, stop) for (row, start), stop in zip(starts, stops, strict=True)]
    parent = list(range(len(runs)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    first = 0  # of the runs in the row above that may touch the next run
    for number, (row, start, stop) in enumerate(runs):
        while runs[first][0] < row - 1 or (runs[first][0] == row - 1 and runs[first][2] < start):
            first += 1
        above = first
        while runs[above][0] == row - 1 and runs[above][1] <= stop:
            parent[root(above)] = root(number)
            above += 1
    strokes: dict[int, _Stroke] = {}
    for number, run in enumerate(runs):
        strokes.setdefault(root(number), _Stroke()).runs.append(run)
    return sorted(strokes.values(), key=lambda stroke: -stroke.pixels)


def _one_digit(strokes: list[_Stroke], shape: tuple[int, ...], name: str) -> list[_Stroke]:
    """Return the strokes of the digit, without specks, frames around it and shadows in corners.

    Raises `BadDataError` if there is more than one digit, or no stroke outside a shadow.
    """
    strokes = [stroke for stroke in strokes if stroke.pixels > SPECK * strokes[0].pixels]
    frames = [one for one in strokes if any(one.surrounds(other) for other in strokes)]
    strokes = [stroke for stroke in strokes if stroke not in frames]
    shadows = [stroke for stroke in strokes if _fills_corner(stroke, shape)]
    strokes = [stroke for stroke in strokes if stroke not in shadows]
    if not strokes:
        raise BadDataError(
            f"{name} has a background with a sharp edge, such as that of a shadow or a sheet of "
            "paper. Crop it to the digit and the even background around it."
        )
    height = max(one.bottom for one in strokes) - min(one.top for one in strokes)
    width = max(one.right for one in strokes) - min(one.left for one in strokes)
    tallest = max(one.bottom - one.top for one in strokes)
    tall = [one for one in strokes if one.bottom - one.top >= 0.7 * tallest]
    row = sorted(tall, key=lambda one: one.left)
    beside = any(left.right <= right.left for left, right in pairwise(row))
    # The parts of a broken 1 are narrow.
    wide = [one for one in tall if 3 * (one.right - one.left) > one.bottom - one.top]
    column = sorted(wide, key=lambda one: one.top)
    stacked = any(upper.bottom <= lower.top for upper, lower in pairwise(column))
    if beside or (stacked and height > WIDEST * width) or width > WIDEST * height:
        raise BadDataError(
            f"{name} seems to hold several digits; expected one. Crop it to one digit, or give "
            "--as-is for a picture that is prepared already."
        )
    return strokes


def _fills_corner(stroke: _Stroke, shape: tuple[int, ...]) -> bool:
    """Return whether a stroke fills a corner of the picture, as a part in the shadow does."""
    ink = _painted([stroke], shape)
    return any(
        ink[row, column] and min(ink[row].mean(), ink[:, column].mean()) > FILLED_CORNER
        for row, column in product((0, -1), repeat=2)
    )


def _painted(strokes: list[_Stroke], shape: tuple[int, ...]) -> Mask:
    mask = np.zeros(shape, bool)
    for stroke in strokes:
        for row, start, stop in stroke.runs:
            mask[row, start:stop] = True
    return mask


def _box(mask: Mask) -> tuple[int, int, int, int]:
    """Return the first and the last row and column of a mask, each last one plus 1."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _grown(values: NDArray[Any], pixels: int) -> NDArray[Any]:
    """Return the largest value within a number of steps up, down, left and right."""
    for _ in range(pixels):
        wide = np.pad(values, 1)
        neighbours = [wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]]
        values = np.maximum.reduce([values, *neighbours])
    return values


def _thickened(ink: Floats, scale: float) -> tuple[Floats, bool]:
    """Return ink whose strokes are at least `THINNEST` wide after scaling, and whether it changed.

    A stroke's width is twice its area divided by the length of its outline.
    """
    mask = ink > 0.5
    inner = ~_grown(~np.pad(mask, 1), 1)[1:-1, 1:-1]
    outline = np.count_nonzero(mask & ~inner)
    width = 2 * int(np.count_nonzero(mask)) / max(1, int(outline))
    pixels = round((THINNEST / scale - width) / 2)
    if pixels < 1:
        return ink, False
    return _grown(np.pad(ink, pixels), pixels), True


def _centred(digit: Floats) -> Floats:
    """Return a square image with the centre of mass of the digit at its centre."""
    image = np.zeros((SIDE, SIDE), np.float32)
    corner = []
    for axis, size in enumerate(digit.shape):
        centre = np.average(np.arange(size), weights=digit.sum(1 - axis))
        corner.append(min(max(round(SIDE / 2 - centre), 0), SIDE - size))
    top, left = corner
    image[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return image
