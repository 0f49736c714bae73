"""What a run's ledger tells: a table for people, the lines for scripts."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from jobs.commands.console import table
from jobs.output import percent
from storage.errors import UsageError
from storage.ledger import FAILED_EVENT, SCORED, Entry, Ledger
from storage.location import Location
from storage.runs import SCORES, open_run
from storage.scores import is_complete, scoring_homes

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
SHOWN_ERROR = 60
"""Characters of an error in the table; --json has all of it."""


def ledger_document(run: Location, since: str | None, failed: bool) -> dict[str, Any]:
    """The run, its ledger's lines, oldest first, and what is to be warned of.

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
    return {"run": str(location), "entries": entries, "warnings": warnings}


def _warnings(ledger: Ledger, entries: list[Entry]) -> list[str]:
    """What the lines do not tell: that some are missing."""
    warnings = []
    if ledger.is_torn:
        warnings.append(
            f"The last line of {ledger} is cut off, so it is left out: a job died while it wrote "
            "it. The next `pipeline score` of the same work writes it again."
        )
    told = {entry.get("result") for entry in entries}
    scores = ledger.location
    missing = [
        home
        for home in scoring_homes(scores)
        if f"{SCORES}/{home}" not in told and is_complete(scores.child(home))
    ]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        warnings.append(
            f"In {scores} the ledger has no line for {len(missing):,} of the complete scorings: "
            f"{shown}. The next `pipeline score` that finds them writes it."
        )
    return warnings


def since_time(text: str, now: datetime | None = None) -> datetime:
    """The moment that a text means: `12h`, `7d` back from now, or a date or time in ISO 8601.

    A time without a zone is this machine's. Raises `UsageError` for anything else.
    """
    now = now or datetime.now(UTC)
    try:
        if back := re.fullmatch(r"(\d{1,6})([mhdw])", text):
            return now - timedelta(**{UNITS[back[2]]: int(back[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"--since is {text!r}; expected 30m, 12h, 7d or 2w back from now, or a date or time "
            "such as 2026-01-31 or 2026-01-31T22:00."
        ) from error


def _time(entry: Entry) -> datetime:
    return datetime.fromisoformat(entry["time"])


def ledger_text(document: dict[str, Any]) -> str:
    """A line of a table for each line of the ledger; times are this machine's."""
    entries: list[Entry] = document["entries"]
    if not entries:
        return f"Nothing in the ledger of {document['run']}."
    header = ["time", "what", "outcome", "rows", "accuracy", "model", "result"]
    return table(
        header, [_row(entry) for entry in entries], left=("what", "outcome", "model", "result")
    )


def _row(entry: Entry) -> list[str]:
    accuracy = entry.get("accuracy")
    rows = entry.get("rows")
    return [
        _time(entry).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        str(entry.get("file") or entry.get("split") or "-"),
        _outcome(entry),
        "-" if rows is None else f"{rows:,}",
        "-" if accuracy is None else percent(accuracy),
        entry["model_digest"][:12] + (f" ({entry['model']})" if entry.get("model") else ""),
        _shortened(entry["error"]) if entry["event"] == FAILED_EVENT else str(entry.get("result")),
    ]


def _outcome(entry: Entry) -> str:
    if entry["event"] == FAILED_EVENT:
        return "failed"
    missed = "below gate" if entry["exit"] else ""
    if entry["event"] == SCORED:
        return missed or "scored"
    return ", ".join(filter(None, [entry["event"], missed]))


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_ERROR else f"{text[:SHOWN_ERROR]}..."
