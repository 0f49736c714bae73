"""The digits that the project draws itself: the same bytes everywhere, and worth learning."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.sources.digits import (
    CLASSES,
    CONTROLS,
    SIDE,
    WAYS_OF_WRITING,
    WEIGHT_ONE,
    draw_digits,
    stroke_tables,
)

ROWS = 1300  # more than two of the blocks that are drawn at once, and not a whole number of them


@pytest.fixture(scope="module")
def one_draw() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The first rows of seed 7's train split, in a single draw."""
    return draw_digits(7, "train", 0, ROWS)


def digest(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> str:
    """SHA-256 of the images' bytes followed by the labels'."""
    return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


def test_the_bytes_of_version_1_are_pinned() -> None:
    """Seed 0 draws the same first 256 training digits on every machine and NumPy version."""
    expected = "93accd65ec872f0c70119b53dbc5b013a2d32869ac223adf77fc878860e9deed"
    assert expected == digest(*draw_digits(0, "train", 0, 256))


def test_rows_far_away_are_pinned() -> None:
    """A row past 2**32 is reached by seeking, and has bytes of its own."""
    expected = "5e7612d6e46a9c5455808826488c6946166bd8670bae5466f8940425afeca8cf"
    assert expected == digest(*draw_digits(0, "test", 2**32 + 5, 2**32 + 8))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(bounds=st.tuples(st.integers(0, ROWS), st.integers(0, ROWS)))
def test_a_row_is_the_same_in_every_range(
    one_draw: tuple[NDArray[np.uint8], NDArray[np.uint8]], bounds: tuple[int, int]
) -> None:
    """A range drawn alone equals its place in one large draw, wherever it starts and ends."""
    start, stop = sorted(bounds)
    images, labels = draw_digits(7, "train", start, stop)
    assert one_draw[0][start:stop].tobytes() == images.tobytes()
    assert one_draw[1][start:stop].tobytes() == labels.tobytes()


def test_splits_and_seeds_are_different_digits() -> None:
    """No image of one split or seed is found in another."""
    draws = [draw_digits(0, "train", 0, 300), draw_digits(0, "test", 0, 300)]
    draws += [draw_digits(1, "train", 0, 300), draw_digits(-1, "train", 0, 300)]
    distinct = {image.tobytes() for images, _ in draws for image in images}
    assert 4 * 300 == len(distinct)


def test_an_image_is_grey_at_the_edges_of_its_strokes(
    one_draw: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> None:
    """Bytes, mostly black, with full ink and between them edges of many greys, as in MNIST."""
    images, labels = one_draw
    assert ("uint8", (ROWS, SIDE, SIDE)) == (images.dtype.name, images.shape)
    assert ("uint8", (ROWS,)) == (labels.dtype.name, labels.shape)
    black, full = float(np.mean(images == 0)), float(np.mean(images == 255))
    assert 0.70 < black < 0.90
    assert 0.02 < full < 0.15
    assert 1 - black - full > 0.05
    assert 256 == len(np.unique(images))


def test_ink_lies_in_the_field(one_draw: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    """Each digit has ink enough to read, about 20 pixels high or wide, and a black border."""
    images = one_draw[0]
    assert 0 == int(images[:, [0, -1], :].max())
    assert 0 == int(images[:, :, [0, -1]].max())
    inked = images > 0
    longer_side = np.maximum(inked.any(axis=1).sum(axis=1), inked.any(axis=2).sum(axis=1))
    assert 14 <= int(longer_side.min())
    assert 19 <= float(longer_side.mean()) <= 23


def test_classes_are_balanced_and_in_random_order() -> None:
    """Each class has a tenth of the rows within five standard deviations, and no row foretells."""
    labels = draw_digits(3, "train", 0, 10_000)[1].astype(np.int64)
    counts = np.bincount(labels, minlength=CLASSES)
    assert CLASSES == len(counts)
    assert np.abs(counts - 1_000).max() < 5 * np.sqrt(10_000 * 0.1 * 0.9)
    pairs = np.bincount(labels[:-1] * CLASSES + labels[1:], minlength=CLASSES**2)
    assert np.abs(pairs - 100).max() < 5 * np.sqrt(10_000 * 0.01 * 0.99)


def test_classes_can_be_told_apart_yet_not_by_their_means_alone() -> None:
    """The nearest class mean is right on most digits, and wrong on enough to leave work."""
    images, labels = draw_digits(0, "train", 0, 5_000)
    flat = images.reshape(len(images), -1).astype(np.float64)
    means = np.stack([flat[labels == label].mean(axis=0) for label in range(CLASSES)])
    images, labels = draw_digits(0, "test", 0, 2_000)
    flat = images.reshape(len(images), -1).astype(np.float64)
    distances = (means**2).sum(axis=1) - 2 * flat @ means.T
    accuracy = float(np.mean(distances.argmin(axis=1) == labels))
    assert 0.60 < accuracy < 0.97


def test_every_way_of_writing_is_a_mix_of_its_own_points() -> None:
    """Spline weights add up to one, and no way has more points than there are places."""
    tables = stroke_tables()
    assert int(np.abs(tables.weights.sum(axis=0) - WEIGHT_ONE).max()) <= 2
    for way in (way for of_class in WAYS_OF_WRITING for way in of_class):
        assert len({pair for stroke in way for pair in stroke.split()}) <= CONTROLS
