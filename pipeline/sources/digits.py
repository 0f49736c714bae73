"""Generate handwriting-like digits for any seed, split and row.

Row i of a split is a pure function of (seed, split, i), so workers can draw parts of any size and
get the same bytes. Two measures make this possible:

- Random numbers are raw words of NumPy's Philox generator, the one stream that NumPy keeps the same
  in all versions. Each row uses a fixed number of words, so its offset is arithmetic.
- All else is integer arithmetic. NumPy's sine, exponential and floating-point sums may differ in
  the last bit between processors, and within a vector. Integers are also faster here, with sixteen
  pixels in one vector register.
"""

import hashlib
import math
from enum import IntEnum
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DIGITS_VERSION = 1
"""Part of the random key; any change of the images needs another version."""
SIDE = 28
"""Height and width of an image, in pixels."""
CLASSES = 10
"""The digits 0 to 9."""

UNITS_PER_PIXEL = 1024  # resolution of points, in units per pixel
WEIGHT_ONE = 4096  # a spline weight of 1.0 as an integer
CONTROLS = 14  # most control points of a way of writing; shorter ones are padded
SAMPLES = 88  # points drawn for each way of writing, about three in two pixels for the longest

_WORDS_PER_ROW = 32  # random 64-bit words per row; Philox makes four at a time
_BLOCK_ROWS = 512  # rows drawn at once: 28 x 28 x 512 distances of 2 bytes stay in a core's cache
_NORMAL_ONE = 148  # one standard deviation of `_normals`
_TURN = 4096  # a full turn of an angle, and a sine of 1.0 in `_sine_table`
_FINE = 32  # distances are measured in 1/32 pixel, so that their squares fit 16 bits
_FAR = 180  # no ink reaches further along an axis, in 1/32 pixel; 2 * 180**2 < 2**16
_PEN_ONE = 180  # scale of distances for the thinnest pen
_RADIUS_ONE = 256  # a pixel, in units of pen radius and edge

# Variety of the digits. Tuned by eye, and so that a 784-200-80-10 network trained on 60,000 of them
# for ten epochs is right for some 98 of 100 new ones, as with MNIST. A name in _DEVIATION is one
# standard deviation; a normal unit is 1/148 of one.
_CARE = 20  # smallest movement of controls, in 1/16 of 1/1024 pixel per normal unit
_HASTE = 115  # the most that hasty writing adds to _CARE
_BEND = 4  # an elastic wave, in 1/1024 pixel per normal unit: a deviation is 0.6 pixel
_MEAN_SLANT, _SLANT_DEVIATION = 120, 200  # pixels to the right per 1,000 pixels up
_WIDTH_DEVIATION = 150  # stretching across, in thousandths
_ROTATION_DEVIATION = 110  # in 1/4096 turn: 10 degrees
_MEAN_SIZE, _SIZE_PER_NORMAL = 18 * UNITS_PER_PIXEL, 6  # longer side of the path, 1/1024 pixel
_SHIFT_PER_NORMAL = 4  # from the centre, in 1/1024 pixel: a deviation is 0.6 pixel
_MARGIN = 3 * UNITS_PER_PIXEL + UNITS_PER_PIXEL // 2  # around the path, so the border stays black
_PRESSURE = 50  # largest reduction of the pen's scale under pressure: 1.4 times as wide
_MEAN_RADIUS, _RADIUS_DEVIATION, _RADIUS_RANGE = 245, 55, (170, 330)  # of the pen, 1/256 pixel
_MEAN_EDGE, _EDGE_DEVIATION = 280, 40  # width of the grey edge, in 1/256 pixel


# Each class has several ways of writing. A way has one or more strokes, and a stroke lists the
# points "x,y" that the pen passes through, in pixels: x to the right in 0..14, y down in 0..20.
# Strokes that name the same point stay joined there when it moves, which makes corners. A stroke
# that ends at its first point is a smooth closed loop.
WAYS_OF_WRITING: tuple[tuple[tuple[str, ...], ...], ...] = (
    (  # 0: an oval, a narrow oval, one begun with a hook, one left open
        ("7,0 1.8,5 1.8,15 7,20 12.2,15 12.2,5 7,0",),
        ("6,0 2.2,5.5 2.2,14.5 6,20 9.8,14.5 9.8,5.5 6,0",),
        ("9.5,2 5.5,0.5 1.5,7 2,15.5 7,20 12,15 12,6 7,0.5 4.5,3",),
        ("8,0 2.5,5 2,15 7,20 11.8,15 11.5,6 7.5,1.5",),
    ),
    (  # 1: a plain stroke (twice as likely), a flag, a flag and a foot
        ("6,0 6,10 6,20",),
        ("6.5,0 6,7 6,13 5.5,20",),
        ("2,4.5 6,0", "6,0 6,10 6,20"),
        ("2.5,4 6,0", "6,0 6,10 6,20", "2,20 6,20 10,20"),
    ),
    (  # 2: a sharp heel, a looped heel, a wavy base
        ("1.5,5 4,1 8,0.5 11.5,4 10,9 5,15 1,19.5", "1,19.5 6,19 13,19.5"),
        ("1.5,4.5 5,0.5 10,1.5 11,6 7.5,13 3.5,18 1.5,18.5 1.5,16 4.5,15.5 9,18.5 13.5,19",),
        ("2,3 6,0 10.5,2 10,7 6,13.5 1,20", "1,20 5,18 9,19.5 13,18.5"),
    ),
    (  # 3: two bows, a flat top, a small loop between the bows
        ("2,3 6,0 10.5,2.5 10,7 5.5,9.5", "5.5,9.5 11,11.5 12,16 7,20 1.5,17.5"),
        ("2,1 6,0.5 11,1", "11,1 8,4.5 5.5,8", "5.5,8 10.5,10 12,15 7,20 1,18"),
        ("2,2.5 7,0 10.5,4 7.5,8.5 4.5,9.5 5,8 9,9.5 12,14.5 8,19.5 1.5,18",),
    ),
    (  # 4: open with an angle, closed, open with a bow
        ("3,0 2.5,6 2,11.5", "2,11.5 7,11 13,10.5", "10.5,2 10,11 9.5,20"),
        ("9.5,0 5,6.5 0.5,13", "0.5,13 7,13 14,12.5", "9.5,0 9.5,10 9.5,20"),
        ("2.5,1 2,6 4,10.5 8,10 11.5,7", "12,0 11.5,7 11,13 10,20"),
    ),
    (  # 5: a roof over a belly, one drawn like an S, a roof that starts apart
        (
            "3.5,0.5 3,4.5 2.5,8.5",
            "2.5,8.5 7,7 11.5,11 10.5,17 5.5,20 1,18",
            "3.5,0.5 8,0.5 12.5,0",
        ),
        ("12,0.5 7,0.5 3.5,3 4,7.5 9,10 11,14.5 7.5,19.5 1,18.5",),
        ("4,1.5 3.5,5 3,9", "3,9 8,8 11.5,12.5 9,18 4,20 1,19", "5,1 9,1 13.5,0"),
    ),
    (  # 6: a bent stem, a straight stem, a stem with a curl, a small bowl
        ("9.5,0 4.5,5 1.5,12 3,18 7,20 11,16.5 9.5,12 5.5,11.5 2,15",),
        ("6,0 3.5,6.5 2,13 3,18.5 7,20 10.5,16.5 8.5,12.5 5,13 2.5,16.5",),
        ("11.5,2 7,0.5 3,6 1.5,13 4,19 9,19.5 11.5,15 8.5,11 4,12.5 2,15.5",),
        ("8,0 3.5,7 1,14.5 3,19.5 7.5,20 9.5,17 7,14.5 3,17",),
    ),
    (  # 7: plain, with a bar, with a hanging start and a bent stem
        ("1,1.5 7,1 12.5,0.5", "12.5,0.5 9,9 6,20"),
        ("1,1.5 7,1 12.5,0.5", "12.5,0.5 9,9 6,20", "4,10.5 8,10 12,9.5"),
        ("1.5,5 1.5,1.5", "1.5,1.5 7,1.5 12,1", "12,1 8.5,7.5 6.5,14 6,20"),
    ),
    (  # 8: one line that crosses itself, two loops, one line that stays open at the top
        ("11,2.5 6.5,0 2.5,3.5 6,8.5 10.5,13 10,18 6,20 2,17 3.5,12.5 8,8.5 11.5,5 11,2.5",),
        (
            "7,0 3.2,4.5 7,9 10.8,4.5 7,0",
            "7,9 2.2,14.5 7,20 11.8,14.5 7,9",
        ),
        ("11.5,3 7,0 2.5,3 5,8 10,12.5 10.5,17.5 6,20 2,17 4,12 8.5,8 12,1.5",),
    ),
    (  # 9: a loop and a straight stem, a curved tail, one line that leans
        ("11,4 7,0.5 2.5,3 2.5,8 6.5,10 10.5,7 11,4", "11,4 10.5,12 10,20"),
        ("10.5,2.5 6,0.5 2,4.5 4.5,9.5 9,8 11,3.5", "11,3.5 11,12 8.5,18.5 4.5,20 1.5,18"),
        ("10.5,3 6.5,0.5 2.5,5 5,9.5 9,7 11,2 10,11 7,20",),
    ),
)


class _Lane(IntEnum):
    """Index of the random 32-bit number, out of a row's 64, for each property."""

    LABEL = 0
    WAY = 1
    HASTE = 2
    SLANT = 3
    ROTATION = 4
    ASPECT = 5
    SIZE = 6
    SHIFT = 7  # two: x, y
    RADIUS = 9
    EDGE = 10
    PRESSURE = 11
    PRESSURE_PHASE = 12
    PRESSURE_RATE = 13
    WAVES = 14  # 16: for x and y, two waves of (amplitude, rate in x, rate in y, phase)
    CONTROLS = 30  # 28: for x and y, one per control point


def draw_digits(
    seed: int, split: str, start: int, stop: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images and labels of rows [start, stop) of a split.

    Images are (rows, 28, 28) uint8, white on black as in MNIST; labels are (rows,) uint8, with
    equally likely classes. `split` must be ASCII. Temporary memory does not depend on the range.
    """
    images = np.empty((stop - start, SIDE, SIDE), np.uint8)
    labels = np.empty(stop - start, np.uint8)
    for first in range(start, stop, _BLOCK_ROWS):
        last = min(first + _BLOCK_ROWS, stop)
        lanes = _random_lanes(seed, split, first, last)
        block = slice(first - start, last - start)
        labels[block] = _one_of(CLASSES, lanes[_Lane.LABEL])
        images[block] = _draw_block(labels[block], lanes)
    return images, labels


def _draw_block(labels: NDArray[np.uint8], lanes: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Return images (rows, 28, 28) of labels (rows,); internally, rows are the last axis."""
    normals = _normals(lanes)
    points = _pen_path(labels, lanes, normals)
    points = _bend(points, lanes, normals)
    points = _slant_and_turn(points, normals)
    points = _fit(points, normals)
    ink = _ink(_squared_distances(points, _pen_scales(lanes)), normals)
    return ink.transpose(2, 0, 1)


def _random_lanes(seed: int, split: str, start: int, stop: int) -> NDArray[np.uint32]:
    """Return the 32-bit random numbers of rows [start, stop), (64, rows)."""
    name = f"mnist-stream digits {DIGITS_VERSION}|{seed}|{split}"
    digest = hashlib.sha256(name.encode("ascii")).digest()
    key = np.frombuffer(digest[:16], "<u8").astype(np.uint64)
    # A counter step gives four words, so a row's counter is its first word divided by four.
    generator = np.random.Philox(key=key, counter=start * _WORDS_PER_ROW // 4)
    words = generator.random_raw((stop - start) * _WORDS_PER_ROW)
    rows = words.astype("<u8").view("<u4").reshape(stop - start, 2 * _WORDS_PER_ROW)
    return np.ascontiguousarray(rows.T, np.uint32)


def _one_of(count: int | NDArray[np.int64], lane: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return uniform integers in [0, count - 1], (rows,)."""
    return (lane.astype(np.int64) * count) >> 32


def _between(low: int, high: int, lane: NDArray[np.uint32]) -> NDArray[np.int32]:
    """Return uniform integers in [low, high], (rows,)."""
    return (low + _one_of(high - low + 1, lane)).astype(np.int32)


def _normals(lanes: NDArray[np.uint32]) -> NDArray[np.int32]:
    """Return nearly normal integers of mean 0, deviation 148 and size at most 510, (64, rows).

    The sum of a lane's four bytes, each uniform: variance 4 * (256**2 - 1) / 12.
    """
    total = (lanes & 255) + (lanes >> 8 & 255) + (lanes >> 16 & 255) + (lanes >> 24)
    normals: NDArray[np.int32] = total.astype(np.int32) - 510
    return normals


@cache
def _sine_table() -> NDArray[np.int32]:
    """Return sines of a full turn, (4096,), rounded so that `math.sin`'s last bit is lost."""
    turns = (math.sin(2 * math.pi * angle / _TURN) for angle in range(_TURN))
    return np.array([round(_TURN * sine) for sine in turns], np.int32)


@cache
def _root_table() -> NDArray[np.int16]:
    """Return the distance in 1/256 pixel for each squared distance in 1/32 pixel, (65536,)."""
    scale = (_RADIUS_ONE // _FINE) ** 2
    return np.array([math.isqrt(square * scale) for square in range(2**16)], np.int16)


def _pen_path(
    labels: NDArray[np.uint8], lanes: NDArray[np.uint32], normals: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Return the pen's path, with its controls moved, in 1/1024 pixel, (2, SAMPLES, rows)."""
    tables = stroke_tables()
    way = tables.first_way[labels] + _one_of(tables.way_count[labels], lanes[_Lane.WAY])
    moves = normals[_Lane.CONTROLS : _Lane.CONTROLS + 2 * CONTROLS].reshape(2, CONTROLS, -1)
    # Neighbours share part of their movement, or round strokes would turn into polygons.
    moves = moves + np.roll(moves, 1, axis=1)
    # Squared, so that most rows are written with care and few in haste.
    hurry = _between(0, 255, lanes[_Lane.HASTE])
    move = _CARE + ((_HASTE * hurry * hurry) >> 16)
    controls = tables.controls[:, :, way] + ((moves * move) >> 4)
    points = np.zeros((2, SAMPLES, len(labels)), np.int32)
    for source, weight in zip(tables.sources[:, :, way], tables.weights[:, :, way], strict=True):
        points += weight * np.take_along_axis(controls, source[None], axis=1)
    return points // WEIGHT_ONE


def _bend(
    points: NDArray[np.int32], lanes: NDArray[np.uint32], normals: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Return points moved by two long waves per axis, as on bent paper, (2, SAMPLES, rows)."""
    sine = _sine_table()
    moved = points.copy()
    for axis in (0, 1):
        for wave in (0, 1):
            lane = _Lane.WAVES + 8 * axis + 4 * wave
            amplitude, rate_x, rate_y = normals[lane : lane + 3]
            # A rate of one deviation is 0.7 waves on the digit's height of 20 pixels.
            turned = (rate_x * points[0] + rate_y * points[1]) // UNITS_PER_PIXEL
            phase = (lanes[lane + 3] >> 20).astype(np.int32)
            moved[axis] += (_BEND * amplitude * sine[(turned + phase) & (_TURN - 1)]) >> 12
    return moved


def _slant_and_turn(points: NDArray[np.int32], normals: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return points sheared, widened and rotated about the digit's centre, (2, SAMPLES, rows)."""
    x = points[0] - 7 * UNITS_PER_PIXEL
    y = points[1] - 10 * UNITS_PER_PIXEL
    slant = _MEAN_SLANT + normals[_Lane.SLANT] * _SLANT_DEVIATION // _NORMAL_ONE
    width = 1000 + normals[_Lane.ASPECT] * _WIDTH_DEVIATION // _NORMAL_ONE
    x = (x * width - y * slant) // 1000
    angle = normals[_Lane.ROTATION] * _ROTATION_DEVIATION // _NORMAL_ONE
    sine = _sine_table()
    sin, cos = sine[angle & (_TURN - 1)], sine[(angle + _TURN // 4) & (_TURN - 1)]
    return np.stack([(cos * x - sin * y) // _TURN, (sin * x + cos * y) // _TURN])


def _fit(points: NDArray[np.int32], normals: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return points scaled to about 18 pixels and centred by their mean, (2, SAMPLES, rows).

    MNIST was made like this: a box of 20 pixels, centred by mass in 28 (LeCun, Cortes and Burges).
    """
    corner = points.min(axis=1)
    extent = (points.max(axis=1) - corner).max(axis=0)
    size = _MEAN_SIZE + normals[_Lane.SIZE] * _SIZE_PER_NORMAL
    # The product of two lengths may exceed 32 bits.
    points = ((points - corner[:, None]).astype(np.int64) * size // extent).astype(np.int32)
    shift = normals[_Lane.SHIFT : _Lane.SHIFT + 2] * _SHIFT_PER_NORMAL
    shift += SIDE * UNITS_PER_PIXEL // 2 - points.sum(axis=1, dtype=np.int32) // SAMPLES
    most = SIDE * UNITS_PER_PIXEL - _MARGIN - points.max(axis=1)
    return points + np.clip(shift, _MARGIN, most)[:, None]


def _pen_scales(lanes: NDArray[np.uint32]) -> NDArray[np.int16]:
    """Return the scale of distances to each sample, smaller under pressure, (SAMPLES, rows)."""
    steps = np.arange(SAMPLES, dtype=np.int32)[:, None]
    rate = _between(16, 74, lanes[_Lane.PRESSURE_RATE])
    phase = (lanes[_Lane.PRESSURE_PHASE] >> 20).astype(np.int32)
    wave = _sine_table()[(steps * rate + phase) & (_TURN - 1)]
    depth = _between(0, _PRESSURE, lanes[_Lane.PRESSURE])
    scales: NDArray[np.int32] = _PEN_ONE - (((wave + _TURN) * depth) >> 13)
    return scales.astype(np.int16)


def _squared_distances(points: NDArray[np.int32], scales: NDArray[np.int16]) -> NDArray[np.uint16]:
    """Return each pixel's squared distance to the nearest sample, in 1/32 pixel, (28, 28, rows)."""
    rows = points.shape[2]
    fine = (points // (UNITS_PER_PIXEL // _FINE)).astype(np.int16)
    centres = np.arange(_FINE // 2, SIDE * _FINE, _FINE, dtype=np.int16)[:, None]
    nearest = np.full((SIDE, SIDE, rows), 2**16 - 1, np.uint16)
    squares = np.empty_like(nearest)
    for x, y, scale in zip(fine[0], fine[1], scales, strict=True):
        across = _squares_along_axis(centres - x, scale)
        down = _squares_along_axis(centres - y, scale)
        np.add(down[:, None], across, out=squares)
        np.minimum(nearest, squares, out=nearest)
    return nearest


def _squares_along_axis(offsets: NDArray[np.int16], scale: NDArray[np.int16]) -> NDArray[np.uint16]:
    """Return squares of offsets (28, rows) in 1/32 pixel, scaled for the pen and below 2**15."""
    near = np.minimum(np.abs(offsets), np.int16(_FAR))
    scaled = (near * scale // np.int16(_PEN_ONE)).view(np.uint16)
    return scaled * scaled


def _ink(squares: NDArray[np.uint16], normals: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return grey levels for squared distances, with a soft edge, (28, 28, rows)."""
    radius = _MEAN_RADIUS + normals[_Lane.RADIUS] * _RADIUS_DEVIATION // _NORMAL_ONE
    edge = _MEAN_EDGE + normals[_Lane.EDGE] * _EDGE_DEVIATION // _NORMAL_ONE
    reach = np.clip(radius, *_RADIUS_RANGE) + edge // 2
    steepness = 255 * 128 // edge
    levels: NDArray[np.int32] = ((reach - _root_table()[squares]) * steepness) >> 7
    return np.clip(levels, 0, 255).astype(np.uint8)


class StrokeTables(NamedTuple):
    """All ways of writing as tables; `ways` is their number over all classes."""

    controls: NDArray[np.int32]
    """Control points, x and y in 1/1024 pixel, (2, CONTROLS, ways)."""
    sources: NDArray[np.intp]
    """The four control points that each sample mixes, (4, SAMPLES, ways)."""
    weights: NDArray[np.int32]
    """The weight of each of the four, in units of 1 / WEIGHT_ONE, (4, SAMPLES, ways)."""
    first_way: NDArray[np.int64]
    """The first way of each class, (classes,)."""
    way_count: NDArray[np.int64]
    """The number of ways of each class, (classes,)."""


@cache
def stroke_tables() -> StrokeTables:
    """Return the tables of WAYS_OF_WRITING; rounding makes the weights the same everywhere."""
    ways = [way for of_class in WAYS_OF_WRITING for way in of_class]
    controls = np.zeros((2, CONTROLS, len(ways)), np.int32)
    sources = np.zeros((4, SAMPLES, len(ways)), np.intp)
    weights = np.zeros((4, SAMPLES, len(ways)), np.int32)
    for number, way in enumerate(ways):
        points, strokes = _numbered_points(way)
        controls[:, : len(points), number] = np.array(points).T
        mixes = _sample_mixes(points, strokes)
        used = np.argsort(mixes == 0, axis=1, kind="stable")[:, :4]  # at most four are not 0
        sources[:, :, number] = used.T
        weights[:, :, number] = np.take_along_axis(mixes, used, axis=1).T
    way_count = np.array([len(of_class) for of_class in WAYS_OF_WRITING], np.int64)
    return StrokeTables(controls, sources, weights, np.cumsum(way_count) - way_count, way_count)


def _numbered_points(way: tuple[str, ...]) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Return a way's distinct points in 1/1024 pixel, and its strokes as indices of points."""
    points: dict[tuple[int, int], int] = {}
    strokes = []
    for stroke in way:
        pairs = [pair.split(",") for pair in stroke.split()]
        places = [(round(float(x) * 1024), round(float(y) * 1024)) for x, y in pairs]
        strokes.append([points.setdefault(place, len(points)) for place in places])
    return list(points), strokes


def _sample_mixes(points: list[tuple[int, int]], strokes: list[list[int]]) -> NDArray[np.int32]:
    """Return weights (SAMPLES, CONTROLS) of a way's samples, spread over its strokes by length.

    The strokes are uniform Catmull-Rom splines: Catmull and Rom, "A class of local interpolating
    splines" (1974).
    """
    pieces, lengths = [], []
    for stroke in strokes:
        pieces += _spline_pieces(stroke)
        for one, other in pairwise(stroke):
            (x, y), (next_x, next_y) = points[one], points[other]
            lengths.append(math.isqrt((x - next_x) ** 2 + (y - next_y) ** 2))
    mixes = np.zeros((SAMPLES, CONTROLS), np.int32)
    for sample in range(SAMPLES):
        # The midpoint of each of SAMPLES equal parts of the total length, in half parts.
        along = (2 * sample + 1) * sum(lengths)
        piece = 0
        while along >= 2 * SAMPLES * lengths[piece]:
            along -= 2 * SAMPLES * lengths[piece]
            piece += 1
        mix = _mix(pieces[piece], along / (2 * SAMPLES * lengths[piece]))
        mixes[sample] = np.rint(mix * WEIGHT_ONE)
    return mixes


def _spline_pieces(stroke: list[int]) -> list[NDArray[np.float64]]:
    """Return each piece's four knots as weights of controls, (4, CONTROLS)."""
    knots = np.eye(CONTROLS)[stroke]
    if stroke[0] == stroke[-1]:
        before, after = knots[-2], knots[1]
    else:  # an open end continues straight: its neighbour is mirrored
        before, after = 2 * knots[0] - knots[1], 2 * knots[-1] - knots[-2]
    padded = np.vstack([before, knots, after])
    return [padded[start : start + 4] for start in range(len(stroke) - 1)]


def _mix(knots: NDArray[np.float64], t: float) -> NDArray[np.float64]:
    """Return the weights of the point at t in [0, 1] of a piece, (CONTROLS,)."""
    basis = (
        (-t + 2 * t**2 - t**3) / 2,
        (2 - 5 * t**2 + 3 * t**3) / 2,
        (t + 4 * t**2 - 3 * t**3) / 2,
        (-(t**2) + t**3) / 2,
    )
    # Added one by one: the rounding of a matrix product depends on the processor.
    first, second, third, fourth = (share * knot for share, knot in zip(basis, knots, strict=True))
    mix: NDArray[np.float64] = first + second + third + fourth
    return mix
