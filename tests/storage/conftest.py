"""Fixtures of the tests of `storage`: artefacts are made once, and copied for each test."""

import shutil
from pathlib import Path

import pytest

from storage.location import Location
from storage.places import open_location
from tests.object_store.server import Store
from tests.storage.artefacts import make_dataset, make_run, make_scores, scores_schema


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Return an unused location, on a disk and in a store in turn."""
    if request.param == "local":
        return open_location(tmp_path / "anywhere")
    running: Store = request.getfixturevalue("store")
    return running.new_place()


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Location:
    """Return the location of a sound dataset and a sound run, which tests only copy."""
    place = open_location(tmp_path_factory.mktemp("originals"))
    make_dataset(place.child("set"))
    run = make_run(place.child("run")).location
    make_scores(run)
    make_scores(run, scores_schema(split="train", rows=3))
    return place


@pytest.fixture
def dataset_place(originals: Location, tmp_path: Path) -> Location:
    """Return a test's own copy of a published dataset."""
    return open_location(shutil.copytree(originals.path / "set", tmp_path / "set"))


@pytest.fixture
def run_place(originals: Location, tmp_path: Path) -> Location:
    """Return a test's own copy of a run with three epochs and scores of two splits."""
    return open_location(shutil.copytree(originals.path / "run", tmp_path / "run"))
