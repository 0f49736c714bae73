"""SIGTERM and SIGINT: the first stops a job soon, so that it can continue; the second ends it.

    python -m tests.chaos.signals NUMBER COMMAND...

runs `pipeline COMMAND...` and sends a signal while Python shuts down.
"""

import atexit
import os
import random
import signal
import sys
from functools import partial

from jobs.commands import cli
from storage.checkpoints import CheckpointName, list_checkpoints
from storage.errors import counted
from storage.places import open_location
from storage.runs import open_run, run_exists
from tests.chaos.processes import (
    Command,
    end_at,
    ended,
    paused,
    started,
    wait_at_work,
    wait_for,
    wait_for_lock,
)
from tests.chaos.scene import BATCHES, CONFIG, Job, Scene, experiment
from tests.chaos.tally import TooLateError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
EVERY_STEP = ("--checkpoint-every", "1")
MESSAGES = {
    "train": "the checkpoint is saved",
    "ingest": "nothing was published",
    "replace": "nothing was published",
    "score": "finished scores are kept",
}
"""Parts of the messages of stopped jobs."""


def stop(name: str, scene: Scene, case: int, chance: random.Random) -> str:
    """Stop a job at random moments; it continues to the same bits."""
    with scene.job(name) as job:
        while stopped(name, job, chance) and chance.random() < 0.5:
            job.look()
        job.look()
        job.finish()
    return "survived"


def stopped(name: str, job: Job, chance: random.Random) -> bool:
    """Send one of the two signals to a working job; return whether that stopped it.

    The job may already have finished, or be too close to its end to be stopped.
    """
    number = chance.choice(SIGNALS)
    with started(job.command) as process:
        locked = wait_for_lock(process, job.command)
        sent = locked and end_at(process, chance.uniform(0, job.work.writing), number)
        result = ended(process)
    if result.code == 0:
        return False
    assert sent, (number, result)
    assert 128 + number == result.code, (number, result)
    assert result.err.startswith("Stopped"), result.err
    assert MESSAGES[name] in result.err, result.err
    assert 1 == result.err.count("\n"), result.err
    return True


def stop_soon(name: str, scene: Scene, case: int, chance: random.Random) -> str:
    """Stop a training run that saves at each step; it stops within two steps."""
    with scene.job(name) as job:
        saving = Command((*job.command.arguments, *EVERY_STEP), job.command.lock)
        number = chance.choice(SIGNALS)
        steps = chance.randrange(1, CONFIG.epochs * BATCHES - 3)
        with started(saving) as process:
            if not wait_for(lambda: steps_saved(job) >= steps, process):
                raise TooLateError
            with paused(process):
                before = steps_saved(job)
                process.send_signal(number)
            result = ended(process)
        assert 128 + number == result.code, result
        assert before <= steps_saved(job) <= before + 2
        steps = counted(steps_saved(job), "step")
        assert result.err.startswith(f"Stopped after {steps}; "), result
        job.finish()
    return "survived"


def steps_saved(job: Job) -> int:
    """Return the step of the newest checkpoint of a run; 0 if there is none."""
    location = open_location(job.target)
    if not run_exists(location):
        return 0
    newest = max(list_checkpoints(open_run(location)), default=CheckpointName(0, 0))
    return newest.epoch * BATCHES + newest.step


def stop_at_once(name: str, scene: Scene, case: int, chance: random.Random) -> str:
    """Send both signals at once: the job ends silently, and the next run repairs everything."""
    with scene.job(name) as job:
        with started(job.command) as process:
            wait_at_work(process, job.command, chance.uniform(0, job.work.writing / 2))
            with paused(process):
                for number in SIGNALS:
                    process.send_signal(number)
            result = ended(process)
        if result.code == 0:
            raise TooLateError
        assert result.code in [128 + number for number in SIGNALS], result
        assert "" == result.out + result.err, result
        job.look()
        job.finish()
    return "survived"


def stop_in_start_up(name: str, scene: Scene, case: int, chance: random.Random) -> str:
    """Send a signal during start-up: the job ends, and the next run succeeds."""
    number = chance.choice(SIGNALS)
    with scene.job(name) as job:
        with started(job.command) as process:
            if not end_at(process, chance.uniform(0, job.work.start_up), number):
                raise TooLateError
            result = ended(process)
        # The signal may also precede the job's first line.
        if result.code == 0 or "Could not import runpy" in result.err:
            raise TooLateError
        assert result.code in (128 + number, -number), result
        job.look()
        job.finish()
    return "survived"


TRIES = {
    **{f"stop-{name}": partial(stop, name) for name in MESSAGES},
    "stop-soon": partial(stop_soon, "train"),
    "stop-at-once": partial(stop_at_once, "train"),
    "stop-in-start-up": partial(stop_in_start_up, "train"),
}
EXPERIMENTS = tuple(experiment(name, try_case, 20) for name, try_case in TRIES.items())


def main() -> None:
    """Run a command, and send this process a signal after the command's own exit handlers."""
    _, number, *arguments = sys.argv
    atexit.register(os.kill, os.getpid(), int(number))  # registered first, so called last
    sys.argv = ["pipeline", *arguments]
    cli.main()


if __name__ == "__main__":
    main()
