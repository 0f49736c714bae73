"""SIGKILL at random moments: the same command, run again to its end, gives what it always gives.

Each case kills its command once or twice in a row, and after each kill looks at what is on the
disk as a reader would: what counts as there is whole.
"""

import os
import random
import signal
from contextlib import suppress
from functools import partial

from tests.chaos.processes import end_at, ended, forks, has_ended, started, wait_for_lock
from tests.chaos.scene import Job, Scene, scene
from tests.chaos.tally import Experiment, Plan, Tally, try_cases

KILLS_IN_A_ROW = (1, 1, 2)
IN_START_UP = 0.1
"""The share of kills before the command holds its lock."""

TRIES = 20
"""How often to begin anew where a training had ended, or not begun to fork, at the moment."""

COUNTS = {"train": 200, "ingest": 50, "replace": 50, "score": 100}
"""Cases of the long run, by the job that is killed."""


def kill(name: str, scene: Scene, case: int, chance: random.Random) -> str:
    """Kill a job until a kill has come in time, then let it end."""
    landed = False
    while not landed:
        with scene.job(name) as job:
            for _ in range(chance.choice(KILLS_IN_A_ROW)):
                if not killed(job, chance):
                    break
                landed = True
                job.look()
            job.finish()
    return "survived"


def killed(job: Job, chance: random.Random) -> bool:
    """Start a job and kill it at a random moment; False where it had ended well before."""
    early = chance.random() < IN_START_UP
    moment = chance.uniform(0, job.work.start_up if early else job.work.writing)
    with started(job.command) as process:
        if (early or wait_for_lock(process, job.command)) and end_at(
            process, moment, signal.SIGKILL
        ):
            return True
        found = ended(process)
    assert 0 == found.code, found.err
    return False


def kill_a_fork(scene: Scene, case: int, chance: random.Random) -> str:
    """Kill a process that helps a training to compute; the training itself goes on to its end."""
    for _ in range(TRIES):
        with scene.job("train") as job, started(job.command) as process:
            wait_for_lock(process, job.command)
            has_ended(process, chance.uniform(0, job.work.writing))
            helping = forks(process.pid)
            for fork in helping:
                with suppress(ProcessLookupError):
                    os.kill(fork, signal.SIGKILL)
            found = ended(process)
            assert 0 == found.code, found.err
            job.check()
            if helping:
                return "survived"
    raise AssertionError("none of the trainings had a process to help it")


def run_kills(name: str, plan: Plan, tally: Tally) -> None:
    """Try the cases of one job."""
    try_cases(
        f"kill-{name}", plan, tally, partial(kill, name, scene()), plan.cases(), in_threads=True
    )


def run_fork_kills(plan: Plan, tally: Tally) -> None:
    """Try the cases in which a helping process dies."""
    try_cases(
        "kill-fork", plan, tally, partial(kill_a_fork, scene()), plan.cases(), in_threads=True
    )


EXPERIMENTS = (
    *(
        Experiment(f"kill-{name}", partial(run_kills, name), count, scaled_by="kills")
        for name, count in COUNTS.items()
    ),
    Experiment("kill-fork", run_fork_kills, 100, scaled_by="kills"),
)
