"""What `pipeline score`, `scores` and `promote` print: results, quality, ledger, names."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from jobs.commands.console import SHORT_DIGEST, Report, facts, table
from jobs.output import percent
from jobs.scoring.promote import PromoteResult
from jobs.scoring.result import ScoreResult, ScoringResult
from storage.errors import UsageError
from storage.ledger import FAILED_EVENT, SCORED, Entry, Ledger
from storage.location import Location
from storage.models import Holder, ModelName
from storage.runs import SCORES, open_run
from storage.scores import is_complete, scoring_homes

SHOWN_CLASSES = 30
"""More classes than this are not listed one by one."""
SHOWN_FILES = 20
"""More files of an inbox than this are not listed one by one."""
LEDGER_HEADER = ["time", "what", "outcome", "rows", "accuracy", "model", "result"]
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
SHOWN_ERROR = 60
"""Characters of an error in the table; --json has all of it."""


def quality_text(quality: dict[str, Any]) -> str:
    """Return per-class figures and the confusion matrix."""
    classes = quality["classes"]
    rows: list[list[Any]] = []
    for one in classes:
        shares = [percent(one[figure]) for figure in ("precision", "recall", "f1")]
        rows.append([one["name"], *shares, f"{one['rows']:,}"])
    parts = [table(["class", "precision", "recall", "F1", "rows"], rows)]
    if len(classes) <= SHOWN_CLASSES:
        names = [one["name"] for one in classes]
        rows = [[name, *row] for name, row in zip(names, quality["confusion"], strict=True)]
        parts.append(table(["true \\ predicted", *names], rows))
    return "\n\n".join(parts)


def batch_report(batch: ScoringResult, *, one_split: bool) -> Report:
    """Return all that a job has done; of a single split, its quality."""
    if one_split and len(batch.results) == 1:
        return _split_report(batch.results[0])
    document = {
        "run": str(batch.run.location),
        "checkpoint": batch.checkpoint,
        "model_digest": batch.model_digest,
        "results": [_document(result) for result in batch.results],
        "failed": batch.failed,
        "left": batch.left,
        "unjudged": batch.unjudged,
    }
    new = sum(not result.already_done for result in batch.results)
    counts = [
        f"{new:,} scored",
        f"{len(batch.results) - new:,} scored before",
        *([f"{len(batch.failed):,} failed"] if batch.failed else []),
        *([f"{len(batch.left):,} left for the next time"] if batch.left else []),
        *([f"{len(batch.unjudged):,} not judged by any gate"] if batch.unjudged else []),
    ]
    summary = f"{', '.join(counts)}; scores in {batch.run.location}/scores"
    text = summary
    if 0 < len(batch.results) <= SHOWN_FILES:
        header = ["what", "scored", "rows", "accuracy", "scores"]
        rows = [_row(result) for result in batch.results]
        text = f"{table(header, rows, left=('scored', 'scores'))}\n\n{text}"
    return Report(document, text, summary)


def _split_report(result: ScoreResult) -> Report:
    schema, quality = result.scores.schema, result.metrics["quality"]
    location = f"scores in {result.scores.location}"
    parts = [f"{schema.split} is already scored with this model.\n"] if result.already_done else []
    summary = f"{schema.rows:,} rows of {schema.split} without labels; {location}"
    if quality:
        parts.append(quality_text(quality) + "\n")
        summary = f"{schema.split.capitalize()} accuracy {percent(quality['accuracy'])}; {location}"
        parts.append(f"Cross-entropy {quality['cross_entropy']:.4f} on {schema.rows:,} rows")
    parts.append(summary)
    if result.output:
        parts.append(f"Predictions in {result.output}")
    digests = [("model", schema.model_digest), ("dataset", schema.dataset_digest)]
    details = facts([*digests, ("scores", result.scores.digest)])
    return Report(_document(result), "\n".join(parts), summary, details)


def _document(result: ScoreResult) -> dict[str, Any]:
    return result.metrics | {
        "location": str(result.scores.location),
        "scores_digest": result.scores.digest,
        "already_done": result.already_done,
        "file": result.file,
        "output": result.output and str(result.output),
        "below_gate": result.missed,
    }


def _row(result: ScoreResult) -> list[str]:
    schema = result.scores.schema
    return [
        result.file or schema.split,
        "before" if result.already_done else "now",
        f"{schema.rows:,}",
        "-" if result.accuracy is None else percent(result.accuracy),
        schema.home,
    ]


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
        text = table(LEDGER_HEADER, [_entry_row(entry) for entry in entries], left=left)
    bad = sum(entry["exit"] != 0 for entry in entries)
    summary = f"{len(entries):,} entries in {ledger}, {bad:,} of them failed or below a gate"
    return Report(document, text, summary)


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


def _entry_row(entry: Entry) -> list[str]:
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


def promote_report(result: PromoteResult) -> Report:
    """Return which model has the name now, and which had it before."""
    document = {
        "name": result.name,
        "model": _holder_document(result.holder),
        "before": _holder_document(result.before),
        "already_done": result.already_done,
        "gates": [verdict.to_json() for verdict in result.verdicts],
    }
    lines = []
    if result.already_done:
        lines.append(f"{result.name} already names this model.")
    else:
        lines.append(f"Before: {_holder_text(result.before)}")
    if result.holder is None:
        lines.append(f"No model is named {result.name} now.")
    else:
        lines.append(f"{result.name}: {_holder_text(result.holder)}")
    return Report(document, "\n".join(lines), lines[-1])


def _holder_document(holder: Holder | None) -> dict[str, Any] | None:
    return None if holder is None else dict(vars(holder))


def _holder_text(holder: Holder | None) -> str:
    if holder is None:
        return "none"
    accuracy = "" if holder.accuracy is None else f", accuracy {percent(holder.accuracy)}"
    digest = holder.model_digest[:SHORT_DIGEST]
    return f"model {digest}, checkpoint {holder.checkpoint} of {holder.run}{accuracy}"


def names_report(names: list[ModelName], models: str) -> Report:
    """Return every name with its model, since when, and how many had it before."""
    documents = [
        {"name": name.name, "model": _holder_document(name.holder), "events": list(name.events)}
        for name in names
    ]
    text = f"No model has a name in {models}."
    if names:
        header = ["name", "model", "checkpoint", "run", "since", "accuracy", "before it"]
        rows = [
            [name.name, *_holder_cells(name.holder), str(len(name.holders[:-1]))] for name in names
        ]
        text = table(header, rows, left=header[:5])
    summary = f"{len(names):,} promoted names in {models}"
    return Report({"models": models, "names": documents}, text, summary)


def _holder_cells(holder: Holder | None) -> list[str]:
    if holder is None:
        return ["none", "-", "-", "-", "-"]
    accuracy = "-" if holder.accuracy is None else percent(holder.accuracy)
    return [holder.model_digest[:12], holder.checkpoint, holder.run, holder.since[:19], accuracy]
