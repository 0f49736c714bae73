"""The times of a cron expression in a time zone, with daylight saving time."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from functools import cached_property
from itertools import islice, takewhile
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from storage.errors import UsageError, did_you_mean

LOCAL_TIME = Path("/etc/localtime")
LOCAL = "local"
"""The name of a time zone that has none in the IANA database."""
EXPECTED = (
    "expected five plain fields: minute, hour, day of the month, month, day of the week, such as "
    "'0 3 * * *' for three o'clock every night"
)
EXTENDED = re.compile(r"#|L|\dW")
"""Extensions for last days and nth weekdays, which cronsim accepts and cron does not; not WED."""
SHOWN = 100
"""Number of characters of an expression that a message shows at most."""


@dataclass(frozen=True)
class CronTimes:
    """The times of one expression in one time zone; all arguments and results are in UTC.

    Expressions are interpreted as by Debian's cron(8). When daylight saving time begins, a time
    inside the gap is due right after it. When it ends, a time that occurs twice is due the first
    time. Expressions whose minute or hour begins with `*` follow elapsed hours instead.
    """

    expression: str
    zone: tzinfo
    zone_name: str
    """The time zone's name in the IANA database, or `local` if unknown."""

    def after(self, moment: datetime) -> datetime:
        """Return the first time after a moment."""
        return next(self.times_after(moment))

    def times_after(self, moment: datetime) -> Iterator[datetime]:
        """Yield every time after a moment, in order."""
        for local in CronSim(self.expression, moment.astimezone(self.zone)):
            due = local.astimezone(UTC)
            if due > moment:  # the first of two equal hours may have passed
                yield due

    def between(self, start: datetime, stop: datetime, limit: int) -> list[datetime]:
        """Return the first `limit` times in (start, stop]."""
        times = takewhile(lambda due: due <= stop, self.times_after(start))
        return list(islice(times, limit))

    @cached_property
    def fields(self) -> list[list[int]]:
        """The values that each field allows: minutes, hours, days, months, weekdays (0 Sunday)."""
        parsed = CronSim(self.expression, datetime(2000, 1, 1, tzinfo=UTC))
        weekdays = {int(day) % 7 for day in parsed.weekdays}  # type: ignore[arg-type]
        values = (parsed.minutes, parsed.hours, parsed.days, parsed.months, weekdays)
        return list(map(sorted, values))

    @property
    def both_days(self) -> bool:
        """Whether day and weekday must both match, which they must if one begins with `*`."""
        return any(self.expression.split()[field].startswith("*") for field in (2, 4))

    @property
    def any_day(self) -> bool:
        """Whether every day of the month matches."""
        return len(self.fields[2]) == 31

    @property
    def any_weekday(self) -> bool:
        """Whether every day of the week matches."""
        return len(self.fields[4]) == 7

    @property
    def every_day(self) -> bool:
        """Whether every day of the allowed months matches."""
        together = all if self.both_days else any
        return together((self.any_day, self.any_weekday))


def cron_times(expression: str, zone_name: str | None = None) -> CronTimes:
    """Return the times of a five-field expression; raise `UsageError` for anything else.

    `zone_name` is a name in the IANA database; by default the machine's time zone is used.
    """
    fields = expression.split()
    shown = f"The schedule {expression[:SHOWN]!r}"
    if len(fields) != 5:
        count = f"{len(fields)} field{'' if len(fields) == 1 else 's'}"
        raise UsageError(f"{shown} has {count}; {EXPECTED}.")
    if EXTENDED.search(f"{fields[2]} {fields[4]}".upper()):
        raise UsageError(
            f"{shown} has an L, W or #, which standard cron does not support; {EXPECTED}."
        )
    times = CronTimes(" ".join(fields), *_zone(zone_name))
    try:
        times.after(datetime.now(UTC))
    except (CronSimError, ValueError) as error:
        raise UsageError(f"{shown} cannot be used: {str(error)[:SHOWN]}; {EXPECTED}.") from error
    except StopIteration:
        raise UsageError(f"{shown} is never due.") from None
    return times


def _zone(name: str | None) -> tuple[tzinfo, str]:
    """Return a time zone and its name, by default the machine's.

    TZ may begin with a colon or be the path of a file. POSIX rules, such as
    CET-1CEST,M3.5.0,M10.5.0/3, are refused.
    """
    if name is not None:
        return _named_zone(name), name
    place = os.environ.get("TZ", "").removeprefix(":")
    if not place and not LOCAL_TIME.exists():
        return UTC, "UTC"
    place = place or os.path.realpath(LOCAL_TIME)
    known = place.rpartition("/zoneinfo/")[2]
    try:
        return _named_zone(known), known
    except UsageError:
        pass  # not a name in the database; try it as a file
    try:
        with open(place, "rb") as file:
            return ZoneInfo.from_file(file), LOCAL
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The machine's time zone (TZ or {LOCAL_TIME}) is {place!r}, which is not in the IANA "
            "database. Pass --timezone, such as --timezone Europe/Berlin."
        ) from error


def _named_zone(name: str) -> tzinfo:
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise UsageError(
            f"Unknown time zone {name!r}; expected a name in the IANA database, such as "
            f"Europe/Berlin or UTC.{did_you_mean(name, available_timezones())}"
        ) from error
