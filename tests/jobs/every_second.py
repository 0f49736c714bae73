"""A scheduler in a separate process, whose job is due every second.

python -m tests.jobs.every_second HEARTBEAT COMMAND...
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import Popen

from jobs.commands.logs import JsonHandler, attached
from jobs.scheduling.cron import CronTimes
from jobs.scheduling.scheduler import Heartbeat, Scheduler, launch_pipeline
from jobs.signals import handle_signals
from storage.errors import StoppedError
from storage.places import open_location
from tests.commands.process import start_pipeline


class EverySecond(CronTimes):
    """Due at each whole second."""

    def times_after(self, moment: datetime) -> Iterator[datetime]:
        while True:
            moment = moment.replace(microsecond=0) + timedelta(seconds=1)
            yield moment


@contextmanager
def start_every_second(heartbeat: Path, *command: str) -> Iterator["Popen[str]"]:
    """Start this scheduler, and kill it at the end of the block; its jobs may outlive it."""
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
        EverySecond("* * * * *", UTC, "UTC"),
        lambda: launch_pipeline(command),
        Heartbeat(open_location(path.parent), path.name),
    )
    handle_signals(lambda number, _: scheduler.ask_to_stop(number))
    with attached(JsonHandler()):
        try:
            scheduler.run()
        except StoppedError as stopped:
            print(stopped, file=sys.stderr)
            return stopped.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
