"""Fixtures that the tests of jobs share."""

from pathlib import Path

import pytest

from pipeline.ingest import ingest


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset: 1,031 and 211 drawn digits in chunks of 230, so that the last is short."""
    dataset = tmp_path_factory.mktemp("digits") / "dataset"
    ingest("synthetic:1031,211", dataset, rows_per_chunk=230)
    return dataset
