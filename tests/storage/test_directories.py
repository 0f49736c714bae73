"""Local directories and files, and the translation of the system's errors."""

import errno
import os
import resource
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import (
    BadDataError,
    PipelineError,
    UnreachableError,
    UsageError,
    as_pipeline_error,
    causes,
)
from storage.files import check_room, file_to_write
from storage.local import LocalLocation


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (OSError(errno.ENAMETOOLONG, "too long", "x"), UsageError),
        (OSError(errno.ENOSPC, "full"), UnreachableError),
        (PermissionError(errno.EACCES, "no", "x"), UnreachableError),
        (MemoryError(), UnreachableError),
        (RecursionError(), BadDataError),
        (UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "no"), UsageError),
        (UsageError("Said already."), UsageError),
    ],
)
def test_refusals(error: Exception, error_type: type[PipelineError]) -> None:
    """An operating system's error becomes one with an exit code and a printable message."""
    translated = as_pipeline_error(error)
    assert type(translated) is error_type
    assert str(translated).endswith(".")
    str(translated).encode()


def wrapped(error: Exception) -> Exception:
    """Return a failed import, as NumPy raises it if it cannot load its libraries."""
    translated = ImportError("Importing the numpy C-extensions failed.")
    translated.__cause__ = error
    return translated


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (OSError(errno.EMFILE, "Too many open files", "x"), "ulimit -n"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "ulimit -v"),
        (MemoryError(), "ulimit -v"),
        (wrapped(ImportError("libx.so: failed to map segment from shared object")), "ulimit -v"),
        (wrapped(ImportError("libx.so: cannot open: Too many open files")), "ulimit -n"),
    ],
)
def test_shortages(error: Exception, limit: str) -> None:
    """An exhausted resource is named with its limit, and exits with 6."""
    translated = as_pipeline_error(error)
    assert isinstance(translated, UnreachableError)
    assert limit in str(translated)


@pytest.mark.parametrize("length", [1, 2])
def test_errors_that_are_their_own_causes(length: int) -> None:
    """A circle of causes, as `raise error from error` creates, ends."""
    errors = [ValueError(number) for number in range(length)]
    for error, cause in zip(errors, [*errors[1:], errors[0]], strict=True):
        error.__cause__ = cause
    assert as_pipeline_error(errors[0]) is None
    assert errors == list(causes(errors[0]))


def test_room() -> None:
    """The check's threads and files are closed afterwards."""
    before, threads = os.listdir("/proc/self/fd"), os.listdir("/proc/self/task")
    check_room(threads=30, open_files=9)
    assert set(threads) >= set(os.listdir("/proc/self/task"))
    with pytest.raises(UnreachableError, match="ulimit -n"):
        check_room(threads=0, open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    assert len(before) == len(os.listdir("/proc/self/fd"))


SPECIAL = ("directory", "pipe", "socket", "device", "dangling link", "link to a pipe", "loop")


def make_special(path: Path, special: str) -> None:
    """Create something other than a regular file; a device is the test's own."""
    match special:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                here = os.getcwd()
                os.chdir(path.parent)  # a socket's path has at most 107 bytes
                bound.bind(path.name)
                os.chdir(here)
        case "device":
            try:
                os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
            except PermissionError:
                pytest.skip("only root may make a device node")
        case "dangling link":
            path.symlink_to("absent")
        case "link to a pipe":
            os.mkfifo(path.with_name("pipe"))
            path.symlink_to("pipe")
        case "loop":
            path.symlink_to(path.name)


@pytest.mark.parametrize("special", SPECIAL)
def test_special_files_are_never_replaced(special: str, tmp_path: Path) -> None:
    """Anything but a regular file is refused, by the check before the work and by the write."""
    place = tmp_path / "place"
    make_special(place, special)
    before = place.lstat()
    with pytest.raises(UsageError, match=f"--out is {place}"):
        file_to_write(place, "--out")
    with pytest.raises(UsageError, match=r"(C|c)hoose another place"):
        LocalLocation(tmp_path).put("place", b"data")
    assert (before.st_ino, before.st_mode) == (place.lstat().st_ino, place.lstat().st_mode)


@pytest.mark.parametrize("place", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_streams_are_refused(place: str) -> None:
    """A path that names a process's stream is refused."""
    with pytest.raises(UsageError, match="a stream of a process"):
        file_to_write(Path(place), "--out")


def test_a_link_to_a_file(tmp_path: Path) -> None:
    """Writing through a link writes its target."""
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    assert tmp_path / "file" == file_to_write(tmp_path / "link", "--out")
    LocalLocation(tmp_path).put("link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert b"new" == (tmp_path / "file").read_bytes()


WRITER = """
import os, sys
from pathlib import Path
from storage.local import LocalLocation

with LocalLocation(Path(sys.argv[1])).open_for_writing("o.csv") as write:
    write(b"half")
    print(flush=True)
    sys.stdin.read()
"""


def test_partial_files_of_dead_writers(tmp_path: Path) -> None:
    """A live writer keeps its partial file; after a kill the next writer removes it."""
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    (tmp_path / f".other.csv.{'0' * 32}.tmp").touch()
    with subprocess.Popen(command, **pipes) as writer:  # type: ignore[call-overload]
        writer.stdout.readline()
        (partial,) = tmp_path.glob(".o.csv.*.tmp")
        os.utime(partial, (0, 0))
        LocalLocation(tmp_path).sweep_partial("o.csv")
        assert partial.exists()
        writer.kill()
    LocalLocation(tmp_path).sweep_partial("o.csv")
    assert [f".other.csv.{'0' * 32}.tmp"] == os.listdir(tmp_path)


@pytest.mark.parametrize("place", ["file/.lock", "file/run/.lock", "loop/.lock", "loop/run/.lock"])
def test_a_file_in_place_of_a_directory(place: str, tmp_path: Path) -> None:
    """A file in the way, or a loop of links, is a usage error: retrying would not help."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    lock = LocalLocation(tmp_path / place).writer_lock("it", None)
    with pytest.raises(UsageError, match=r"(file|loop) is not a directory\. Choose"), lock:
        pytest.fail("a lock below a regular file")
