"""A scheduler whose job is due every second, in a process of its own.

python -m tests.jobs.every_second HEARTBEAT COMMAND...
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from subprocess import Popen

from jobs.scheduling.scheduler import (
    Heartbeat,
    Scheduler,
    handle_signals,
    json_log,
    launch_pipeline,
)
from storage.errors import StoppedError
from storage.places import open_location
from tests.commands.process import start_pipeline


class EverySecond:
    """Due at each whole second."""

    def after(self, moment: datetime) -> datetime:
        """The next whole second."""
        return moment.replace(microsecond=0) + timedelta(seconds=1)

    def between(self, start: datetime, stop: datetime, limit: int) -> list[datetime]:
        """The whole seconds in (start, stop]."""
        found = []
        due = self.after(start)
        while due <= stop and len(found) < limit:
            found.append(due)
            due = self.after(due)
        return found


@contextmanager
def start_every_second(heartbeat: Path, *command: str) -> Iterator["Popen[str]"]:
    """Such a scheduler, which does not outlive the block; its jobs may."""
    process = start_pipeline(
        heartbeat, *command, cwd=heartbeat.parent, module=("tests.jobs.every_second",)
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _main(heartbeat: str, *command: str) -> int:
    path = Path(heartbeat)
    scheduler = Scheduler(
        EverySecond(),
        lambda: launch_pipeline(command),
        json_log(),
        heartbeat=Heartbeat(open_location(path.parent), path.name),
    )
    with handle_signals(scheduler):
        try:
            scheduler.run()
        except StoppedError as stopped:
            print(stopped, file=sys.stderr)
            return stopped.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
