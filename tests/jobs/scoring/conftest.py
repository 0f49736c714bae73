"""Fixtures of the scoring tests: a run, an inbox, and the events of the jobs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.commands.logs import attached
from jobs.training.job import train
from tests.jobs.inboxes import Events
from tests.jobs.trainings import small


@pytest.fixture(scope="session")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs, each with a better model than the one before."""
    place = tmp_path_factory.mktemp("trained") / "run"
    train(small(epochs=3, learning_rate=0.003), dataset=digits, run=place)
    return place


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained`, without scores."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """An empty inbox."""
    place = tmp_path / "inbox"
    place.mkdir()
    return place


@pytest.fixture
def events() -> Iterator[Events]:
    """All events that the jobs log, at any level."""
    handler = Events()
    with attached(handler):
        yield handler
