"""Fixtures of a running store, for the tests of each floor that want one."""

from collections.abc import Iterator

import pytest

from tests.object_store.proxy import Proxy
from tests.object_store.server import Store, running_store


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
