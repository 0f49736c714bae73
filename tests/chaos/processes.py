"""Real processes of the commands, watched for the moment from which they may write, and ended."""

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.tally import TooLateError
from tests.commands.process import MODULE, REPOSITORY, Ended, start_pipeline

GIVEN_UP = 300.0
"""Seconds after which a process that should have ended is a failure: it hangs."""


@dataclass(frozen=True)
class Command:
    """A command's arguments, and the file of the lock that it writes under."""

    arguments: tuple[str, ...]
    lock: Path


@dataclass(frozen=True)
class Work:
    """How long a command takes where nothing disturbs it, in seconds."""

    start_up: float
    """From its start to its lock."""
    writing: float
    """From its lock to its end."""


@contextmanager
def started(
    command: Command, *module: str, env: dict[str, str] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """The command in a new process, which does not outlive the block.

    It is `pipeline`'s or, where one is named, that of another module with the arguments it takes
    before the command's.
    """
    process = start_pipeline(*command.arguments, cwd=REPOSITORY, env=env, module=module or MODULE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(command: Command) -> Ended:
    """Run the command to its end."""
    with started(command) as process:
        return ended(process)


def ended(process: "subprocess.Popen[str]") -> Ended:
    """Wait for a process's end."""
    out, err = process.communicate(timeout=GIVEN_UP)
    return Ended(process.returncode, out, err)


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> bool:
    """Wait until something has come true; False where the process has ended before it."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.001)  # lets the process work meanwhile; nothing depends on how long
    return True


def wait_for_lock(process: "subprocess.Popen[str]", command: Command) -> bool:
    """Wait until the process holds its lock; False where it has ended without, or after it."""
    return wait_for(lambda: holder(command.lock) == process.pid, process)


def wait_at_work(process: "subprocess.Popen[str]", command: Command, seconds: float) -> None:
    """Let the process work for so many seconds from its lock on; it is not to end before."""
    if not wait_for_lock(process, command) or has_ended(process, seconds):
        raise TooLateError(command.arguments[0])


def holder(lock: Path) -> int | None:
    """The process that a lock file names, if any."""
    try:
        return int(json.loads(lock.read_bytes())["process"])
    except (OSError, ValueError):
        return None


def is_held(lock: Path) -> bool:
    """Whether any process holds a lock, whatever its file says."""
    try:
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def measure(command: Command) -> Work:
    """Run the command undisturbed to see how long it takes."""
    began = time.monotonic()
    with started(command) as process:
        assert wait_for_lock(process, command)
        locked = time.monotonic()
        found = ended(process)
    assert found.code == 0, found.err
    return Work(locked - began, time.monotonic() - locked)


def end_at(process: "subprocess.Popen[str]", moment: float, number: int) -> bool:
    """Send a signal after so many seconds; False where the process has ended before."""
    if has_ended(process, moment):
        return False
    process.send_signal(number)
    return True


def forks(process: int) -> list[int]:
    """The processes that a process's main thread has forked and that have not ended."""
    try:
        return [*map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())]
    except FileNotFoundError:
        return []


def has_ended(process: "subprocess.Popen[str]", seconds: float = 0) -> bool:
    """Whether a process has ended; it is let go on for so many seconds."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


@contextmanager
def held_still(process: "subprocess.Popen[str]") -> Iterator[None]:
    """The process stands still, wherever it is, while the block runs."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
