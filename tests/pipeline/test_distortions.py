"""Distortions version 1: test vectors, a second implementation from its page, and statistics."""

import hashlib
import itertools
import math
import os
import re
import subprocess
import sys
import tracemalloc
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, map_coordinates

from pipeline.distortions import (
    DIGITS,
    DISTORTION_VERSION,
    EXACT,
    SETS,
    Distorter,
    Distortions,
    _Field,
    _field_of,
    check_distortable,
    distorter_memory,
)
from storage.errors import UsageError

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "distortions.md"
STRONG = Distortions(180, 0.5, 1, 3, 3, 4)
"""Its sums reach 0.83 * 2^24 for images of 28 x 28."""
CASES = {
    (DIGITS, (28, 28)): "85dec5a00792be19",
    (DIGITS.halved(), (28, 28)): "47138f1a8e91cd54",
    (STRONG, (28, 28)): "de755ae56f624d24",
    (DIGITS, (5, 40)): "f6320f218df1193c",
    (DIGITS, (1, 300)): "84068f6367faed48",
    (DIGITS, (65, 30)): "0feb7a8af5d030a2",
    (Distortions(20, 0.2, 0.1, 5, 6, 25), (129, 40)): "285cd15ba63c1b6d",
    (Distortions(180, 0.5, 1), (9, 12)): "edc41dfcf4cec82c",
    (Distortions(scale=0.5), (28, 28)): "dd33589b23026e26",
    (Distortions(shear=1), (17, 1)): "12ef63045cc5ecd1",
    (Distortions(shift=2.5), (1, 1)): "767e4bbbbcd54296",
    (Distortions(elastic=2, elastic_sigma=1), (12, 9)): "4a1801aa92523d04",
}
"""Strengths and sizes, and the digests of their distorted rows; see `digest_of`."""
ROWS = np.array([0, 1, 2, 59_999, 2**40])
SEEDS_AND_EPOCHS = ((0, 0), (0, 1), (2**70, 213))


def page() -> dict[str, Any]:
    """Return the functions of the page that defines distortions."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    published: dict[str, Any] = {}
    exec("".join(block for block in blocks if "print(" not in block), published)
    return published


PUBLISHED = page()


def stored(rows: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return images of noise as stored rows, bias first: a fixed sequence of bytes."""
    numbers = np.arange(rows * math.prod(shape), dtype=np.uint64) + np.uint64(1)
    noise = numbers * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(56)
    return np.pad(noise.astype(np.uint8).reshape(rows, -1), ((0, 0), (1, 0)), constant_values=1)


def digest_of(strengths: Distortions, shape: tuple[int, int]) -> str:
    """Return the start of the SHA-256 of five rows' pixels for three pairs of seed and epoch."""
    inputs, digest = stored(len(ROWS), shape), hashlib.sha256()
    for seed, epoch in SEEDS_AND_EPOCHS:
        digest.update(Distorter(strengths, shape, seed)(inputs, epoch, ROWS)[:, 1:].tobytes())
    return digest.hexdigest()[:16]


def test_vectors() -> None:
    """Distorted rows of version 1 never change."""
    assert DISTORTION_VERSION == 1
    assert CASES == {case: digest_of(*case) for case in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["Prescott", "Haswell"])
def test_other_processors(kernel: str) -> None:
    """BLAS kernels of older processors, two threads and narrow vectors give the same rows."""
    features = "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"
    env = {"OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": "2"}
    env |= {"NPY_DISABLE_CPU_FEATURES": features, "PYTHONPATH": str(PAGE.parents[2])}
    code = "from tests.pipeline.test_distortions import test_vectors; test_vectors()"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=os.environ | env, check=True)


def test_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine's sine or exponential can change the integers: no value is close to a half."""
    exact, rint = [], np.rint
    monkeypatch.setattr(np, "rint", lambda values: rint(exact.append(values) or values))
    field = _Field(DIGITS, 28, 28)
    distances = [np.abs(values - np.floor(values) - 0.5).min() for values in exact]
    assert len(distances) == field.words
    assert min(distances) > 1e-7
    parts = [field._tables, field.matrix * 256]
    digests = [hashlib.sha256(part.astype("<i4").tobytes()).hexdigest()[:16] for part in parts]
    assert ["29edd72ea210f3f1", "f12357bfab74f59e"] == digests


@pytest.mark.parametrize(("strengths", "shape"), CASES)
def test_the_page_is_the_definition(strengths: Distortions, shape: tuple[int, int]) -> None:
    """The code of docs/explanation/distortions.md gives the same rows."""
    inputs = stored(len(ROWS), shape)
    for seed, epoch in SEEDS_AND_EPOCHS:
        rows = Distorter(strengths, shape, seed)(inputs, epoch, ROWS)
        for row, before, after in zip(ROWS.tolist(), inputs, rows, strict=True):
            image = before[1:].reshape(shape)
            expected = PUBLISHED["distorted"](image, astuple(strengths), seed, epoch, row)
            assert expected.tolist() == after[1:].reshape(shape).tolist()


@pytest.mark.parametrize(("strengths", "shape"), CASES)
def test_interpolation(strengths: Distortions, shape: tuple[int, int]) -> None:
    """Pixels are within 2 grey levels of SciPy's bilinear interpolation at the same origins."""
    inputs = stored(len(ROWS), shape)
    after = Distorter(strengths, shape, 5)(inputs, 4, ROWS)[:, 1:].reshape(-1, *shape)
    for row, before, result in zip(ROWS.tolist(), inputs, after, strict=True):
        (x, y), bits = PUBLISHED["origins"](*shape, astuple(strengths), 5, 4, row)
        padded = np.pad(before[1:].reshape(shape).astype(float), 1)
        expected = map_coordinates(padded, np.array([y, x]) / 2**bits + 1, order=1)
        assert np.abs(expected - result).max() <= 2


@pytest.mark.parametrize("shape", [(28, 28), (5, 40), (1, 17), (17, 1), (1, 1), (120, 110)])
def test_batches_do_not_matter(shape: tuple[int, int]) -> None:
    """A row is the same alone, in other batches, backwards, and from a distorter in use."""
    strengths = replace(DIGITS, elastic_sigma=max(5, max(shape) / 8))
    inputs, rows = stored(150, shape), np.arange(1000, 1150)
    together = Distorter(strengths, shape, 7)(inputs, 3, rows).copy()
    assert (together[:, 0] == 1).all()
    distorter = Distorter(strengths, shape, 7)
    for row in (0, 127, 128, 149):
        alone = distorter(inputs[row : row + 1], 3, rows[row : row + 1])
        assert together[row].tolist() == alone[0].tolist()
    assert np.array_equal(together, distorter(inputs[::-1], 3, rows[::-1])[::-1])


def test_every_argument_matters() -> None:
    """No two of (seed, epoch, row) distort alike, not even 1|11 and 11|1."""
    values = (0, 1, 2, 11, 12, 111)
    inputs, rows = np.repeat(stored(1, (28, 28)), len(values), axis=0), np.array(values)
    results = {
        row.tobytes()
        for seed, epoch in itertools.product(values, values)
        for row in Distorter(DIGITS, (28, 28), seed)(inputs, epoch, rows)
    }
    assert len(values) ** 3 == len(results)


def test_no_distortion() -> None:
    """Strengths of 0 leave rows unchanged."""
    inputs = stored(5, (7, 8))
    assert inputs.tolist() == Distorter(SETS["none"], (7, 8), 0)(inputs, 0, ROWS).tolist()
    assert not SETS["none"].any
    assert all(replace(SETS["none"], **{name: 0.1}).any for name in vars(DIGITS) if "_" not in name)
    assert Distortions(7.5, 0.075, 0.075, 0.5, 0.5, 5) == DIGITS.halved()


@pytest.mark.slow
@pytest.mark.parametrize(("strengths", "shape"), CASES)
def test_sums_are_exact(strengths: Distortions, shape: tuple[int, int]) -> None:
    """Origins are exact for any draws and in any order of the terms: all sums are below 2^24."""
    field = _field_of(strengths, *shape)
    random = np.random.default_rng(0)
    extremes = np.array([0, 2**64 - 1, 0x00FFFFFF00FFFFFF, 0xFF000000FF000000], np.uint64)
    words = random.choice(extremes, (600, field.words))
    angles = random.integers(0, 1024, 600, np.uint64)
    words[:, 0] = random.choice([0, 1023], (600, 6)) @ 1024 ** np.arange(6)
    words[:, 0] += angles - words[:, 0] % np.uint64(1024)
    coefficients = np.empty((1200, len(field.matrix)), np.float32)
    field.write_coefficients(words, coefficients)
    unit = 2 ** (field.bits - 8)
    terms, matrix = coefficients.astype(np.float64), field.matrix.astype(np.float64) * unit
    assert np.array_equal(np.rint(matrix), matrix)
    expected, most = terms @ matrix, np.abs(terms) @ np.abs(matrix)
    assert most.max() <= field.largest < EXACT
    for order in (slice(None), slice(None, None, -1), np.argsort(field.matrix[:, 0])):
        origins = coefficients[:, order] @ field.matrix[order]
        assert np.array_equal(expected, origins.astype(np.float64) * unit)


def test_uniform_draws() -> None:
    """Angles, scales, shears and shifts are uniform within their strengths, and independent."""
    count, strengths = 2000, (20.0, 0.25, 0.125, 2.0)
    drawn = []
    for row in range(count):
        [word] = PUBLISHED["random_words"](3, 1, row, 1)
        x, y = PUBLISHED["affine_origins"](word, 2, 2, 16, *strengths) / 2**16
        matrix = np.array(
            [[x[0, 1] - x[0, 0], x[1, 0] - x[0, 0]], [y[0, 1] - y[0, 0], y[1, 0] - y[0, 0]]]
        )
        angle = math.atan2(matrix[1, 0], matrix[0, 0])
        scale_x = math.hypot(matrix[0, 0], matrix[1, 0])
        sheared = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]] @ matrix
        scale_y = sheared[1, 1]
        values = math.degrees(angle), scale_x - 1, scale_y - 1, sheared[0, 1] / scale_y
        drawn.append((*values, x.mean() - 0.5, y.mean() - 0.5))
    bounds = np.array([strengths[0], *[strengths[1]] * 2, strengths[2], *[strengths[3]] * 2])
    shares = (np.array(drawn) / bounds + 1) / 2
    deviations = np.abs(np.sort(shares, axis=0) - (np.arange(count)[:, None] + 0.5) / count)
    assert deviations.max() < 1.63 / math.sqrt(count)  # Kolmogorov and Smirnov's at 1 %
    assert np.abs(np.corrcoef(shares.T) - np.eye(6)).max() < 4 / math.sqrt(count)


@pytest.mark.parametrize(("shape", "sigma"), [((28, 28), 5), ((20, 28), 3), ((1, 40), 5)])
def test_elastic_smoothness(shape: tuple[int, int], sigma: float) -> None:
    """Displacements have the covariance of noise that SciPy's Gaussian filter smooths."""
    modes = PUBLISHED["elastic_modes"](*shape, 16, 1.5, sigma).reshape(-1, math.prod(shape)) / 2**16
    covariance = modes.T @ modes * 4 * (256**2 - 1) / 12
    filters = [gaussian_filter1d(np.eye(size), sigma, mode="reflect", truncate=8) for size in shape]
    expected = np.kron(*(matrix @ matrix.T for matrix in filters))
    expected *= 1.5**2 / np.diag(expected).mean()
    assert np.diag(covariance).mean() == pytest.approx(1.5**2, rel=0.002)
    assert np.abs(covariance - expected).max() < 0.01 * 1.5**2


def test_elastic_draws() -> None:
    """Displacements have the stated root mean square; x, y and rows are independent."""
    modes = PUBLISHED["elastic_modes"](28, 28, 16, 1.5, 5)
    words = [PUBLISHED["random_words"](0, 9, row, 1 + len(modes))[1:] for row in range(2000)]
    fields = np.array([PUBLISHED["elastic_displacement"](row, modes) for row in words]) / 2**16
    x, y = fields[:, 0], fields[:, 1]
    for part in (x, y):
        assert math.sqrt((part**2).mean()) == pytest.approx(1.5, rel=0.02)
        assert abs(part.mean(axis=0)).max() < 4 * part.std(axis=0).max() / math.sqrt(2000)
        assert abs((part[1:] * part[:-1]).mean()) < 0.05
    assert abs((x * y).mean()) < 0.05
    central = x[:, 14, 14] / x[:, 14, 14].std()
    assert (central**4).mean() == pytest.approx(3, abs=0.35)  # nearly normal


@pytest.mark.parametrize(
    ("strengths", "shape"),
    [
        (DIGITS, (28, 28)),
        (Distortions(shift=1), (28, 28)),
        (replace(DIGITS, elastic_sigma=12), (200, 150)),
    ],
)
def test_memory(strengths: Distortions, shape: tuple[int, int]) -> None:
    """A distorter takes at most the memory that is stated, and not much less."""
    inputs, rows = stored(256, shape), np.arange(256)
    stated = distorter_memory(strengths, shape, 256)
    _field_of.cache_clear()
    tracemalloc.start()
    Distorter(strengths, shape, 0)(inputs, 0, rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= stated <= 1.5 * peak
    assert distorter_memory(Distortions(), shape, 256) == 0


def test_refusals() -> None:
    """Vectors, other element types and sizes whose sums would not be exact are refused."""
    check_distortable(DIGITS, (28, 28), "uint8", "data/x")
    check_distortable(Distortions(), (5,), "float32", "data/x")
    refused = {
        (DIGITS, (784,), "uint8"): "data/x has rows of 784 values; only two-dimensional images can",
        (DIGITS, (2, 3, 4), "uint8"): "data/x has rows of 2 x 3 x 4 values; only two-dimensional",
        (DIGITS, (28, 28), "int16"): "data/x has int16 values; only images of bytes (uint8) can be",
        (DIGITS, (1, 4097), "uint8"): "images of 1 x 4097 pixels; only images of at most 4,096",
        (Distortions(shift=300), (28, 28), "uint8"): "need coordinates of up to 341 pixels; the",
        (DIGITS, (400, 400), "uint8"): "An elastic sigma of 5 pixels needs 4,133 modes for images",
    }
    for arguments, message in refused.items():
        with pytest.raises(UsageError, match=re.escape(message)):
            check_distortable(*arguments, "data/x")
    with pytest.raises(UsageError, match="need coordinates of up to"):
        Distorter(Distortions(shift=300), (28, 28), 0)
