"""What a run's ledger tells: a table for people, the lines for scripts."""

import re
from datetime import UTC, datetime, timedelta

from jobs.commands.console import Report, table
from jobs.output import percent
from storage.errors import UsageError
from storage.ledger import FAILED_EVENT, SCORED, Entry, Ledger
from storage.location import Location
from storage.runs import SCORES, open_run
from storage.scores import is_complete, scoring_homes

HEADER = ["time", "what", "outcome", "rows", "accuracy", "model", "result"]
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
SHOWN_ERROR = 60
"""Characters of an error in the table; --json has all of it."""


def ledger_report(run: Location, since: str | None, failed: bool) -> Report:
    """Return the lines of a run's ledger, oldest first, and warnings of what is missing.

    `since` leaves out what is older: see `since_time`. `failed` leaves in only what was bad or
    missed a gate.
    """
    location = open_run(run).location
    ledger = Ledger(location)
    entries = ledger.entries()
    warnings = _warnings(ledger, entries)
    if since is not None:
        earliest = since_time(since)
        entries = [entry for entry in entries if _time(entry) >= earliest]
    if failed:
        entries = [entry for entry in entries if entry["exit"] != 0]
    document = {"run": str(location), "entries": entries, "warnings": warnings}
    text = f"Nothing in the ledger of {location}."
    if entries:
        left = ("what", "outcome", "model", "result")
        text = table(HEADER, [_row(entry) for entry in entries], left=left)
    return Report(document, text)


def _warnings(ledger: Ledger, entries: list[Entry]) -> list[str]:
    """Return a warning for each kind of line that is missing."""
    warnings = []
    if ledger.is_torn:
        warnings.append(
            f"The last line of {ledger} is cut off and left out: a job died while writing it. The "
            "next `pipeline score` of the same work writes it again."
        )
    recorded = {entry.get("result") for entry in entries}
    scores = ledger.location
    missing = [
        home
        for home in scoring_homes(scores)
        if f"{SCORES}/{home}" not in recorded and is_complete(scores.child(home))
    ]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        warnings.append(
            f"In {scores} the ledger has no line for {len(missing):,} of the complete scorings: "
            f"{shown}. The next `pipeline score` that finds them writes it."
        )
    return warnings


def since_time(text: str) -> datetime:
    """Return the moment that a text means: `12h`, `7d` ago, or a date or time in ISO 8601.

    A time without a zone is this machine's. Raises `UsageError` for anything else.
    """
    try:
        if back := re.fullmatch(r"(\d{1,6})([mhdw])", text):
            return datetime.now(UTC) - timedelta(**{UNITS[back[2]]: int(back[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"--since is {text!r}; expected 30m, 12h, 7d or 2w back from now, or a date or time "
            "such as 2026-01-31 or 2026-01-31T22:00."
        ) from error


def _time(entry: Entry) -> datetime:
    return datetime.fromisoformat(entry["time"])


def _row(entry: Entry) -> list[str]:
    """Return an entry's cells; its time is this machine's."""
    accuracy = entry.get("accuracy")
    rows = entry.get("rows")
    result = str(entry.get("result"))
    if entry["event"] == FAILED_EVENT:
        error = entry["error"]
        result = error if len(error) <= SHOWN_ERROR else f"{error[:SHOWN_ERROR]}..."
    return [
        _time(entry).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        str(entry.get("file") or entry.get("split") or "-"),
        _outcome(entry),
        "-" if rows is None else f"{rows:,}",
        "-" if accuracy is None else percent(accuracy),
        entry["model_digest"][:12] + (f" ({entry['model']})" if entry.get("model") else ""),
        result,
    ]


def _outcome(entry: Entry) -> str:
    if entry["event"] == FAILED_EVENT:
        return "failed"
    missed = "below gate" if entry["exit"] else ""
    if entry["event"] == SCORED:
        return missed or "scored"
    return ", ".join(filter(None, [entry["event"], missed]))
