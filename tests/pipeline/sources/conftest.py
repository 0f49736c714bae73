"""Fixtures of the tests of sources."""

from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from storage.idx import IdxReader


@pytest.fixture(scope="session")
def mnist(mnist_dir: Path) -> dict[str, NDArray[Any]]:
    """MNIST's arrays, by the names that Keras gives them."""
    arrays = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for name, content in (("x", "images-idx3"), ("y", "labels-idx1")):
            (path,) = mnist_dir.glob(f"{prefix}-{content}-ubyte*")
            with IdxReader(path) as reader:
                arrays[f"{name}_{split}"] = reader.read_rows(reader.rows)
    return arrays
