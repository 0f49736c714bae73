"""The scheduler: start a job whenever a cron expression is due, one at a time.

Runs missed while the scheduler was down, or the previous job still ran, are made up once or
skipped; either way they are logged. The heartbeat file shows that the scheduler is alive and which
runs it has handled; a restarted scheduler continues from there.
"""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from jobs.output import one_line, print_line
from jobs.scheduling.cron import CronTimes
from storage import documents
from storage.errors import (
    BadDataError,
    ConflictError,
    LockedError,
    StoppedError,
    UnreachableError,
    UsageError,
)
from storage.files import file_to_write
from storage.location import Location, writer_lock
from storage.places import open_location

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = (*(128 + number for number in SIGNALS), *(-number for number in SIGNALS))
"""Exit codes of a job that a signal stopped."""
TICK_SECONDS = 1.0
"""Between two looks at the clock, which may jump."""
BEAT_SECONDS = 15.0
"""Between two heartbeats."""
ON_TIME = timedelta(seconds=60)
"""A job that starts so soon after it was due is not late, where the scheduler was there for it."""
CORRECTION = timedelta(hours=3)
"""A clock that is put back by more was wrong before, as cron(8) has it: due times count anew."""
FIRST_YEAR = 1970
"""The earliest year that a heartbeat may hold."""
COUNTED = 1000
"""More missed runs than this are not counted one by one."""


class Times(Protocol):
    """When the job is due: see `jobs.scheduling.cron.CronTimes`."""

    def after(self, moment: datetime) -> datetime:
        """The first time after a moment."""
        ...

    def between(self, start: datetime, stop: datetime, limit: int) -> list[datetime]:
        """The times within (start, stop], of many the first `limit`."""
        ...


class Process(Protocol):
    """A job that runs."""

    @property
    def pid(self) -> int:
        """The operating system's number for it."""
        ...

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        ...

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        ...


class Clock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The time in UTC."""
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        """Let so much time pass."""
        time.sleep(seconds)


Log = Callable[..., None]
"""`log(event, **facts)`; times among the facts are in UTC."""


@dataclass(frozen=True)
class Heartbeat:
    """The file that says that the scheduler lives, and what it has seen to."""

    location: Location
    key: str

    def read(self) -> dict[str, Any] | None:
        """What the scheduler before has left; None where there was none. Raises `BadDataError`."""
        try:
            return documents.read_sealed(self.location, self.key)
        except FileNotFoundError:
            return None

    @contextmanager
    def hold(self, log: Log) -> Iterator[None]:
        """The only right to go by it; `ConflictError` names the scheduler that has it.

        Where no lock can be made, as on a full disk, that is no reason to miss a run.
        """
        place = f"{self.location}/{self.key}"
        lock = writer_lock(self.location.child(f".{self.key}.lock"), f"The heartbeat {place}")
        with ExitStack() as held:
            try:
                held.enter_context(lock)
            except UnreachableError as error:
                log("warning", text=f"Another scheduler would not be noticed: {error}")
            except LockedError as error:
                raise ConflictError(
                    f"Another scheduler goes by the heartbeat {place}: {error.holder}. Stop it, or "
                    "pass --heartbeat FILE: two schedulers need two heartbeats."
                ) from error
            self.location.sweep_partial(self.key)
            yield

    def write(self, document: dict[str, Any]) -> None:
        """Replace it, in one step."""
        self.location.put(self.key, documents.sealed_bytes(document))


class Scheduler:
    """Runs one job by one schedule until it is told to stop."""

    def __init__(
        self,
        times: Times,
        launch: Callable[[], Process],
        log: Log,
        *,
        catch_up: bool = True,
        heartbeat: Heartbeat | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`catch_up` makes up once for whatever was missed; else that is skipped."""
        self._times = times
        self._launch = launch
        self._log = log
        self._catch_up = catch_up
        self._heartbeat = heartbeat
        self._clock = clock or Clock()
        self._last = self._ready = self._clock.now()
        self._known_next: tuple[datetime, datetime] | None = None
        self._running: datetime | None = None
        self._last_exit: int | None = None
        self._beaten: datetime | None = None
        self._asked: list[int] = []
        self._heard = 0

    def ask_to_stop(self, number: int) -> None:
        """Heed a signal: finish the job; at the second stop it where it can be gone on with."""
        self._asked.append(number)

    def run(self) -> None:
        """Wait and start the job, again and again.

        Raises `StoppedError` with the exit code of the signal, once nothing runs any more.
        """
        self._remember()
        self._log("waiting", next=self._next())
        while True:
            now = self._clock.now()
            self._look_at_clock(now)
            self._check_stop()
            if self._next() <= now:
                self._run_due(self._times.between(self._last, now, COUNTED), now)
            else:
                self._beat()
                until = (self._next() - now).total_seconds()
                self._clock.sleep(min(until, TICK_SECONDS))

    def _next(self) -> datetime:
        """The first time that has not been seen to; worked out once, for that takes its time."""
        if self._known_next is None or self._known_next[0] != self._last:
            self._known_next = (self._last, self._times.after(self._last))
        return self._known_next[1]

    def _remember(self) -> None:
        """Take up what the scheduler before has left; a job that it did not see done is missed."""
        if self._heartbeat is None:
            return
        try:
            found = self._heartbeat.read()
            if found is None:
                return
            last = self._recorded_time(found["last"])
            if found["running"] is not None:
                last = self._recorded_time(found["running"]) - timedelta(seconds=1)
        except (BadDataError, KeyError, TypeError, ValueError) as error:
            self._log("warning", text=f"The heartbeat before cannot be used: {error}")
            return
        self._last = last
        self._last_exit = found.get("last_exit")

    def _recorded_time(self, text: str) -> datetime:
        """Return a time of a heartbeat; raise `ValueError` if it cannot be a scheduler's."""
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError(f"{text} has no time zone")
        if moment.year < FIRST_YEAR or moment.year > self._clock.now().year + 1:
            raise ValueError(f"{text} is not the time of a run")
        return moment.astimezone(UTC)

    def _look_at_clock(self, now: datetime) -> None:
        self._ready = min(self._ready, now)
        if self._last - now > CORRECTION:
            self._log("clock", text="The clock was put back by hours; what is due counts anew.")
            self._last = now

    def _check_stop(self) -> None:
        if self._asked:
            self._beat(state="stopped", force=True)
            self._log("stopped", signal=self._asked[0])
            raise StoppedError("The schedule was stopped; no job is running.", self._asked[0])

    def _run_due(self, due: list[datetime], now: datetime) -> None:
        """Start the job for the last of the times that have come, or skip it where it is missed."""
        if len(due) == COUNTED:
            due = [*due[:-1], now]  # too many to look at each
        missed = [moment for moment in due if self._is_missed(moment, now)]
        if missed:
            self._log(
                "missed",
                runs=len(missed),
                first=missed[0],
                last=missed[-1],
                made_up="once, now" if self._catch_up else "not at all",
            )
        self._last = due[-1]
        if due[-1] not in missed or self._catch_up:
            self._run_job(due[-1])
        else:
            self._log("skip", due=due[-1], next=self._next())

    def _is_missed(self, due: datetime, now: datetime) -> bool:
        """Whether nobody was there for it, be it by a second, or it is too late."""
        return due < self._ready or now - due > ON_TIME

    def _run_job(self, due: datetime) -> None:
        began = self._clock.now()
        self._running = due
        self._beat(force=True)
        process = self._launch()
        self._log("start", due=due, process=process.pid)
        while (code := process.poll()) is None:
            self._forward_signals(process)
            self._beat()
            self._clock.sleep(TICK_SECONDS / 10)
        # One that was told to stop half-way is missed: the next scheduler has it gone on with.
        self._running = due if self._heard > 1 and code in STOPPED else None
        self._last_exit = code
        self._ready = self._clock.now()
        seconds = (self._ready - began).total_seconds()
        self._log("end", due=due, exit=code, seconds=seconds, next=self._next())
        self._beat(force=True)

    def _forward_signals(self, process: Process) -> None:
        """The first signal lets the job end; each one after it is passed on."""
        while self._heard < len(self._asked):
            number = self._asked[self._heard]
            self._heard += 1
            if self._heard == 1:
                self._log("stopping", signal=number, text="The job may end; once more stops it.")
            else:
                self._log("stopping", signal=number, text="The job is told to stop.")
                process.send_signal(number)

    def _beat(self, *, state: str | None = None, force: bool = False) -> None:
        now = self._clock.now()
        recent = self._beaten is not None and abs(now - self._beaten).total_seconds() < BEAT_SECONDS
        if self._heartbeat is None or (recent and not force):
            return
        self._beaten = now
        running = self._running and self._running.isoformat()
        document = {
            "time": now.isoformat(),
            "state": state or ("running" if running else "waiting"),
            "last": self._last.isoformat(),
            "running": running,
            "last_exit": self._last_exit,
            "next": self._next().isoformat(),
        }
        try:
            self._heartbeat.write(document)
        except (UnreachableError, UsageError) as error:  # a full disk is no reason to miss a run
            self._log("warning", text=f"No heartbeat: {error}")


def launch_pipeline(
    arguments: Sequence[str], stdout: int | None = None
) -> "subprocess.Popen[bytes]":
    """Start `pipeline` in a process of its own, which does not get this one's Ctrl-C.

    It prints where this one does, or on the descriptor `stdout`.
    """
    command = [*this_pipeline(), *arguments]
    return subprocess.Popen(command, stdout=stdout, start_new_session=True)  # noqa: S603 - our own command


def this_pipeline() -> list[str]:
    """The command that is `pipeline` here; `-P` keeps the current directory out of its imports."""
    return [sys.executable, "-P", "-m", "jobs.commands.cli"]


@contextmanager
def handle_signals(scheduler: Scheduler) -> Iterator[None]:
    """Tell a scheduler of SIGINT and SIGTERM while the block runs; in the main thread."""

    def handle(number: int, _frame: FrameType | None) -> None:
        scheduler.ask_to_stop(number)

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


DIRECTORY = "schedules"


def text_log(zone: tzinfo) -> Log:
    """Lines for people; times are in the schedule's zone."""

    def log(event: str, **facts: Any) -> None:
        told = "  ".join(f"{name} {_message(value, zone)}" for name, value in facts.items())
        moment = datetime.now(zone).isoformat(sep=" ", timespec="seconds")
        print_line(one_line(f"{moment}  {event:<8}  {told}".rstrip()))

    return log


def _message(value: Any, zone: tzinfo) -> str:
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
