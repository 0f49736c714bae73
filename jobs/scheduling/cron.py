"""When a cron expression is due: five fields, a time zone, and days that have 23 or 25 hours."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from functools import cached_property
from itertools import islice
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from storage.errors import UsageError, did_you_mean

LOCAL_TIME = Path("/etc/localtime")
LOCAL = "local"
"""What a zone is called whose name in the database is not known."""
EXAMPLE = "such as '0 3 * * *' for three o'clock every night"
FIELDS = 5
NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
"""What crontab(5) lets one write in place of five fields; other schedulers do not."""
EXTENDED = re.compile(r"#|L|\dW")
"""Last days and counted weekdays, which cronsim knows and cron does not; WED is none of them."""
LONG_NUMBER = re.compile(r"\d{3,}")
"""More digits than any field has values for."""


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
        """The first time that is due later than a moment."""
        return next(self.times_after(moment))

    def times_after(self, moment: datetime) -> Iterator[datetime]:
        """Every time later than a moment, in order."""
        for local in CronSim(self.expression, moment.astimezone(self.zone)):
            due = local.astimezone(UTC)
            if due > moment:  # of an hour that comes twice, the first may be over
                yield due

    def between(self, start: datetime, stop: datetime, limit: int) -> list[datetime]:
        """The times in (start, stop]: all of them or, of more than `limit`, the first so many."""
        found = []
        for due in islice(self.times_after(start), limit):
            if due > stop:
                break
            found.append(due)
        return found

    @cached_property
    def fields(self) -> "CronFields":
        """What each field allows."""
        parsed = CronSim(self.expression, datetime(2000, 1, 1, tzinfo=UTC))
        return CronFields(
            minutes=tuple(sorted(parsed.minutes)),
            hours=tuple(sorted(parsed.hours)),
            days=tuple(sorted(parsed.days)),
            months=tuple(sorted(parsed.months)),
            weekdays=tuple(sorted({int(day) % 7 for day in parsed.weekdays})),  # type: ignore[arg-type]
            both_days=parsed.day_and,
        )


@dataclass(frozen=True)
class CronFields:
    """The values that each field of an expression allows."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    """0 is Sunday."""
    both_days: bool
    """Whether day and weekday must both agree; one is enough where neither begins with `*`."""

    @property
    def every_day(self) -> bool:
        """Whether every day of the months is allowed."""
        if self.both_days:
            return self.any_day and self.any_weekday
        return self.any_day or self.any_weekday

    @property
    def any_day(self) -> bool:
        """Whether the day of the month does not matter."""
        return len(self.days) == 31

    @property
    def any_weekday(self) -> bool:
        """Whether the day of the week does not matter."""
        return len(self.weekdays) == 7


def cron_times(expression: str, zone_name: str | None = None) -> CronTimes:
    """The times of a five-field expression. Raises `UsageError` for anything else.

    The zone is one of the IANA database; by default the machine's.
    """
    fields = expression.split()
    _check_fields(expression, fields)
    if number := LONG_NUMBER.search(expression):
        raise UsageError(
            f"The schedule has a number of {len(number[0]):,} digits; use five plain fields, "
            f"{EXAMPLE}."
        )
    if EXTENDED.search(f"{fields[2]} {fields[4]}".upper()):
        raise UsageError(
            f"The schedule {expression!r} has an L, W or #, which standard cron does not know; use "
            f"five plain fields, {EXAMPLE}."
        )
    zone, name = _zone(zone_name)
    try:
        CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC))
        times = CronTimes(" ".join(fields), zone, name)
        times.after(datetime.now(UTC))
    except CronSimError as error:
        raise UsageError(
            f"The schedule {expression!r} cannot be used: {error}. Expected five fields, {EXAMPLE}."
        ) from error
    except StopIteration:
        raise UsageError(f"The schedule {expression!r} is never due.") from None
    return times


def _check_fields(expression: str, fields: list[str]) -> None:
    """Raise `UsageError` unless there are five; for a name of cron's, with those that it means."""
    if meant := NICKNAMES.get(expression.strip().lower()):
        raise UsageError(
            f"The schedule {expression!r} is a name that not every scheduler knows; write its five "
            f"fields instead: {meant!r}."
        )
    if len(fields) != FIELDS:
        count = f"{len(fields)} field{'' if len(fields) == 1 else 's'}"
        raise UsageError(
            f"The schedule {expression!r} has {count}; expected five: minute, hour, day of the "
            f"month, month, day of the week, {EXAMPLE}."
        )


def _zone(name: str | None) -> tuple[tzinfo, str]:
    """A time zone and its name; the machine's where none is given."""
    if name is not None:
        return _named_zone(name), name
    if named := os.environ.get("TZ", "").removeprefix(":"):
        return _zone_of_environment(named)
    if not LOCAL_TIME.exists():
        return UTC, "UTC"
    return _zone_of_file(os.path.realpath(LOCAL_TIME))


def _zone_of_environment(named: str) -> tuple[tzinfo, str]:
    """The zone that TZ names: in the IANA database, or by the path of a file as it has them.

    POSIX knows rules besides, such as CET-1CEST,M3.5.0,M10.5.0/3; those are refused.
    """
    try:
        return _zone_of_file(named) if named.startswith("/") else (_named_zone(named), named)
    except UsageError as error:
        raise UsageError(
            f"The environment's TZ is {named!r}, which is no time zone of the IANA database. Pass "
            "--timezone, such as --timezone Europe/Berlin."
        ) from error


def _zone_of_file(path: str) -> tuple[tzinfo, str]:
    """The zone in a file, by its name in the database where the path tells that."""
    _, _, known = path.rpartition("/zoneinfo/")
    try:
        return _named_zone(known), known
    except UsageError:
        try:
            with open(path, "rb") as file:
                return ZoneInfo.from_file(file), LOCAL
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{path} holds no time zone. Pass --timezone, such as --timezone Europe/Berlin."
            ) from error


def _named_zone(name: str) -> tzinfo:
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise UsageError(
            f"There is no time zone {name!r}; expected one of the IANA database, such as "
            f"Europe/Berlin or UTC.{did_you_mean(name, available_timezones())}"
        ) from error
