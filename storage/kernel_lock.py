"""The writer's lock on a local disk, which the kernel frees when its holder dies."""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from storage.errors import ConflictError, LockedError, UsageError, translate_os_errors
from storage.events import local_time
from storage.files import check_regular, make_directories
from storage.location import Lock, TakeOver

SIGNATURE_TRIES = 50
"""Attempts, 10 ms apart, to read the signature of a holder that has just taken the lock."""
SIGNATURE_BYTES = 4096
UNKNOWN = "another process"
"""The description of a holder whose signature cannot be read."""


class _KernelLock(Lock):
    def __init__(self, path: Path, subject: str) -> None:
        self.retired = False
        self._path = path.absolute()
        self._subject = subject
        self._file = _identity(path)

    def check(self) -> None:
        """Raise `ConflictError` if the lock file was removed or replaced."""
        if self._file is not None and self._file != _identity(self._path):
            raise ConflictError(
                f"{self._subject} was moved or removed while it was being written: {self._path} is "
                "no longer this process's lock. Nothing more is written there."
            )

    def retire(self) -> None:
        # The file is removed before the lock is free: no process can lock a removed file.
        self.retired = True

    def end(self) -> None:
        """Empty the file, or remove it if retired, unless another process has replaced it."""
        with suppress(ConflictError, OSError):
            self.check()
            if self.retired:
                self._path.unlink()
            else:
                _write(self._path, b"")
        self._file = None


def _identity(path: Path) -> tuple[int, int] | None:
    """Return a file's device and inode; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def kernel_lock(path: Path, subject: str, take_over: TakeOver | None) -> Iterator[Lock]:
    """Hold the exclusive right to write `subject`, without waiting; see `Location.writer_lock`.

    The lock file names the holder, and remains unless the lock is retired. Raises `LockedError` if
    another process, or another lock in this one, holds it: such a holder is alive, so `take_over`
    changes nothing. Raises `UsageError` if the file is a link, a pipe or a device.
    """
    file_lock = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    with translate_os_errors("lock", path):
        make_directories(path.parent)
        if path.is_symlink():
            raise UsageError(f"The lock file {path} is a link. Remove it, or choose another place.")
        check_regular(path, f"The lock file is {path}")
        _acquire(file_lock, path, subject, take_over)
    lock = _KernelLock(path, subject)
    try:
        _write(path, json.dumps(signature()).encode())
        yield lock
    except Exception:
        lock.check()  # raises if the directory was moved or removed: that is the cause
        raise
    finally:
        lock.end()
        file_lock.release()


def kernel_lock_holder(path: Path) -> str | None:
    """Return the description of the process that holds a lock; None if it is free."""
    with translate_os_errors("read", path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # freed when it is closed
        except BlockingIOError:
            return holder_named_by(os.read(descriptor, SIGNATURE_BYTES)) or UNKNOWN
        finally:
            os.close(descriptor)
    return None


def _acquire(lock: BaseFileLock, path: Path, subject: str, take_over: TakeOver | None) -> None:
    """Take the lock, or raise `LockedError` that names the holder."""
    holder = None
    for attempt in range(SIGNATURE_TRIES):
        try:
            lock.acquire()
            return
        except Timeout:
            with suppress(OSError), open(path, "rb") as file:
                holder = holder_named_by(file.read(SIGNATURE_BYTES))
        if holder and attempt:  # `kernel_lock_holder` of another process holds it for an instant
            break
        time.sleep(0.01)
    if holder is None and not path.exists():
        raise OSError(errno.EACCES, "no file can be created there", str(path))
    living = "" if take_over is None else " It is alive, so its lock cannot be taken over."
    holder = holder or UNKNOWN
    raise LockedError(
        f"{subject} is being written by {holder}. Wait for it, or stop it.{living}", holder
    )


def _write(path: Path, content: bytes) -> None:
    """Write a signature to the lock file; the lock holds without it, as on a full disk."""
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        file.write(content)


def signature() -> dict[str, Any]:
    """Return the description of this process that its locks contain.

    It omits the command's options, which may hold secrets.
    """
    name, *words = sys.argv
    command = [Path(name).name, *(word for word in words[:1] if word[:1] != "-")]
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(command),
    }


def holder_named_by(content: bytes) -> str | None:
    """Return the description of a lock's holder; None if there is no valid signature."""
    try:
        signed: Any = json.loads(content)
        process, host = int(signed["process"]), str(signed["host"])[:80]
        since, command = local_time(str(signed["since"])[:40]), str(signed.get("command", ""))[:80]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    return f"process {process} on {host} since {since}" + (f" ({command})" if command else "")
