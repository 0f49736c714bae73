"""Fixtures shared by all tests, and markers for whole directories."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.training.portable import check_arithmetic
from storage.errors import RestartError, UsageError
from tests.object_store.proxy import Proxy
from tests.object_store.server import Store, running_store

HERE = Path(__file__).parent
MARKED = {"chaos", "cluster"}
"""Directories whose tests are marked with the directory's name."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their directory and fixtures, before `-m` selects; start the longest first."""
    items.sort(key=lambda item: item.path.name != "test_whole_way.py")
    for item in items:
        for name in MARKED & {item.path.relative_to(HERE).parts[0]}:
            item.add_marker(name)
        if "server" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")  # its server takes seconds to start


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The directory of the four MNIST files, from MNIST_DIR."""
    named = os.environ.get("MNIST_DIR")
    if not named:
        pytest.skip("MNIST_DIR is not set: it names the directory with the four MNIST files")
    directory = Path(named)
    if not list(directory.glob("train-images*")):
        pytest.skip(f"MNIST_DIR={named} holds no train-images file")
    return directory


@pytest.fixture(scope="session")
def portable_machine() -> None:
    """Skip a machine that cannot compute portably, such as one with an ARM processor."""
    try:
        check_arithmetic("portable")
    except RestartError:
        return
    except UsageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def server() -> Iterator[Store]:
    """A server with the S3 API."""
    with running_store() as running:
        yield running


@pytest.fixture
def store(server: Store) -> Store:
    """A bucket of the server for one test: a listing takes time for every object of a bucket."""
    return server.new_bucket()


@pytest.fixture
def proxy(store: Store) -> Iterator[Proxy]:
    """The same server behind a proxy that can cause failures."""
    with Proxy(store) as made:
        yield made
