"""Distortions: their definition, their test vectors, and their statistics."""

import numpy as np
import pytest

from pipeline.distortions import DIGITS, Distorter, Distortions, check_distortable
from storage.errors import UsageError


def rows_of(images: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return random images as stored rows, bias first."""
    rows = np.random.default_rng(seed).integers(0, 256, (images, 1 + height * width), np.uint8)
    rows[:, 0] = 1
    return rows


@pytest.mark.parametrize("shape", [(28, 28), (5, 40), (1, 17), (17, 1), (1, 1)])
def test_batches_do_not_matter(shape: tuple[int, int]) -> None:
    """A row is the same alone, in another batch, in another order and from another distorter."""
    inputs, rows = rows_of(150, *shape), np.arange(1000, 1150)
    together = Distorter(DIGITS, shape, 7)(inputs, 3, rows).copy()
    distorter = Distorter(DIGITS, shape, 7)
    for row in (0, 63, 64, 149):
        alone = distorter(inputs[row : row + 1], 3, rows[row : row + 1])
        assert together[row].tolist() == alone[0].tolist()
    backwards = distorter(inputs[::-1], 3, rows[::-1])
    assert together.tolist() == backwards[::-1].tolist()
    assert (together[:, 0] == 1).all()


def test_refusals() -> None:
    """Vectors, other element types and sums that would not be exact are refused."""
    check_distortable(DIGITS, (28, 28), "uint8", "data/x")
    check_distortable(Distortions(), (5,), "float32", "data/x")
    with pytest.raises(UsageError, match=r"data/x has rows of shape 784, and only images of two"):
        check_distortable(DIGITS, (784,), "uint8", "data/x")
    with pytest.raises(UsageError, match=r"data/x has values of type int16, and only .*uint8"):
        check_distortable(DIGITS, (28, 28), "int16", "data/x")
    with pytest.raises(UsageError, match=r"reach to .* pixels; expected less than 4,096"):
        check_distortable(Distortions(shift=5000), (28, 28), "uint8", "data/x")
    with pytest.raises(UsageError, match=r"sigma of 0.5 pixels is too small for images of 90 x 90"):
        check_distortable(Distortions(elastic=1, elastic_sigma=0.5), (90, 90), "uint8", "data/x")
