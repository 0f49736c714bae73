"""Fixtures that every floor's tests share, and the markers of whole directories."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MARKED = {"chaos", "cluster"}
"""Directories whose tests have their name as a marker."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by its directory, before `-m` selects."""
    for item in items:
        for name in MARKED & {item.path.relative_to(HERE).parts[0]}:
            item.add_marker(name)


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
