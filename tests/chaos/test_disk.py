"""The disk of the crash experiments loses exactly the data that a real disk may lose."""

import random
from collections.abc import Callable
from pathlib import Path

from storage import files
from tests.chaos.crashes import Disk, dying


def possible_contents(directory: Path, write: Callable[[Path], None]) -> set[bytes | None]:
    """Return the possible contents of `new` after `write` and a crash; None if it is missing."""
    contents: set[bytes | None] = set()
    for seed in range(40):
        place = directory / str(seed)
        place.mkdir()
        disk = Disk(directory / f"{seed}.kept", survivors=100)
        with dying(disk):
            write(place / "new")
        disk.lose(random.Random(seed))
        contents.add((place / "new").read_bytes() if (place / "new").exists() else None)
    return contents


def write_synced(path: Path) -> None:
    """Write as `storage.local` does."""
    descriptor = files.create(path.with_name("temporary"))
    files.write(descriptor, b"ab")
    files.fsync(descriptor)
    files.close(descriptor)
    files.rename(path.with_name("temporary"), path)
    files.fsync_directory(path.parent)


def write_unsynced(path: Path) -> None:
    """Write without syncing the data."""
    descriptor = files.create(path)
    files.write(descriptor, b"ab")
    files.close(descriptor)
    files.fsync_directory(path.parent)


def write_unnamed(path: Path) -> None:
    """Replace an older file without syncing the name."""
    path.write_bytes(b"old")
    descriptor = files.create(path.with_name("temporary"))
    files.write(descriptor, b"ab")
    files.fsync(descriptor)
    files.close(descriptor)
    files.rename(path.with_name("temporary"), path)


def test_synced_data_is_kept(tmp_path: Path) -> None:
    """Synced data and names are never lost."""
    assert {b"ab"} == possible_contents(tmp_path, write_synced)


def test_unsynced_data_may_be_lost(tmp_path: Path) -> None:
    """Data without a later fsync may be complete, truncated or lost."""
    assert {b"", b"a", b"ab"} == possible_contents(tmp_path, write_unsynced)


def test_unsynced_names_may_be_lost(tmp_path: Path) -> None:
    """Without a later fsync of the directory, a name may still be the older file's."""
    assert {b"old", b"ab"} == possible_contents(tmp_path, write_unnamed)
