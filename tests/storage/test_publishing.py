"""Publishing a dataset is atomic, and replaces nothing but datasets."""

import errno
import json
from pathlib import Path

import pytest

from storage import files
from storage.dataset import Block, Dataset, open_dataset, replaced_sibling
from storage.dataset_writer import (
    ChunkRecord,
    DatasetWriter,
    dataset_lock,
)
from storage.errors import BadDataError, ConflictError, UnreachableError
from storage.local import LocalLocation
from storage.location import Location
from storage.places import open_location
from storage.trees import group_metadata
from tests.storage.artefacts import (
    FINGERPRINT,
    SOURCES,
    assert_holds_its_rows,
    contents,
    create_dataset,
    dataset_schema,
    make_dataset,
    part_of,
    stored_rows,
    write_part,
    write_parts,
)


@pytest.fixture
def place(anywhere: Location) -> Location:
    return anywhere.child("set")


@pytest.fixture
def dataset(place: Location) -> Dataset:
    """Publish a dataset at `place`."""
    return make_dataset(place)


@pytest.fixture
def local_dataset(dataset_place: Location) -> Dataset:
    """Publish a dataset as `set` in the test's directory."""
    return open_dataset(dataset_place)


def names_beside(place: Location) -> list[str]:
    """Return the names in the directory; a lock stays there only in a store."""
    names = place.split()[0].names()
    if isinstance(place, LocalLocation):
        return names
    assert f".{place.name}.lock" in names
    return [name for name in names if name != f".{place.name}.lock"]


def test_a_dataset_is_invisible_before_publishing(place: Location) -> None:
    """While a dataset is written, and after a failure, nothing is visible at its place."""
    with pytest.raises(ZeroDivisionError), create_dataset(place, dataset_schema()) as writer:
        write_part(writer.split("train"), 0)
        assert place.is_free()
        raise ZeroDivisionError
    assert [] == names_beside(place)
    with pytest.raises(BadDataError, match="There is no dataset at"):
        open_dataset(place)


def test_an_incomplete_dataset_is_reported(place: Location) -> None:
    """A root without `complete` is not opened."""
    with create_dataset(place, dataset_schema()) as writer:
        staged = writer.split("train").location
        with pytest.raises(BadDataError, match="is incomplete: its ingest has not finished"):
            open_dataset(staged)


@pytest.mark.parametrize("records", [[], [0, 1], [0, 1, 1], [0, 1, 3], [0, 1, 2, 2]])
def test_every_chunk_must_be_recorded_once(place: Location, records: list[int]) -> None:
    """A dataset is not published if a chunk has no record, or two."""
    with create_dataset(place, dataset_schema()) as writer:
        made = {"train": [ChunkRecord(number, bytes(32), (1, 1, 1)) for number in records]}
        with pytest.raises(BadDataError, match="chunk records for the 3 chunks of split train"):
            writer.publish(made | {"test": []}, [], {})
    assert not place.exists()


def test_every_chunk_must_be_present(place: Location) -> None:
    """A dataset is not published if a worker wrote a chunk to another disk."""
    schema = dataset_schema()
    with create_dataset(place, schema) as writer:
        records = write_parts(writer)
        writer.split("train").location.child("train/inputs").delete("c.1.0")
        with pytest.raises(UnreachableError, match=r"1 of 3 chunks .* the first is c\.1\.0"):
            writer.publish(records, [], {})
    assert not place.exists()


def test_an_existing_dataset_is_kept(place: Location, dataset: Dataset) -> None:
    """Without `overwrite`, an existing dataset is a conflict, and stays."""
    with pytest.raises(ConflictError, match="Pass --overwrite"):
        make_dataset(place, dataset_schema(rows=7))
    assert dataset.digest == open_dataset(place).digest


def test_an_existing_dataset_is_replaced_when_asked(place: Location, dataset: Dataset) -> None:
    """With `overwrite`, the new dataset replaces the old one, whose files are all removed."""
    schema = dataset_schema(rows=7)
    make_dataset(place, schema, overwrite=True)
    assert_holds_its_rows(open_dataset(place), schema)
    assert ["set"] == names_beside(place)
    with pytest.raises(ConflictError, match="was replaced by another dataset while it was"):
        stored_rows(dataset.split("train"))  # a reader of the old one never sees a mixture


def test_a_failed_overwrite_keeps_the_old_dataset(place: Location, dataset: Dataset) -> None:
    """Until the new dataset is published, readers find the old one."""
    with (
        pytest.raises(ZeroDivisionError),
        create_dataset(place, dataset_schema(rows=7), overwrite=True),
    ):
        raise ZeroDivisionError
    assert_holds_its_rows(open_dataset(place), dataset_schema())
    assert dataset.digest == open_dataset(place).digest


@pytest.mark.parametrize("other", ["a file", "a directory", "another group"])
def test_other_files_are_never_replaced(place: Location, other: str) -> None:
    """Other files, directories and Zarr groups are left alone, even with `overwrite`."""
    parent, name = place.split()
    if other == "a file":
        parent.put(name, b"precious")
    elif other == "a directory":
        place.put("notes.txt", b"precious")
    else:
        place.put("zarr.json", json.dumps(group_metadata({"precious": True})).encode())
    before = contents(parent)
    with pytest.raises(ConflictError, match="is not a dataset; it is left alone"):
        make_dataset(place, overwrite=True)
    assert before == {key: value for key, value in contents(parent).items() if ".lock" not in key}


def test_a_dataset_is_replaced_behind_a_link(tmp_path: Path, local_dataset: Dataset) -> None:
    """After a replacement, a link to a dataset leads to the new one; the old files are removed."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "set")
    make_dataset(open_location(link), dataset_schema(rows=7), overwrite=True)
    assert link.is_symlink()
    assert 7 == open_dataset(local_dataset.location).split("train").schema.rows
    assert ["link", "set"] == open_location(tmp_path).names()


@pytest.mark.parametrize("left", ["nothing", "a link", "an empty directory"])
def test_a_replacement_that_died_between_the_renames(
    tmp_path: Path, local_dataset: Dataset, left: str
) -> None:
    """Readers refuse a half-done replacement; the next writer restores the old dataset."""
    if left == "a link":
        (tmp_path / "link").symlink_to(tmp_path / "set")
    target = open_location(tmp_path / ("link" if left == "a link" else "set"))
    local_dataset.location.take_place_of(replaced_sibling(target))
    if left == "an empty directory":
        target.path.mkdir()
    with pytest.raises(BadDataError, match="is being replaced, or its ingest was interrupted"):
        open_dataset(target)
    with dataset_lock(target):
        pass
    assert local_dataset.digest == open_dataset(target).digest
    assert not replaced_sibling(target).exists()


def test_a_replacement_that_died_after_the_renames(local_dataset: Dataset) -> None:
    """The next writer removes the remains of a replaced dataset."""
    place = local_dataset.location
    replaced_sibling(place).put("zarr.json", b"half removed")
    with dataset_lock(place):
        pass
    assert local_dataset.digest == open_dataset(place).digest
    assert not replaced_sibling(place).exists()


def test_an_orphan_writes_into_nothing_that_is_published(place: Location) -> None:
    """A worker that outlives its job does not write into the next ingest's dataset."""
    with dataset_lock(place) as locked:
        dead = DatasetWriter(locked, locked.staging(), dataset_schema())  # left by a job that died
    orphan = dead.split("train")
    schema = dataset_schema(rows=7)
    with create_dataset(place, schema) as writer:
        records = write_parts(writer)
        stale = part_of(orphan, 0)
        orphan.write_part(0, [Block(255 - chunk.inputs, chunk.targets) for chunk in stale])
        writer.publish(records, SOURCES, FINGERPRINT)
    assert_holds_its_rows(open_dataset(place), schema)
    with dataset_lock(place):
        pass
    assert ["set"] == names_beside(place)


def test_staged_datasets_of_dead_ingests_are_removed(place: Location, dataset: Dataset) -> None:
    """The sweep leaves neighbours with similar names."""
    parent, _ = place.split()
    neighbour = parent.child("set.ingest-0123456789ab")
    kept = (parent.child("other").staging(), neighbour.staging())
    dead = (place.staging(), place.staging())
    for staged in (*dead, *kept):
        staged.put("zarr.json", b"half made")
    neighbours_lock = neighbour.sibling(".lock").name
    parent.put(neighbours_lock, b"held")
    with dataset_lock(place):
        pass
    assert [False, False] == [staged.exists() for staged in dead]
    assert [True, True] == [staged.exists() for staged in kept]
    assert neighbours_lock in names_beside(place)
    assert dataset.digest == open_dataset(place).digest


def test_two_writers_of_one_dataset(place: Location) -> None:
    """A second writer is refused, and does not disturb the first."""
    with create_dataset(place, dataset_schema()) as writer:
        with pytest.raises(ConflictError, match="is being written by process"):
            make_dataset(place)
        assert write_part(writer.split("train"), 0)


def test_files_that_cannot_be_removed(
    local_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new dataset is published although the old one's files cannot be removed."""
    unlink = files.unlink

    def refuse(path: Path) -> None:
        if path.name == "c.0.0":
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(path)

    monkeypatch.setattr(files, "unlink", refuse)
    for rows in (7, 3):
        make_dataset(local_dataset.location, dataset_schema(rows=rows), overwrite=True)
        assert rows == open_dataset(local_dataset.location).split("train").schema.rows
    monkeypatch.undo()
    with dataset_lock(local_dataset.location):
        pass
    assert ["set"] == names_beside(local_dataset.location)
