"""The disk of the crash experiments loses what a machine's may lose, and nothing else."""

import random
from collections.abc import Callable
from pathlib import Path

from storage import files
from tests.chaos.crashes import Disk, dying


def found_after(directory: Path, write: Callable[[Path], None]) -> set[bytes | None]:
    """What the file `new` may hold, None where it is gone, after `write` and a loss of power."""
    found: set[bytes | None] = set()
    for seed in range(40):
        place = directory / str(seed)
        place.mkdir()
        disk = Disk(directory / f"{seed}.kept", survivors=100)
        with dying(disk):
            write(place / "new")
        disk.settle(random.Random(seed))
        found.add((place / "new").read_bytes() if (place / "new").exists() else None)
    return found


def write_synced(path: Path) -> None:
    """As `storage.places` does."""
    descriptor = files.create(path.with_name("temporary"))
    files.write(descriptor, b"ab")
    files.fsync(descriptor)
    files.close(descriptor)
    files.rename(path.with_name("temporary"), path)
    files.fsync_directory(path.parent)


def write_unsynced(path: Path) -> None:
    """The same without the syncing of the data."""
    descriptor = files.create(path)
    files.write(descriptor, b"ab")
    files.close(descriptor)
    files.fsync_directory(path.parent)


def write_unnamed(path: Path) -> None:
    """The same without the syncing of the name, where there was an older file."""
    path.write_bytes(b"old")
    descriptor = files.create(path.with_name("temporary"))
    files.write(descriptor, b"ab")
    files.fsync(descriptor)
    files.close(descriptor)
    files.rename(path.with_name("temporary"), path)


def test_what_is_synced_is_kept(tmp_path: Path) -> None:
    """The disk of these experiments never loses what it was told to keep."""
    assert {b"ab"} == found_after(tmp_path, write_synced)


def test_what_is_not_synced_may_be_lost(tmp_path: Path) -> None:
    """It loses, cuts or keeps data that no fsync followed."""
    assert {b"", b"a", b"ab"} == found_after(tmp_path, write_unsynced)


def test_a_name_that_is_not_synced_may_be_lost(tmp_path: Path) -> None:
    """It gives a name back to the older file where no fsync of the directory followed."""
    assert {b"old", b"ab"} == found_after(tmp_path, write_unnamed)
