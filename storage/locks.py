"""The writer's lock: held by the kernel, so it is free the moment its holder is dead."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from storage.errors import ConflictError
from storage.location import Location, make_directories, reaching


@contextmanager
def writer_lock(lock_file: Location, what: str) -> Iterator[None]:
    """Hold the only right to write `what` while the block runs; never waits for it.

    Raises `ConflictError` that names the holder where another process, or another lock in this
    one, has it.
    """
    path = lock_file.path
    with reaching("lock", path):
        make_directories(path.parent)
        lock = FileLock(path, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            raise ConflictError(
                f"{what} is being written by {_holder(path)}. Wait for it, or stop it."
            ) from None
    try:
        _sign(path)
        yield
    finally:
        lock.release()


def _sign(path: Path) -> None:
    """Leave word of who holds the lock; the lock holds without it, on a full disk say."""
    holder = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:3]]),
    }
    with suppress(OSError), open(path, "w") as file:
        json.dump(holder, file)


def _holder(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            holder = json.loads(file.read(4096))
        return (
            f"process {int(holder['process'])} on {str(holder['host'])[:80]} "
            f"since {str(holder['since'])[:40]}"
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
