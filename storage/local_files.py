"""Files of this machine as whole objects: written and synced, read, and told from other things."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage import files

YOUNG_SECONDS = 10.0
"""Seconds in which the writer of a new partial file may not have locked it yet."""


@contextmanager
def synced_file(path: Path) -> Iterator[int]:
    """A new file's descriptor; its content is synced when the block ends well."""
    try:
        descriptor = files.create(path)
    except FileNotFoundError as error:  # its directory is there: /proc, say
        raise PermissionError(errno.EPERM, "No file can be made here") from error
    try:
        with suppress(OSError):  # as on some network file systems
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
        files.fsync(descriptor)
    finally:
        files.close(descriptor)


def remove_abandoned(path: Path) -> None:
    """Remove a partial file unless its writer lives and holds its lock, or has just begun."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if time.time() - os.fstat(descriptor).st_mtime > YOUNG_SECONDS:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                files.unlink(path)
        finally:
            os.close(descriptor)


def can_be_named(key: str) -> bool:
    """Return whether a file can have this name."""
    try:
        return b"\0" not in os.fsencode(key)
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
        return False


def open_object(path: str, flags: int) -> int:
    """Open a regular file; whatever else is there is no object."""
    try:
        return files.open_regular(path, flags)
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENXIO}:
            raise FileNotFoundError(path) from error
        raise


def read_all(descriptor: int, count: int) -> bytes:
    """One read as a rule; more where the system gives less than it was asked for."""
    data = os.read(descriptor, count)
    while len(data) < count:
        more = os.read(descriptor, count - len(data))
        if not more:
            break
        data += more
    return data
