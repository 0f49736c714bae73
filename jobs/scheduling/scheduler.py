"""The scheduler: start a job whenever a cron expression is due, one at a time.

Runs missed while the scheduler was down, or the previous job still ran, are made up once or
skipped; either way they are logged. The heartbeat file shows that the scheduler is alive and which
runs it has handled; a restarted scheduler continues from there.
"""

import hashlib
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jobs.scheduling.cron import CronTimes
from jobs.signals import SIGNALS
from storage import documents
from storage.errors import (
    BadDataError,
    ConflictError,
    LockedError,
    StoppedError,
    UnreachableError,
    UsageError,
)
from storage.events import event
from storage.files import file_to_write
from storage.location import Location
from storage.places import open_location

logger = logging.getLogger(__name__)

STOPPED = (*(128 + number for number in SIGNALS), *(-number for number in SIGNALS))
"""Exit codes of a job that a signal stopped."""
TICK_SECONDS = 1.0
"""Between two looks at the clock, which may jump."""
BEAT_SECONDS = 15.0
"""Between two heartbeats."""
ON_TIME = timedelta(seconds=60)
"""A job that starts this soon after it was due is not late, if the scheduler was running then."""
CORRECTION = timedelta(hours=3)
"""A clock put back by more than this was wrong before, as in cron(8): due times count anew."""
COUNTED = 1000
"""More missed runs than this are not counted one by one."""
DIRECTORY = "schedules"
"""Where heartbeats lie by default."""


class Clock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True)
class Heartbeat:
    """The file that shows that the scheduler is alive, and which runs it has handled."""

    location: Location
    key: str

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the heartbeat's lock; raise `ConflictError` that names a scheduler that has it.

        Where no lock can be made, as on a full disk, that is no reason to miss a run.
        """
        place = f"{self.location}/{self.key}"
        lock = self.location.child(f".{self.key}.lock").writer_lock(f"The heartbeat {place}")
        with ExitStack() as held:
            try:
                held.enter_context(lock)
            except UnreachableError as error:
                logger.warning("Another scheduler would not be noticed: %s", error)
            except LockedError as error:
                raise ConflictError(
                    f"Another scheduler uses the heartbeat {place}: {error.holder}. Stop it, or "
                    "pass --heartbeat FILE: two schedulers need two heartbeats."
                ) from error
            self.location.sweep_partial(self.key)
            yield

    def write(self, **facts: object) -> None:
        """Replace the document in one step."""
        self.location.put(self.key, documents.sealed_bytes(facts))


class Scheduler:
    """Runs one job by one schedule until it is asked to stop."""

    def __init__(
        self,
        times: CronTimes,
        launch: Callable[[], "subprocess.Popen[bytes]"],
        heartbeat: Heartbeat,
        *,
        catch_up: bool = True,
        clock: Clock | None = None,
    ) -> None:
        """`catch_up` makes up missed runs once; else they are skipped."""
        self._times = times
        self._launch = launch
        self._catch_up = catch_up
        self._heartbeat = heartbeat
        self._clock = clock or Clock()
        self._ready = self._clock.now()
        self._handled(self._ready)
        self._running: datetime | None = None
        self._last_exit: int | None = None
        self._beaten: datetime | None = None
        self._asked: list[int] = []
        self._heard = 0

    def ask_to_stop(self, number: int) -> None:
        """Take a signal: the first lets the job end, each one after it is passed on to the job."""
        self._asked.append(number)

    def run(self) -> None:
        """Wait and start the job, again and again.

        Raises `StoppedError` with the exit code of the signal, once nothing runs any more.
        """
        self._resume()
        event(logger, "waiting", "", next=self._next)
        while True:
            now = self._clock.now()
            self._check_clock(now)
            self._check_stop()
            if self._next <= now:
                self._run_due(now)
            else:
                self._beat()
                until = (self._next - now).total_seconds()
                self._clock.sleep(min(until, TICK_SECONDS))

    def _handled(self, last: datetime) -> None:
        """Take all runs up to `last` as handled."""
        self._next = self._times.after(last)
        self._last = last

    def _resume(self) -> None:
        """Continue from the last heartbeat; a job that was running then is missed."""
        try:
            beat = documents.read_sealed(self._heartbeat.location, self._heartbeat.key)
            running = beat["running"]
            last = datetime.fromisoformat(running or beat["last"]).astimezone(UTC)
            self._handled(last - timedelta(seconds=1) if running else last)
            self._last_exit = beat.get("last_exit")
        except FileNotFoundError:
            pass
        except (BadDataError, LookupError, TypeError, ValueError, OverflowError) as error:
            logger.warning("The last heartbeat cannot be used: %s", error)

    def _check_clock(self, now: datetime) -> None:
        self._ready = min(self._ready, now)
        if self._last - now > CORRECTION:
            event(logger, "clock", "The clock was put back by hours; due times count anew.")
            self._handled(now)

    def _check_stop(self) -> None:
        if self._asked:
            self._beat(state="stopped", force=True)
            event(logger, "stopped", "", signal=self._asked[0])
            raise StoppedError("The schedule was stopped; no job is running.", self._asked[0])

    def _run_due(self, now: datetime) -> None:
        """Start the job for the last of the times that have come, or skip it if it is missed."""
        due = self._times.between(self._last, now, COUNTED)
        if len(due) == COUNTED:
            due[-1] = now
        missed = [moment for moment in due if self._is_missed(moment, now)]
        if missed:
            event(
                logger,
                "missed",
                "",
                runs=len(missed),
                first=missed[0],
                last=missed[-1],
                made_up="once, now" if self._catch_up else "not at all",
            )
        self._handled(due[-1])
        if due[-1] not in missed or self._catch_up:
            self._run_job(due[-1])
        else:
            event(logger, "skip", "", due=due[-1], next=self._next)

    def _is_missed(self, due: datetime, now: datetime) -> bool:
        """Return whether no scheduler was ready at that time, or it is too late."""
        return due < self._ready or now - due > ON_TIME

    def _run_job(self, due: datetime) -> None:
        began = self._clock.now()
        self._running = due
        self._beat(force=True)
        process = self._launch()
        event(logger, "start", "", due=due, process=process.pid)
        while (code := process.poll()) is None:
            self._forward_signals(process)
            self._beat()
            self._clock.sleep(TICK_SECONDS / 10)
        # A job that was told to stop half-way is missed: the next scheduler continues it.
        self._running = due if self._heard > 1 and code in STOPPED else None
        self._last_exit = code
        self._ready = self._clock.now()
        seconds = (self._ready - began).total_seconds()
        event(logger, "end", "", due=due, exit=code, seconds=seconds, next=self._next)
        self._beat(force=True)

    def _forward_signals(self, process: "subprocess.Popen[bytes]") -> None:
        for number in self._asked[self._heard :]:
            self._heard += 1
            text = "The job may end; once more stops it."
            if self._heard > 1:
                text = "The job is told to stop."
                process.send_signal(number)
            event(logger, "stopping", text, signal=number)

    def _beat(self, *, state: str | None = None, force: bool = False) -> None:
        now = self._clock.now()
        recent = self._beaten is not None and abs(now - self._beaten).total_seconds() < BEAT_SECONDS
        if recent and not force:
            return
        self._beaten = now
        running = self._running and self._running.isoformat()
        try:
            self._heartbeat.write(
                time=now.isoformat(),
                state=state or ("running" if running else "waiting"),
                last=self._last.isoformat(),
                running=running,
                last_exit=self._last_exit,
                next=self._next.isoformat(),
            )
        except (UnreachableError, UsageError) as error:  # a full disk is no reason to miss a run
            logger.warning("No heartbeat: %s", error)


def launch_pipeline(
    arguments: Sequence[str], stdout: int | None = None
) -> "subprocess.Popen[bytes]":
    """Start `pipeline` in a process of its own, which does not get this one's Ctrl-C.

    It prints where this one does, or on the descriptor `stdout`.
    """
    command = [*this_pipeline(), *arguments]
    return subprocess.Popen(command, stdout=stdout, start_new_session=True)  # noqa: S603 - our own command


def this_pipeline() -> list[str]:
    """Return the command for `pipeline`; `-P` keeps the current directory out of its imports."""
    return [sys.executable, "-P", "-m", "jobs.commands.cli"]


def heartbeat_at(place: str | None, times: CronTimes, job: tuple[str, ...]) -> Heartbeat:
    """Return the heartbeat in a file; by default, one for this schedule and job.

    Raises `UsageError` for a URL: the scheduler's lock must be free the moment it dies.
    """
    if place is None:
        what = json.dumps([times.expression, times.zone_name, job])
        name = f"{hashlib.sha256(what.encode()).hexdigest()[:12]}.json"
        return Heartbeat(open_location(DIRECTORY), name)
    if "://" in place or not Path(place).name:
        raise UsageError(f"--heartbeat is {place!r}; expected the path of a file.")
    directory, name = open_location(place).split()
    path = file_to_write(Path(str(directory), name), "--heartbeat")
    return Heartbeat(open_location(path.parent), path.name)
