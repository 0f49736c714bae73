"""When a cron expression is due, on plain days and on those that have 23 or 25 hours."""

from datetime import UTC, datetime
from importlib import resources
from itertools import islice
from pathlib import Path

import pytest

from jobs.scheduling.cron import cron_times
from storage.errors import UsageError


@pytest.mark.parametrize(
    ("expression", "start", "expected"),
    [
        ("0 3 * * *", "2026-03-28T00:00+01:00", ["28T03:00+01:00", "29T03:00+02:00"]),
        # a time that the day does not have is due right after the gap
        ("30 2 * * *", "2026-03-28T00:00+01:00", ["28T02:30+01:00", "29T03:00+02:00"]),
        # a time that the day has twice is due the first time
        ("30 2 * * *", "2026-10-24T12:00+02:00", ["25T02:30+02:00", "26T02:30+01:00"]),
        # one started in the second of two equal hours does not look back at the first
        ("30 2 * * *", "2026-10-25T02:10+01:00", ["26T02:30+01:00"]),
        # a job for all hours is due in both
        (
            "*/30 * * * *",
            "2026-10-25T02:15+02:00",
            ["25T02:30+02:00", "25T02:00+01:00", "25T02:30+01:00", "25T03:00+01:00"],
        ),
        # where day and weekday are both given, one is enough
        ("0 0 1,13 * FRI", "2026-06-05T12:00+02:00", ["12T00:00+02:00", "13T00:00+02:00"]),
    ],
)
def test_when_it_is_due(expression: str, start: str, expected: list[str]) -> None:
    """The next times after a moment, in the zone's own time with its offset."""
    times = cron_times(expression, "Europe/Berlin")
    found = islice(times.times_after(datetime.fromisoformat(start)), len(expected))
    texts = [moment.astimezone(times.zone).isoformat(timespec="minutes") for moment in found]
    assert expected == [text[8:] for text in texts]


def test_between() -> None:
    """From the start, which does not count, to the stop, which does."""
    times = cron_times("0 * * * *", "UTC")
    start, stop = (datetime(2026, 1, 1, hour, tzinfo=UTC) for hour in (0, 3))
    assert [1, 2, 3] == [moment.hour for moment in times.between(start, stop, 10)]
    assert [1, 2] == [moment.hour for moment in times.between(start, stop, 2)]


def test_sunday_is_0_and_7() -> None:
    """Both numbers of Sunday, and its name."""
    for sunday in ("0", "7", "sun"):
        assert [0] == cron_times(f"0 0 * * {sunday}", "UTC").fields[4]


def test_wednesday_is_no_extension() -> None:
    """WED and JUL have letters that extensions use."""
    assert [3] == cron_times("0 0 * JUL WED", "UTC").fields[4]


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("0 3 * *", "4 fields"),
        ("0 0 3 * * *", "6 fields"),
        ("@daily", "1 field;"),
        ("60 3 * * *", "minute"),
        ("0 24 * * *", "hour"),
        ("0 3 L * *", "L, W or #"),
        ("0 3 * * 5#2", "L, W or #"),
        ("0 3 15W * *", "L, W or #"),
        ("0 3 30 2 *", "day-of-month"),
        (f"*/{'9' * 5000} 3 * * *", "expected five plain fields"),
        ("", "0 fields"),
    ],
)
def test_what_cannot_be_used(expression: str, words: str) -> None:
    """What is no five-field expression is refused with an example of one."""
    with pytest.raises(UsageError) as caught:
        cron_times(expression, "UTC")
    assert words in str(caught.value)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../../etc/passwd"])
def test_no_such_zone(zone: str) -> None:
    """A zone that the database does not have is refused."""
    with pytest.raises(UsageError, match="no time zone"):
        cron_times("0 3 * * *", zone)


@pytest.mark.parametrize(
    "form", ["Asia/Tokyo", ":Asia/Tokyo", "/usr/share/zoneinfo/Asia/Tokyo", ":{}/Asia/Tokyo"]
)
def test_the_zone_of_the_environment(
    form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """TZ may begin with a colon, and be the path of a file of the database, wherever that lies."""
    monkeypatch.setenv("TZ", form.format(tmp_path / "zoneinfo"))
    times = cron_times("0 3 * * *")
    assert "Asia/Tokyo" == times.zone_name
    assert 18 == times.after(datetime(2026, 1, 1, tzinfo=UTC)).hour


def test_the_zone_of_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TZ may be the path of any file with a zone, whose name is then not known."""
    tokyo = resources.files("tzdata").joinpath("zoneinfo", "Asia", "Tokyo")
    (tmp_path / "here").write_bytes(tokyo.read_bytes())
    monkeypatch.setenv("TZ", str(tmp_path / "here"))
    times = cron_times("0 3 * * *")
    assert "local" == times.zone_name
    assert 18 == times.after(datetime(2026, 1, 1, tzinfo=UTC)).hour


@pytest.mark.parametrize("text", ["CET-1CEST,M3.5.0,M10.5.0/3", "Mars", "/etc/passwd", "/absent"])
def test_a_zone_of_the_environment_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule, or what is no zone, is refused: never UTC in its place."""
    monkeypatch.setenv("TZ", text)
    with pytest.raises(UsageError, match="Pass --timezone"):
        cron_times("0 3 * * *")
