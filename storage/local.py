"""Locations on a local disk: objects are files, written by rename and fsync."""

import errno
import fcntl
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

from storage import files
from storage.errors import BadDataError, ConflictError, UnreachableError, translate_os_errors
from storage.files import check_regular, make_directories, remove_tree
from storage.kernel_lock import kernel_lock, kernel_lock_holder
from storage.location import (
    LEFTOVER,
    REPLACED,
    Location,
    Lock,
    Refused,
    Status,
    TakeOver,
    Version,
    Write,
)

FORMER = ("old", "tmp")
"""Suffixes that earlier releases gave to checkpoints being written or removed."""
PARTIAL = re.compile(r"[0-9a-f]{32}\.tmp")
"""Suffix of a partial file's name."""
SETTLED_SECONDS = 2.0
"""Age of a file's last change from which another one shows in its times, which may be coarse."""
YOUNG_SECONDS = 10.0
"""Age below which the writer of a partial file may not have locked it yet."""


@dataclass(frozen=True, repr=False)
class LocalLocation(Location):
    """A directory of objects; see `Location`.

    An object is written to a temporary file beside it, which is synced and renamed; then the
    directory is synced. Without `durable`, nothing is synced before `sync`. The location
    may be a symbolic link, and links below it are followed unless they lead outside.
    """

    path: Path
    renames: ClassVar[bool] = True

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path.absolute(),)  # a lock belongs to its process

    def __str__(self) -> str:
        return str(self.path)

    def _resolved(self) -> Path:
        return Path(os.path.realpath(self.path))

    def _at(self, key: str) -> Path:
        parts = key.split("/")
        if key.startswith("/") or ".." in parts or not _can_be_named(key):
            raise BadDataError(
                f"The name {key!r} leads outside {self.path}, or no file can have it."
            )
        step = str(self.path)
        for part in parts:
            step = f"{step}/{part}"
            if os.path.islink(step) and not self._contains(os.path.realpath(step)):
                raise BadDataError(
                    f"{step} is a symbolic link that leads outside {self.path}, which is not "
                    "followed. Replace the link by a copy of its target."
                )
        return self.path / key

    def _contains(self, resolved: str) -> bool:
        return Path(resolved).is_relative_to(os.path.realpath(self.path))

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        return self.get_with_version(key, start, stop)[0]

    def get_with_version(
        self, key: str, start: int = 0, stop: int | None = None
    ) -> tuple[bytes, Version | None]:
        path = self._at(key)
        with translate_os_errors("read", path), _opened(path) as descriptor:
            began, size = time.time(), os.fstat(descriptor).st_size
            first = max(0, size + start) if start < 0 else start
            last = size if stop is None else min(stop, size)
            data = _read_all(descriptor, first, last)
            return data, _version(os.fstat(descriptor), began)

    def put(self, key: str, data: bytes | memoryview, *, new: bool = False) -> None:
        if new and self.exists(key):  # no other process writes here: the caller holds the lock
            raise ConflictError(f"{self}/{key} exists already.")
        with self.open_for_writing(key) as write:
            write(data)

    @contextmanager
    def open_for_writing(self, key: str) -> Iterator[Write]:
        path = self._at(key)
        self.check_held()
        with translate_os_errors("write", path):
            check_regular(path, f"The output is {path}")
            path = Path(os.path.realpath(path)) if path.is_symlink() else path
            make_directories(path.parent, durable=self.durable)
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
            try:
                with _new_file(temporary, durable=self.durable) as descriptor:
                    yield partial(files.write, descriptor)
                self.check_held()
                files.rename(temporary, path)
            except BaseException:
                with suppress(OSError):
                    files.unlink(temporary)
                raise
            if self.durable:
                files.fsync_directory(path.parent)

    def sync(self, keys: Collection[str]) -> None:
        paths = [self._at(key) for key in keys]
        with translate_os_errors("write", self.path):
            for path in paths:
                files.fsync_path(path)
            for directory in dict.fromkeys([*(path.parent for path in paths), self.path]):
                files.fsync_directory(directory)

    def append(self, key: str, data: bytes, before: bytes | None = None) -> None:
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
        return self._status(self._at(key) if key else self.path) is not None

    def is_free(self) -> bool:
        status = self._status(self.path)
        return status is None or (stat.S_ISDIR(status.st_mode) and not self.names())

    def status(self, key: str) -> Status:
        status = self._status(self._at(key))
        if status is None or not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(f"{self}/{key}")
        version = f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"
        return Status(status.st_size, version, status.st_mtime_ns / 1e9)

    def _status(self, path: Path) -> os.stat_result | None:
        """Return the status of a path; None if nothing is there."""
        with translate_os_errors("access", path):
            try:
                return path.stat()
            except OSError as error:
                # Dangling and circular links count as absent.
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
                return None

    def as_file(
        self, key: str, count: int | None = None, check: Callable[[], None] = lambda: None
    ) -> AbstractContextManager[Path]:
        return nullcontext(self._at(key))

    def names(self, key: str = "") -> list[str]:
        path = self._at(key) if key else self.path
        with translate_os_errors("list", path):
            try:
                return sorted(os.listdir(path))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def objects(self, refused: Refused | None = None) -> list[str]:
        def refuse(error: OSError) -> None:
            """Handle a directory that cannot be listed; one that was removed is skipped."""
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                return
            directory = Path(error.filename)
            try:
                with translate_os_errors("list", directory):
                    raise error
            except UnreachableError as refusal:
                if refused is None or directory == self.path:
                    raise
                refused(directory.relative_to(self.path).as_posix(), refusal)

        keys = []
        for directory, below, names in os.walk(self.path, onerror=refuse):
            base = Path(directory).relative_to(self.path)
            keys += [(base / name).as_posix() for name in names]
            for name in below:
                if refused is not None and os.path.islink(f"{directory}/{name}"):
                    refused((base / name).as_posix(), None)
        return sorted(keys)

    def delete(self, key: str) -> None:
        path = self._at(key)
        with translate_os_errors("remove", path), suppress(FileNotFoundError):
            files.unlink(path)

    def delete_tree(self) -> None:
        with translate_os_errors("remove", self.path):
            remove_tree(self.path)

    def sweep_partial(self, key: str) -> None:
        # The kernel has freed a dead writer's lock on its partial file.
        directory, _, name = key.rpartition("/")
        start = f".{name}."
        for other in self.names(directory):
            if other.startswith(start) and PARTIAL.fullmatch(other.removeprefix(start)):
                _remove_abandoned(self._at(f"{directory}/{other}" if directory else other))

    def writer_lock(
        self, subject: str, take_over: TakeOver | None = None
    ) -> AbstractContextManager[Lock]:
        return kernel_lock(self.path, subject, take_over)

    def lock_holder(self) -> str | None:
        return kernel_lock_holder(self.path)

    def take_place_of(self, target: "LocalLocation") -> None:
        """Rename this tree to `target`, which must not exist, and make the new name durable.

        A link on either side remains; its target is renamed.
        """
        target.check_held()
        with translate_os_errors(f"rename {self.path} to", target.path):
            destination = target._resolved()
            make_directories(destination.parent)
            files.rename(self._resolved(), destination)
            files.fsync_directory(destination.parent)

    def staging(self) -> Self:
        return self.sibling(f".ingest-{uuid.uuid4().hex[:12]}")

    def _install(self, staged: Location, root: str) -> None:
        """Rename the old tree away and the new one here; `recover` handles a crash in between."""
        assert isinstance(staged, LocalLocation)
        old = self.sibling(REPLACED)
        try:
            if not self.is_free():
                self.take_place_of(old)
            staged.take_place_of(self)
        except UnreachableError:
            self.recover(root)
            raise
        self._throw_away(old)

    def _throw_away(self, tree: "LocalLocation") -> None:
        """Rename a tree, so that a crash leaves no partial tree here, then try to remove it."""
        if tree.exists():
            doomed = self.staging()
            tree.take_place_of(doomed)
            doomed.discard()

    def remove_tree(self, root: str) -> None:
        self._throw_away(self)

    def recover(self, root: str) -> None:
        """Rename the old tree back if there is no new one, else remove it; remove staged trees."""
        old = self.sibling(REPLACED)
        if old.exists():
            if self.is_free():
                old.take_place_of(self)
            else:
                self._throw_away(old)
        for path in map(old.path.with_name, LocalLocation(old.path.parent).names()):
            match = LEFTOVER.fullmatch(path.name)
            if match and match[1] == self.name and match[2] not in FORMER:
                LocalLocation(
                    path
                ).discard()  # a worker that outlived its job may still write there

    def sweep_trees(self, key: str, root: str) -> None:
        for match in filter(None, map(LEFTOVER.fullmatch, self.names(key))):
            if match[2] in FORMER:
                self.child(f"{key}/{match[0]}").delete_tree()
            else:
                self.child(f"{key}/{match[1]}").recover(root)


@contextmanager
def _new_file(path: Path, *, durable: bool) -> Iterator[int]:
    """Yield the descriptor of a new file, which is synced if `durable` when the block succeeds."""
    try:
        descriptor = files.create(path)
    except FileNotFoundError as error:  # its directory exists: /proc, for example
        raise PermissionError(errno.EPERM, "No file can be created here") from error
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
        if durable:
            files.fsync(descriptor)
    finally:
        files.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    """Remove a partial file unless a live writer holds its lock or may have just created it."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if time.time() - os.fstat(descriptor).st_mtime > YOUNG_SECONDS:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                files.unlink(path)
        finally:
            os.close(descriptor)


def _can_be_named(key: str) -> bool:
    try:
        return b"\0" not in os.fsencode(key)
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can contain
        return False


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Yield the descriptor of a regular file; raise `FileNotFoundError` for anything else."""
    try:
        descriptor = files.open_regular(str(path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENXIO}:
            raise FileNotFoundError(str(path)) from error
        raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read_all(descriptor: int, first: int, last: int) -> bytes:
    """Read bytes [first, last), or fewer at the end, usually in one system call."""
    if last <= first:
        return b""
    data = os.pread(descriptor, last - first, first)
    while len(data) < last - first:
        more = os.pread(descriptor, last - first - len(data), first + len(data))
        if not more:
            break
        data += more
    return data


def _version(status: os.stat_result, began: float) -> Version | None:
    """Return the version of a file that was read from `began` until its `status` was taken."""
    if began - status.st_ctime < SETTLED_SECONDS:
        return None
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
