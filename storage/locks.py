"""The writer's lock: held by the kernel, so it is free the moment its holder is dead."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from storage.errors import ConflictError
from storage.location import Location, make_directories, reaching

SIGNATURE_TRIES = 50
"""How often to look for the signature of a holder that has yet to sign, 10 ms apart."""


@contextmanager
def writer_lock(lock_file: Location, what: str) -> Iterator[None]:
    """Hold the only right to write `what` while the block runs; never waits for it.

    The file itself stays, and says who holds it. Raises `ConflictError` that names the holder
    where another process, or another lock in this one, has it.
    """
    path = lock_file.path
    lock = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    with reaching("lock", path):
        make_directories(path.parent)
        _acquire(lock, path, what)
    try:
        _sign(path)
        yield
    finally:
        _write(path, b"")
        lock.release()


def _acquire(lock: BaseFileLock, path: Path, what: str) -> None:
    """Take the lock, or raise `ConflictError` that names who has it."""
    holder = None
    for _ in range(SIGNATURE_TRIES):
        try:
            lock.acquire()
            return
        except Timeout:
            holder = _holder(path)
        if holder:
            break
        time.sleep(0.01)
    raise ConflictError(
        f"{what} is being written by {holder or 'another process'}. Wait for it, or stop it."
    )


def _sign(path: Path) -> None:
    """Leave word of who holds the lock."""
    holder = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:3]]),
    }
    _write(path, json.dumps(holder).encode())


def _write(path: Path, signature: bytes) -> None:
    """Make the lock file hold a signature; the lock holds without it, on a full disk say."""
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        file.write(signature)


def _holder(path: Path) -> str | None:
    """Who has signed a lock file and may still live; None where there is no such signature."""
    try:
        with open(path, "rb") as file:
            holder = json.loads(file.read(4096))
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
