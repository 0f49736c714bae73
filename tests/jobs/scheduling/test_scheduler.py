"""The scheduler, with a fake clock that can jump."""

import os
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
from tests.jobs.inboxes import Events

START = datetime(2026, 1, 5, 12, tzinfo=UTC)
"""A Monday at noon."""


class FakeClock(Clock):
    """A clock that advances while it sleeps, jumps at given moments, and stops the scheduler."""

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
        # in steps of at least half a minute, for speed
        self.time += timedelta(seconds=max(seconds, 30 - before.timestamp() % 30))
        for moment in list(self.jumps):
            if before < moment <= self.time:
                self.time += self.jumps.pop(moment)
        if self.time >= self.stop_at:
            self.on_stop()


class Job:
    """A process that runs for some time of the fake clock."""

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


class Scene:
    """A scheduler with a fake clock, and its log."""

    def __init__(self, directory: Path, start: datetime = START) -> None:
        self.clock = FakeClock(start)
        self.heartbeat = Heartbeat(open_location(directory), "beat.json")
        self.log = Events()
        self.started: list[datetime] = []
        """The start times of the jobs, to the minute."""
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
        """Run until a moment; return the start times of the jobs."""
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
        with attached(self.log), pytest.raises(StoppedError) as stopped:
            scheduler.run()
        assert 143 == stopped.value.exit_code
        return self.started[before:]

    def _launch(self) -> Job:
        self.jobs.append(Job(self.clock, self.lasts, self.code))
        self.started.append(self.clock.time.replace(second=0, microsecond=0))
        return self.jobs[-1]

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Return the events with these names."""
        return [event for event in self.log.events if event["event"] in names]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A scene that begins at `START`."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # for speed
    return Scene(tmp_path)


def hours(*numbers: float) -> list[datetime]:
    """Return the moments this many hours after `START`."""
    return [START + timedelta(hours=number) for number in numbers]


def read(heartbeat: Heartbeat) -> dict[str, Any]:
    """Return the document of a heartbeat."""
    return read_sealed(heartbeat.location, heartbeat.key)


def test_when_it_is_due(scene: Scene) -> None:
    """The job is started whenever it is due, and its end is logged with the next time."""
    scene.code = 5
    assert hours(1, 2, 3) == scene.run("0 * * * *", START + timedelta(hours=3.5))
    ends = scene.events("end")
    assert [5, 5, 5] == [line["exit"] for line in ends]
    assert hours(2, 3, 4) == [line["next"] for line in ends]
    assert [] == scene.events("missed", "skip")


@pytest.mark.slow
@pytest.mark.parametrize(("catch_up", "expected"), [(True, [1, 3.5, 6]), (False, [1, 4])])
def test_missed_while_busy(catch_up: bool, expected: list[float], scene: Scene) -> None:
    """Runs that fell due during a job are made up once or skipped, and logged."""
    scene.lasts = timedelta(hours=2.5)
    until = START + timedelta(hours=6.2)
    assert hours(*expected) == scene.run("0 * * * *", until, catch_up=catch_up, signals=2)
    assert {2} == {line["runs"] for line in scene.events("missed")}
    assert bool(scene.events("skip")) != catch_up


@pytest.mark.slow
@pytest.mark.parametrize(("catch_up", "made_up"), [(True, "once, now"), (False, "not at all")])
@pytest.mark.parametrize(("back", "runs"), [(10.5, 9), (2 + 3 / 3600, 1)])
def test_missed_while_down(
    back: float, runs: int, catch_up: bool, made_up: str, scene: Scene
) -> None:
    """Runs missed while the scheduler was down, even by seconds, are made up once or skipped."""
    scene.run("0 * * * *", START + timedelta(hours=1.5))
    scene.clock.time = START + timedelta(hours=back)
    until = START + timedelta(hours=back + 1)
    expected = hours(int(2 * back) / 2, int(back) + 1) if catch_up else hours(int(back) + 1)
    assert expected == scene.run("0 * * * *", until, catch_up=catch_up)
    (missed,) = scene.events("missed")
    assert (runs, made_up) == (missed["runs"], missed["made_up"])


def test_a_run_on_time_after_missed_ones(scene: Scene) -> None:
    """Without catch-up, a run on time after missed ones is logged as a normal run."""
    scene.clock.jumps = {START + timedelta(hours=1.5): timedelta(hours=2.5)}
    started = scene.run("0 * * * *", START + timedelta(hours=4.5), catch_up=False)
    assert hours(1, 4) == started
    assert ["not at all"] == [line["made_up"] for line in scene.events("missed")]


def test_killed_while_a_job_ran(scene: Scene) -> None:
    """A job that was running when the scheduler died is started again."""
    scene.run("0 * * * *", START + timedelta(hours=1.5))
    beat = read(scene.heartbeat)
    beat.pop("seal", None)
    scene.heartbeat.write(**beat | {"running": hours(1)[0].isoformat()})
    scene.clock.time = START + timedelta(hours=1.7)
    assert hours(1.7) == scene.run("0 * * * *", START + timedelta(hours=1.9))


@pytest.mark.slow
@pytest.mark.parametrize(
    "time",
    [
        "9999-12-31T23:59:59+00:00",
        "9" * 5000,
        7,
    ],
)
@pytest.mark.parametrize("field", ["last", "running"])
def test_invalid_heartbeat(field: str, time: object, scene: Scene) -> None:
    """A heartbeat with an impossible time is ignored, with a warning."""
    times = {"last": START.isoformat(), "running": None, "last_exit": 0}
    scene.heartbeat.write(**times | {field: time})
    assert hours(1) == scene.run("0 * * * *", START + timedelta(hours=1.5), zone="Europe/Berlin")
    assert "The last heartbeat is ignored" in scene.events("WARNING")[0]["text"]


def test_clock_put_forward(scene: Scene) -> None:
    """Runs that a jump of the clock skipped are made up once."""
    scene.clock.jumps = {START + timedelta(minutes=30): timedelta(hours=5)}
    assert hours(5.5, 6) == scene.run("0 * * * *", START + timedelta(hours=6.5))
    assert [5] == [line["runs"] for line in scene.events("missed")]


@pytest.mark.slow
@pytest.mark.parametrize(("back", "again"), [(2, []), (8, range(1, 9))])
def test_clock_put_back(back: int, again: list[int], scene: Scene) -> None:
    """Runs are due again only if the clock is set back by more than three hours."""
    scene.clock.jumps = {START + timedelta(hours=8, minutes=30): -timedelta(hours=back)}
    started = scene.run("0 * * * *", START + timedelta(hours=9.5))
    assert hours(*range(1, 9), *again, 9) == started
    assert bool(again) == bool(scene.events("clock"))


@pytest.mark.parametrize("day", ["2026-03-28", "2026-10-24"])
def test_daylight_saving(day: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A nightly job runs once a night, even when clocks change."""
    noon = datetime.fromisoformat(f"{day}T12:00+00:00")
    scene = Scene(tmp_path, noon)
    monkeypatch.setattr(Heartbeat, "write", lambda self, **facts: None)  # for speed
    scene.run("30 2 * * *", noon + timedelta(days=2), zone="Europe/Berlin")
    assert 2 == len(scene.started)
    assert [] == scene.events("missed")


@pytest.mark.slow
def test_a_signal_lets_the_job_end(scene: Scene) -> None:
    """After the first signal the running job finishes, and no other is started."""
    scene.lasts = timedelta(hours=3)
    scene.run("0 * * * *", START + timedelta(hours=1.5))
    assert ([], 1) == (scene.jobs[0].signals, len(scene.jobs))
    assert [0] == [line["exit"] for line in scene.events("end")]
    assert ["stopping", "stopped"] == [
        line["event"] for line in scene.events("stopping", "stopped")
    ]


def test_a_second_signal_is_forwarded(scene: Scene) -> None:
    """The second signal stops the job; the next scheduler starts it again."""
    scene.lasts = timedelta(hours=3)
    scene.run("0 * * * *", START + timedelta(hours=1.5), signals=2)
    assert [signal.SIGTERM] == scene.jobs[0].signals
    assert [143] == [line["exit"] for line in scene.events("end")]
    scene.lasts = timedelta(minutes=5)
    again = scene.run("0 * * * *", scene.clock.time + timedelta(minutes=10))
    assert hours(1.5) == again


def test_heartbeat(scene: Scene) -> None:
    """The heartbeat has the time, the state, the last exit code and the next run."""
    scene.code = 3
    scene.run("0 * * * *", START + timedelta(hours=1.5))
    beat = read(scene.heartbeat)
    assert ("stopped", None, 3) == (beat["state"], beat["running"], beat["last_exit"])
    assert [hours(1)[0], hours(2)[0]] == [
        datetime.fromisoformat(beat[name]) for name in ("last", "next")
    ]
    assert hours(1.5)[0] <= datetime.fromisoformat(beat["time"])


def test_unwritable_heartbeat(scene: Scene, tmp_path: Path) -> None:
    """If the heartbeat cannot be read or written, jobs still run, with a warning."""
    (tmp_path / "beat.json").mkdir()
    assert hours(1) == scene.run("0 * * * *", START + timedelta(hours=1.5))
    assert scene.events("WARNING")


def test_long_down(scene: Scene) -> None:
    """A year of missed runs is made up by one run, and computed quickly."""
    scene.run("* * * * *", START + timedelta(seconds=30))
    scene.clock.time = START + timedelta(days=365)
    scene.lasts = timedelta(seconds=10)
    started = scene.run("* * * * *", scene.clock.time + timedelta(minutes=1, seconds=50))
    assert scene.clock.time.replace(second=0) - timedelta(minutes=2) <= started[0]
    assert len(started) <= 3


def test_unwritable_lock(scene: Scene) -> None:
    """A heartbeat whose lock cannot be created is still used, with a warning."""
    heartbeat = Heartbeat(open_location("/proc"), "beat.json")
    with attached(scene.log), heartbeat.hold():
        assert "would not be detected" in scene.events("WARNING")[0]["text"]
