"""Statistics of images: their values, and histograms that ingest records."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.ingest import ingest
from pipeline.statistics import (
    BINS,
    SAMPLED_ROWS,
    STATISTICS,
    ImageStatistics,
    image_statistics,
    is_sampled,
)
from storage.dataset import Dataset, open_dataset
from storage.documents import seal
from storage.errors import BadDataError
from storage.local import LocalLocation
from storage.preparation import BYTES, ValueRange


def by_hand(image: NDArray[Any]) -> list[float]:
    """Compute the statistics of an image `(height, width)` of values in [0, 1]."""
    height, width = image.shape
    y, x = np.mgrid[:height, :width]
    if not image.any():
        return [0, 0, 0, 0, 0.5, 0.5, 0, 0, 0.5]
    weights = image / image.sum()
    (mean_x, mean_y) = (weights * x).sum(), (weights * y).sum()
    spread_x = np.sqrt((weights * (x - mean_x) ** 2).sum())
    spread_y = np.sqrt((weights * (y - mean_y) ** 2).sum())
    product = (weights * (x - mean_x) * (y - mean_y)).sum()
    return [
        np.sqrt(image.mean()),
        2 * image.std(),
        2 * np.sqrt((image * (1 - image)).mean()),
        np.sqrt((np.diff(image, axis=1) ** 2).mean()),
        (mean_x + 0.5) / width,
        (mean_y + 0.5) / height,
        2 * spread_x / width,
        2 * spread_y / height,
        0.5 + product / (spread_x * spread_y) / 2,
    ]


@pytest.mark.parametrize("scaling", [BYTES, ValueRange(10.0, 200.0)])
def test_statistics_follow_their_formulas(scaling: ValueRange) -> None:
    """Each of the nine numbers, of random, blank and uneven images of any range."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 6, 9), np.uint8) * (rng.random((200, 6, 9)) < 0.4)
    images[5] = 0
    images = images.astype(np.uint8)
    scaled = np.clip((images - scaling.low) / (scaling.high - scaling.low), 0, 1)
    values = image_statistics(images, (6, 9), scaling, np.arange(200))
    np.testing.assert_allclose(values, [by_hand(image) for image in scaled], atol=1e-7)


def test_large_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large image takes little memory beyond itself, and gives the values of a single pass."""
    image = np.random.default_rng(0).integers(0, 256, (1, 900, 1000, 3), np.uint8)
    tracemalloc.start()
    values = image_statistics(image, (900, 1000, 3), BYTES, np.arange(1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 2 * image.nbytes > peak
    monkeypatch.setattr("pipeline.statistics.BLOCK", image.size)
    np.testing.assert_array_equal(
        image_statistics(image, (900, 1000, 3), BYTES, np.arange(1)), values
    )


def test_shapes() -> None:
    """Colours share their pixel's place; images of one dimension have a height of 1."""
    rng = np.random.default_rng(1)
    grey = rng.integers(0, 256, (20, 7, 5, 1), np.uint8)
    colour = np.repeat(grey, 3, axis=3)
    numbers = np.arange(20)
    np.testing.assert_allclose(
        image_statistics(colour, (7, 5, 3), BYTES, numbers),
        image_statistics(grey, (7, 5), BYTES, numbers),
    )
    flat = image_statistics(grey.reshape(20, 35), (35,), BYTES, numbers)
    assert (flat[:, STATISTICS.index("height")] == 0).all()


def recorded(dataset: Dataset) -> dict[str, Any]:
    statistics = ImageStatistics.recorded(dataset)
    assert statistics is not None
    return statistics.to_json()


def test_ingest_records_the_training_split(tmp_path: Path) -> None:
    """The counts depend on neither chunks nor threads, and on no other split."""
    first = ingest("synthetic:300,40", tmp_path / "first", rows_per_chunk=300, threads=1).dataset
    other = ingest("synthetic:300,10", tmp_path / "other", rows_per_chunk=7, threads=2).dataset
    assert recorded(first) == recorded(other)
    inputs = first.split("train").read_chunk(0).inputs[:, 1:]
    assert ImageStatistics.of(inputs, (28, 28), BYTES).to_json() == recorded(first)
    assert recorded(first)["rows"] == 300


def test_large_splits_are_sampled() -> None:
    """The rows follow from their numbers, evenly and without a period."""
    rows = 12 * SAMPLED_ROWS
    whole = is_sampled(0, rows, rows)
    assert abs(np.count_nonzero(whole) - SAMPLED_ROWS) <= 2
    assert (np.concatenate([is_sampled(0, 999, rows), is_sampled(999, rows, rows)]) == whole).all()
    for period in (2, 3, 10, 12):
        numbers = np.bincount(np.flatnonzero(whole) % period)
        assert abs(numbers - SAMPLED_ROWS / period).max() < 0.05 * SAMPLED_ROWS / period
    images = np.arange(8, dtype=np.uint8)[:, None] * np.ones((8, 4), np.uint8)
    half = ImageStatistics.of(images, (2, 2), BYTES, np.arange(8) % 2 == 0)
    assert half.to_json() == ImageStatistics.of(images[::2], (2, 2), BYTES).to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 21},
        {"counts": {}},
        {"counts": dict.fromkeys(STATISTICS, "1 -1 20")},
        {"counts": dict.fromkeys(STATISTICS, " ".join(["20"] * (BINS + 1)))},
    ],
)
def test_damaged_statistics(change: dict[str, Any], tmp_path: Path) -> None:
    """They are refused when they are used; with a wrong seal, when the dataset is opened."""
    ingest("synthetic:20,5", tmp_path / "set")
    path = tmp_path / "set" / "zarr.json"
    document = json.loads(path.read_text())
    attributes = document["attributes"]
    attributes["statistics"] |= change
    path.write_text(json.dumps(document))
    with pytest.raises(BadDataError, match=r"attribute statistics of .* is damaged"):
        open_dataset(LocalLocation(tmp_path / "set"))
    attributes["statistics"] = seal(attributes["statistics"])
    path.write_text(json.dumps(document))
    with pytest.raises(BadDataError, match="attribute statistics of"):
        recorded(open_dataset(LocalLocation(tmp_path / "set")))
    del attributes["statistics"]
    path.write_text(json.dumps(document))
    assert open_dataset(LocalLocation(tmp_path / "set")).statistics is None
