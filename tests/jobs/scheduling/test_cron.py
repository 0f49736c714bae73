"""The times of cron expressions, on ordinary days and on those with 23 or 25 hours."""

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
        # a time inside the gap is due right after it
        ("30 2 * * *", "2026-03-28T00:00+01:00", ["28T02:30+01:00", "29T03:00+02:00"]),
        # a time that occurs twice is due the first time
        ("30 2 * * *", "2026-10-24T12:00+02:00", ["25T02:30+02:00", "26T02:30+01:00"]),
        # from the second of two equal hours, the first one is over
        ("30 2 * * *", "2026-10-25T02:10+01:00", ["26T02:30+01:00"]),
        # an expression for every hour is due at both
        (
            "*/30 * * * *",
            "2026-10-25T02:15+02:00",
            ["25T02:30+02:00", "25T02:00+01:00", "25T02:30+01:00", "25T03:00+01:00"],
        ),
        # if both day and weekday are given, one is enough
        ("0 0 1,13 * FRI", "2026-06-05T12:00+02:00", ["12T00:00+02:00", "13T00:00+02:00"]),
    ],
)
def test_times_after(expression: str, start: str, expected: list[str]) -> None:
    """The times after a moment equal those of Debian's cron, even when clocks change."""
    times = cron_times(expression, "Europe/Berlin")
    moments = islice(times.times_after(datetime.fromisoformat(start)), len(expected))
    texts = [moment.astimezone(times.zone).isoformat(timespec="minutes") for moment in moments]
    assert expected == [text[8:] for text in texts]


def test_between() -> None:
    """The start is excluded and the stop included."""
    times = cron_times("0 * * * *", "UTC")
    start, stop = (datetime(2026, 1, 1, hour, tzinfo=UTC) for hour in (0, 3))
    assert [1, 2, 3] == [moment.hour for moment in times.between(start, stop, 10)]
    assert [1, 2] == [moment.hour for moment in times.between(start, stop, 2)]


def test_sunday_is_0_and_7() -> None:
    """0, 7 and `sun` all mean Sunday."""
    for sunday in ("0", "7", "sun"):
        assert [0] == cron_times(f"0 0 * * {sunday}", "UTC").fields[4]


def test_names_are_not_extensions() -> None:
    """The W of WED and the L of JUL are not mistaken for extensions."""
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
def test_invalid_expressions(expression: str, words: str) -> None:
    """Anything but a five-field expression is refused with an example of one."""
    with pytest.raises(UsageError) as caught:
        cron_times(expression, "UTC")
    assert words in str(caught.value)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../../etc/passwd", "Europe/Berln"])
def test_unknown_zones(zone: str) -> None:
    """A time zone that is not in the database is refused; a misspelt one gets a suggestion."""
    with pytest.raises(UsageError, match="Unknown time zone") as caught:
        cron_times("0 3 * * *", zone)
    assert ("Did you mean 'Europe/Berlin'?" in str(caught.value)) == (zone == "Europe/Berln")


@pytest.mark.parametrize(
    "form", ["Asia/Tokyo", ":Asia/Tokyo", "/usr/share/zoneinfo/Asia/Tokyo", ":{}/Asia/Tokyo"]
)
def test_zone_of_the_environment(
    form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """TZ may begin with a colon, and be a path into any copy of the database."""
    monkeypatch.setenv("TZ", form.format(tmp_path / "zoneinfo"))
    times = cron_times("0 3 * * *")
    assert "Asia/Tokyo" == times.zone_name
    assert 18 == times.after(datetime(2026, 1, 1, tzinfo=UTC)).hour


def test_zone_of_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TZ may be the path of any time zone file, whose zone then has no known name."""
    tokyo = resources.files("tzdata").joinpath("zoneinfo", "Asia", "Tokyo")
    (tmp_path / "zone").write_bytes(tokyo.read_bytes())
    monkeypatch.setenv("TZ", str(tmp_path / "zone"))
    times = cron_times("0 3 * * *")
    assert "local" == times.zone_name
    assert 18 == times.after(datetime(2026, 1, 1, tzinfo=UTC)).hour


@pytest.mark.parametrize("text", ["CET-1CEST,M3.5.0,M10.5.0/3", "Mars", "/etc/passwd", "/absent"])
def test_unusable_zone_of_the_environment(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TZ that is a POSIX rule or not a zone is refused; UTC is never used instead."""
    monkeypatch.setenv("TZ", text)
    with pytest.raises(UsageError, match="Pass --timezone"):
        cron_times("0 3 * * *")
