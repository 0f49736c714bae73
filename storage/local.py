"""A local directory as a place for bytes: objects are files, made by rename and synced."""

import errno
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from storage import files
from storage.errors import BadDataError, ConflictError, UnreachableError
from storage.files import check_regular, make_directories, remove_tree, translate_os_errors, walk
from storage.kernel_lock import kernel_lock
from storage.local_files import (
    can_be_named,
    open_object,
    read_all,
    remove_abandoned,
    synced_file,
)
from storage.location import (
    NOTES_LIMIT,
    REMOVED_BYTES,
    REPLACED,
    STAGED,
    TEMPORARY,
    Location,
    Lock,
    Refused,
    TakeOver,
    Write,
    is_leftover,
    new_staged,
)

PARTIAL = re.compile(r"[0-9a-f]{32}\.tmp")
"""How the name of a partial file ends, after that of the file."""


@dataclass(frozen=True)
class LocalLocation(Location):
    """A directory of whole objects, each named by a relative key with `/` between its parts.

    What `put` has returned from is whole and on disk for good: written to a temporary sibling,
    synced, renamed, and the directory synced. A reader sees the old object or the new one.

    The location itself may be a link, and links within it are followed; a name below it that leads
    outside, by its parts or by a link, is refused: nothing there is read, written or removed.
    """

    path: Path
    lock: Lock | None = field(default=None, compare=False, repr=False)
    """The one under which its holder writes here: each write sees that it is still held."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)  # a lock is its process's own

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The last part of the path, for people."""
        return Path(os.path.realpath(self.path)).name

    def absolute(self) -> Self:
        """The directory by its path from the root."""
        return replace(self, path=self.path.absolute())

    def child(self, key: str) -> Self:
        """The location at `key` below this one; a key that leads outside is refused."""
        return replace(self, path=self._at(key))

    def sibling(self, prefix: str, suffix: str) -> Self:
        """A hidden neighbour in the same directory, so that a rename between the two is atomic."""
        resolved = Path(os.path.realpath(self.path))
        return replace(self, path=resolved.parent / f".{prefix}{resolved.name}{suffix}")

    def split(self) -> tuple[Location, str]:
        """The directory, and the file's name."""
        return LocalLocation(self.path.parent), self.path.name

    def below(self, ancestor: Location) -> str:
        """The key of this location in another one that holds it."""
        assert isinstance(ancestor, LocalLocation)
        return self.path.relative_to(ancestor.path).as_posix()

    def _at(self, key: str) -> Path:
        parts = key.split("/")
        if key.startswith("/") or ".." in parts or not can_be_named(key):
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
        with (
            translate_os_errors("read", path),
            open(path, "rb", buffering=0, opener=open_object) as file,
        ):
            size = os.fstat(file.fileno()).st_size
            first = max(0, size + start) if start < 0 else start
            last = size if stop is None else min(stop, size)
            if first:
                file.seek(first)
            return read_all(file.fileno(), max(0, last - first))

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Make `key` hold `data`: wholly or, whatever happens, not at all."""
        with self.open_for_writing(key) as write:
            write(data)

    def put_new(self, key: str, data: bytes) -> None:
        """The same for a key that holds nothing yet; the writer's lock keeps others away."""
        if self.exists(key):
            raise ConflictError(f"{self}/{key} exists already.")
        self.put(key, data)

    @contextmanager
    def open_for_writing(self, key: str) -> Iterator[Write]:
        """Like `put`, for what comes piece by piece: gives the function that takes the pieces."""
        path = self._at(key)
        self.check_held()
        with translate_os_errors("write", path):
            check_regular(path, f"The place to write is {path}")
            path = Path(os.path.realpath(path)) if path.is_symlink() else path
            make_directories(path.parent)
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
            try:
                with synced_file(temporary) as descriptor:
                    yield partial(files.write, descriptor)
                self.check_held()
                files.rename(temporary, path)
            except BaseException:
                with suppress(OSError):
                    files.unlink(temporary)
                raise
            files.fsync_directory(path.parent)

    def append(self, key: str, data: bytes, before: bytes | None = None) -> None:
        """Add `data` to the end of an object and sync it; the caller tells a torn end apart."""
        path = self._at(key)
        self.check_held()
        with translate_os_errors("append to", path):
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
        with translate_os_errors("look at", path):
            try:
                path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return False
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                return False
            return True

    def is_free(self) -> bool:
        """Whether nothing is here yet: no object, and no directory but an empty one."""
        with translate_os_errors("look at", self.path):
            return not self.path.exists() or (self.path.is_dir() and not os.listdir(self.path))

    def size(self, key: str) -> int:
        """An object's length in bytes; `FileNotFoundError` where there is none."""
        return self._status(key).st_size

    def version(self, key: str) -> str:
        """The file's inode, size and time."""
        status = self._status(key)
        return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"

    def age(self, key: str) -> float:
        """Seconds since somebody wrote to the file, by this machine's clock."""
        return time.time() - self._status(key).st_mtime_ns / 1e9

    def as_file(
        self, key: str, count: int | None = None, check: Callable[[], None] = lambda: None
    ) -> AbstractContextManager[Path]:
        """The file itself."""
        return nullcontext(self._at(key))

    def _status(self, key: str) -> os.stat_result:
        path = self._at(key)
        with translate_os_errors("look at", path):
            try:
                status = path.stat()
            except NotADirectoryError as error:
                raise FileNotFoundError(str(path)) from error
            except OSError as error:
                if error.errno != errno.ELOOP:  # links that lead to each other lead to nothing
                    raise
                raise FileNotFoundError(str(path)) from error
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(str(path))
        return status

    def sizes(self) -> dict[str, int]:
        """The length in bytes of every file below this location that can be read, by key."""
        return {key: self.size(key) for key in self.objects() if self.holds(key)}

    def names(self, key: str = "") -> list[str]:
        """The names directly below `key`, sorted; none where there is no such directory."""
        path = self._at(key) if key else self.path
        with translate_os_errors("list", path):
            try:
                return sorted(os.listdir(path))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def objects(self, refused: Refused | None = None) -> list[str]:
        """The keys of every object below this location, sorted.

        Links to directories are not followed. One of those below it, and a directory that cannot
        be listed, is told to `refused`; without that, or where it is the location itself, what
        cannot be listed is raised as `UnreachableError`.
        """

        def refuse(error: OSError) -> None:
            """Pass a directory that cannot be listed on, one that is gone by."""
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                return
            directory = Path(error.filename)
            try:
                with translate_os_errors("list", directory):
                    raise error
            except UnreachableError as told:
                if refused is None or directory == self.path:
                    raise
                refused(directory.relative_to(self.path).as_posix(), told)

        found = []
        for directory, below, names in walk(self.path, refuse):
            base = Path(directory).relative_to(self.path)
            found += [(base / name).as_posix() for name in names]
            for name in below:
                if refused is not None and os.path.islink(f"{directory}/{name}"):
                    refused((base / name).as_posix(), None)
        return sorted(found)

    def delete(self, key: str) -> None:
        """Remove one object; nothing happens where there is none."""
        path = self._at(key)
        with translate_os_errors("remove", path), suppress(FileNotFoundError):
            files.unlink(path)

    def sweep_partial(self, key: str) -> None:
        """Remove what writers of one file that died have left: the kernel has freed their locks."""
        directory, _, name = key.rpartition("/")
        start = f".{name}."
        for other in self.names(directory):
            if other.startswith(start) and PARTIAL.fullmatch(other.removeprefix(start)):
                remove_abandoned(self._at(f"{directory}/{other}" if directory else other))

    def sweep(self, key: str = "") -> None:
        """Remove what dead writers left unfinished directly below `key`.

        The caller holds the lock of all who write there: a live one's is no different.
        """
        for name in self.names(key):
            if TEMPORARY.fullmatch(name):
                self.delete(f"{key}/{name}" if key else name)

    def delete_tree(self) -> None:
        """Remove this location and all below it."""
        with translate_os_errors("remove", self.path):
            remove_tree(self.path)

    def take_place_of(self, target: "LocalLocation") -> None:
        """Rename this tree to `target`, which must not exist, and make the new name durable.

        A link on either side stays a link: it is what it leads to that is renamed.
        """
        target.check_held()
        with translate_os_errors(f"rename {self.path} to", target.path):
            destination = Path(os.path.realpath(target.path))
            make_directories(destination.parent)
            files.rename(Path(os.path.realpath(self.path)), destination)
            files.fsync_directory(destination.parent)

    def trees(self, key: str, root: str) -> list[str]:
        """The names directly below `key`, but for trees that were removed in a store."""
        return [name for name in self.names(key) if not self._is_removed(f"{key}/{name}/{root}")]

    def _is_removed(self, root: str) -> bool:
        try:
            return self.size(root) == REMOVED_BYTES
        except (FileNotFoundError, BadDataError):
            return False

    @contextmanager
    def atomic_tree(self, key: str, root: str) -> Iterator[Location]:
        """Gives a hidden sibling of `key`; a rename makes it what it is to be."""
        temporary = self._hidden(key, ".tmp")
        temporary.delete_tree()
        try:
            yield temporary
            if self.exists(key):
                self.remove_whole(key, root)
            temporary.take_place_of(self.child(key))
        except BaseException:
            temporary.discard()
            raise

    def remove_whole(self, key: str, root: str) -> None:
        """Remove a tree, under another name first: a death half-way leaves no half of it."""
        doomed = self._hidden(key, ".old")
        doomed.delete_tree()
        self.child(key).take_place_of(doomed)
        doomed.delete_tree()

    def sweep_trees(self, key: str, root: str) -> None:
        """Remove the hidden siblings that dead writers left."""
        for name in self.names(key):
            if is_leftover(name):
                self.child(f"{key}/{name}").delete_tree()

    def _hidden(self, key: str, suffix: str) -> "LocalLocation":
        directory, _, name = key.rpartition("/")
        hidden = f".{name}{suffix}"
        return self.child(f"{directory}/{hidden}" if directory else hidden)

    def staging(self) -> "LocalLocation":
        """A hidden sibling, on the same disk."""
        return self.sibling("", new_staged())

    def draft(self) -> "LocalLocation":
        """The place itself."""
        return self

    def drafts(self) -> list[Location]:
        """The place itself."""
        return [self]

    def publish(self, staged: Location, root: str) -> None:
        """Rename the old tree away and the new one here: `recover` mends a death in between."""
        assert isinstance(staged, LocalLocation)
        old = self.sibling("", REPLACED)
        try:
            if not self.is_free():
                self.take_place_of(old)
            staged.take_place_of(self)
        except UnreachableError:
            self.recover(root)
            raise
        except ConflictError:
            staged.discard()
            raise
        self._throw_away(old)

    def _throw_away(self, old: "LocalLocation") -> None:
        """Remove a tree that was replaced; where files of others refuse, another may, later."""
        if old.exists():
            doomed = self.staging()
            old.take_place_of(doomed)
            doomed.discard()

    def recover(self, root: str) -> None:
        """Put the old tree back where the new one has not come, else remove what is left of it."""
        old = self.sibling("", REPLACED)
        if old.exists():
            if self.is_free():
                old.take_place_of(self)
            else:
                self._throw_away(old)
        directory, hidden = old.path.parent, self.sibling("", "").path.name
        for name in LocalLocation(directory).names():
            if name.startswith(hidden) and STAGED.fullmatch(name.removeprefix(hidden)):
                LocalLocation(directory / name).discard()  # an orphan may still write there

    def note(self, journal: str, number: int, line: bytes) -> None:
        """Append the line to one file."""
        self.append(journal, line)

    def notes(self, journal: str) -> bytes:
        """The content of the file."""
        try:
            return self.get(journal, 0, NOTES_LIMIT)
        except FileNotFoundError:
            return b""

    def delete_notes(self, journal: str) -> None:
        """Remove the file."""
        self.delete(journal)

    def locked(self, what: str, take_over: TakeOver | None) -> AbstractContextManager[Lock]:
        """A lock that the kernel holds on the file of this name."""
        return kernel_lock(self.path, what, take_over)

    def under(self, lock: Lock) -> Self:
        """The same place, for the lock's holder."""
        return replace(self, lock=lock)

    def check_held(self) -> None:
        """Look whether the lock's file is still the one that was locked."""
        if self.lock is not None:
            self.lock.check()

    def free_bytes(self) -> int:
        """Space left for us on the disk that holds (or will hold) this location."""
        path = Path(os.path.realpath(self.path))
        while not path.exists():
            path = path.parent
        with translate_os_errors("look at", path):
            return shutil.disk_usage(path).free
