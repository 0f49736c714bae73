"""The writer's lock: held by the kernel, so it is free the moment its holder is dead."""

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

from storage.errors import ConflictError
from storage.location import Location, make_directories, reaching

SIGNATURE_TRIES = 50
"""How often to look for the signature of a holder that has yet to sign, 10 ms apart."""


@contextmanager
def writer_lock(lock_file: Location, what: str) -> Iterator[None]:
    """Hold the only right to write `what` while the block runs; never waits for it.

    It is the open file that the kernel locks (flock, 2): the file itself stays, and says who
    holds it. Raises `ConflictError` that names the holder where another process, or another lock
    in this one, has it.
    """
    path = lock_file.path
    with reaching("lock", path):
        make_directories(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with reaching("lock", path):
            _lock(descriptor, what)
        _sign(descriptor)
        try:
            yield
        finally:
            _erase(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, what: str) -> None:
    """Lock an open file, or raise `ConflictError` that names who has done so before."""
    holder = None
    for _ in range(SIGNATURE_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(descriptor)
        if holder:
            break
        time.sleep(0.01)
    raise ConflictError(
        f"{what} is being written by {holder or 'another process'}. Wait for it, or stop it."
    )


def _sign(descriptor: int) -> None:
    """Leave word of who holds the lock; the lock holds without it, on a full disk say."""
    holder = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:3]]),
    }
    _erase(descriptor)
    with suppress(OSError):
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _erase(descriptor: int) -> None:
    with suppress(OSError):
        os.ftruncate(descriptor, 0)


def _holder(descriptor: int) -> str | None:
    """Who has signed a lock file and may still live; None where there is no such signature."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        process, host, since = int(holder["process"]), str(holder["host"]), str(holder["since"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if host == socket.gethostname() and not _lives(process):
        return None  # a dead one's, whose successor has yet to sign
    return f"process {process} on {host[:80]} since {since[:40]}"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
