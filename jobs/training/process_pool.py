"""A pool of processes that compute on shared memory: this one and its forks.

Threads would contend for the interpreter's lock. A micro-batch is about thirty short NumPy calls,
and each of them releases and reacquires the lock. Four threads had half the speed of four
processes.
"""

import gc
import logging
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.synchronize import Semaphore
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from storage.location import Closing

logger = logging.getLogger(__name__)

Task: TypeAlias = Sequence[float]
"""A task for a process, as at most `MOST_NUMBERS` numbers."""
Reply: TypeAlias = Sequence[float]
"""A task's result, as at most `MOST_NUMBERS` numbers."""

MOST_NUMBERS = 8
SPINS = 2_000
"""Polls of about 0.1 us each before a process sleeps; waking it takes about 25 us."""
PATIENCE = 0.25
"""Seconds of sleep after which a process checks that the other one is still alive."""
STUCK_SECONDS, STUCK_TIMES = 60.0, 20.0
"""A process is stuck if it takes this long, plus this many times as long as the owner."""
MOST_DESCRIPTORS = 65_536
FORKS = hasattr(os, "fork") and sys.platform != "darwin"
"""Whether a fork can compute: on macOS system libraries such as BLAS may hang in one."""
PROCESS_MEMORY = 16 * 2**20
"""Bytes that a forked process needs in addition to arrays."""


def shared_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array of zeros in memory that this process shares with its forks.

    The memory has no name that could be left behind: it is freed with the last process.
    """
    count = int(np.prod(shape))
    memory = mmap.mmap(-1, max(1, count * np.dtype(dtype).itemsize))
    return np.frombuffer(memory, dtype, count).reshape(shape)


class ProcessPool(Closing):
    """Computes tasks in parallel, in this process and in forks that share its earlier arrays."""

    def __init__(self, work: Callable[[Task], Reply], size: int) -> None:
        """Fork `size` - 1 processes, which compute tasks with `work` as this one does.

        A repeated task must have the same result: the task of a process that died is repeated.
        """
        self._work = work
        self._others: list[_Process] = []
        forks = size - 1 if FORKS else 0
        with suppress(OSError):  # the system has no more processes or semaphores
            for _ in range(forks):
                self._others.append(_Process(work))
        self._warn(forks - len(self._others))

    @property
    def process_numbers(self) -> list[int]:
        """The process identifiers of the forks that are alive."""
        return [process.number for process in self._others if process.is_alive()]

    def run(self, tasks: Sequence[Task]) -> list[Reply]:
        """Return the replies to one task or more, in order.

        This process computes the last task, and then those that no fork has begun. On a busy
        machine a fork may wait long for a core. A fork that takes far longer than this process did
        is stopped or stuck. It is killed, and its task computed here.
        """
        assigned = list(zip(self._others, tasks[:-1], strict=False))
        for process, task in assigned:
            process.begin(task)
        began = time.monotonic()
        own_replies = [self._work(task) for task in tasks[len(assigned) :]]
        limit = STUCK_SECONDS + STUCK_TIMES * (time.monotonic() - began)
        replies = []
        for process, task in assigned:
            reply = None if process.take_back() else process.reply(limit)
            replies.append(self._work(task) if reply is None else reply)
            if reply is None and not process.is_alive():
                self._others.remove(process)
                self._warn(1)
        return [*replies, *own_replies]

    def _warn(self, missing: int) -> None:
        if missing:
            logger.warning(
                "Processes that compute gradients were killed or could not be started: %d. The "
                "others do their part: training is slower, with the same result.",
                missing,
            )

    def close(self) -> None:
        """Kill the forks; no data is lost."""
        for process in self._others:
            process.end()


class _Process:
    """A forked process of the pool."""

    def __init__(self, work: Callable[[Task], Reply]) -> None:
        context = get_context("fork")
        self._requested: Semaphore = context.Semaphore(0)
        self._done: Semaphore = context.Semaphore(0)
        self._letter = shared_array((1 + MOST_NUMBERS,), np.float64)
        self._parent = os.getpid()
        self.number = os.fork()
        """The process identifier; 0 once the process has ended."""
        if not self.number:
            self._serve(work)

    def begin(self, task: Task) -> None:
        """Give the process a task."""
        self._write(task)
        self._requested.release()

    def take_back(self) -> bool:
        """Cancel the task if the process has not begun it; return whether it was cancelled."""
        return self._requested.acquire(False)

    def reply(self, limit: float) -> Reply | None:
        """Return the task's reply; None if the process died, or is killed after `limit` s."""
        end = time.monotonic() + limit

        def is_working() -> bool:
            if time.monotonic() > end:
                self.end()
            return self.is_alive()

        return self._read() if _wait(self._done, is_working) else None

    def end(self) -> None:
        """Kill the process; harmless when called again."""
        if self.is_alive():
            os.kill(self.number, signal.SIGKILL)
            with suppress(ChildProcessError):  # see `is_alive`
                os.waitpid(self.number, 0)
            self.number = 0

    def _write(self, numbers: Task | Reply) -> None:
        self._letter[0] = len(numbers)
        self._letter[1 : 1 + len(numbers)] = numbers

    def _read(self) -> list[float]:
        count = int(self._letter[0])
        numbers: list[float] = self._letter[1 : 1 + count].tolist()
        return numbers

    def is_alive(self) -> bool:
        """Return whether the process is alive."""
        if self.number:
            try:
                ended, _ = os.waitpid(self.number, os.WNOHANG)
            except ChildProcessError:  # SIGCHLD is ignored or handled elsewhere: it has ended
                ended = self.number
            if ended:
                self.number = 0
        return bool(self.number)

    def _serve(self, work: Callable[[Task], Reply]) -> None:
        """Compute tasks in the fork until the parent has ended. Never returns."""
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # the parent handles them
            gc.disable()  # finalizers of inherited objects must not run here
            os.closerange(0, MOST_DESCRIPTORS)  # locks and pipes must close with their owner
            while _wait(self._requested, lambda: os.getppid() == self._parent):
                self._write(work(self._read()))
                self._done.release()
        finally:
            os._exit(1)


def _wait(semaphore: Semaphore, is_other_alive: Callable[[], bool]) -> bool:
    """Wait for the other process, at first by polling; return False if it has ended."""
    for _ in range(SPINS):
        if semaphore.acquire(False):
            return True
    while not semaphore.acquire(True, PATIENCE):
        if not is_other_alive():
            return semaphore.acquire(False)
    return True
