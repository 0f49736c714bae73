"""When a cron expression is due: five fields, a time zone, and days that have 23 or 25 hours."""

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
"""What a zone is called whose name in the database is not known."""
EXPECTED = (
    "expected five plain fields: minute, hour, day of the month, month, day of the week, such as "
    "'0 3 * * *' for three o'clock every night"
)
EXTENDED = re.compile(r"#|L|\dW")
"""Last days and counted weekdays, which cronsim knows and cron does not; WED is none of them."""
SHOWN = 100
"""Characters of an expression that a message shows."""


@dataclass(frozen=True)
class CronTimes:
    """The times of one expression in one time zone; all moments in and out are in UTC.

    The expression means what Debian's cron(8) makes of it. Where the clock is put forward, a time
    that the day does not have is due right after the gap; where it is put back, a time that the
    day has twice is due the first time; expressions whose minute or hour begins with `*` follow
    the hours as they pass.
    """

    expression: str
    zone: tzinfo
    zone_name: str
    """Its name in the IANA database, or `local` where the machine does not tell."""

    def after(self, moment: datetime) -> datetime:
        """Return the first time that is due later than a moment."""
        return next(self.times_after(moment))

    def times_after(self, moment: datetime) -> Iterator[datetime]:
        """Yield every time later than a moment, in order."""
        for local in CronSim(self.expression, moment.astimezone(self.zone)):
            due = local.astimezone(UTC)
            if due > moment:  # of an hour that comes twice, the first may be over
                yield due

    def between(self, start: datetime, stop: datetime, limit: int) -> list[datetime]:
        """Return the times in (start, stop], at most the first `limit`."""
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
        """Whether day and weekday must both agree; one is enough if neither begins with `*`."""
        return any(self.expression.split()[field].startswith("*") for field in (2, 4))

    @property
    def any_day(self) -> bool:
        """Whether the day of the month does not matter."""
        return len(self.fields[2]) == 31

    @property
    def any_weekday(self) -> bool:
        """Whether the day of the week does not matter."""
        return len(self.fields[4]) == 7

    @property
    def every_day(self) -> bool:
        """Whether every day of the months is allowed."""
        together = all if self.both_days else any
        return together((self.any_day, self.any_weekday))


def cron_times(expression: str, zone_name: str | None = None) -> CronTimes:
    """Return the times of a five-field expression; raise `UsageError` for anything else.

    The zone is one of the IANA database; by default the machine's.
    """
    fields = expression.split()
    shown = f"The schedule {expression[:SHOWN]!r}"
    if len(fields) != 5:
        count = f"{len(fields)} field{'' if len(fields) == 1 else 's'}"
        raise UsageError(f"{shown} has {count}; {EXPECTED}.")
    if EXTENDED.search(f"{fields[2]} {fields[4]}".upper()):
        raise UsageError(
            f"{shown} has an L, W or #, which standard cron does not know; {EXPECTED}."
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
    """Return a time zone and its name; the machine's if none is given.

    TZ may begin with a colon, and be the path of a file. The rules that POSIX allows there, such
    as CET-1CEST,M3.5.0,M10.5.0/3, are refused.
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
        pass  # a file of another directory, or none at all
    try:
        with open(place, "rb") as file:
            return ZoneInfo.from_file(file), LOCAL
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The machine's time zone (TZ or {LOCAL_TIME}) is {place!r}, which is none of the IANA "
            "database. Pass --timezone, such as --timezone Europe/Berlin."
        ) from error


def _named_zone(name: str) -> tzinfo:
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise UsageError(
            f"There is no time zone {name!r}; expected one of the IANA database, such as "
            f"Europe/Berlin or UTC.{did_you_mean(name, available_timezones())}"
        ) from error
