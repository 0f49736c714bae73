"""The scheduler, by a clock that jumps as it is told, and once by the real one."""

import json
import logging
import os
import re
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import Popen
from typing import Any, cast

import pytest

from jobs.commands.logs import attached
from jobs.scheduling.cron import cron_times
from jobs.scheduling.scheduler import Clock, Heartbeat, Scheduler
from storage.documents import read_sealed
from storage.errors import StoppedError
from storage.places import open_location
from tests.commands.process import assert_refused, run_pipeline, start_pipeline

START = datetime(2026, 1, 5, 12, tzinfo=UTC)
"""A Monday at noon."""


class FakeClock(Clock):
    """Time passes when somebody sleeps; at some moments it jumps, or something else happens."""

    def __init__(self, start: datetime = START) -> None:
        self.time = start
        self.stop_at = start + timedelta(days=400)
        self.on_stop: Callable[[], None] = lambda: None
        self.jumps: dict[datetime, timedelta] = {}

    def now(self) -> datetime:
        return self.time

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        before = self.time
        # In steps of half a minute, or a day has too many of them.
        self.time += timedelta(seconds=max(seconds, 30 - before.timestamp() % 30))
        for moment in list(self.jumps):
            if before < moment <= self.time:
                self.time += self.jumps.pop(moment)
        if self.time >= self.stop_at:
            self.on_stop()


class Job:
    """A job that takes so long by the fake clock."""

    def __init__(self, clock: FakeClock, lasts: timedelta, code: int = 0) -> None:
        self.pid = 1
        self.signals: list[int] = []
        self._clock = clock
        self._end = clock.time + lasts
        self._code = code

    def poll(self) -> int | None:
        if self.signals:
            return 143
        return self._code if self._clock.time >= self._end else None

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


class Recorder(logging.Handler):
    """Keeps names and facts of events."""

    def __init__(self, log: list[dict[str, Any]]) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        name = getattr(record, "event", record.levelname.lower())
        facts = getattr(record, "facts", {})
        self._log.append({"event": name, "text": record.getMessage(), **facts})


class Scene:
    """A scheduler with a fake clock, and what it logged."""

    def __init__(self, directory: Path, start: datetime = START) -> None:
        self.clock = FakeClock(start)
        self.heartbeat = Heartbeat(open_location(directory), "beat.json")
        self.log: list[dict[str, Any]] = []
        self.jobs: list[Job] = []
        self.lasts = timedelta(minutes=5)
        self.code = 0

    def run(
        self,
        expression: str,
        until: datetime,
        *,
        zone: str = "UTC",
        catch_up: bool = True,
        signals: int = 1,
    ) -> list[datetime]:
        """Run until a moment; when jobs were started."""
        self.clock.stop_at = until
        scheduler = Scheduler(
            cron_times(expression, zone),
            cast("Callable[[], Popen[bytes]]", self._launch),
            self.heartbeat,
            catch_up=catch_up,
            clock=self.clock,
        )

        def stop() -> None:
            self.clock.on_stop = lambda: None
            for _ in range(signals):
                scheduler.ask_to_stop(signal.SIGTERM)

        self.clock.on_stop = stop
        before = len(self.started)
        with attached(Recorder(self.log)), pytest.raises(StoppedError) as stopped:
            scheduler.run()
        assert 143 == stopped.value.exit_code
        return self.started[before:]

    def _launch(self) -> Job:
        self.jobs.append(Job(self.clock, self.lasts, self.code))
        self.log.append({"event": "launched", "at": self.clock.time})
        return self.jobs[-1]

    @property
    def started(self) -> list[datetime]:
        """When jobs were started, to the minute."""
        moments = [line["at"] for line in self.log if line["event"] == "launched"]
        return [moment.replace(second=0, microsecond=0) for moment in moments]

    def events(self, *names: str) -> list[dict[str, Any]]:
        """The lines of these events."""
        return [line for line in self.log if line["event"] in names]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A scene that begins on a Monday at noon."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a day has thousands of heartbeats
    return Scene(tmp_path)


def hours(*numbers: float) -> list[datetime]:
    return [START + timedelta(hours=number) for number in numbers]


def read(heartbeat: Heartbeat) -> dict[str, Any]:
    """The document of a heartbeat."""
    return read_sealed(heartbeat.location, heartbeat.key)


def test_when_it_is_due(scene: Scene) -> None:
    """A job is started each time that it is due, and its end is logged with the next time."""
    scene.code = 5
    assert hours(1, 2, 3) == scene.run("0 * * * *", START + timedelta(hours=3.5))
    ends = scene.events("end")
    assert [5, 5, 5] == [line["exit"] for line in ends]
    assert hours(2, 3, 4) == [line["next"] for line in ends]
    assert [] == scene.events("missed", "skip")


@pytest.mark.parametrize(("catch_up", "expected"), [(True, [1, 3.5, 6]), (False, [1, 4])])
def test_missed_while_busy(catch_up: bool, expected: list[float], scene: Scene) -> None:
    """What came due while the job was at work is made up once or skipped, and said."""
    scene.lasts = timedelta(hours=2.5)
    until = START + timedelta(hours=6.2)
    assert hours(*expected) == scene.run("0 * * * *", until, catch_up=catch_up, signals=2)
    assert {2} == {line["runs"] for line in scene.events("missed")}
    assert bool(scene.events("skip")) != catch_up


@pytest.mark.parametrize(("catch_up", "made_up"), [(True, "once, now"), (False, "not at all")])
@pytest.mark.parametrize(("back", "runs"), [(10.5, 9), (2 + 3 / 3600, 1)])
def test_missed_while_down(
    back: float, runs: int, catch_up: bool, made_up: str, scene: Scene
) -> None:
    """What came due while the scheduler was down, be it by seconds, is made up once or skipped."""
    scene.run("0 * * * *", START + timedelta(hours=1.5))
    scene.clock.time = START + timedelta(hours=back)
    until = START + timedelta(hours=back + 1)
    expected = hours(int(2 * back) / 2, int(back) + 1) if catch_up else hours(int(back) + 1)
    assert expected == scene.run("0 * * * *", until, catch_up=catch_up)
    (missed,) = scene.events("missed")
    assert (runs, made_up) == (missed["runs"], missed["made_up"])


def test_what_is_due_now_makes_up_for_nothing(scene: Scene) -> None:
    """Without catching up, a run that is on time does not count as one that makes up for others."""
    scene.clock.jumps = {START + timedelta(hours=1.5): timedelta(hours=2.5)}
    started = scene.run("0 * * * *", START + timedelta(hours=4.5), catch_up=False)
    assert hours(1, 4) == started
    assert ["not at all"] == [line["made_up"] for line in scene.events("missed")]


def test_killed_while_a_job_ran(scene: Scene) -> None:
    """A job whose end no scheduler saw is made up for: it finds its work done, or goes on."""
    scene.run("0 * * * *", START + timedelta(hours=1.5))
    beat = read(scene.heartbeat)
    beat.pop("seal", None)
    scene.heartbeat.write(**beat | {"running": hours(1)[0].isoformat()})
    scene.clock.time = START + timedelta(hours=1.7)
    assert hours(1.7) == scene.run("0 * * * *", START + timedelta(hours=1.9))


@pytest.mark.parametrize(
    "time",
    [
        "9999-12-31T23:59:59+00:00",
        "9" * 5000,
        7,
    ],
)
@pytest.mark.parametrize("field", ["last", "running"])
def test_a_heartbeat_of_no_time_of_a_run(field: str, time: object, scene: Scene) -> None:
    """A time that no scheduler wrote, sealed or not, is warned of; the scheduler begins anew."""
    times = {"last": START.isoformat(), "running": None, "last_exit": 0}
    scene.heartbeat.write(**times | {field: time})
    assert hours(1) == scene.run("0 * * * *", START + timedelta(hours=1.5), zone="Europe/Berlin")
    assert "cannot be used" in scene.events("warning")[0]["text"]


def test_clock_put_forward(scene: Scene) -> None:
    """Times that a jump has skipped are made up once."""
    scene.clock.jumps = {START + timedelta(minutes=30): timedelta(hours=5)}
    assert hours(5.5, 6) == scene.run("0 * * * *", START + timedelta(hours=6.5))
    assert [5] == [line["runs"] for line in scene.events("missed")]


@pytest.mark.slow
@pytest.mark.parametrize(("back", "again"), [(2, []), (8, range(1, 9))])
def test_clock_put_back(back: int, again: list[int], scene: Scene) -> None:
    """Times that come again are due again only if the clock was wrong by more than three hours."""
    scene.clock.jumps = {START + timedelta(hours=8, minutes=30): -timedelta(hours=back)}
    started = scene.run("0 * * * *", START + timedelta(hours=9.5))
    assert hours(*range(1, 9), *again, 9) == started
    assert bool(again) == bool(scene.events("clock"))


@pytest.mark.parametrize("day", ["2026-03-28", "2026-10-24"])
def test_daylight_saving(day: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A nightly job runs once a night, also in those of 23 and 25 hours."""
    noon = datetime.fromisoformat(f"{day}T12:00+00:00")
    scene = Scene(tmp_path, noon)
    # Thousands of them would be written in two days.
    monkeypatch.setattr(Heartbeat, "write", lambda self, **facts: None)
    scene.run("30 2 * * *", noon + timedelta(days=2), zone="Europe/Berlin")
    assert 2 == len(scene.started)
    assert [] == scene.events("missed")


@pytest.mark.slow
def test_a_signal_lets_the_job_end(scene: Scene) -> None:
    """The first signal starts nothing more; the job that runs comes to its end."""
    scene.lasts = timedelta(hours=3)
    scene.run("0 * * * *", START + timedelta(hours=1.5))
    assert ([], 1) == (scene.jobs[0].signals, len(scene.jobs))
    assert [0] == [line["exit"] for line in scene.events("end")]
    assert ["stopping", "stopped"] == [
        line["event"] for line in scene.events("stopping", "stopped")
    ]


def test_a_second_signal_is_passed_on(scene: Scene) -> None:
    """The second signal tells the job to stop where it can be gone on with."""
    scene.lasts = timedelta(hours=3)
    scene.run("0 * * * *", START + timedelta(hours=1.5), signals=2)
    assert [signal.SIGTERM] == scene.jobs[0].signals
    assert [143] == [line["exit"] for line in scene.events("end")]
    scene.lasts = timedelta(minutes=5)
    again = scene.run("0 * * * *", scene.clock.time + timedelta(minutes=10))
    assert hours(1.5) == again, "the next scheduler did not have it gone on with"


def test_heartbeat(scene: Scene) -> None:
    """The heartbeat tells the time, the state, the last exit code and what comes next."""
    scene.code = 3
    scene.run("0 * * * *", START + timedelta(hours=1.5))
    found = read(scene.heartbeat)
    assert ("stopped", None, 3) == (found["state"], found["running"], found["last_exit"])
    assert [hours(1)[0], hours(2)[0]] == [
        datetime.fromisoformat(found[name]) for name in ("last", "next")
    ]
    assert hours(1.5)[0] <= datetime.fromisoformat(found["time"])


def test_a_disk_that_takes_no_heartbeat(scene: Scene, tmp_path: Path) -> None:
    """Where the heartbeat cannot be read or written it is said, and jobs run all the same."""
    (tmp_path / "beat.json").mkdir()
    assert hours(1) == scene.run("0 * * * *", START + timedelta(hours=1.5))
    assert scene.events("warning")


def test_long_down(scene: Scene) -> None:
    """A year of missed minutes is one run, found quickly."""
    scene.run("* * * * *", START + timedelta(seconds=30))
    scene.clock.time = START + timedelta(days=365)
    scene.lasts = timedelta(seconds=10)
    started = scene.run("* * * * *", scene.clock.time + timedelta(minutes=1, seconds=50))
    assert scene.clock.time.replace(second=0) - timedelta(minutes=2) <= started[0]
    assert len(started) <= 3


def owed(heartbeat: Path) -> Path:
    """A heartbeat of years ago: whoever goes on from it has a run to make up, now."""
    last = datetime(2020, 6, 1, tzinfo=UTC).isoformat()
    place = Heartbeat(open_location(heartbeat.parent), heartbeat.name)
    place.write(last=last, running=None, last_exit=None)
    return heartbeat


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (("score",), ["summary"]),
        (("score", "--log-json"), ["summary"]),
        (("score", "--json"), []),
        (("scores", "--help"), []),
    ],
)
def test_a_log_of_json_is_nothing_else(
    job: tuple[str, ...], expected: list[str], tmp_path: Path
) -> None:
    """With --log-json each line on stdout is JSON: the job logs so too, or prints on stderr."""
    beat = owed(tmp_path / "beat.json")
    with start_pipeline(
        *("schedule", "0 0 1 1 *", "--timezone", "UTC", "--log-json", "--heartbeat", beat),
        *("--", *job),
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        log: list[dict[str, Any]] = []
        while not log or log[-1]["event"] != "end":
            log.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate()
    log += map(json.loads, out.splitlines())
    names = [line["event"] for line in log]
    before, after = ["waiting", "missed", "start"], ["end", "stopped", "summary"]
    assert [*before, *expected, *after] == names
    assert re.fullmatch(r"\d{4}-01-01T00:00:00\+00:00", log[0]["next"])
    assert ("Usage: pipeline scores" in errors) == ("--help" in job)
    assert (143, 143) == (process.returncode, log[-1]["exit"])
    assert errors.endswith("The schedule was stopped; no job is running.\n")
    assert "stopped" == json.loads(beat.read_text())["state"]


@pytest.mark.parametrize("place", ["directory", "file/beat.json", "pipe", "/dev/stdout"])
def test_a_heartbeat_where_no_file_can_be(place: str, tmp_path: Path) -> None:
    """It is refused: a probe would wait for it for ever."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    command = ("schedule", "0 0 1 1 *", "--heartbeat", place, "--", "score")
    assert_refused(run_pipeline(*command, cwd=tmp_path), 2, "--heartbeat", place)


def test_two_schedulers_of_one_heartbeat(tmp_path: Path) -> None:
    """The second is refused, by name; a dead one's heartbeat is free."""
    command = ("schedule", "0 0 1 1 *", "--heartbeat", "beat.json", "--", "score")
    with start_pipeline(*command, cwd=tmp_path) as first:
        assert first.stdout is not None
        assert "waiting" in first.stdout.readline()
        refused = run_pipeline(*command, cwd=tmp_path)
        first.kill()  # before anything is asserted: a failure would wait for it
        told = f"beat.json: process {first.pid} on"
        assert_refused(refused, 4, "Another scheduler uses the heartbeat", told, "Stop it, or")
    with start_pipeline(*command, cwd=tmp_path) as second:
        assert second.stdout is not None
        assert "waiting" in second.stdout.readline()
        second.terminate()


def test_a_disk_that_takes_no_lock(scene: Scene) -> None:
    """Where the lock beside the heartbeat cannot be made it is said, and that is all."""
    heartbeat = Heartbeat(open_location("/proc"), "beat.json")
    with attached(Recorder(scene.log)), heartbeat.hold():
        assert "would not be noticed" in scene.events("warning")[0]["text"]
