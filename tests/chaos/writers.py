"""One of two concurrent writers works, and the other's error names it; readers never wait.

The holder of the lock is paused while others run: if they waited for it, they would hang.
"""

import random
import re
import signal
import socket
from contextlib import ExitStack
from functools import partial

from storage.errors import PipelineError
from storage.places import open_location
from tests.chaos.processes import (
    ended,
    has_ended,
    is_held,
    paused,
    run,
    started,
    wait_at_work,
)
from tests.chaos.scene import JOBS, Job, Scene, experiment
from tests.chaos.tally import TooLateError
from tests.commands.process import Ended

RACERS = 3


def second_writer(name: str, scene: Scene, case: int, chance: random.Random) -> str:
    """While one job writes, a second is refused and readers can read; its death frees the lock."""
    killed = chance.random() < 0.5
    with scene.job(name) as job:
        with started(job.command) as process:
            wait_at_work(process, job.command, chance.uniform(0, job.work.writing / 2))
            with paused(process):
                if not is_held(job.command.lock) or is_published(job):
                    raise TooLateError
                check_refused(run(job.command), process.pid)
                job.look()
                if killed:
                    process.send_signal(signal.SIGKILL)
            assert (-signal.SIGKILL if killed else 0) == ended(process).code
        job.look()
        job.finish()
    return "survived"


def is_published(job: Job) -> bool:
    """Return whether a job has published its result, although it may still hold its lock."""
    try:
        return job.read(open_location(job.target)) == job.expected
    except PipelineError:
        return False


def race(name: str, scene: Scene, case: int, chance: random.Random) -> str:
    """If several jobs start at once, some work and others are refused; the result is the same."""
    with scene.job(name) as job:
        with ExitStack() as stack:
            racers = [stack.enter_context(started(job.command)) for _ in range(RACERS)]
            results = [ended(process) for process in racers]
        processes = {process.pid for process in racers}
        losers = [one for one in results if one.code != 0]
        assert len(losers) < RACERS, losers
        for loser in losers:
            holder = check_refused(loser)
            assert holder in processes
        job.check()
    return "survived"


def check_refused(result: Ended, holder: int | None = None) -> int:
    """Check that a writer was refused in one line that names the holder; return that process."""
    assert 4 == result.code, result
    assert "" == result.out, result
    assert 1 == result.err.count("\n"), result
    host = re.escape(socket.gethostname())
    named = re.search(
        rf"being written by process (\d+) on {host} since \d{{4}}-\S+ \S+ \(\S+ \w+\)\.", result.err
    )
    assert named, result.err
    assert holder in (None, int(named[1])), result.err
    return int(named[1])


def read(name: str, scene: Scene, case: int, chance: random.Random) -> str:
    """Readers that repeatedly read during a write find nothing incomplete."""
    with scene.job(name) as job:
        with started(job.command) as process:
            while not has_ended(process):
                job.look()
            assert 0 == ended(process).code
        job.check()
    return "survived"


EXPERIMENTS = tuple(
    experiment(f"{what}-{name}", partial(attempt, name), 10)
    for what, attempt in (("second", second_writer), ("race", race), ("read", read))
    for name in JOBS
)
