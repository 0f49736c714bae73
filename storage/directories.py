"""Directories made and removed on this machine's disks, and the system's refusals told as ours."""

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from storage import files
from storage.errors import BadDataError, PipelineError, UnreachableError, UsageError

REMEDY = {
    errno.ENOSPC: "free some space and run the same command again.",
    errno.EDQUOT: "free some space and run the same command again.",
    errno.EACCES: "check the permissions and run the same command again.",
    errno.EPERM: "check the permissions and run the same command again.",
    errno.EROFS: "choose a place that can be written, or remount it, and run again.",
    errno.EEXIST: "a file lies where a directory is needed: choose another place.",
    errno.ENOTDIR: "a file lies where a directory is needed: choose another place.",
}
REMOVED_DIRECTORY = "The current directory has been removed: change to one that exists."
UNUSABLE_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EINVAL)
"""What the system answers where no try with the same name can ever succeed."""
SHOWN = 200
"""Characters of a name that a message shows."""


def as_pipeline_error(  # noqa: PLR0911 - an answer for each kind of refusal
    error: Exception,
) -> PipelineError | None:
    """Return the error to show for whatever a command raises; None for a defect of the program.

    This is the last resort for what the system refuses: where more is known, say more there.
    """
    match error:
        case PipelineError():
            return error
        case MemoryError():
            return UnreachableError("There is not enough memory. Close other programs, or do less.")
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
        case SystemExit():  # click ends so where nobody reads the help that it prints
            return 128 + signal.SIGPIPE
        case Exception() if known := as_pipeline_error(error):
            return known.exit_code
    return 1


def is_directory_there() -> bool:
    """Return whether the current directory still exists."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


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


def make_directories(path: Path) -> None:
    """Make a directory and those above it, each durable in its parent."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        try:
            files.mkdir(directory)
        except FileExistsError:  # another thread or process was first
            continue
        except FileNotFoundError as error:  # its parent is there: below /proc, say
            raise PermissionError(errno.EPERM, "No directory can be made here") from error
        files.fsync_directory(directory.parent)


def walk(
    top: Path, refuse: Callable[[OSError], None]
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield every directory with the names of the directories and of all else in it.

    Like `os.walk`, which in Python 3.11 cannot follow a thousand nested directories. Links are
    not followed. `refuse` takes the error of a directory that cannot be listed.
    """
    waiting = [os.fspath(top)]
    while waiting:
        directory = waiting.pop()
        try:
            with os.scandir(directory) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            refuse(error)
            continue
        below = [entry for entry in entries if _is_directory(entry)]
        others = [entry.name for entry in entries if entry not in below]
        yield directory, [entry.name for entry in below], others
        waiting += [entry.path for entry in below if not entry.is_symlink()]


def _is_directory(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere
        return False


def remove_tree(path: Path) -> None:
    """Remove a directory with all below it, or a file, or a link but not what it leads to."""
    if not path.is_dir() or path.is_symlink():
        with suppress(FileNotFoundError):
            files.unlink(path)
        return
    for directory, below, names in reversed(list(walk(path, _raise))):
        for name in names:
            files.unlink(Path(directory, name))
        for link in (Path(directory, name) for name in below):
            if link.is_symlink():
                files.unlink(link)
        files.rmdir(Path(directory))


def _raise(error: OSError) -> NoReturn:
    raise error
