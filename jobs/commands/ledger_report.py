"""The report of `pipeline scores`: a run's ledger."""

import re
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from itertools import compress
from typing import Any

from jobs.choices import LARGE_DRIFT
from jobs.commands.console import Report
from jobs.commands.score_reports import drift_cell
from jobs.commands.tables import SHORT_DIGEST, facts, fit, table, terminal_width, wrap
from jobs.output import average_text, member_names, one_line, percent
from jobs.scoring.records import failure_text
from storage.errors import UsageError
from storage.events import local_time
from storage.ledger import FAILED_EVENT, SCORED, Entry, Ledger
from storage.location import Location
from storage.places import referenced
from storage.runs import SCORES, open_run
from storage.scores import is_complete, scoring_homes

HEADER = ["time", "what", "outcome", "rows", "accuracy", "drift", "model", "result"]
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def ledger_report(run: Location, since: str | None, failed: bool) -> Report:
    """Report a run's ledger, oldest entry first, with warnings of missing lines.

    `since` leaves out older entries: see `since_time`. `failed` selects the entries that failed or
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
    if not entries:
        text = f"Nothing in the ledger of {location}."
        return Report(document, text, text)
    failed_entries = [entry for entry in entries if entry["event"] == FAILED_EVENT]
    errors = [one_line(failure_text(entry["file"], entry["error"])) for entry in failed_entries]
    wrapped = [line for error in errors for line in wrap(error, terminal_width())]
    outcomes = Counter(map(_outcome, entries)).items()
    summary = f"{ledger}: {', '.join(f'{count:,} {outcome}' for outcome, count in outcomes)}"
    models = {entry["model_digest"][:SHORT_DIGEST] for entry in entries}
    if len(models) == 1:
        summary += f"; model {models.pop()}"
    averages = "\n".join(map(fit, _averages(entries, location)))
    parts = [_ledger_table(entries), averages, "\n".join(wrapped), fit(summary)]
    return Report(document, "\n\n".join(filter(None, parts)), summary, _entry_details(entries))


def _ledger_table(entries: list[Entry]) -> str:
    """Return a line per entry, without columns that say nothing, such as the only model."""
    hidden = set()
    if len({entry["model_digest"] for entry in entries}) == 1:
        hidden.add("model")
    if {*map(_outcome, entries)} <= {SCORED, FAILED_EVENT}:
        hidden.add("outcome")  # a failed entry has "failed" instead of an accuracy
    if all(entry.get("drift") is None for entry in entries):
        hidden.add("drift")
    if all(entry.get("accuracy") is None and entry["event"] != FAILED_EVENT for entry in entries):
        hidden.add("accuracy")
    has_drifted = any((entry.get("drift") or 0) > LARGE_DRIFT for entry in entries)
    # A large drift is worth broken lines, but all columns together take more than 80.
    optional = ("result",) if has_drifted and hidden else ("drift", "result")
    keep = [column not in hidden for column in HEADER]
    names = _names(entries)
    return table(
        list(compress(HEADER, keep)),
        [list(compress(_entry_row(*pair), keep)) for pair in zip(entries, names, strict=True)],
        left=("what", "outcome", "model", "result"),
        wrapped=("what", "outcome", "result"),
        optional=optional,
    )


def _averages(entries: list[Entry], run: Location) -> list[str]:
    """Return a line for each model that is an average, with its digest."""
    averages = {}
    for entry in entries:
        checkpoints = str(entry.get("checkpoint"))
        runs = [referenced(place, run) for place in entry.get("runs", ())]
        average = checkpoints.count(",") + 1, entry.get("average_shifts", 0)
        names = member_names(runs, checkpoints)
        averages[entry["model_digest"][:SHORT_DIGEST]] = average_text(*average, names)
    return [f"{digest}: {average}" for digest, average in averages.items() if average]


def _names(entries: list[Entry]) -> list[str]:
    """Return the file or split of each entry; the dataset too if a split's name is ambiguous."""
    digests: defaultdict[str, set[Any]] = defaultdict(set)
    splits = [entry for entry in entries if not entry.get("file")]
    for entry in splits:
        for name in (_what(entry), _with_dataset(entry)):
            digests[name].add(entry.get("dataset_digest"))
    names = []
    for entry in entries:
        name = _what(entry)
        if entry in splits and len(digests[name]) > 1:
            name = _with_dataset(entry)
            if len(digests[name]) > 1:  # the dataset was replaced
                name += f" ({str(entry.get('dataset_digest'))[:SHORT_DIGEST]})"
        names.append(name)
    return names


def _with_dataset(entry: Entry) -> str:
    return one_line(f"{_what(entry)} of {entry.get('dataset')}")


def _entry_details(entries: list[Entry]) -> str:
    """Return each entry's full digests and the location of its scores."""
    model = ("model", "checkpoint", "runs", "average_shifts", "model_digest")
    names = (*model, "dataset", "dataset_digest", "result")
    return "\n".join(
        f"\n{local_time(entry['time'])}  {_what(entry)}\n"
        + facts([(name, _joined(entry[name])) for name in names if entry.get(name)])
        for entry in entries
    )


def _joined(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _warnings(ledger: Ledger, entries: list[Entry]) -> list[str]:
    """Return a warning if the last line is cut off, and one if scorings have no line."""
    warnings = []
    if ledger.is_torn:
        warnings.append(
            f"The last line of {ledger} is incomplete and is skipped: a job was killed while "
            "writing it. The next `pipeline score` of the same rows writes it again."
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
            f"The ledger has no line for {len(missing):,} of the complete scores in {scores}: "
            f"{shown}. The next `pipeline score` of the same rows adds it."
        )
    return warnings


def since_time(text: str) -> datetime:
    """Parse `12h` or `7d` before now, or a date or time in ISO 8601, local if it has no offset.

    Raises `UsageError` for anything else.
    """
    try:
        if back := re.fullmatch(r"(\d{1,6})([mhdw])", text):
            return datetime.now(UTC) - timedelta(**{UNITS[back[2]]: int(back[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"--since is {text!r}; expected 30m, 12h, 7d or 2w for the time before now, or a date "
            "or time such as 2026-01-31 or 2026-01-31T22:00."
        ) from error


def _time(entry: Entry) -> datetime:
    return datetime.fromisoformat(entry["time"])


def _what(entry: Entry) -> str:
    return one_line(str(entry.get("file") or entry.get("split") or "-"))


def _entry_row(entry: Entry, name: str) -> list[str]:
    accuracy = entry.get("accuracy")
    rows = entry.get("rows")
    none = FAILED_EVENT if entry["event"] == FAILED_EVENT else "-"
    return [
        local_time(entry["time"]),
        name,
        _outcome(entry),
        "-" if rows is None else f"{rows:,}",
        none if accuracy is None else percent(accuracy),
        drift_cell(entry.get("drift")),
        entry["model_digest"][:SHORT_DIGEST],
        str(entry.get("result") or "-"),
    ]


def _outcome(entry: Entry) -> str:
    if entry["event"] == FAILED_EVENT:
        return "failed"
    missed = "below gate" if entry["exit"] else ""
    if entry["event"] == SCORED:
        return missed or "scored"
    return ", ".join(filter(None, [entry["event"], missed]))
