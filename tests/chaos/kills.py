"""SIGKILL at random moments: the same command, run again to its end, gives what it always gives.

Each case kills its command once or twice in a row, and after each kill looks at what is on the
disk as a reader would: what counts as there is whole.
"""

import random
import signal
from functools import partial

from tests.chaos.processes import end_at, ended, started, wait_for_lock
from tests.chaos.scene import Job, Scene, scene
from tests.chaos.tally import Experiment, Plan, Tally, try_cases

KILLS_IN_A_ROW = (1, 1, 2)
IN_START_UP = 0.1
"""The share of kills before the command holds its lock."""

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


def run_kills(name: str, plan: Plan, tally: Tally) -> None:
    """Try the cases of one job."""
    try_cases(
        f"kill-{name}", plan, tally, partial(kill, name, scene()), plan.cases(), in_threads=True
    )


EXPERIMENTS = tuple(
    Experiment(f"kill-{name}", partial(run_kills, name), count, scaled_by="kills")
    for name, count in COUNTS.items()
)
