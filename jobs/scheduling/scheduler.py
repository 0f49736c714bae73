"""The scheduler: start a job whenever a cron expression is due, one at a time.

Runs missed while the scheduler was down, or the previous job still ran, are made up once or
skipped; either way they are logged. The heartbeat file shows that the scheduler is alive and which
runs it has handled; a restarted scheduler continues from it.
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
from signal import Signals

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
from storage.events import event, local_time
from storage.files import file_to_write
from storage.location import Location
from storage.places import open_location

logger = logging.getLogger(__name__)

STOPPED = (*(128 + number for number in SIGNALS), *(-number for number in SIGNALS))
"""Exit codes of a job that a signal stopped."""
TICK_SECONDS = 1.0
"""Longest sleep: the clock may jump in between."""
BEAT_SECONDS = 15.0
"""Seconds between two heartbeats."""
ON_TIME = timedelta(seconds=60)
"""A run that starts this soon after it was due is on time, if the scheduler was running then."""
CORRECTION = timedelta(hours=3)
"""If the clock is set back by more, it was wrong before, and runs become due again (cron(8))."""
COUNTED = 1000
"""Missed runs are counted up to this number."""
DIRECTORY = "schedules"
"""The default directory of heartbeats."""


class Clock:
    """The system clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True)
class Heartbeat:
    """The file that records that the scheduler is alive, and the runs that it has handled."""

    location: Location
    key: str

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the heartbeat's lock; raise `ConflictError` if another scheduler holds it.

        If the lock cannot be created, as on a full disk, log a warning and carry on without.
        """
        place = f"{self.location}/{self.key}"
        lock = self.location.child(f".{self.key}.lock").writer_lock(f"The heartbeat {place}")
        with ExitStack() as held:
            try:
                held.enter_context(lock)
            except UnreachableError as error:
                logger.warning("A second scheduler would not be detected: %s", error)
            except LockedError as error:
                raise ConflictError(
                    f"Another scheduler uses the heartbeat {place}: {error.holder}. Stop it, or "
                    "pass another file with --heartbeat FILE."
                ) from error
            self.location.sweep_partial(self.key)
            yield

    def write(self, **facts: object) -> None:
        """Replace the document atomically."""
        self.location.put(self.key, documents.sealed_bytes(facts))


class Scheduler:
    """Runs one job on one schedule until it is asked to stop."""

    def __init__(
        self,
        times: CronTimes,
        launch: Callable[[], "subprocess.Popen[bytes]"],
        heartbeat: Heartbeat,
        *,
        catch_up: bool = True,
        clock: Clock | None = None,
    ) -> None:
        """Missed runs are made up once with `catch_up`, else skipped."""
        self._times = times
        self._launch = launch
        self._catch_up = catch_up
        self._heartbeat = heartbeat
        self._clock = clock or Clock()
        self._ready = self._clock.now()
        self._set_handled(self._ready)
        self._running: datetime | None = None
        self._last_exit: int | None = None
        self._beaten: datetime | None = None
        self._signals: list[int] = []
        self._handled_signals = 0

    def ask_to_stop(self, number: int) -> None:
        """Receive a signal: the first lets the job finish, later ones are forwarded to it."""
        self._signals.append(number)

    def run(self) -> None:
        """Start the job whenever it is due, until a signal.

        Raises `StoppedError` with the signal's exit code once no job is running.
        """
        self._resume()
        text = f"Waiting; the next run is due at {self._local(self._next)}"
        event(logger, "waiting", text, next=self._next)
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

    def _local(self, moment: datetime) -> str:
        return local_time(moment, self._times.zone)

    def _set_handled(self, last: datetime) -> None:
        """Set all runs up to `last` as handled."""
        self._next = self._times.after(last)
        self._last = last

    def _resume(self) -> None:
        """Continue from the last heartbeat; a run that was not finished then is missed."""
        try:
            beat = documents.read_sealed(self._heartbeat.location, self._heartbeat.key)
            running = beat["running"]
            last = datetime.fromisoformat(running or beat["last"]).astimezone(UTC)
            self._set_handled(last - timedelta(seconds=1) if running else last)
            self._last_exit = beat.get("last_exit")
        except FileNotFoundError:
            pass
        except (BadDataError, LookupError, TypeError, ValueError, OverflowError) as error:
            logger.warning("The last heartbeat is ignored: %s", error)

    def _check_clock(self, now: datetime) -> None:
        self._ready = min(self._ready, now)
        if self._last - now > CORRECTION:
            event(logger, "clock", "The clock was set back by hours; runs become due again.")
            self._set_handled(now)

    def _check_stop(self) -> None:
        if self._signals:
            number = self._signals[0]
            self._beat(state="stopped", force=True)
            event(logger, "stopped", f"Stopped by {Signals(number).name}", signal=number)
            raise StoppedError("The schedule was stopped; no job is running.", number)

    def _run_due(self, now: datetime) -> None:
        """Start the last run that is due, or skip it if it was missed."""
        due = self._times.between(self._last, now, COUNTED)
        if len(due) == COUNTED:
            due[-1] = now
        missed = [moment for moment in due if self._is_missed(moment, now)]
        if missed:
            self._log_missed(missed)
        self._set_handled(due[-1])
        if due[-1] not in missed or self._catch_up:
            self._run_job(due[-1])
        else:
            text = f"Skipped; the next run is due at {self._local(self._next)}"
            event(logger, "skip", text, due=due[-1], next=self._next)

    def _log_missed(self, missed: list[datetime]) -> None:
        first, last = missed[0], missed[-1]
        text = f"Missed the run due at {self._local(last)}"
        if len(missed) > 1:
            times = f"{self._local(first)} to {self._local(last)}"
            text = f"Missed {len(missed):,} runs due at {times}"
        made_up = "once, now" if self._catch_up else "not at all"
        text += "; made up once, now" if self._catch_up else "; not made up"
        event(logger, "missed", text, runs=len(missed), first=first, last=last, made_up=made_up)

    def _is_missed(self, due: datetime, now: datetime) -> bool:
        """Return whether no scheduler was ready when the run was due, or it is too late."""
        return due < self._ready or now - due > ON_TIME

    def _run_job(self, due: datetime) -> None:
        began = self._clock.now()
        self._running = due
        self._beat(force=True)
        process = self._launch()
        text = f"Started the run due at {self._local(due)} as process {process.pid}"
        event(logger, "start", text, due=due, process=process.pid)
        while (code := process.poll()) is None:
            self._forward_signals(process)
            self._beat()
            self._clock.sleep(TICK_SECONDS / 10)
        # An interrupted job counts as missed: the next scheduler runs it again.
        self._running = due if self._handled_signals > 1 and code in STOPPED else None
        self._last_exit = code
        self._ready = self._clock.now()
        seconds = (self._ready - began).total_seconds()
        text = f"Exit code {code} after {seconds:.1f} s; next run at {self._local(self._next)}"
        event(logger, "end", text, due=due, exit=code, seconds=seconds, next=self._next)
        self._beat(force=True)

    def _forward_signals(self, process: "subprocess.Popen[bytes]") -> None:
        for number in self._signals[self._handled_signals :]:
            self._handled_signals += 1
            text = "Stopping after this run; a second signal stops the run too."
            if self._handled_signals > 1:
                text = "Stopping the run."
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
        except (UnreachableError, UsageError) as error:  # runs go ahead even on a full disk
            logger.warning("The heartbeat could not be written: %s", error)


def launch_pipeline(
    arguments: Sequence[str], stdout: int | None = None
) -> "subprocess.Popen[bytes]":
    """Start `pipeline` in a new process session, which Ctrl-C in this one does not reach.

    Its output goes to this process's stdout, or to the descriptor `stdout`.
    """
    command = [*this_pipeline(), *arguments]
    return subprocess.Popen(command, stdout=stdout, start_new_session=True)  # noqa: S603 - our own command


def this_pipeline() -> list[str]:
    """Return the command for `pipeline`; `-P` keeps the current directory off `sys.path`."""
    return [sys.executable, "-P", "-m", "jobs.commands.cli"]


def heartbeat_at(place: str | None, times: CronTimes, job: tuple[str, ...]) -> Heartbeat:
    """Return the heartbeat in a file, by default one named after this schedule and job.

    Raises `UsageError` for a URL: only local locks are released when their holder dies.
    """
    if place is None:
        identity = json.dumps([times.expression, times.zone_name, job])
        name = f"{hashlib.sha256(identity.encode()).hexdigest()[:12]}.json"
        return Heartbeat(open_location(DIRECTORY), name)
    if "://" in place or not Path(place).name:
        raise UsageError(f"--heartbeat is {place!r}; expected the path of a file on this machine.")
    directory, name = open_location(place).split()
    path = file_to_write(Path(str(directory), name), "--heartbeat")
    return Heartbeat(open_location(path.parent), path.name)
