"""A clock that jumps by up to a day in either direction, in any time zone, changes timestamps only.

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
"""Time zones in POSIX's notation, which needs no files, including extreme and odd offsets."""


def under_jumping_clock(name: str, scene: Scene, case: int, chance: random.Random) -> str:
    """Stop a job and run it again, each time under another clock and with other file times."""
    with scene.job(name) as job:
        for last in (False, True):
            module = ("tests.chaos.clock", str(chance.randrange(2**32)))
            zone = {"TZ": chance.choice(ZONES)}
            with started(job.command, *module, env=zone) as process:
                if not last and wait_for_lock(process, job.command):
                    end_at(process, chance.uniform(0, job.work.writing), signal.SIGTERM)
                result = ended(process)
            assert result.code in ((0,) if last else (0, 128 + signal.SIGTERM)), result
            job.look()
            age(job.place, chance)
        job.check()
    return "survived"


def age(place: Path, chance: random.Random) -> None:
    """Set the modification time of every file and directory to within a day of now."""
    for path in place.rglob("*"):
        moment = time.time() + chance.uniform(-DAY, DAY)
        os.utime(path, (moment, moment))


def jump(seed: int) -> None:
    """Shift every later reading of the wall clock by up to a day."""
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
    """Run the command in `sys.argv` under a jumping clock."""
    _, seed, *arguments = sys.argv
    jump(int(seed))
    from jobs.commands import cli

    sys.argv = ["pipeline", *arguments]
    cli.main()


if __name__ == "__main__":
    main()
