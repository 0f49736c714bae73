"""Fixtures of the storage floor's tests: artefacts are made once, and copied for each test."""

import shutil
from pathlib import Path

import pytest

from storage.location import Location
from storage.places import open_location
from tests.object_store.server import Store
from tests.storage.artefacts import make_dataset, make_run, make_scores, scores_schema


@pytest.fixture(params=["local", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An unused place of each kind, in turn: what holds of one holds of the other."""
    if request.param == "local":
        return open_location(tmp_path / "anywhere")
    running: Store = request.getfixturevalue("store")
    return running.new_place()


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Location:
    """A sound dataset and a sound run, which no test touches."""
    place = open_location(tmp_path_factory.mktemp("originals"))
    make_dataset(place.child("set"))
    run = make_run(place.child("run")).location
    make_scores(run)
    make_scores(run, scores_schema(split="train", rows=3))
    return place


@pytest.fixture
def dataset_place(originals: Location, tmp_path: Path) -> Location:
    """A published dataset of a test's own."""
    return open_location(shutil.copytree(originals.path / "set", tmp_path / "set"))


@pytest.fixture
def run_place(originals: Location, tmp_path: Path) -> Location:
    """A run of a test's own: three epochs and two scorings."""
    return open_location(shutil.copytree(originals.path / "run", tmp_path / "run"))
