"""A pool of processes that work in step on memory they share: this one and its forks.

Threads would do if the interpreter's lock let them: a micro-batch is some thirty short NumPy
calls, each of which lets the lock go and has to win it back from the others. Four threads came to
half the speed of four processes.
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
"""What to do, in at most `MOST_NUMBERS` numbers."""
Reply: TypeAlias = Sequence[float]
"""What came of it, in as many."""

MOST_NUMBERS = 8
SPINS = 2_000
"""Tries, of some 0.1 us each, before a process goes to sleep: being woken takes some 25 us."""
PATIENCE = 0.25
"""Seconds of sleep after which a process looks whether the other one is still alive."""
STUCK_SECONDS, STUCK_TIMES = 60.0, 20.0
"""A process that takes so long, and so many times as long as the owner, is stuck."""
MOST_DESCRIPTORS = 65_536
FORKS = hasattr(os, "fork") and sys.platform != "darwin"
"""Whether a fork can compute: on macOS the system's libraries, BLAS among them, may hang in one."""
PROCESS_MEMORY = 16 * 2**20
"""What a forked process has of its own apart from arrays, in bytes."""


def shared_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array of zeros that forks of this process write to and read from as well.

    It has no name that could be left behind: it is gone with the last process that has it.
    """
    count = int(np.prod(shape))
    memory = mmap.mmap(-1, max(1, count * np.dtype(dtype).itemsize))
    return np.frombuffer(memory, dtype, count).reshape(shape)


class ProcessPool(Closing):
    """Does tasks side by side. It is forked when made, and shares what was mapped before."""

    def __init__(self, work: Callable[[Task], Reply], size: int) -> None:
        """`size` processes, the calling one among them, that each can `work` at a task.

        A task must give the same when it is done twice: that of a process which died is done anew.
        """
        self._work = work
        self._others: list[_Process] = []
        wanted = size - 1 if FORKS else 0
        with suppress(OSError):  # where the system gives no more processes or semaphores
            for _ in range(wanted):
                self._others.append(_Process(work))
        self._warn(wanted - len(self._others))

    @property
    def process_numbers(self) -> list[int]:
        """Those of the forks that are alive."""
        return [process.number for process in self._others if process.is_there()]

    def run(self, tasks: Sequence[Task]) -> list[Reply]:
        """Return the replies to at least one task, in order; the last is done in this process.

        So is any other that no process has begun by then: on a busy machine a process may wait for
        long until a core is free for it. A process that takes far longer than this one did is
        stopped or stuck: it is ended, and its task done here.
        """
        helped = list(zip(self._others, tasks[:-1], strict=False))
        for process, task in helped:
            process.begin(task)
        began = time.monotonic()
        own_replies = [self._work(task) for task in tasks[len(helped) :]]
        limit = STUCK_SECONDS + STUCK_TIMES * (time.monotonic() - began)
        replies = []
        for process, task in helped:
            reply = None if process.take_back() else process.reply(limit)
            replies.append(self._work(task) if reply is None else reply)
            if reply is None and not process.is_there():
                self._others.remove(process)
                self._warn(1)
        return [*replies, *own_replies]

    def _warn(self, missing: int) -> None:
        if missing:
            logger.warning(
                "Processes that compute gradients are missing (%d): killed, or never given by the "
                "system. The others do their part: the bits are the same, it takes longer.",
                missing,
            )

    def close(self) -> None:
        """End the other processes, which hold nothing that could be lost."""
        for process in self._others:
            process.end()


class _Process:
    """One forked process, as the pool sees it."""

    def __init__(self, work: Callable[[Task], Reply]) -> None:
        context = get_context("fork")
        self._asked: Semaphore = context.Semaphore(0)
        self._done: Semaphore = context.Semaphore(0)
        self._letter = shared_array((1 + MOST_NUMBERS,), np.float64)
        self._parent = os.getpid()
        self.number = os.fork()
        """0 once the process has ended."""
        if not self.number:
            self._serve(work)

    def begin(self, task: Task) -> None:
        """Have the process do a task."""
        self._write(task)
        self._asked.release()

    def take_back(self) -> bool:
        """Take the task back, where the process has not begun it."""
        return self._asked.acquire(False)

    def reply(self, limit: float) -> Reply | None:
        """Return the task's reply; None where the process died, or is ended after `limit` s."""
        end = time.monotonic() + limit

        def is_at_work() -> bool:
            if time.monotonic() > end:
                self.end()
            return self.is_there()

        return self._read() if _wait(self._done, is_at_work) else None

    def end(self) -> None:
        """End the process; harmless when called again."""
        if self.is_there():
            os.kill(self.number, signal.SIGKILL)
            with suppress(ChildProcessError):  # see `is_there`
                os.waitpid(self.number, 0)
            self.number = 0

    def _write(self, numbers: Task | Reply) -> None:
        self._letter[0] = len(numbers)
        self._letter[1 : 1 + len(numbers)] = numbers

    def _read(self) -> list[float]:
        count = int(self._letter[0])
        numbers: list[float] = self._letter[1 : 1 + count].tolist()
        return numbers

    def is_there(self) -> bool:
        """Return whether the process is alive."""
        if self.number:
            try:
                ended, _ = os.waitpid(self.number, os.WNOHANG)
            except ChildProcessError:  # SIGCHLD is ignored or handled elsewhere: it is gone
                ended = self.number
            if ended:
                self.number = 0
        return bool(self.number)

    def _serve(self, work: Callable[[Task], Reply]) -> None:
        """Do tasks, as the forked process, until the one that forked it is gone. Never returns."""
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # they are the forking process's to handle
            gc.disable()  # finalizers of objects that were copied along are not to run here
            os.closerange(0, MOST_DESCRIPTORS)  # locks and pipes are to close with their owner
            while _wait(self._asked, lambda: os.getppid() == self._parent):
                self._write(work(self._read()))
                self._done.release()
        finally:
            os._exit(1)


def _wait(semaphore: Semaphore, is_other_there: Callable[[], bool]) -> bool:
    """Wait for the other process, wide awake at first; return whether it came."""
    for _ in range(SPINS):
        if semaphore.acquire(False):
            return True
    while not semaphore.acquire(True, PATIENCE):
        if not is_other_there():
            return semaphore.acquire(False)
    return True
