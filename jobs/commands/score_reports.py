"""The report of `pipeline score`: what was scored, and its quality."""

import heapq
from typing import Any

from jobs.choices import LARGE_DRIFT
from jobs.commands.console import Report
from jobs.commands.tables import (
    SHOWN_CLASSES,
    facts,
    fit,
    fits,
    table,
)
from jobs.output import average_text, member_names, percent
from jobs.scoring.result import ScoreResult, ScoringResult
from storage.errors import counted

SHOWN_FILES = 20
"""Larger inboxes are reported without a line per file."""
SHOWN_MISTAKES = 10
"""Rows listed instead of a confusion matrix that is wider than the terminal."""


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
        return _split_report(batch.results[0], batch)
    document = {
        "run": str(batch.run.location),
        **_runs(batch),
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


def _runs(batch: ScoringResult) -> dict[str, list[str]]:
    """Return the run of each checkpoint, if they are of several runs."""
    places = [str(run.location) for run in batch.runs]
    return {"runs": places} if len(set(places)) > 1 else {}


def _split_report(result: ScoreResult, batch: ScoringResult) -> Report:
    schema, quality = result.scores.schema, result.metrics["quality"]
    location = f"scores in {result.scores.location}"
    parts = [f"{schema.split} is already scored with this model.\n"] if result.already_done else []
    rows = counted(schema.rows, "row")
    runs = _runs(batch)
    names = member_names(runs.get("runs", ()), batch.checkpoint)
    average = average_text(len(batch.runs), schema.average_shifts, names)
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
    return Report(_document(result) | runs, "\n".join(parts), summary, details)


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
        drift_cell(result.drift_score),
        schema.home,
    ]


def drift_cell(score: float | None) -> str:
    """Return a drift score for a table."""
    return "-" if score is None else f"{score:.1f}"
