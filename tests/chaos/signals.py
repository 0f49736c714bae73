"""SIGTERM and SIGINT: a job stops where it can be gone on with, soon; the second one ends it.

    python -m tests.chaos.signals NUMBER COMMAND...

runs `pipeline COMMAND...`, to which a signal comes when all is over but for Python's winding down.
"""

import atexit
import os
import random
import signal
import sys
from functools import partial

from jobs.commands import cli
from storage.checkpoints import CheckpointName, list_checkpoints
from storage.places import open_location
from storage.runs import open_run, run_exists
from tests.chaos.processes import (
    Command,
    end_at,
    ended,
    held_still,
    started,
    wait_at_work,
    wait_for,
    wait_for_lock,
)
from tests.chaos.scene import BATCHES, CONFIG, Job, Scene, experiment
from tests.chaos.tally import TooLateError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
EVERY_STEP = ("--checkpoint-every", "1")
TOLD = {
    "train": "the checkpoint is saved",
    "ingest": "nothing was published",
    "replace": "nothing was published",
    "score": "finished scores are kept",
}
"""What a job says that was stopped."""


def stop(name: str, scene: Scene, case: int, chance: random.Random) -> str:
    """Stop a job at a random moment, up to twice; it goes on to the same bits."""
    with scene.job(name) as job:
        while stopped(name, job, chance) and chance.random() < 0.5:
            job.look()
        job.look()
        job.finish()
    return "survived"


def stopped(name: str, job: Job, chance: random.Random) -> bool:
    """Send one of the two signals while a job is at work; whether that has stopped it.

    It may have done its work by then, or come too near to its end to be stopped.
    """
    number = chance.choice(SIGNALS)
    with started(job.command) as process:
        locked = wait_for_lock(process, job.command)
        sent = locked and end_at(process, chance.uniform(0, job.work.writing), number)
        found = ended(process)
    if found.code == 0 or (found.out and found.code == -number):
        return False  # the second is for the moment in which the job is over, and Python not yet
    assert sent, (number, found)
    assert 128 + number == found.code, (number, found)
    assert found.err.startswith("Stopped"), found.err
    assert TOLD[name] in found.err, found.err
    assert 1 == found.err.count("\n"), found.err
    return True


def stop_soon(name: str, scene: Scene, case: int, chance: random.Random) -> str:
    """A training that saves at each step shows how far it is, and stops within two steps."""
    with scene.job(name) as job:
        saving = Command((*job.command.arguments, *EVERY_STEP), job.command.lock)
        number = chance.choice(SIGNALS)
        steps = chance.randrange(1, CONFIG.epochs * BATCHES - 3)
        with started(saving) as process:
            if not wait_for(lambda: steps_saved(job) >= steps, process):
                raise TooLateError
            with held_still(process):
                before = steps_saved(job)
                process.send_signal(number)
            found = ended(process)
        assert 128 + number == found.code, found
        assert before <= steps_saved(job) <= before + 2
        assert found.err.startswith(f"Stopped after {steps_saved(job):,} steps; "), found
        job.finish()
    return "survived"


def steps_saved(job: Job) -> int:
    """The step of the newest checkpoint of a run; 0 where there is none yet."""
    location = open_location(job.target)
    if not run_exists(location):
        return 0
    newest = max(list_checkpoints(open_run(location)), default=CheckpointName(0, 0))
    return newest.epoch * BATCHES + newest.step


def stop_at_once(name: str, scene: Scene, case: int, chance: random.Random) -> str:
    """Both signals in one moment end a job without a word; the next one mends it."""
    with scene.job(name) as job:
        with started(job.command) as process:
            wait_at_work(process, job.command, chance.uniform(0, job.work.writing / 2))
            with held_still(process):
                for number in SIGNALS:
                    process.send_signal(number)
            found = ended(process)
        assert found.code in [128 + number for number in SIGNALS], found
        assert "" == found.out + found.err, found
        job.look()
        job.finish()
    return "survived"


def stop_in_start_up(name: str, scene: Scene, case: int, chance: random.Random) -> str:
    """A signal in the start-up ends a job without harm, however far that has come."""
    number = chance.choice(SIGNALS)
    with scene.job(name) as job:
        with started(job.command) as process:
            if not end_at(process, chance.uniform(0, job.work.start_up), number):
                raise TooLateError
            found = ended(process)
        if found.code == 0:
            raise TooLateError
        assert found.code in (128 + number, -number), found
        job.look()
        job.finish()
    return "survived"


TRIES = {
    **{f"stop-{name}": partial(stop, name) for name in TOLD},
    "stop-soon": partial(stop_soon, "train"),
    "stop-at-once": partial(stop_at_once, "train"),
    "stop-in-start-up": partial(stop_in_start_up, "train"),
}
EXPERIMENTS = tuple(experiment(name, try_case, 20) for name, try_case in TRIES.items())


def main() -> None:
    """Run a command and send this process a signal after whatever the command does at exit."""
    _, number, *arguments = sys.argv
    atexit.register(os.kill, os.getpid(), int(number))  # what is registered first is done last
    sys.argv = ["pipeline", *arguments]
    cli.main()


if __name__ == "__main__":
    main()
