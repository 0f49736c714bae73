"""A pool of processes: order, shared memory, deaths, and cleaning up."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jobs.training import process_pool as pool_module
from jobs.training.process_pool import PATIENCE, Meet, ProcessPool, Reply, Task, shared_array
from storage.places import open_location

OWNER = """
import os, sys
from jobs.training.process_pool import ProcessPool, shared_array
from storage.places import open_location
with open_location(sys.argv[1]).writer_lock("The run"):
    begun = shared_array((3,), int)
    def begin(task, meet):
        begun[int(task[0])] = 1
        while not begun.all():
            os.sched_yield()
        return ()
    pool = ProcessPool(begin, 3)
    pool.run([(0,), (1,), (2,)])
    print(*pool.process_numbers, flush=True)
    sys.stdin.read()
"""


def doubled(task: Task, meet: Meet) -> Reply:
    """Double each number."""
    return [2 * number for number in task]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_replies_are_in_order(size: int) -> None:
    """Replies have the order of the tasks, for any number of tasks up to the processes."""
    with ProcessPool(doubled, size) as pool:
        for count in range(1, size + 3):
            tasks = [tuple(range(number)) for number in range(count)]
            expected = [[2 * value for value in task] for task in tasks]
            assert expected == [list(reply) for reply in pool.run(tasks)]


def test_memory_is_shared() -> None:
    """All processes share arrays, and each task runs in its own process."""
    places = shared_array((3,), np.int64)

    def sign(task: Task, meet: Meet) -> Reply:
        places[int(task[0])] = os.getpid()
        while not places.all():  # or the owner would compute the others' tasks as well
            os.sched_yield()
        return ()

    with ProcessPool(sign, 3) as pool:
        assert [[], [], []] == [list(reply) for reply in pool.run([(0,), (1,), (2,)])]
        assert [*pool.process_numbers, os.getpid()] == places.tolist()


def test_a_task_of_a_dead_process_is_done_by_its_owner() -> None:
    """If a process is killed before or during a task, all replies are still returned."""
    owner, begun = os.getpid(), shared_array((14,), np.int64)

    def fatal(task: Task, meet: Meet) -> Reply:
        begun[int(task[0])] = 1
        if task[0] == 13 and os.getpid() != owner:
            os.kill(os.getpid(), signal.SIGKILL)
        while task[0] == 5 and not begun[13]:
            os.sched_yield()
        return doubled(task, meet)

    with ProcessPool(fatal, 3) as pool:
        killed = pool.process_numbers[0]
        os.kill(killed, signal.SIGKILL)
        os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
        for first in (1, 13, 2):
            begun[:] = 0 if first == 13 else 1
            replies = pool.run([(first,), (0,), (5,)])
            assert [[2 * first], [0], [10]] == [list(reply) for reply in replies]
        assert [] == pool.process_numbers


def test_a_task_that_is_not_begun_is_done_by_the_owner() -> None:
    """A fork without a core delays no task, and takes tasks again once it has one."""
    places = shared_array((2,), np.int64)

    def sign(task: Task, meet: Meet) -> Reply:
        places[int(task[0])] = os.getpid()
        return ()

    with ProcessPool(sign, 2) as pool:
        (fork,) = pool.process_numbers
        os.kill(fork, signal.SIGSTOP)
        os.waitid(os.P_PID, fork, os.WSTOPPED | os.WNOWAIT)
        for _ in range(3):
            pool.run([(0,), (1,)])
            assert [os.getpid(), os.getpid()] == places.tolist()
        os.kill(fork, signal.SIGCONT)
        while places[0] != fork:
            pool.run([(0,), (1,)])


def test_a_stuck_process_is_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fork that is stopped within its task delays its owner for a limited time only."""
    monkeypatch.setattr(pool_module, "STUCK_SECONDS", 0.1)
    owner, begun = os.getpid(), shared_array((1,), np.int64)

    def stop(task: Task, meet: Meet) -> Reply:
        if task[0] == 0 and os.getpid() != owner:
            begun[0] = 1
            os.kill(os.getpid(), signal.SIGSTOP)
        while task[0] == 1 and not begun[0]:
            os.sched_yield()
        return doubled(task, meet)

    with ProcessPool(stop, 2) as pool:
        assert [[0], [2]] == [list(reply) for reply in pool.run([(0,), (1,)])]
        assert [] == pool.process_numbers
        assert 1 == len(caplog.records)
        assert [[0], [2]] == [list(reply) for reply in pool.run([(0,), (1,)])]


def test_without_processes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A smaller pool returns the same replies."""
    fork, asked = os.fork, iter([True, False])

    def refused() -> int:
        if next(asked):
            return fork()
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    with ProcessPool(doubled, 4) as pool:
        assert 1 == len(pool.process_numbers)
        assert "could not be started: 2." in caplog.text
        replies = pool.run([(0,), (1,), (2,), (3,)])
        assert [[0], [2], [4], [6]] == [list(reply) for reply in replies]


def test_ignored_sigchld() -> None:
    """Dead processes are noticed even if SIGCHLD is ignored, as by some launchers."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with ProcessPool(doubled, 3) as pool:
            killed, _ = pool.process_numbers
            os.kill(killed, signal.SIGKILL)
            while killed in pool.process_numbers:
                os.sched_yield()
            assert [[0], [2], [4]] == [list(reply) for reply in pool.run([(0,), (1,), (2,)])]
            assert 1 == len(pool.process_numbers)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_an_error_is_raised_by_its_owner() -> None:
    """A task that fails ends the fork; the repetition in the owner raises the error."""
    with ProcessPool(lambda task, meet: [1 / task[0]], 2) as pool, pytest.raises(ZeroDivisionError):
        pool.run([(0,), (1,)])


def test_close_ends_the_processes() -> None:
    """After the block no fork is left, not even as a zombie."""
    with ProcessPool(doubled, 3) as pool:
        processes = pool.process_numbers
    assert 2 == len(processes)
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.slow
def test_forks_do_not_outlive_their_owner(tmp_path: Path) -> None:
    """The forks hold no file of the owner: when it is killed, its lock is free at once."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with owner:
        assert owner.stdout is not None
        forks = [int(number) for number in owner.stdout.readline().split()]
        assert 2 == len(forks)
        assert [[], []] == [os.listdir(f"/proc/{fork}/fd") for fork in forks]
        owner.kill()
    with open_location(tmp_path / "lock").writer_lock("The run"):
        pass
    deadline = time.monotonic() + 1200 * PATIENCE
    while any(Path(f"/proc/{fork}").exists() for fork in forks):
        assert time.monotonic() < deadline
        os.sched_yield()
