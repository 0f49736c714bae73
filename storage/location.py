"""A place for bytes: whole objects put, got and listed under a path, atomically and durably."""

import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from storage import files
from storage.errors import BadDataError, UnreachableError, UsageError

Write = Callable[[bytes | memoryview], None]

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
"""The name of what `put` has not finished."""

REMEDY = {
    errno.ENOSPC: "free some space and run the same command again.",
    errno.EDQUOT: "free some space and run the same command again.",
    errno.EACCES: "check the permissions and run the same command again.",
    errno.EPERM: "check the permissions and run the same command again.",
    errno.EROFS: "choose a place that can be written, or remount it, and run again.",
    errno.EEXIST: "a file lies where a directory is needed: choose another place.",
    errno.ENOTDIR: "a file lies where a directory is needed: choose another place.",
}


def open_location(place: str | Path) -> "Location":
    """The location that a path or a `file://` URL names; nothing is read or made yet.

    Raises `UsageError` for an empty name or a URL of a kind that is not known.
    """
    text = str(place)
    if not text.strip():
        raise UsageError("A location is empty; give a path.")
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    elif "://" in text:
        scheme = text.split("://", 1)[0]
        raise UsageError(f"'{text}' is a {scheme} URL; expected a path or a file:// URL.")
    if "\0" in text:
        raise UsageError("A path cannot hold a null character.")
    return Location(Path(text).expanduser())


@contextmanager
def reaching(verb: str, path: Path) -> Iterator[None]:
    """Turn the system's refusals into `UnreachableError`; a missing file stays what it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        remedy = REMEDY.get(error.errno or 0, "see to the disk or mount and run again.")
        raise UnreachableError(
            f"Cannot {verb} {path}: {error.strerror or error}. What was complete before is "
            f"untouched; {remedy}"
        ) from error


@dataclass(frozen=True)
class Location:
    """A directory of whole objects, each named by a relative key with `/` between its parts.

    What `put` has returned from is whole and on disk for good: written to a temporary sibling,
    synced, renamed, and the directory synced. A reader sees the old object or the new one.

    The location itself may be a link, and links within it are followed; a name below it that leads
    outside, by its parts or by a link, is refused: nothing there is read, written or removed.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The last part of the path, for people."""
        return self.path.resolve().name

    def child(self, key: str) -> "Location":
        """The location at `key` below this one; a key that leads outside is refused."""
        return Location(self._at(key))

    def sibling(self, prefix: str, suffix: str) -> "Location":
        """A hidden neighbour in the same directory, so that a rename between the two is atomic."""
        resolved = self.path.resolve()
        return Location(resolved.parent / f".{prefix}{resolved.name}{suffix}")

    def _at(self, key: str) -> Path:
        parts = key.split("/")
        if key.startswith("/") or ".." in parts or not _can_be_named(key):
            raise BadDataError(f"The name {key!r} leads outside {self.path}; it is refused.")
        step = str(self.path)
        for part in parts:
            step = f"{step}/{part}"
            if os.path.islink(step) and not self._contains(os.path.realpath(step)):
                raise BadDataError(
                    f"{step} is a link that leads outside {self.path}; it is refused. Put what it "
                    "leads to in its place."
                )
        return self.path / key

    def _contains(self, resolved: str) -> bool:
        return Path(resolved).is_relative_to(os.path.realpath(self.path))

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of an object; a negative start counts from its end.

        Raises `FileNotFoundError` where there is no such object.
        """
        path = self._at(key)
        with reaching("read", path), open(path, "rb", buffering=0, opener=_open_regular) as file:
            size = os.fstat(file.fileno()).st_size
            first = max(0, size + start) if start < 0 else start
            last = size if stop is None else min(stop, size)
            if first:
                file.seek(first)
            return _read_all(file.fileno(), max(0, last - first))

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Make `key` hold `data`: wholly or, whatever happens, not at all."""
        with self.writing(key) as write:
            write(data)

    @contextmanager
    def writing(self, key: str) -> Iterator[Write]:
        """Like `put`, for what comes piece by piece: gives the function that takes the pieces."""
        path = self._at(key)
        with reaching("write", path):
            make_directories(path.parent)
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
            try:
                with _synced_file(temporary) as descriptor:
                    yield partial(files.write, descriptor)
                files.rename(temporary, path)
            except BaseException:
                with suppress(OSError):
                    files.unlink(temporary)
                raise
            files.fsync_directory(path.parent)

    def append(self, key: str, data: bytes) -> None:
        """Add `data` to the end of an object and sync it; the caller tells a torn end apart."""
        path = self._at(key)
        with reaching("append to", path):
            make_directories(path.parent)
            new = not path.exists()
            descriptor = files.open_append(path)
            try:
                files.write(descriptor, data)
                files.fsync(descriptor)
            finally:
                files.close(descriptor)
            if new:
                files.fsync_directory(path.parent)

    def exists(self, key: str = "") -> bool:
        """Whether there is an object or a directory at `key`; a link to nothing is neither."""
        path = self._at(key) if key else self.path
        with reaching("look at", path):
            try:
                path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def holds(self, key: str) -> bool:
        """Whether there is an object at `key`, which can be read."""
        try:
            self.size(key)
        except FileNotFoundError:
            return False
        return True

    def is_free(self) -> bool:
        """Whether nothing is here yet: no object, and no directory but an empty one."""
        with reaching("look at", self.path):
            return not self.path.exists() or (self.path.is_dir() and not os.listdir(self.path))

    def size(self, key: str) -> int:
        """An object's length in bytes; `FileNotFoundError` where there is none."""
        path = self._at(key)
        with reaching("look at", path):
            try:
                status = path.stat()
            except NotADirectoryError as error:
                raise FileNotFoundError(str(path)) from error
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(str(path))
        return status.st_size

    def names(self, key: str = "") -> list[str]:
        """The names directly below `key`, sorted; none where there is no such directory."""
        path = self._at(key) if key else self.path
        with reaching("list", path):
            try:
                return sorted(os.listdir(path))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def objects(self) -> list[str]:
        """The keys of every object below this location, sorted."""
        found = []
        with reaching("list", self.path):
            for directory, _, names in os.walk(self.path):
                base = Path(directory).relative_to(self.path)
                found += [(base / name).as_posix() for name in names]
        return sorted(found)

    def delete(self, key: str) -> None:
        """Remove one object; nothing happens where there is none."""
        path = self._at(key)
        with reaching("remove", path), suppress(FileNotFoundError):
            files.unlink(path)

    def sweep(self, key: str = "") -> None:
        """Remove what dead writers left unfinished directly below `key`.

        The caller holds the lock of all who write there: a live one's is no different.
        """
        for name in self.names(key):
            if TEMPORARY.fullmatch(name):
                self.delete(f"{key}/{name}" if key else name)

    def delete_tree(self) -> None:
        """Remove this location and all below it."""
        with reaching("remove", self.path):
            _remove_tree(self.path)

    def discard(self) -> None:
        """The same after a failure, which is what matters: where this fails too, it is let be."""
        with suppress(OSError, UnreachableError):
            self.delete_tree()

    def take_place_of(self, target: "Location") -> None:
        """Rename this tree to `target`, which must not exist, and make the new name durable.

        A link on either side stays a link: it is what it leads to that is renamed.
        """
        with reaching("publish", target.path):
            destination = target.path.resolve()
            make_directories(destination.parent)
            files.rename(self.path.resolve(), destination)
            files.fsync_directory(destination.parent)

    def free_bytes(self) -> int:
        """Space left for us on the disk that holds (or will hold) this location."""
        path = self.path.resolve()
        while not path.exists():
            path = path.parent
        with reaching("look at", path):
            return shutil.disk_usage(path).free


def make_directories(path: Path) -> None:
    """Make a directory and those above it, each durable in its parent."""
    if path.is_dir():
        return
    make_directories(path.parent)
    try:
        files.mkdir(path)
    except FileExistsError:  # another thread or process was first
        return
    except FileNotFoundError as error:  # its parent is there: below /proc, say
        raise PermissionError(errno.EPERM, "No directory can be made here") from error
    files.fsync_directory(path.parent)


@contextmanager
def _synced_file(path: Path) -> Iterator[int]:
    """A new file's descriptor; its content is synced when the block ends well."""
    descriptor = files.create(path)
    try:
        yield descriptor
        files.fsync(descriptor)
    finally:
        files.close(descriptor)


def _can_be_named(key: str) -> bool:
    try:
        return b"\0" not in os.fsencode(key)
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
        return False


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file; whatever else is there is no object, and a pipe is not waited for."""
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK)
    except (NotADirectoryError, IsADirectoryError) as error:
        raise FileNotFoundError(path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(path)
    return descriptor


def _read_all(descriptor: int, count: int) -> bytes:
    """One read as a rule; more where the system gives less than it was asked for."""
    data = os.read(descriptor, count)
    while len(data) < count:
        more = os.read(descriptor, count - len(data))
        if not more:
            break
        data += more
    return data


def is_leftover(name: str) -> bool:
    """Whether a file or directory of this name is what a writer that died left behind."""
    return name.startswith(".") and name.endswith((".tmp", ".old"))


def _remove_tree(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        with suppress(FileNotFoundError):
            files.unlink(path)
        return
    for entry in sorted(path.iterdir()):
        _remove_tree(entry)
    files.rmdir(path)
