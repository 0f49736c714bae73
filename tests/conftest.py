"""Fixtures that every floor's tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The directory with the four real MNIST files, named by MNIST_DIR."""
    named = os.environ.get("MNIST_DIR")
    if not named:
        pytest.skip("MNIST_DIR is not set: it names the directory with the four MNIST files")
    directory = Path(named)
    if not list(directory.glob("train-images*")):
        pytest.skip(f"MNIST_DIR={named} holds no train-images file")
    return directory
