"""Fixtures of the pipeline's tests."""

import pytest

from tests.pipeline.datasets import Known, write_known
from tests.pipeline.streams import CHUNK_ROWS, ROWS


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """61 rows, a prime number, in 8 chunks of 7 rows and one of 5."""
    return write_known(tmp_path_factory.mktemp("known") / "set", ROWS, CHUNK_ROWS)
