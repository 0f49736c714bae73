"""Fixtures that every floor's tests share, and the markers of whole directories."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.object_store.proxy import Proxy
from tests.object_store.server import Store, running_store

HERE = Path(__file__).parent
MARKED = {"chaos", "cluster"}
"""Directories whose tests have their name as a marker."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by its directory, before `-m` selects; the longest come first."""
    items.sort(key=lambda item: item.path.name != "test_whole_way.py")
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


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    """A real S3 API, with an empty bucket at first."""
    with running_store() as running:
        yield running


@pytest.fixture
def proxy(store: Store) -> Iterator[Proxy]:
    """The same behind a proxy that can make trouble."""
    with Proxy(store) as made:
        yield made
