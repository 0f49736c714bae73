"""Fixtures for tests with clusters."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.training.job import train
from pipeline.cluster.client import Cluster
from pipeline.cluster.connect import connect
from pipeline.cluster.options import ClusterOptions
from pipeline.ingest import ingest
from tests.cluster import processes
from tests.cluster.trainings import ROUNDS, STEPS, Reference, outcome


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,100 and 430 generated digits in chunks of 200, which does not divide their numbers."""
    dataset = tmp_path_factory.mktemp("digits") / "dataset"
    ingest("synthetic:2100,430", dataset, rows_per_chunk=200)
    return dataset


@pytest.fixture(scope="session")
def reference(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Results of the trainings without a cluster."""
    home = tmp_path_factory.mktemp("reference")
    return Reference(
        steps=outcome(train(STEPS, dataset=digits, run=home / "steps")),
        rounds=outcome(train(ROUNDS, dataset=digits, run=home / "rounds")),
        home=home,
    )


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[processes.Cluster]:
    """A scheduler and two workers that no test harms."""
    with processes.Cluster(tmp_path_factory.mktemp("standing"), workers=2) as cluster:
        yield cluster


@pytest.fixture
def cluster(standing: processes.Cluster) -> Iterator[Cluster]:
    """A client of the cluster `standing`."""
    opened = connect(ClusterOptions(scheduler=standing.address, timeout=60))
    assert opened is not None
    with opened:
        yield opened
