"""File operations that change a disk.

All writes go through these functions, which are looked up on this module at each call. Tests
replace them to count calls, make a call fail, or end the process after it.
"""

import errno
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import NoReturn

from storage.errors import UNUSABLE_NAME, UsageError, as_pipeline_error

STREAMS = ("/dev/std", "/dev/fd/", "/proc/")
NAME_BYTES = 255
"""The longest name on common file systems."""
ADDED = "." * (len("..tmp") + 1 + 32)
"""The characters that a partial file's name has in addition to its file's name."""


def create(path: Path) -> int:
    """Create a file for writing and return its descriptor; it must not exist yet."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def open_append(path: Path) -> int:
    """Open or create a regular file for appending; `OSError` (EINVAL) for anything else.

    Opening a named pipe does not block.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "It is not a regular file")
    return os.open(path, flags, 0o666)


def open_regular(path: str, flags: int) -> int:
    """Open a regular file; `OSError` (EINVAL) for anything else. A named pipe does not block."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", path)
    return descriptor


def write(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`, by as many system calls as it takes."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def fsync(descriptor: int) -> None:
    """Make the bytes written through `descriptor` survive a loss of power."""
    os.fsync(descriptor)


def close(descriptor: int) -> None:
    """Close a descriptor that `create` or `open_append` returned."""
    os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename a file or directory atomically, replacing a file of that name."""
    os.rename(source, target)


def mkdir(path: Path) -> None:
    """Create one directory in an existing one."""
    os.mkdir(path)


def unlink(path: Path) -> None:
    """Remove a file."""
    os.unlink(path)


def rmdir(path: Path) -> None:
    """Remove an empty directory."""
    os.rmdir(path)


def fsync_path(path: Path) -> None:
    """Make the bytes of a file, written by any process, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def check_room(threads: int, open_files: int) -> None:
    """Raise `UnreachableError` unless this many more threads and open files are available.

    Some libraries hang or print errors when they run out of either.
    """
    done = Event()
    waiting: list[Thread] = []
    descriptors: list[int] = []
    try:
        descriptors.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(open_files))
        for _ in range(threads):
            thread = Thread(target=done.wait, daemon=True)
            thread.start()
            waiting.append(thread)
    except (OSError, RuntimeError) as error:
        raise as_pipeline_error(error) or error from None
    finally:
        done.set()
        for descriptor in descriptors:
            os.close(descriptor)
        for thread in waiting:
            thread.join()
            task = Path(f"/proc/self/task/{thread.native_id}")
            while task.exists():  # until then it counts against the limit
                time.sleep(0.001)


def file_to_write(path: Path, option: str) -> Path:
    """Return the path of the regular file to write: `path`, or the target of a link.

    Raises `UsageError` if something else is at `path`, or if the name is invalid.
    """
    place = path.absolute()
    if str(place).startswith(STREAMS):
        raise UsageError(f"{option} is {path}, a stream of a process; expected a regular file.")
    if max(len(os.fsencode(part)) for part in (*place.parts, place.name + ADDED)) > NAME_BYTES:
        raise UsageError(
            f"{option} is {path}, whose name is too long; expected at most "
            f"{NAME_BYTES - len(ADDED)} bytes, and {NAME_BYTES} for a directory."
        )
    check_regular(place, f"{option} is {path}")
    return Path(os.path.realpath(place)) if place.is_symlink() else path


def check_regular(path: Path, subject: str) -> None:
    """Raise `UsageError` if anything but a regular file, or a link to one, is at `path`."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise UsageError(
                f"{subject}, a broken link. Remove it, or choose another place."
            ) from None
        return
    except OSError as error:
        if error.errno in UNUSABLE_NAME:
            raise UsageError(f"{subject}: {error.strerror}. Choose another place.") from error
        raise
    if not stat.S_ISREG(mode):
        raise UsageError(
            f"{subject}, which is not a regular file and is never replaced. Choose another place."
        )


def make_directories(path: Path, *, durable: bool = True) -> None:
    """Create a directory and its parents; `UsageError` if a file is in the way."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        try:
            mkdir(directory)
        except FileExistsError as error:
            if directory.is_dir():  # another thread or process was first
                continue
            raise UsageError(f"{directory} is not a directory. Choose another place.") from error
        except FileNotFoundError as error:  # the parent exists: below /proc, for example
            raise PermissionError(errno.EPERM, "No directory can be created here") from error
        if durable:
            fsync_directory(directory.parent)


def remove_tree(path: Path) -> None:
    """Remove a directory tree, a file, or a link but not its target."""
    if not path.is_dir() or path.is_symlink():
        with suppress(FileNotFoundError):
            unlink(path)
        return
    for directory, below, names in os.walk(path, topdown=False, onerror=_raise):
        for name in sorted(names):
            unlink(Path(directory, name))
        for child in (Path(directory, name) for name in sorted(below)):
            if child.is_symlink():
                unlink(child)
            else:
                rmdir(child)
    rmdir(path)


def _raise(error: OSError) -> NoReturn:
    raise error
