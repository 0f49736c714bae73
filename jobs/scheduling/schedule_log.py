"""What a scheduler says: a line for each start, end and skip; and where its heartbeat lies."""

import hashlib
import json
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

from jobs.printing import one_line, print_line
from jobs.schedule import Heartbeat, Log
from jobs.scheduling.cron import CronTimes
from storage.directories import file_to_write
from storage.errors import UsageError
from storage.location import open_location

DIRECTORY = "schedules"


def text_log(zone: tzinfo) -> Log:
    """Lines for people; times are in the schedule's zone."""

    def log(event: str, **facts: Any) -> None:
        told = "  ".join(f"{name} {_told(value, zone)}" for name, value in facts.items())
        moment = datetime.now(zone).isoformat(sep=" ", timespec="seconds")
        print_line(one_line(f"{moment}  {event:<8}  {told}".rstrip()))

    return log


def _told(value: Any, zone: tzinfo) -> str:
    if isinstance(value, datetime):
        return value.astimezone(zone).isoformat(sep=" ", timespec="seconds")
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def json_log() -> Log:
    """A JSON object a line, each with `time` and `event`; times are in UTC."""

    def log(event: str, **facts: Any) -> None:
        told = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in facts.items()
        }
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        print_line(json.dumps({"time": moment, "event": event} | told))

    return log


def heartbeat_at(place: str | None, times: CronTimes, job: tuple[str, ...]) -> Heartbeat:
    """The heartbeat in a file, or in one of its own for this schedule and job.

    Raises `UsageError` for a URL: the scheduler's lock is to be free the moment it dies.
    """
    if place is not None:
        if "://" in place or not Path(place).name:
            raise UsageError(f"--heartbeat is {place!r}; expected the path of a file.")
        directory, name = open_location(place).split()
        path = file_to_write(Path(str(directory), name), "--heartbeat")
        return Heartbeat(open_location(path.parent), path.name)
    what = json.dumps([times.expression, times.zone_name, job])
    return Heartbeat(
        open_location(DIRECTORY), f"{hashlib.sha256(what.encode()).hexdigest()[:12]}.json"
    )
