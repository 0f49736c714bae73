"""How people write the ten digits: strokes through points, as tables that `digits` samples."""

from functools import cache
from itertools import pairwise
from math import isqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

UNITS_PER_PIXEL = 1024
"""The grid that points lie on: whole numbers of 1/1024 pixel."""
WEIGHT_ONE = 4096
"""A spline weight of 1.0, as the whole number it is stored as."""
CONTROLS = 14
"""Control points of a way of writing, at most; shorter ones are padded."""
SAMPLES = 88
"""Points that each way of writing is sampled at: the longest gets about three in two pixels."""

# Each class has several ways of writing, each way one or more strokes, each stroke the points
# "x,y" that the pen passes through: pixels, x to the right in 0..14, y down in 0..20. Strokes
# that name the same point meet there, and stay together however it moves: so corners are written.
# A stroke that ends where it began is a smooth closed loop.
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


class StrokeTables(NamedTuple):
    """Every way of writing as tables of one shape; `ways` is their count over all classes."""

    controls: NDArray[np.int32]
    """Control points as x then y in 1/1024 pixel, (2, CONTROLS, ways)."""
    sources: NDArray[np.intp]
    """Which four control points each sample is a mix of, (4, SAMPLES, ways)."""
    weights: NDArray[np.int32]
    """How much of each, WEIGHT_ONE being all of it, (4, SAMPLES, ways)."""
    first_way: NDArray[np.int64]
    """The first way of each class; the class's ways follow one another, (classes,)."""
    way_count: NDArray[np.int64]
    """How many ways each class has, (classes,)."""


@cache
def stroke_tables() -> StrokeTables:
    """Return the tables of WAYS_OF_WRITING; weights are rounded, so they are alike everywhere."""
    ways = [way for of_class in WAYS_OF_WRITING for way in of_class]
    controls = np.zeros((2, CONTROLS, len(ways)), np.int32)
    sources = np.zeros((4, SAMPLES, len(ways)), np.intp)
    weights = np.zeros((4, SAMPLES, len(ways)), np.int32)
    for number, way in enumerate(ways):
        points, strokes = _numbered_points(way)
        controls[:, : len(points), number] = np.array(points).T
        mixes = _sample_mixes(points, strokes)
        used = np.argsort(mixes == 0, axis=1, kind="stable")[:, :4]  # no more than four are
        sources[:, :, number] = used.T
        weights[:, :, number] = np.take_along_axis(mixes, used, axis=1).T
    way_count = np.array([len(of_class) for of_class in WAYS_OF_WRITING], np.int64)
    return StrokeTables(controls, sources, weights, np.cumsum(way_count) - way_count, way_count)


def _numbered_points(way: tuple[str, ...]) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Return a way's distinct points in 1/1024 pixel, and its strokes as numbers of those."""
    points: dict[tuple[int, int], int] = {}
    strokes = []
    for stroke in way:
        pairs = [pair.split(",") for pair in stroke.split()]
        places = [(round(float(x) * 1024), round(float(y) * 1024)) for x, y in pairs]
        strokes.append([points.setdefault(place, len(points)) for place in places])
    return list(points), strokes


def _sample_mixes(points: list[tuple[int, int]], strokes: list[list[int]]) -> NDArray[np.int32]:
    """Return the weights of a way's samples, spread over its strokes by length.

    (SAMPLES, CONTROLS). Uniform Catmull-Rom splines: Catmull and Rom, "A class of local
    interpolating splines" (1974).
    """
    pieces, lengths = [], []
    for stroke in strokes:
        pieces += _spline_pieces(stroke)
        for one, other in pairwise(stroke):
            (x, y), (next_x, next_y) = points[one], points[other]
            lengths.append(isqrt((x - next_x) ** 2 + (y - next_y) ** 2))
    mixes = np.zeros((SAMPLES, CONTROLS), np.int32)
    for sample in range(SAMPLES):
        # The middle of each of SAMPLES equal parts of the whole length, in halves of a part.
        along = (2 * sample + 1) * sum(lengths)
        piece = 0
        while along >= 2 * SAMPLES * lengths[piece]:
            along -= 2 * SAMPLES * lengths[piece]
            piece += 1
        mix = _mix(pieces[piece], along / (2 * SAMPLES * lengths[piece]))
        mixes[sample] = np.rint(mix * WEIGHT_ONE)
    return mixes


def _spline_pieces(stroke: list[int]) -> list[NDArray[np.float64]]:
    """Return the spline's pieces: the four knots of each as weights of controls, (4, CONTROLS)."""
    knots = np.eye(CONTROLS)[stroke]
    if stroke[0] == stroke[-1]:
        before, after = knots[-2], knots[1]
    else:  # an open end runs straight on: the missing neighbour is the mirrored one
        before, after = 2 * knots[0] - knots[1], 2 * knots[-1] - knots[-2]
    padded = np.vstack([before, knots, after])
    return [padded[start : start + 4] for start in range(len(stroke) - 1)]


def _mix(knots: NDArray[np.float64], t: float) -> NDArray[np.float64]:
    """Return the weights of the spline point at t in [0, 1] of a piece, (CONTROLS,)."""
    basis = (
        (-t + 2 * t**2 - t**3) / 2,
        (2 - 5 * t**2 + 3 * t**3) / 2,
        (t + 4 * t**2 - 3 * t**3) / 2,
        (-(t**2) + t**3) / 2,
    )
    # Added one by one: what a matrix product rounds depends on the processor.
    first, second, third, fourth = (share * knot for share, knot in zip(basis, knots, strict=True))
    mix: NDArray[np.float64] = first + second + third + fourth
    return mix
