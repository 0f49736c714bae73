"""SIGKILL at random moments: the same command, run again, produces the undisturbed result.

Each case kills its command once or twice in a row. After each kill a reader finds only complete
artefacts on the disk.
"""

import os
import random
import signal
from contextlib import suppress
from functools import partial

from tests.chaos.processes import end_at, ended, forks, started, wait_at_work, wait_for_lock
from tests.chaos.scene import Job, Scene, experiment
from tests.chaos.tally import TooLateError

KILLS_IN_A_ROW = (1, 1, 2)
IN_START_UP = 0.1
"""The probability of a kill before the command holds its lock."""

COUNTS = {"train": 200, "ingest": 50, "replace": 50, "score": 100}
"""Cases of the long run for each job."""


def kill(name: str, scene: Scene, case: int, chance: random.Random) -> str:
    """Kill a job once or twice, then run it to its end."""
    with scene.job(name) as job:
        for number in range(chance.choice(KILLS_IN_A_ROW)):
            if killed(job, chance):
                job.look()
            elif number == 0:
                raise TooLateError
        job.finish()
    return "survived"


def killed(job: Job, chance: random.Random) -> bool:
    """Start a job and kill it at a random moment; return False if it ended well before that."""
    early = chance.random() < IN_START_UP
    moment = chance.uniform(0, job.work.start_up if early else job.work.writing)
    with started(job.command) as process:
        if (early or wait_for_lock(process, job.command)) and end_at(
            process, moment, signal.SIGKILL
        ):
            return True
        result = ended(process)
    assert 0 == result.code, result.err
    return False


def kill_a_fork(scene: Scene, case: int, chance: random.Random) -> str:
    """Kill the processes that compute gradients; training itself continues to its end."""
    with scene.job("train") as job, started(job.command) as process:
        wait_at_work(process, job.command, chance.uniform(0, job.work.writing))
        helpers = forks(process.pid)
        if not helpers:
            raise TooLateError
        for fork in helpers:
            with suppress(ProcessLookupError):
                os.kill(fork, signal.SIGKILL)
        result = ended(process)
        assert 0 == result.code, result.err
        job.check()
    return "survived"


EXPERIMENTS = (
    *(experiment(f"kill-{name}", partial(kill, name), count) for name, count in COUNTS.items()),
    experiment("kill-fork", kill_a_fork, 100),
)
