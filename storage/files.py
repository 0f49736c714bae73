"""File operations that change a disk: the one seam between storage and the operating system.

Everything that storage writes goes through these functions, looked up on this module at each call,
so that a test can count them, make any of them fail, or let the process die after it.
"""

import errno
import os
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import NoReturn

from storage.errors import (
    BadDataError,
    PipelineError,
    UnreachableError,
    UsageError,
    shortage,
    starved,
)


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


REMEDY = {
    errno.ENOSPC: "free some space and run the same command again.",
    errno.EDQUOT: "free some space and run the same command again.",
    errno.EACCES: "check the permissions and run the same command again.",
    errno.EPERM: "check the permissions and run the same command again.",
    errno.EROFS: "choose a place that can be written, or remount it, and run again.",
    errno.EEXIST: "a file lies where a directory is needed: choose another place.",
    errno.ENAMETOOLONG: "choose a shorter name.",
    errno.ELOOP: "the symbolic links there form a loop: choose another place.",
    errno.ENOTDIR: "a file lies where a directory is needed: choose another place.",
}
REMOVED_DIRECTORY = "The current directory has been removed: change to one that exists."
UNUSABLE_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EINVAL)
"""Errors of the system that another try with the same name cannot mend."""
STREAMS = ("/dev/std", "/dev/fd/", "/proc/")
NAME_BYTES = 255
"""The longest name that the usual file systems take."""
ADDED = "." * (len("..tmp") + 1 + 32)
"""Makes a name as long as that of the unfinished file."""
SHOWN = 200
"""Characters of a name that a message shows."""


def as_pipeline_error(  # noqa: PLR0911 - an answer for each kind of refusal
    error: BaseException,
) -> PipelineError | None:
    """Return the error to show for whatever a command raises; None for a defect of the program.

    This is the last resort for what the system refuses: where more is known, say more there.
    """
    what = shortage(error)
    match error:
        case PipelineError():
            return error
        case _ if what is not None:
            return starved(what)
        case RecursionError():
            return BadDataError("A file or an argument is nested too deeply to be read.")
        case UnicodeError():
            name = ascii(getattr(error, "object", ""))[:SHOWN]
            return UsageError(f"The name {name} is not valid UTF-8. Rename it, and try again.")
        case FileNotFoundError() if not is_directory_there():
            return UsageError(REMOVED_DIRECTORY)
        case OSError():
            kind = UsageError if error.errno in UNUSABLE_NAME else UnreachableError
            name = str(error.filename)[:SHOWN] if error.filename else "The system refuses"
            remedy = REMEDY.get(error.errno or 0, "check it and run the same command again.")
            return kind(f"{name}: {error.strerror or error}; {remedy}")
    return None


def exit_code_of(error: BaseException | None) -> int:
    """Return the code that a command ends with, whatever ended it; 0 for None."""
    match error:
        case None:
            return 0
        case KeyboardInterrupt():
            return 128 + signal.SIGINT
        case SystemExit():  # click's way to end after a broken pipe
            return 128 + signal.SIGPIPE
        case Exception() if known := as_pipeline_error(error):
            return known.exit_code
    return 1


def check_room(threads: int, open_files: int) -> None:
    """Raise `UnreachableError` where the system does not give so many more threads and files.

    For libraries that hang, or print what went wrong, where they run out of either.
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
            while task.exists():  # until then Linux counts it among those that may be
                time.sleep(0.001)


def is_directory_there() -> bool:
    """Return whether the current directory still exists."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


@contextmanager
def translate_os_errors(verb: str, path: Path) -> Iterator[None]:
    """Turn the system's refusals into `UnreachableError`; a missing file stays what it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        what = shortage(error)
        if what is not None:
            raise starved(what) from error
        remedy = REMEDY.get(error.errno or 0, "see to the disk or mount and run again.")
        raise UnreachableError(
            f"Cannot {verb} {path}: {error.strerror or error}. {remedy[0].upper()}{remedy[1:]}"
        ) from error


def file_to_write(path: Path, option: str) -> Path:
    """Return the path of the regular file to write: `path`, or what a link there leads to.

    Raises `UsageError` where anything else is there, or no file can ever be.
    """
    place = path.absolute()
    if str(place).startswith(STREAMS):
        raise UsageError(
            f"{option} is {path}, a stream of a process; expected a file, which is written whole."
        )
    if max(len(os.fsencode(part)) for part in (*place.parts, place.name + ADDED)) > NAME_BYTES:
        raise UsageError(
            f"{option} is {path}, too long a name; expected at most {NAME_BYTES - len(ADDED)} "
            f"bytes, and {NAME_BYTES} for a directory."
        )
    check_regular(place, f"{option} is {path}")
    return Path(os.path.realpath(place)) if place.is_symlink() else path


def check_regular(path: Path, subject: str) -> None:
    """Raise `UsageError` where anything but a regular file, or a link to one, is at `path`."""
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


def make_directories(path: Path) -> None:
    """Make a directory and those above it, each durable in its parent.

    Raises `UsageError` where something else lies in the place of one of them.
    """
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
        except FileNotFoundError as error:  # its parent is there: below /proc, say
            raise PermissionError(errno.EPERM, "No directory can be made here") from error
        fsync_directory(directory.parent)


def remove_tree(path: Path) -> None:
    """Remove a directory with all below it, or a file, or a link but not what it leads to."""
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
