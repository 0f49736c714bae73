"""The clock jumps by up to a day either way, in some time zone: nothing but timestamps shows it.

    python -m tests.chaos.clock SEED COMMAND...

runs `pipeline COMMAND...` under such a clock.
"""

import datetime
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos.processes import end_at, ended, started, wait_for_lock
from tests.chaos.scene import JOBS, Scene, experiment

DAY = 86_400.0
ZONES = ("UTC", "XXX+14", "XXX-14", "XXX-5:45", "CET-1CEST")
"""In POSIX's notation, which needs no files: also the last ones and one of a quarter of an hour."""


def under_jumping_clock(name: str, scene: Scene, case: int, chance: random.Random) -> str:
    """Stop a job and let it go on, each time under another clock; its files are of that time."""
    with scene.job(name) as job:
        for last in (False, True):
            module = ("tests.chaos.clock", str(chance.randrange(2**32)))
            zone = {"TZ": chance.choice(ZONES)}
            with started(job.command, *module, env=zone) as process:
                if not last and wait_for_lock(process, job.command):
                    end_at(process, chance.uniform(0, job.work.writing), signal.SIGTERM)
                found = ended(process)
            assert found.code in ((0,) if last else (0, 128 + signal.SIGTERM)), found
            job.look()
            age(job.place, chance)
        job.check()
    return "survived"


def age(place: Path, chance: random.Random) -> None:
    """Give every file and directory a time within a day of now, before or after."""
    for path in place.rglob("*"):
        moment = time.time() + chance.uniform(-DAY, DAY)
        os.utime(path, (moment, moment))


def jump(seed: int) -> None:
    """Let every look at the wall clock find it up to a day from where it is, from now on."""
    chance = random.Random(seed)
    now, now_ns, plain = time.time, time.time_ns, datetime.datetime

    def moved() -> float:
        return chance.uniform(-DAY, DAY)

    class Jumping(plain):  # type: ignore[misc, valid-type]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return plain.now(tz) + datetime.timedelta(seconds=moved())

    time.time = lambda: now() + moved()
    time.time_ns = lambda: now_ns() + int(moved() * 1e9)
    datetime.datetime = Jumping  # type: ignore[misc]


EXPERIMENTS = tuple(
    experiment(f"clock-{name}", partial(under_jumping_clock, name), 10) for name in JOBS
)


def main() -> None:
    """Run a command under a jumping clock."""
    _, seed, *arguments = sys.argv
    jump(int(seed))
    from jobs.commands import cli

    sys.argv = ["pipeline", *arguments]
    cli.main()


if __name__ == "__main__":
    main()
