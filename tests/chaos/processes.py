"""Start real processes of the commands, wait until they hold their lock, and end them."""

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
"""Seconds after which a process counts as hanging."""


@dataclass(frozen=True)
class Command:
    """A command's arguments and its lock file."""

    arguments: tuple[str, ...]
    lock: Path


@dataclass(frozen=True)
class Work:
    """The duration of an undisturbed command in seconds."""

    start_up: float
    """Seconds from its start until it holds the lock."""
    writing: float
    """Seconds from then until its end."""


@contextmanager
def started(
    command: Command, *module: str, env: dict[str, str] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """Start the command in a new process, which is killed at the end of the block.

    It is run by `pipeline` or by another `module`, given with the arguments that come first.
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
    """Wait for the end of a process."""
    out, err = process.communicate(timeout=GIVEN_UP)
    return Ended(process.returncode, out, err)


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> bool:
    """Wait for a condition; return False if the process ended before."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.001)  # only to leave the processor to that process
    return True


def wait_for_lock(process: "subprocess.Popen[str]", command: Command) -> bool:
    """Wait until the process holds its lock; return False if it has ended."""
    return wait_for(lambda: holder(command.lock) == process.pid, process)


def wait_at_work(process: "subprocess.Popen[str]", command: Command, seconds: float) -> None:
    """Wait until the process has held its lock for some seconds; raise if it ended before."""
    if not wait_for_lock(process, command) or has_ended(process, seconds):
        raise TooLateError(command.arguments[0])


def holder(lock: Path) -> int | None:
    """Return the process that a lock file names, if any."""
    try:
        return int(json.loads(lock.read_bytes())["process"])
    except (OSError, ValueError):
        return None


def is_held(lock: Path) -> bool:
    """Return whether any process holds a lock, regardless of its file's content."""
    try:
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def measure(command: Command) -> Work:
    """Run the command undisturbed and measure its duration."""
    began = time.monotonic()
    with started(command) as process:
        assert wait_for_lock(process, command)
        locked = time.monotonic()
        result = ended(process)
    assert result.code == 0, result.err
    return Work(locked - began, time.monotonic() - locked)


def end_at(process: "subprocess.Popen[str]", moment: float, number: int) -> bool:
    """Send a signal after `moment` seconds; return False if the process ended before."""
    if has_ended(process, moment):
        return False
    process.send_signal(number)
    return True


def forks(process: int) -> list[int]:
    """Return the running children that a process's main thread forked."""
    try:
        return [*map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())]
    except FileNotFoundError:
        return []


def has_ended(process: "subprocess.Popen[str]", seconds: float = 0) -> bool:
    """Return whether a process ends within some seconds."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


@contextmanager
def paused(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Pause the process while the block runs."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
