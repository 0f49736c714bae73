"""Locations: objects are put whole and for good, or not at all, and nothing leads outside."""

import errno
import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from storage import files
from storage.errors import BadDataError, UnreachableError, UsageError
from storage.location import Location
from storage.places import open_location

OPERATIONS = ("create", "write", "fsync", "close", "rename", "mkdir", "unlink", "fsync_directory")


@pytest.fixture
def place(anywhere: Location) -> Location:
    """A place of each kind, in turn."""
    return anywhere.child("place")


@pytest.fixture
def local(tmp_path: Path) -> Location:
    return open_location(tmp_path / "place")


def record_operations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the file operations, as they are called from now on."""
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
    """Make a file operation fail with an errno from now on."""

    def refuse(*arguments: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, operation, refuse)


def test_what_was_put_is_got(place: Location) -> None:
    """Below directories that are not there yet, and in place of what was there before."""
    place.put("a/b/c", b"a long first content")
    assert b"a long first content" == place.get("a/b/c")
    place.put("a/b/c", memoryview(b"second"))
    assert (b"second", ["c"]) == (place.get("a/b/c"), place.names("a/b"))


def test_a_range_is_got(place: Location) -> None:
    """A range gives the bytes that a slice gives, beyond the ends and of nothing too."""
    digits = b"0123456789"
    place.put("digits", digits)
    place.put("empty", b"")
    for start, stop in [(start, None) for start in (-12, -3, 0, 3, 10, 12)] + [
        (start, stop) for start in (0, 3, 10, 12) for stop in (0, 3, 5, 10, 12)
    ]:
        assert digits[start:stop] == place.get("digits", start, stop), (start, stop)
        assert b"" == place.get("empty", start, stop)


@pytest.mark.parametrize("key", ["absent", "directory", "directory/object/below", "a/b"])
def test_a_missing_object_is_file_not_found(place: Location, key: str) -> None:
    """Getting, or asking the size of, what is no object says that there is none."""
    place.put("directory/object", b"x")
    with pytest.raises(FileNotFoundError):
        place.get(key)
    with pytest.raises(FileNotFoundError):
        place.size(key)


def test_a_put_is_synced_before_and_after_the_rename(
    local: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content is on disk before it gets its name, and the name before put returns.

    So is each directory that is made on the way.
    """
    local.path.mkdir()
    called = record_operations(monkeypatch)
    local.put("a/key", b"new")
    expected = ["create", "write", "fsync", "close", "rename", "fsync_directory", "fsync"]
    assert ["mkdir", "fsync_directory", "fsync", *expected] == called


@pytest.mark.parametrize("operation", ["create", "write", "fsync", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_failed_put_leaves_the_old_object(
    local: Location, monkeypatch: pytest.MonkeyPatch, operation: str, number: int
) -> None:
    """Whichever operation fails: exit 6, a message that names the file, the old bytes, no rest."""
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
    """Pieces become one object at the block's end; a block that fails leaves the old one."""
    with place.open_for_writing("key") as write:
        write(b"one ")
        write(b"two")
    with pytest.raises(ZeroDivisionError), place.open_for_writing("key") as write:
        write(b"three")
        raise ZeroDivisionError
    assert b"one two" == place.get("key")
    assert ["key"] == place.names()


def test_an_append_adds_to_the_end(place: Location) -> None:
    """Appends come after each other, the first one makes the object."""
    place.append("log/lines", b"one\n")
    place.append("log/lines", b"two\n")
    assert b"one\ntwo\n" == place.get("log/lines")
    assert 8 == place.size("log/lines")


@pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/etc/outside", "a\0b"])
def test_a_key_that_leads_outside_is_refused(place: Location, key: str) -> None:
    """No key reaches out of its location, for reading, writing or removing."""
    for act in (place.get, place.exists, place.delete, place.child, place.names, place.size):
        with pytest.raises(BadDataError, match="leads outside"):
            act(key)
    with pytest.raises(BadDataError, match="leads outside"):
        place.put(key, b"x")


def test_names_and_objects_are_sorted(place: Location) -> None:
    """`names` gives one level, `objects` every object below, both in order; none where nothing."""
    for key in ("b", "a/2", "a/10"):
        place.put(key, b"")
    assert ["a", "b"] == place.names()
    assert ["10", "2"] == place.names("a")
    assert ["a/10", "a/2", "b"] == place.objects()
    assert ([], [], []) == (place.names("c"), place.names("b"), place.child("c").objects())


def test_deleting_what_is_not_there_is_no_error(place: Location) -> None:
    """`delete` and `delete_tree` remove, and may be called again."""
    place.put("a/b", b"x")
    place.delete("a/b")
    place.delete("a/b")
    assert not place.exists("a/b")
    place.delete_tree()
    place.delete_tree()
    assert not place.exists()


def test_a_tree_is_removed_without_what_its_links_lead_to(local: Location, tmp_path: Path) -> None:
    """`delete_tree` removes a link to a directory, and leaves that directory alone."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    local.put("x", b"")
    (local.path / "link").symlink_to(tmp_path / "mine")
    local.delete_tree()
    assert "kept" == (tmp_path / "mine" / "file").read_text()


class Died(BaseException):
    """The process is dead; no handler of errors may make anything of it."""


def die_after(monkeypatch: pytest.MonkeyPatch, operations: int) -> None:
    """Let so many file operations through from now on, then none."""
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
    """Old or new after each operation, once what is left is swept, and nothing beside it."""

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
    """A tree that is moved away and replaced by the name of a link: the link is kept both times."""
    local.put("x", b"1")
    link = open_location(tmp_path / "link")
    link.path.symlink_to(local.path)
    link.take_place_of(open_location(tmp_path / "away"))
    assert (True, False) == (link.path.is_symlink(), link.exists())
    open_location(tmp_path / "away").take_place_of(link)
    assert (True, b"1") == (link.path.is_symlink(), local.get("x"))


def test_what_is_free_to_be_taken(local: Location) -> None:
    """Nothing, and an empty directory, are free; a file and a directory with entries are not."""
    assert local.is_free()
    local.path.mkdir()
    assert local.is_free()
    local.put("x", b"")
    assert not local.is_free()
    assert not local.child("x").is_free()


def test_a_sibling_is_hidden_and_next_to_what_a_link_leads_to(tmp_path: Path) -> None:
    """The neighbour lies on the same disk as the real directory, so that a rename is atomic."""
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    sibling = open_location(tmp_path / "link").sibling(".ingest")
    assert (tmp_path / "disk").resolve() / ".real.ingest" == sibling.path


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("gs://bucket/key", "is a gs URL"),
        ("a\0b", "null character"),
    ],
)
def test_a_name_that_is_no_place_is_wrong_usage(named: str, message: str) -> None:
    """Empty names, null characters and URLs of other kinds are refused with exit 2."""
    with pytest.raises(UsageError, match=message):
        open_location(named)


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    """`file:///a/b` and `/a/b` are one location."""
    assert open_location(tmp_path) == open_location(f"file://{tmp_path}")


@pytest.mark.parametrize("key", ["file", "directory/file"])
def test_a_link_that_leads_outside_is_refused(local: Location, tmp_path: Path, key: str) -> None:
    """Whether a file or a directory is a link: nothing is read, written or removed there."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    local.path.mkdir()
    (local.path / key.partition("/")[0]).symlink_to(tmp_path / "mine" / key.partition("/")[2])
    for use in (local.get, local.size, local.exists, local.child, local.delete):
        with pytest.raises(BadDataError, match="is a link that leads outside"):
            use(key)
    with pytest.raises(BadDataError, match="is a link that leads outside"):
        local.append(key, b"x")
    assert "mine" == (tmp_path / "mine" / "file").read_text()


def test_a_link_within_a_location_is_followed(local: Location, tmp_path: Path) -> None:
    """And so is one that is the location itself."""
    local.put("a/file", b"1")
    (local.path / "b").symlink_to("a")
    (tmp_path / "link").symlink_to(local.path)
    assert b"1" == open_location(tmp_path / "link").child("b").get("file")


def test_what_is_no_file_is_no_object(local: Location) -> None:
    """A named pipe is not waited for; like a directory, it holds nothing to read."""
    local.put("directory/file", b"")
    os.mkfifo(local.path / "pipe")
    for key in ("pipe", "directory", "directory/file/below"):
        assert not local.holds(key)
        with pytest.raises(FileNotFoundError):
            local.get(key)


def test_a_name_that_cannot_be_encoded_is_refused(place: Location) -> None:
    """JSON can spell half a character, which no file is called."""
    with pytest.raises(BadDataError, match="it is refused"):
        place.get("\ud800")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_where_the_system_makes_no_files() -> None:
    """A directory in which nobody can make a file is out of reach, not a missing file."""
    with pytest.raises(UnreachableError, match="Cannot write /proc/x: No file can be made here"):
        open_location("/proc").put("x", b"")
