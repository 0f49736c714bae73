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
from array import array
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
Meet: TypeAlias = Callable[[], None]
"""Waits in a task until all processes have come as far; see `ProcessPool.meet`."""
Work: TypeAlias = Callable[[Task, Meet], Reply]
"""Computes a task."""

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

    def __init__(self, work: Work, size: int) -> None:
        """Fork `size` - 1 processes, which compute tasks with `work`.

        A repeated task must have the same result: the task of a process that died is repeated.
        """
        self._work = work
        self._others: list[_Process] = []
        self._busy: dict[int, _Process] = {}
        """Who computes the tasks given by `begin`, by their number."""
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

        This process computes the last task, and then those that no fork has finished.
        """
        self.begin(tasks[:-1])
        begun = len(self._busy)
        own_replies = [self._work(task, _alone) for task in tasks[begun:]]
        others_replies = [
            self._work(tasks[number], _alone) if reply is None else reply
            for number, reply in self.finish().items()
        ]
        return [*others_replies, *own_replies]

    def __len__(self) -> int:
        """Return the number of forks that are alive, as far as is known."""
        return len(self._others)

    def begin(self, tasks: Sequence[Task]) -> None:
        """Give the forks tasks, at most one each; then do a part here.

        In each of these tasks `meet` is called as often as here.
        """
        self._began = time.monotonic()
        self._busy = dict(enumerate(self._others[: len(tasks)]))
        for number, process in self._busy.items():
            process.begin(tasks[number])

    def gather(self) -> list[int]:
        """Wait until the forks meet; return the numbers of the tasks that none is computing.

        A fork may have died, or have no core to begin. The others wait until `proceed` is called.
        """
        limit = self._limit()
        missing = [
            number
            for number, process in self._busy.items()
            if process.take_back() or not process.has_come(limit)
        ]
        for number in missing:
            self._remove_dead(self._busy.pop(number))
        return missing

    def proceed(self) -> None:
        """Let the processes that have met continue."""
        for process in self._busy.values():
            process.let_go()

    def finish(self) -> dict[int, Reply | None]:
        """Wait for the end of the tasks; return each one's reply, None if its fork has died.

        On a busy machine a fork may wait long for a core: a task not begun is cancelled too. A
        fork that takes far longer than this process did is stopped or stuck, and killed.
        """
        limit, replies = self._limit(), {}
        for number, process in self._busy.items():
            reply = None if process.take_back() else process.reply(limit)
            replies[number] = reply
            if reply is None:
                self._remove_dead(process)
        self._busy = {}
        return replies

    def _limit(self) -> float:
        """Return the seconds to wait for a fork, after this process has done its part."""
        return STUCK_SECONDS + STUCK_TIMES * (time.monotonic() - self._began)

    def _remove_dead(self, process: "_Process") -> None:
        if not process.is_alive():
            self._others.remove(process)
            self._warn(1)

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

    def __init__(self, work: Work) -> None:
        context = get_context("fork")
        self._requested: Semaphore = context.Semaphore(0)
        self._come: Semaphore = context.Semaphore(0)
        self._gone: Semaphore = context.Semaphore(0)
        self._done: Semaphore = context.Semaphore(0)
        self._letter = shared_array((1 + MOST_NUMBERS,), np.float64).data
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
        return self._read() if self._wait_for(self._done, limit) else None

    def has_come(self, limit: float) -> bool:
        """Wait until the process meets; False if it died, or is killed after `limit` s."""
        return self._wait_for(self._come, limit)

    def let_go(self) -> None:
        """Let the process continue after it has met."""
        self._gone.release()

    def _wait_for(self, semaphore: Semaphore, limit: float) -> bool:
        end = time.monotonic() + limit

        def is_working() -> bool:
            if time.monotonic() > end:
                self.end()
            return self.is_alive()

        return _wait(semaphore, is_working)

    def _meet(self) -> None:
        """Wait in the fork until its owner has met all processes."""
        self._come.release()
        if not _wait(self._gone, self._has_owner):
            os._exit(1)

    def _has_owner(self) -> bool:
        return os.getppid() == self._parent

    def end(self) -> None:
        """Kill the process; harmless when called again."""
        if self.is_alive():
            os.kill(self.number, signal.SIGKILL)
            with suppress(ChildProcessError):  # see `is_alive`
                os.waitpid(self.number, 0)
            self.number = 0

    def _write(self, numbers: Task | Reply) -> None:
        self._letter[: 1 + len(numbers)] = array("d", (len(numbers), *numbers))

    def _read(self) -> Task | Reply:
        return self._letter[1 : 1 + int(self._letter[0])].tolist()

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

    def _serve(self, work: Work) -> None:
        """Compute tasks in the fork until the parent has ended. Never returns."""
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # the parent handles them
            gc.disable()  # finalizers of inherited objects must not run here
            os.closerange(0, MOST_DESCRIPTORS)  # locks and pipes must close with their owner
            while _wait(self._requested, self._has_owner):
                self._write(work(self._read(), self._meet))
                self._done.release()
        finally:
            os._exit(1)


def _alone() -> None:
    """Meet no other process."""


def _wait(semaphore: Semaphore, is_other_alive: Callable[[], bool]) -> bool:
    """Wait for the other process, at first by polling; return False if it has ended."""
    for _ in range(SPINS):
        if semaphore.acquire(False):
            return True
    while not semaphore.acquire(True, PATIENCE):
        if not is_other_alive():
            return semaphore.acquire(False)
    return True
