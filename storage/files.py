"""The file operations that change what a disk holds: the one seam between us and the system.

Everything the storage floor writes goes through these functions, looked up on this module at
each call, so that a test can count them, fail any one of them, or let the process die after it.
"""

import errno
import os
import stat
from pathlib import Path


def create(path: Path) -> int:
    """Open a new file for writing and return its descriptor; it must not exist yet."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def open_append(path: Path) -> int:
    """Open a regular file, made if need be, so that every write lands at its end.

    Anything else is refused, and a pipe is not waited for.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "It is not a regular file")
    return os.open(path, flags, 0o666)


def open_regular(path: str, flags: int) -> int:
    """Open a regular file; `OSError` (EINVAL) for anything else, and no pipe is waited for."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", path)
    return descriptor


def write(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`, however many calls the system needs for it."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def fsync(descriptor: int) -> None:
    """Return once what was written through `descriptor` survives a loss of power."""
    os.fsync(descriptor)


def close(descriptor: int) -> None:
    """Close a descriptor that `create` or `open_append` gave."""
    os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give a file or directory a new name, in one step, replacing a file that had it."""
    os.rename(source, target)


def mkdir(path: Path) -> None:
    """Make one directory; its parent exists, it does not."""
    os.mkdir(path)


def unlink(path: Path) -> None:
    """Remove a file."""
    os.unlink(path)


def rmdir(path: Path) -> None:
    """Remove an empty directory."""
    os.rmdir(path)


def fsync_directory(path: Path) -> None:
    """Return once the names in a directory survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)
