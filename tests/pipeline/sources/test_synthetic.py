"""Generated digits as a source: their numbers, parts and fingerprint."""

import pickle

import numpy as np
import pytest

from pipeline.sources.digits import DIGITS_VERSION, draw_digits
from storage.errors import UsageError
from storage.events import no_progress
from tests.pipeline.sources.small_sets import read, refusal, splits_of


@pytest.mark.parametrize(
    ("spec", "rows"),
    [
        ("synthetic", {"train": 60_000, "test": 10_000}),
        ("synthetic:6_000_000", {"train": 6_000_000, "test": 1_000_000}),
        ("synthetic:1", {"train": 1, "test": 1}),
        ("synthetic:7,3", {"train": 7, "test": 3}),
        ("synthetic:7,0", {"train": 7}),
    ],
)
def test_counts(spec: str, rows: dict[str, int]) -> None:
    """The counts come from the name; the default test split is a sixth of the training rows."""
    assert rows == {split.name: split.rows for split in splits_of(spec)}


@pytest.mark.parametrize(
    "counts", [":", ":0", ":-1", ":1,", ":1,-1", ":1,2,3", ":1.5", ":a", ":1_", ": 1", ":1e3", ":²"]
)
def test_counts_out_of_range(counts: str) -> None:
    """Counts that are not plain integers, or no training rows, are refused."""
    assert "synthetic:6000,1000" in refusal(f"synthetic{counts}", UsageError)


def test_parts() -> None:
    """A generated part is pickled as numbers only and draws its own rows."""
    test = splits_of("synthetic:9,7", seed=3)[1]
    parts = [pickle.loads(pickle.dumps(part)) for part in test.parts(4)]
    assert [(0, 4), (4, 7)] == [(part.start, part.stop) for part in parts]
    assert all(len(pickle.dumps(part)) < 300 for part in parts)
    expected_images, expected_labels = draw_digits(3, "test", 0, 7)
    actual_images, actual_labels = read(test, 4)
    np.testing.assert_array_equal(expected_images, actual_images)
    np.testing.assert_array_equal(expected_labels, actual_labels)
    assert (actual_images.shape[1:], actual_images.dtype) == (test.image_shape, test.dtype)
    assert list(range(10)) == test.label_values(no_progress)
    assert ["generated"] == [file.content for file in test.files()]
    expected_fingerprint = {"digits_version": DIGITS_VERSION, "seed": 3, "rows": 7}
    assert expected_fingerprint == test.fingerprint(no_progress)
