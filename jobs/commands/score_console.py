"""What `pipeline score` and `promote` print: events, results, quality."""

from typing import Any

from jobs.commands.console import Report, table
from jobs.output import percent
from jobs.scoring.promote import PromoteResult
from jobs.scoring.result import ScoreResult, ScoringResult
from storage.models import Holder, ModelName

SHOWN_CLASSES = 30
"""More classes than this are not listed one by one."""


def quality_text(quality: dict[str, Any]) -> str:
    """Return accuracy, per-class figures and the confusion matrix."""
    classes = quality["classes"]
    rows: list[list[Any]] = []
    for one in classes:
        shares = [percent(one[figure]) for figure in ("precision", "recall", "f1")]
        rows.append([one["name"], *shares, f"{one['rows']:,}"])
    parts = [
        f"accuracy {percent(quality['accuracy'])}, cross-entropy {quality['cross_entropy']:.4f}",
        table(["class", "precision", "recall", "F1", "rows"], rows),
    ]
    if len(classes) <= SHOWN_CLASSES:
        names = [one["name"] for one in classes]
        rows = [[name, *row] for name, row in zip(names, quality["confusion"], strict=True)]
        parts.append(table(["true \\ predicted", *names], rows))
    return "\n\n".join(parts)


SHOWN_FILES = 20
"""More files of an inbox than this are not listed one by one."""


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
    text = f"{', '.join(counts)}; the scores are in {batch.run.location}/scores"
    if 0 < len(batch.results) <= SHOWN_FILES:
        header = ["what", "scored", "rows", "accuracy", "scores"]
        rows = [_row(result) for result in batch.results]
        text = f"{table(header, rows, left=('scored', 'scores'))}\n\n{text}"
    return Report(document, text)


def _split_report(result: ScoreResult) -> Report:
    lines = ["Scored already with this model:"] if result.already_done else []
    quality = result.metrics["quality"]
    lines.append(quality_text(quality) if quality else "The split has no labels: no metrics.")
    lines.append(f"\n{result.scores.schema.rows:,} rows are in {result.scores.location}")
    if result.output:
        lines.append(f"and in {result.output}")
    return Report(_document(result), "\n".join(lines))


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


def promote_report(result: PromoteResult) -> Report:
    """Return which model has the name now, and which had it before."""
    document = {
        "name": result.name,
        "model": _holder_document(result.holder),
        "before": _holder_document(result.before),
        "already_done": result.already_done,
        "gates": [verdict.to_json() for verdict in result.verdicts],
    }
    lines = ["Promoted already:"] if result.already_done else []
    if result.holder is None:
        lines.append(f"No model is named {result.name} now.")
    else:
        lines.append(f"{result.name} is model {_holder_text(result.holder)}")
    if not result.already_done:
        lines.append(f"before   {_holder_text(result.before)}")
    return Report(document, "\n".join(lines))


def _holder_document(holder: Holder | None) -> dict[str, Any] | None:
    return None if holder is None else dict(vars(holder))


def _holder_text(holder: Holder | None) -> str:
    if holder is None:
        return "none"
    accuracy = "" if holder.accuracy is None else f", accuracy {percent(holder.accuracy)}"
    return f"{holder.model_digest[:12]}, checkpoint {holder.checkpoint} of {holder.run}{accuracy}"


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
    return Report({"models": models, "names": documents}, text)


def _holder_cells(holder: Holder | None) -> list[str]:
    if holder is None:
        return ["none", "-", "-", "-", "-"]
    accuracy = "-" if holder.accuracy is None else percent(holder.accuracy)
    return [holder.model_digest[:12], holder.checkpoint, holder.run, holder.since[:19], accuracy]
