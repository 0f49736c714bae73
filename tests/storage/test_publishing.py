"""Publishing a dataset: nothing half-made is seen, and only what is ours is ever replaced."""

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
    """A dataset that has been published at `place`."""
    return make_dataset(place)


@pytest.fixture
def local_dataset(dataset_place: Location) -> Dataset:
    """One that has been published as `set` in the test's own directory."""
    return open_dataset(dataset_place)


def lies_beside(place: Location) -> list[str]:
    """What lies in the directory, where a lock in a store stays, and none on a disk."""
    names = place.split()[0].names()
    if isinstance(place, LocalLocation):
        return names
    assert f".{place.name}.lock" in names
    return [name for name in names if name != f".{place.name}.lock"]


def test_a_dataset_is_not_there_before_it_is_published(place: Location) -> None:
    """While it is written, and after a failure, nothing is at its place or left beside it."""
    with pytest.raises(ZeroDivisionError), create_dataset(place, dataset_schema()) as writer:
        write_part(writer.split("train"), 0)
        assert place.is_free()
        raise ZeroDivisionError
    assert [] == lies_beside(place)
    with pytest.raises(BadDataError, match="There is no dataset at"):
        open_dataset(place)


def test_an_incomplete_dataset_is_told(place: Location) -> None:
    """A `zarr.json` without `complete`, as it is until the last step, is not opened."""
    with create_dataset(place, dataset_schema()) as writer:
        staged = writer.split("train").location
        with pytest.raises(BadDataError, match="is incomplete: its ingest has not finished"):
            open_dataset(staged)


@pytest.mark.parametrize("records", [[], [0, 1], [0, 1, 1], [0, 1, 3], [0, 1, 2, 2]])
def test_every_chunk_must_be_recorded_once(place: Location, records: list[int]) -> None:
    """A chunk without a record, or with two, is not published."""
    with create_dataset(place, dataset_schema()) as writer:
        made = {"train": [ChunkRecord(number, bytes(32), (1, 1, 1)) for number in records]}
        with pytest.raises(BadDataError, match="chunk records for the 3 chunks of split train"):
            writer.publish(made | {"test": []}, [], {})
    assert not place.exists()


def test_every_chunk_must_be_there(place: Location) -> None:
    """A chunk that another machine wrote to a disk of its own is not published."""
    schema = dataset_schema()
    with create_dataset(place, schema) as writer:
        records = write_parts(writer)
        writer.split("train").location.child("train/inputs").delete("c.1.0")
        with pytest.raises(UnreachableError, match=r"1 of 3 chunks .* the first is c\.1\.0"):
            writer.publish(records, [], {})
    assert not place.exists()


def test_an_existing_dataset_is_kept(place: Location, dataset: Dataset) -> None:
    """Without `overwrite` it is a conflict, and the dataset stays what it was."""
    with pytest.raises(ConflictError, match="Pass --overwrite"):
        make_dataset(place, dataset_schema(rows=7))
    assert dataset.digest == open_dataset(place).digest


def test_an_existing_dataset_is_replaced_when_asked(place: Location, dataset: Dataset) -> None:
    """With `overwrite` the new one is there, and nothing of the old one beside it."""
    schema = dataset_schema(rows=7)
    make_dataset(place, schema, overwrite=True)
    assert_holds_its_rows(open_dataset(place), schema)
    assert ["set"] == lies_beside(place)
    with pytest.raises(ConflictError, match="was replaced by another dataset while it was"):
        stored_rows(dataset.split("train"))  # a reader of the old one never sees a mixture


def test_an_overwriting_that_fails_leaves_the_old_dataset(
    place: Location, dataset: Dataset
) -> None:
    """Until the new one is published, readers find the old one whole."""
    with (
        pytest.raises(ZeroDivisionError),
        create_dataset(place, dataset_schema(rows=7), overwrite=True),
    ):
        raise ZeroDivisionError
    assert_holds_its_rows(open_dataset(place), dataset_schema())
    assert dataset.digest == open_dataset(place).digest


@pytest.mark.parametrize("strange", ["a file", "a directory", "another group"])
def test_what_is_not_ours_is_never_replaced(place: Location, strange: str) -> None:
    """Files, directories and Zarr groups of others are left alone, `overwrite` or not."""
    parent, name = place.split()
    if strange == "a file":
        parent.put(name, b"precious")
    elif strange == "a directory":
        place.put("notes.txt", b"precious")
    else:
        place.put("zarr.json", json.dumps(group_metadata({"precious": True})).encode())
    before = contents(parent)
    with pytest.raises(ConflictError, match="is not a dataset of this project; it is left alone"):
        make_dataset(place, overwrite=True)
    assert before == {key: value for key, value in contents(parent).items() if ".lock" not in key}


def test_a_dataset_is_replaced_behind_a_link(tmp_path: Path, local_dataset: Dataset) -> None:
    """A link to a dataset stays a link to the new one, and the old one's files are gone."""
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
    """A reader is told; the next writer puts the old dataset back, whatever is at its place."""
    if left == "a link":
        (tmp_path / "link").symlink_to(tmp_path / "set")
    target = open_location(tmp_path / ("link" if left == "a link" else "set"))
    local_dataset.location.take_place_of(replaced_sibling(target))
    if left == "an empty directory":
        target.path.mkdir()
    with pytest.raises(BadDataError, match="was being replaced when the ingest ended"):
        open_dataset(target)
    with dataset_lock(target):
        pass
    assert local_dataset.digest == open_dataset(target).digest
    assert not replaced_sibling(target).exists()


def test_a_replacement_that_died_after_the_renames(local_dataset: Dataset) -> None:
    """The new dataset is in its place: the next writer removes what is left of the old one."""
    place = local_dataset.location
    replaced_sibling(place).put("zarr.json", b"half removed")
    with dataset_lock(place):
        pass
    assert local_dataset.digest == open_dataset(place).digest
    assert not replaced_sibling(place).exists()


def test_an_orphan_writes_into_nothing_that_is_published(place: Location) -> None:
    """A worker that outlives its job writes a chunk of another dataset into the next ingest."""
    with dataset_lock(place) as locked:
        dead = DatasetWriter(locked, locked.staging(), dataset_schema())  # and then its job died
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
    assert ["set"] == lies_beside(place)


def test_what_dead_ingests_staged_is_removed(place: Location, dataset: Dataset) -> None:
    """Of this place alone: neighbours may have names that begin alike."""
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
    assert neighbours_lock in lies_beside(place)
    assert dataset.digest == open_dataset(place).digest


def test_two_writers_of_one_dataset(place: Location) -> None:
    """The second is refused while the first one writes, and the first one is not disturbed."""
    with create_dataset(place, dataset_schema()) as writer:
        with pytest.raises(ConflictError, match="is being written by process"):
            make_dataset(place)
        assert write_part(writer.split("train"), 0)


def test_what_cannot_be_removed_stops_no_later_ingest(
    local_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another user's files refuse to go, the new dataset is published all the same."""
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
    assert ["set"] == lies_beside(local_dataset.location)
