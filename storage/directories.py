"""Directories made and removed on this machine's disks, and the system's refusals told as ours."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage import files
from storage.errors import UnreachableError

REMEDY = {
    errno.ENOSPC: "free some space and run the same command again.",
    errno.EDQUOT: "free some space and run the same command again.",
    errno.EACCES: "check the permissions and run the same command again.",
    errno.EPERM: "check the permissions and run the same command again.",
    errno.EROFS: "choose a place that can be written, or remount it, and run again.",
    errno.EEXIST: "a file lies where a directory is needed: choose another place.",
    errno.ENOTDIR: "a file lies where a directory is needed: choose another place.",
}


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


def remove_tree(path: Path) -> None:
    """Remove a directory with all below it, or a file, or a link but not what it leads to."""
    if not path.is_dir() or path.is_symlink():
        with suppress(FileNotFoundError):
            files.unlink(path)
        return
    for entry in sorted(path.iterdir()):
        remove_tree(entry)
    files.rmdir(path)
