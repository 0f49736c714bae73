"""Locations: writes are atomic and durable, and no key leads outside."""

import errno
import itertools
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from storage import files
from storage import local as local_module
from storage.errors import BadDataError, UnreachableError, UsageError
from storage.location import Location
from storage.places import open_location

OPERATIONS = (
    *("create", "write", "close", "rename", "mkdir", "unlink"),
    *("fsync", "fsync_path", "fsync_directory"),
)


@pytest.fixture
def place(anywhere: Location) -> Location:
    """Return a location on a disk and in a store, in turn."""
    return anywhere.child("place")


@pytest.fixture
def local(tmp_path: Path) -> Location:
    return open_location(tmp_path / "place")


def record_operations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the file operations that are called."""
    called: list[str] = []

    def recorded(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            called.append(name)
            return operation(*arguments)

        return call

    for name in OPERATIONS:
        monkeypatch.setattr(files, name, recorded(name, getattr(files, name)))
    return called


def fail(monkeypatch: pytest.MonkeyPatch, operation: str, number: int) -> None:
    """Make a file operation fail with an errno."""

    def refuse(*arguments: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, operation, refuse)


def test_put_and_get(place: Location) -> None:
    """`put` creates missing directories and replaces an existing object."""
    place.put("a/b/c", b"a long first content")
    assert b"a long first content" == place.get("a/b/c")
    place.put("a/b/c", memoryview(b"second"))
    assert (b"second", ["c"]) == (place.get("a/b/c"), place.names("a/b"))


def test_ranges(place: Location) -> None:
    """A range returns the bytes of a slice, also empty or beyond the ends."""
    digits = b"0123456789"
    place.put("digits", digits)
    place.put("empty", b"")
    for start, stop in [(start, None) for start in (-12, -3, 0, 3, 10, 12)] + [
        (start, stop) for start in (0, 3, 10, 12) for stop in (0, 3, 5, 10, 12)
    ]:
        assert digits[start:stop] == place.get("digits", start, stop), (start, stop)
        assert b"" == place.get("empty", start, stop)


def test_a_version_changes_with_the_file(local: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file has a version once its last change is so old that a new one shows in its times."""
    local.put("key", b"some bytes")
    assert (b"some", None) == local.get_with_version("key", 0, 4)
    monkeypatch.setattr(local_module, "SETTLED_SECONDS", 0.0)
    data, version = local.get_with_version("key", 0, 4)
    assert (b"some", True) == (data, version is not None)
    assert (b"bytes", version) == local.get_with_version("key", -5)
    time.sleep(0.02)  # the clock of a file system may advance in such steps
    os.utime(local.path / "key")
    assert version != local.get_with_version("key")[1]


@pytest.mark.parametrize("key", ["absent", "directory", "directory/object/below", "a/b"])
def test_a_missing_object_is_file_not_found(place: Location, key: str) -> None:
    """`get` and `size` raise FileNotFoundError if there is no object."""
    place.put("directory/object", b"x")
    with pytest.raises(FileNotFoundError):
        place.get(key)
    with pytest.raises(FileNotFoundError):
        place.size(key)


def test_a_put_is_synced_before_and_after_the_rename(
    local: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content is synced before the rename, and the directory before `put` returns.

    So is each directory that is made on the way.
    """
    local.path.mkdir()
    called = record_operations(monkeypatch)
    local.put("a/key", b"new")
    expected = ["create", "write", "fsync", "close", "rename", "fsync_directory", "fsync"]
    assert ["mkdir", "fsync_directory", "fsync", *expected] == called


def test_many_writes_are_synced_together(local: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `durable` nothing is synced before `sync`, which syncs files, then directories."""
    local.path.mkdir()
    called = record_operations(monkeypatch)
    unsynced = local.unsynced()
    for key in ("a/one", "a/two", "three"):
        unsynced.put(key, b"new")
    put = ["create", "write", "close", "rename"]
    assert ["mkdir", *put, *put, *put] == called
    called.clear()
    local.sync(["a/one", "a/two", "three"])
    assert ["fsync_path", "fsync"] * 3 + ["fsync_directory", "fsync"] * 2 == called


@pytest.mark.parametrize("operation", ["create", "write", "fsync", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_failed_put_leaves_the_old_object(
    local: Location, monkeypatch: pytest.MonkeyPatch, operation: str, number: int
) -> None:
    """A failure raises exit 6 and names the file; the old bytes stay, and no partial file."""
    local.put("key", b"old")
    with monkeypatch.context() as broken:
        fail(broken, operation, number)
        with pytest.raises(UnreachableError) as caught:
            local.put("key", b"new")
    assert f"Cannot write {local}/key: {os.strerror(number)}." in str(caught.value)
    if number == errno.ENOSPC:
        assert "Free some space and run the same command again" in str(caught.value)
    assert b"old" == local.get("key")
    assert ["key"] == local.names()


def test_writing_in_pieces_is_all_or_nothing(place: Location) -> None:
    """Pieces become one object at the end of the block; a block that fails leaves the old one."""
    with place.open_for_writing("key") as write:
        write(b"one ")
        write(b"two")
    with pytest.raises(ZeroDivisionError), place.open_for_writing("key") as write:
        write(b"three")
        raise ZeroDivisionError
    assert b"one two" == place.get("key")
    assert ["key"] == place.names()


def test_an_append_adds_to_the_end(place: Location) -> None:
    """Appends add to the object; the first one creates it."""
    place.append("log/lines", b"one\n")
    place.append("log/lines", b"two\n")
    assert b"one\ntwo\n" == place.get("log/lines")
    assert 8 == place.size("log/lines")


@pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/etc/outside", "a\0b"])
def test_a_key_that_leads_outside_is_refused(place: Location, key: str) -> None:
    """No key leads outside its location, for reading, writing or removing."""
    for act in (place.get, place.exists, place.delete, place.child, place.names, place.size):
        with pytest.raises(BadDataError, match="leads outside"):
            act(key)
    with pytest.raises(BadDataError, match="leads outside"):
        place.put(key, b"x")


def test_names_and_objects_are_sorted(place: Location) -> None:
    """`names` returns one level, `objects` all levels, both sorted."""
    for key in ("b", "a/2", "a/10"):
        place.put(key, b"")
    assert ["a", "b"] == place.names()
    assert ["10", "2"] == place.names("a")
    assert ["a/10", "a/2", "b"] == place.objects()
    assert ([], [], []) == (place.names("c"), place.names("b"), place.child("c").objects())


def test_deleting_twice(place: Location) -> None:
    """`delete` and `delete_tree` do nothing when called again."""
    place.put("a/b", b"x")
    place.delete("a/b")
    place.delete("a/b")
    assert not place.exists("a/b")
    place.delete_tree()
    place.delete_tree()
    assert not place.exists()


def test_removing_a_tree_keeps_the_targets_of_links(local: Location, tmp_path: Path) -> None:
    """`delete_tree` removes a link to a directory, but not the directory."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    local.put("x", b"")
    (local.path / "link").symlink_to(tmp_path / "mine")
    local.delete_tree()
    assert "kept" == (tmp_path / "mine" / "file").read_text()


class Died(BaseException):
    """The process died: not an Exception, so that no handler catches it."""


def die_after(monkeypatch: pytest.MonkeyPatch, operations: int) -> None:
    """Raise `Died` at each file operation after the first ones."""
    done = iter(range(operations))

    def mortal(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if next(done, None) is None:
                raise Died
            return operation(*arguments)

        return call

    for name in (*OPERATIONS, "rmdir"):
        monkeypatch.setattr(files, name, mortal(getattr(files, name)))


def test_a_tree_is_replaced_whatever_dies(local: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a death at any operation and a sweep, only the old or the new object exists."""

    def write(content: bytes) -> None:
        with local.atomic_tree("trees/a.b", "root") as tree:
            tree.put("part", content)
            tree.put("root", content)

    contents = set()
    for operations in itertools.count():
        local.delete_tree()
        write(b"old")
        ended = False
        with monkeypatch.context() as patched, suppress(Died):
            die_after(patched, operations)
            write(b"new")
            ended = True
        local.sweep_trees("trees", "root")
        assert ["a.b"] == local.names("trees") == local.trees("trees", "root")
        tree = local.child("trees/a.b")
        assert tree.get("part") == tree.get("root")
        contents.add(tree.get("root"))
        if ended:
            break
    assert {b"old", b"new"} == contents
    assert operations > 20


def test_a_link_stays_a_link(local: Location, tmp_path: Path) -> None:
    """Moving and replacing a tree through a link leaves the link in place."""
    local.put("x", b"1")
    link = open_location(tmp_path / "link")
    link.path.symlink_to(local.path)
    link.take_place_of(open_location(tmp_path / "away"))
    assert (True, False) == (link.path.is_symlink(), link.exists())
    open_location(tmp_path / "away").take_place_of(link)
    assert (True, b"1") == (link.path.is_symlink(), local.get("x"))


def test_is_free(local: Location) -> None:
    """A missing and an empty directory are free; a file and a directory with entries are not."""
    assert local.is_free()
    local.path.mkdir()
    assert local.is_free()
    local.put("x", b"")
    assert not local.is_free()
    assert not local.child("x").is_free()


def test_the_sibling_of_a_link(tmp_path: Path) -> None:
    """The sibling is on the disk of the link's target, so that a rename is atomic."""
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    sibling = open_location(tmp_path / "link").sibling(".ingest")
    assert (tmp_path / "disk").resolve() / ".real.ingest" == sibling.path


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("gs://bucket/key", "is a gs:// URL"),
        ("a\0b", "null character"),
    ],
)
def test_invalid_places(named: str, message: str) -> None:
    """Empty names, null characters and other URL schemes are refused with exit 2."""
    with pytest.raises(UsageError, match=message):
        open_location(named)


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    """`file:///a/b` and `/a/b` are one location."""
    assert open_location(tmp_path) == open_location(f"file://{tmp_path}")


@pytest.mark.parametrize("key", ["file", "directory/file"])
def test_a_link_that_leads_outside_is_refused(local: Location, tmp_path: Path, key: str) -> None:
    """A link that leads outside is not read, written or removed."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    local.path.mkdir()
    (local.path / key.partition("/")[0]).symlink_to(tmp_path / "mine" / key.partition("/")[2])
    for use in (local.get, local.size, local.exists, local.child, local.delete):
        with pytest.raises(BadDataError, match="is a symbolic link that leads outside"):
            use(key)
    with pytest.raises(BadDataError, match="is a symbolic link that leads outside"):
        local.append(key, b"x")
    assert "mine" == (tmp_path / "mine" / "file").read_text()


def test_a_link_within_a_location_is_followed(local: Location, tmp_path: Path) -> None:
    """The location itself may be a link."""
    local.put("a/file", b"1")
    (local.path / "b").symlink_to("a")
    (tmp_path / "link").symlink_to(local.path)
    assert b"1" == open_location(tmp_path / "link").child("b").get("file")


def test_special_files_are_not_objects(local: Location) -> None:
    """A named pipe does not block; like a directory, it is not an object."""
    local.put("directory/file", b"")
    os.mkfifo(local.path / "pipe")
    for key in ("pipe", "directory", "directory/file/below"):
        assert not local.holds(key)
        with pytest.raises(FileNotFoundError):
            local.get(key)


def test_a_name_that_cannot_be_encoded_is_refused(place: Location) -> None:
    """A lone surrogate, which JSON can contain, is not a file's name."""
    with pytest.raises(BadDataError, match=r"no (file|path) can"):
        place.get("\ud800")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_directory_that_takes_no_files() -> None:
    """A directory in which no file can be created is unreachable, not a missing file."""
    with pytest.raises(UnreachableError, match="Cannot write /proc/x: No file can be created here"):
        open_location("/proc").put("x", b"")
