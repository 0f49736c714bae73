"""The layout in a store: versions below a place, and trees of earlier releases."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.errors import ZarrUserWarning

from storage.checkpoints import (
    Checkpoint,
    list_checkpoints,
    load_newest,
    prune_checkpoints,
    sweep_checkpoints,
)
from storage.dataset import open_dataset
from storage.dataset_writer import dataset_lock
from storage.errors import BadDataError, ConflictError
from storage.location import Location
from storage.places import open_location
from storage.runs import SCORES, open_run, run_lock
from storage.scores import open_scores
from storage.verify import verify_location
from tests.object_store.server import Store
from tests.storage.artefacts import (
    assert_holds_its_rows,
    contents,
    dataset_schema,
    make_dataset,
    make_run,
    make_scores,
    save_epoch,
    stored_rows,
)


def copy(source: Location, target: Location) -> None:
    """Copy every object, as `aws s3 sync` does."""
    for key, data in contents(source).items():
        target.put(key, data)


@pytest.fixture
def place(store: Store) -> Location:
    return store.new_place()


def errors_in(location: Location) -> list[object]:
    return [error for _, error in verify_location(location) if error]


def test_a_dataset_of_a_former_release(place: Location, dataset_place: Location) -> None:
    """An early release's dataset is read, kept by the next ingest's recovery, and replaced."""
    target = place.child("set")
    copy(dataset_place, target)
    old = open_dataset(target)
    assert_holds_its_rows(old, dataset_schema())
    assert [] == errors_in(target)
    with dataset_lock(target):
        pass
    assert old.digest == open_dataset(target).digest
    made = make_dataset(target, dataset_schema(rows=3), overwrite=True)
    assert_holds_its_rows(open_dataset(target), dataset_schema(rows=3))
    assert sorted([made.tree.name, "zarr.json"]) == target.names()


def test_a_dataset_that_a_former_release_half_replaced(
    place: Location, dataset_place: Location
) -> None:
    """The message names the paths to remove; afterwards ingest succeeds."""
    target, marker = place.child("set"), place.child(".set.replaced")
    copy(dataset_place, target)
    target.delete("zarr.json")
    place.put(".set.replaced", b"set/.set.ingest-0123456789ab")
    with pytest.raises(BadDataError, match="being replaced"):
        open_dataset(target)
    for overwrite in (False, True):
        with pytest.raises(ConflictError, match=rf"Remove it, {marker} and .*/\.set\.ingest-,"):
            make_dataset(target, overwrite=overwrite)
    target.delete_tree()
    marker.delete_tree()
    assert_holds_its_rows(make_dataset(target), dataset_schema())


def test_a_run_of_a_former_release(place: Location, run_place: Location) -> None:
    """An early release's run is read, continued and pruned; its scores are not rewritten."""
    run = place.child("run")
    copy(run_place, run)
    assert [] == errors_in(run)
    with run_lock(run) as locked:
        sweep_checkpoints(open_run(locked))
        assert 3 == len(list_checkpoints(open_run(locked)))
        (newest,) = load_newest(open_run(locked), None)
        assert isinstance(newest, Checkpoint)
        save_epoch(open_run(locked), 3)
        name = save_epoch(open_run(locked), 4)
        prune_checkpoints(open_run(locked), name, 2, set())
    assert ["000003-000000", "000004-000000"] == list(map(str, list_checkpoints(open_run(run))))
    for home in run.names(SCORES):
        open_scores(run.child(f"{SCORES}/{home}"))


def test_trees_copied_to_a_disk(place: Location, tmp_path: Path) -> None:
    """Copied datasets and runs are read, and removed checkpoints are not listed."""
    make_dataset(place.child("set"))
    run = make_run(place.child("run"))
    scores = make_scores(run.location)
    prune_checkpoints(run, list_checkpoints(run)[-1], 2, set())
    disk = open_location(tmp_path)
    copy(place, disk)
    assert_holds_its_rows(open_dataset(disk.child("set")), dataset_schema())
    assert scores.digest == open_scores(disk.child(f"run/{SCORES}/{scores.schema.home}")).digest
    copied = open_run(disk.child("run"))
    assert list_checkpoints(run) == list_checkpoints(copied)
    assert [] == errors_in(disk.child("set")) + errors_in(disk.child("run"))
    make_dataset(disk.child("set"), dataset_schema(rows=3), overwrite=True)
    assert_holds_its_rows(open_dataset(disk.child("set")), dataset_schema(rows=3))


def test_zarr_opens_a_version(place: Location, tmp_path: Path) -> None:
    """The root object is a Zarr group that names the version, which is a group with the arrays."""
    made = make_dataset(place.child("set"))
    copy(place, open_location(tmp_path))
    root = zarr.open_group(tmp_path / "set", mode="r")
    version = root.attrs["version"]
    assert made.tree.name == version
    rows = np.asarray(root[f"{version}/train/inputs"])
    assert np.array_equal(stored_rows(made.split("train")).inputs, rows)
    zarr.open_group(tmp_path / "set", mode="r+").attrs["note"] = "mine"
    with pytest.warns(ZarrUserWarning, match="Consolidated metadata"):
        zarr.consolidate_metadata(tmp_path / "set")
    assert made.digest == open_dataset(open_location(tmp_path / "set")).digest
