"""Generated digits: the same bytes on every machine and in any range."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.sources.digits import draw_digits

ROWS = 1300  # more than two of the blocks drawn at once, and not a multiple


@pytest.fixture(scope="module")
def one_draw() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The first rows of seed 7's train split, drawn at once."""
    return draw_digits(7, "train", 0, ROWS)


@pytest.mark.parametrize(
    ("seed", "split", "start", "stop", "expected"),
    [
        (0, "train", 0, 256, "93accd65ec872f0c70119b53dbc5b013a2d32869ac223adf77fc878860e9deed"),
        (-1, "train", 0, 3000, "aa9217259563452c9227379611adeeeeb6dfec80f857b51e4c95d0e873eab0a5"),
        (
            0,
            "test",
            2**32 + 5,
            2**32 + 8,
            "5e7612d6e46a9c5455808826488c6946166bd8670bae5466f8940425afeca8cf",
        ),
    ],
)
def test_the_bytes_of_version_1_are_pinned(
    seed: int, split: str, start: int, stop: int, expected: str
) -> None:
    """A row has the same bytes on every machine and NumPy version, even beyond 2**32."""
    images, labels = draw_digits(seed, split, start, stop)
    assert expected == hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(bounds=st.tuples(st.integers(0, ROWS), st.integers(0, ROWS)))
def test_a_row_is_the_same_in_every_range(
    one_draw: tuple[NDArray[np.uint8], NDArray[np.uint8]], bounds: tuple[int, int]
) -> None:
    """A range drawn alone equals the same range of a larger draw."""
    start, stop = sorted(bounds)
    images, labels = draw_digits(7, "train", start, stop)
    assert one_draw[0][start:stop].tobytes() == images.tobytes()
    assert one_draw[1][start:stop].tobytes() == labels.tobytes()


def test_splits_and_seeds_are_different_digits() -> None:
    """Splits and seeds have no image in common."""
    draws = [draw_digits(0, "train", 0, 300), draw_digits(0, "test", 0, 300)]
    draws += [draw_digits(1, "train", 0, 300), draw_digits(-1, "train", 0, 300)]
    distinct = {image.tobytes() for images, _ in draws for image in images}
    assert 4 * 300 == len(distinct)


def test_ink_lies_in_the_field(one_draw: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    """Each digit has enough ink, is about 20 pixels high or wide, and has a black border."""
    images = one_draw[0]
    assert 0 == int(images[:, [0, -1], :].max())
    assert 0 == int(images[:, :, [0, -1]].max())
    inked = images > 0
    longer_side = np.maximum(inked.any(axis=1).sum(axis=1), inked.any(axis=2).sum(axis=1))
    assert 14 <= int(longer_side.min())
    assert 19 <= float(longer_side.mean()) <= 23
