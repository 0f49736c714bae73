"""Reports of `pipeline score`, `scores` and `promote`: results, quality, ledger, names."""

import heapq
import re
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from itertools import compress
from typing import Any

from jobs.choices import LARGE_DRIFT
from jobs.commands.console import Report
from jobs.commands.tables import (
    SHORT_DIGEST,
    SHOWN_CLASSES,
    facts,
    fit,
    fits,
    table,
    terminal_width,
    wrap,
)
from jobs.output import average_text, one_line, percent
from jobs.scoring.promote import PromoteResult
from jobs.scoring.records import failure_text
from jobs.scoring.result import ScoreResult, ScoringResult
from storage.errors import UsageError, counted
from storage.events import local_time
from storage.ledger import FAILED_EVENT, SCORED, Entry, Ledger
from storage.location import Location
from storage.models import Holder, ModelName
from storage.places import referenced
from storage.runs import SCORES, open_run
from storage.scores import is_complete, scoring_homes

SHOWN_FILES = 20
"""Larger inboxes are reported without a line per file."""
SHOWN_MISTAKES = 10
"""Rows listed instead of a confusion matrix that is wider than the terminal."""
LEDGER_HEADER = ["time", "what", "outcome", "rows", "accuracy", "drift", "model", "result"]
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def quality_text(quality: dict[str, Any]) -> str:
    """Return per-class figures and the confusion matrix, or its largest entries."""
    classes, title = quality["classes"], ""
    if len(classes) > SHOWN_CLASSES:
        title = f"the {SHOWN_CLASSES} of {len(classes):,} classes with the lowest F1\n"
        classes = sorted(classes, key=lambda entry: entry["f1"])[:SHOWN_CLASSES]
    rows: list[list[Any]] = []
    for entry in classes:
        shares = [percent(entry[figure]) for figure in ("precision", "recall", "f1")]
        rows.append([entry["name"], *shares, f"{entry['rows']:,}"])
    figures = table(["class", "precision", "recall", "F1", "rows"], rows)
    names = [entry["name"] for entry in quality["classes"]]
    return f"{title}{figures}\n\n{_confusion_text(names, quality['confusion'])}"


def _confusion_text(names: list[str], confusion: list[list[int]]) -> str:
    if len(names) <= SHOWN_CLASSES:
        rows: list[list[Any]] = [[name, *row] for name, row in zip(names, confusion, strict=True)]
        text = table(["true \\ predicted", *names], rows)
        if fits(text):
            return text
    mistakes = [
        (count, true, predicted)
        for true, row in zip(names, confusion, strict=True)
        for predicted, count in zip(names, row, strict=True)
        if count and true != predicted
    ]
    if not mistakes:
        return "no mistakes"
    largest = heapq.nlargest(SHOWN_MISTAKES, mistakes, key=lambda mistake: mistake[0])
    title = f"most frequent mistakes; --json has the confusion matrix of all {len(names):,} classes"
    rows = [[true, predicted, f"{count:,}"] for count, true, predicted in largest]
    return f"{title}\n{table(['true', 'predicted', 'rows'], rows, left=('predicted',))}"


def batch_report(batch: ScoringResult, *, one_split: bool) -> Report:
    """Report a scoring job; for a single split, with its quality."""
    if one_split and len(batch.results) == 1:
        return _split_report(batch.results[0])
    document = {
        "run": str(batch.run.location),
        "checkpoint": batch.checkpoint,
        "model_digest": batch.model_digest,
        "average_shifts": batch.average_shifts,
        "results": [_document(result) for result in batch.results],
        "failed": batch.failed,
        "left": batch.left,
        "unjudged": batch.unjudged,
    }
    new = sum(not result.already_done for result in batch.results)
    drifted = sum((result.drift_score or 0) > LARGE_DRIFT for result in batch.results)
    counts = [
        f"{new:,} scored",
        f"{len(batch.results) - new:,} scored before",
        *([f"{len(batch.failed):,} failed"] if batch.failed else []),
        *([f"{len(batch.left):,} left for the next run"] if batch.left else []),
        *([f"{len(batch.unjudged):,} not judged by any gate"] if batch.unjudged else []),
        *([f"{drifted:,} with drift above {LARGE_DRIFT:g}"] if drifted else []),
    ]
    summary = f"{', '.join(counts)}; scores in {batch.run.location}/scores"
    text = fit(summary)
    if 0 < len(batch.results) <= SHOWN_FILES:
        header = ["what", "scored", "rows", "accuracy", "drift", "scores"]
        rows = [_row(result) for result in batch.results]
        listed = table(header, rows, left=("scored", "scores"), wrapped=("what", "scores"))
        texts = [
            fit(f"{result.scores.schema.split}: {result.drift_text}")
            for result in batch.results
            if result.drift_text and result.file is None  # the log has those of files
        ]
        text = "\n".join([listed, "", *texts, text])
    text += "".join(f"\n{line}" for line in _outputs(batch.results))
    digests = [(result.scores.schema.home, result.scores.digest) for result in batch.results]
    return Report(document, text, summary, facts([("model", batch.model_digest), *digests]))


def _outputs(results: list[ScoreResult]) -> list[str]:
    """Return lines that name the files of --out."""
    files = [f"Predictions in {result.output}" for result in results if result.output]
    if len(files) > SHOWN_FILES:
        return [f"Predictions in {len(files):,} files; --json names them."]
    return files


def _split_report(result: ScoreResult) -> Report:
    schema, quality = result.scores.schema, result.metrics["quality"]
    location = f"scores in {result.scores.location}"
    parts = [f"{schema.split} is already scored with this model.\n"] if result.already_done else []
    rows = counted(schema.rows, "row")
    average = average_text(len(schema.members), schema.average_shifts)
    location = f"{average}; {location}" if average else location
    if (result.drift_score or 0) > LARGE_DRIFT:
        location = f"drift {result.drift_score:.1f}; {location}"
    summary = f"{rows} of {schema.split} without labels; {location}"
    if quality:
        parts.append(quality_text(quality) + "\n")
        summary = f"{schema.split.capitalize()} accuracy {percent(quality['accuracy'])}; {location}"
        parts.append(f"Cross-entropy {quality['cross_entropy']:.4f} on {rows}")
    if result.drift_text:
        parts.append(fit(result.drift_text))
    parts.append(fit(summary))
    parts += _outputs([result])
    digests = [("model", schema.model_digest), ("dataset", schema.dataset_digest)]
    details = facts([*digests, ("scores", result.scores.digest), *_drift_facts(result)])
    return Report(_document(result), "\n".join(parts), summary, details)


def _drift_facts(result: ScoreResult) -> list[tuple[str, str]]:
    """Return the drift score and the distribution that it comes from, if there is a score."""
    if result.drift is None or result.drift_score is None:
        return []
    return [("drift", f"{result.drift_score:.2f} ({result.drift['largest']})")]


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
        _drift_cell(result.drift_score),
        schema.home,
    ]


def _drift_cell(score: float | None) -> str:
    return "-" if score is None else f"{score:.1f}"


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
    averages = "\n".join(map(fit, _averages(entries)))
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
    keep = [column not in hidden for column in LEDGER_HEADER]
    names = _names(entries)
    return table(
        list(compress(LEDGER_HEADER, keep)),
        [list(compress(_entry_row(*pair), keep)) for pair in zip(entries, names, strict=True)],
        left=("what", "outcome", "model", "result"),
        wrapped=("what", "outcome", "result"),
        optional=optional,
    )


def _averages(entries: list[Entry]) -> list[str]:
    """Return a line for each model that is an average, with its digest."""
    averages = {
        entry["model_digest"][:SHORT_DIGEST]: average_text(
            str(entry.get("checkpoint")).count(",") + 1, entry.get("average_shifts", 0)
        )
        for entry in entries
    }
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
    model = ("model", "checkpoint", "average_shifts", "model_digest")
    names = (*model, "dataset", "dataset_digest", "result")
    return "\n".join(
        f"\n{local_time(entry['time'])}  {_what(entry)}\n"
        + facts([(name, entry[name]) for name in names if entry.get(name)])
        for entry in entries
    )


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
        _drift_cell(entry.get("drift")),
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


def promote_report(result: PromoteResult, models: Location) -> Report:
    """Report the model that has the name now, and the previous one."""
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
    elif result.before is not None:
        lines.append(f"Before: {_holder_text(result.before, models)}")
    if result.holder is None:
        lines.append(f"No model is named {result.name} now.")
    else:
        lines.append(f"{result.name}: {_holder_text(result.holder, models)}")
    details = _holder_details(result.name, result.holder, models)
    return Report(document, "\n".join(map(fit, lines)), lines[-1], details)


def _holder_document(holder: Holder | None) -> dict[str, Any] | None:
    return None if holder is None else dict(vars(holder))


def _holder_text(holder: Holder | None, models: Location) -> str:
    if holder is None:
        return "none"
    accuracy = "" if holder.accuracy is None else f", accuracy {percent(holder.accuracy)}"
    run = referenced(holder.run, models)
    average = f", {text}" if (text := _average_text(holder)) else ""
    return f"model {holder.model_digest[:SHORT_DIGEST]} in {run}{average}{accuracy}"


def _average_text(holder: Holder) -> str:
    return average_text(holder.checkpoint.count(",") + 1, holder.average_shifts)


def _holder_details(name: str, holder: Holder | None, models: Location) -> str:
    """Return all recorded facts about a promoted model, with full digests."""
    if holder is None:
        return ""
    run, since = referenced(holder.run, models), local_time(holder.since)
    recorded = vars(holder) | {"run": run, "since": since}
    present = [(f"  {key}", value) for key, value in recorded.items() if value is not None]
    return f"\n{name}\n{facts(present)}"


def names_report(names: list[ModelName], models: str) -> Report:
    """Report every promoted name: its model, the time of promotion, and its history."""
    documents = [
        {"name": name.name, "model": _holder_document(name.holder), "events": list(name.events)}
        for name in names
    ]
    document = {"models": models, "names": documents}
    if not names:
        text = f"No model is promoted in {models}."
        return Report(document, text, text)
    header = ["name", "model", "checkpoint", "run", "since", "accuracy"]
    text = table(
        header,
        [_name_row(name) for name in names],
        left=header[:5],
        wrapped=("name", "run"),
        optional=("checkpoint",),
    )
    averages = [
        fit(f"{name.name}: {average}")
        for name in names
        if name.holder and (average := _average_text(name.holder))
    ]
    summary = f"Promoted in {models}: {', '.join(name.name for name in names)}"
    text = "\n\n".join(filter(None, [text, "\n".join(averages), summary]))
    details = "\n".join(_holder_details(name.name, name.holder, name.place) for name in names)
    return Report(document, text, summary, details)


def _name_row(name: ModelName) -> list[str]:
    holder = name.holder
    if holder is None:
        return [name.name, "none", "-", "-", "-", "-"]
    return [
        name.name,
        holder.model_digest[:SHORT_DIGEST],
        holder.checkpoint,
        name.run_place(holder),
        local_time(holder.since),
        "-" if holder.accuracy is None else percent(holder.accuracy),
    ]
