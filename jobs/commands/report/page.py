"""The page of a report: parts of runs and plots, put into the packaged template."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from jobs.commands.dataset_reports import digest_of_source
from jobs.commands.report import plots
from jobs.commands.report.collect import Part, Subject, differing
from jobs.commands.report.curves import compared, learning
from jobs.commands.report.examine import TABLE, wilson_interval
from jobs.commands.sweep_table import rows_of, settings_text
from jobs.commands.tables import SHORT_DIGEST, size
from jobs.output import percent
from jobs.scoring.images import data_uri, sprite, weights_images
from jobs.sweeps.job import SweepResult
from jobs.training.config import TrainConfig
from jobs.training.settings import option_name
from pipeline.findings import Findings
from storage.errors import BadDataError, counted
from storage.events import local_time

UNITS = 64
"""The most units whose weights are shown."""
CONFIDENT = 0.99
"""The confidence of the sentence on coverage."""
SHOWN_SOURCES = 50
SHOWN_WARNINGS = 5
"""The most scorings that are named at the top: the last ones."""
NO_BREAK = "\N{NO-BREAK SPACE}"
DAY_CHARACTERS = len("2026-11-28")
MATRIX_CLASSES = 20
"""With more classes, the confusion matrix has only those with the most mistakes."""


@dataclass(frozen=True)
class Note:
    """A line of the checks at the top: a problem, or nothing to do."""

    is_problem: bool
    text: str


def run_page(subject: Subject) -> str:
    """Return the page of one run."""
    sections: dict[str, Callable[[Subject], Any]] = {
        "learning": learning,
        "confusion": _confusion,
        "mistakes": lambda run: run.examination,
        "suspicious": lambda run: run.training_examination,
        "calibration": _calibration,
        "coverage": _coverage,
        "weights": _weights,
        "dataset": _dataset,
        "images": _class_images,
        "scorings": lambda run: run.scorings,
        "drift": _drift,
        "provenance": _provenance,
    }
    parts = {name: Part.of(partial(make, subject)) for name, make in sections.items()}
    return _render(
        "page.html.j2",
        title=f"Report on {subject}",
        run=subject,
        headline=subject.part("result"),
        before=Part.of(partial(_comparison, subject)).value,
        seconds=Part.of(partial(_seconds, subject)).value,
        notes=_notes(subject, parts),
        **parts,
    )


def comparison_page(subjects: Sequence[Subject]) -> str:
    """Return the page that compares several runs."""
    curves = [
        plot
        for split in ("train", "validation", "test")
        for name, is_log in (("accuracy", False), ("cross-entropy", True))
        if (plot := compared(subjects, split, name, is_log=is_log))
    ]
    return _render(
        "comparison.html.j2",
        title=f"Comparison of {len(subjects)} runs",
        runs=subjects,
        results=[run.part("result") for run in subjects],
        epochs=[run.part("epochs") for run in subjects],
        seconds=[Part.of(partial(_seconds, run)).value for run in subjects],
        curves=curves,
        settings=list(differing(list(subjects))),
    )


def sweep_page(result: SweepResult) -> str:
    """Return the page of a sweep: its configurations, best first, and its trials."""
    sweep, results = result.sweep, result.results
    rows = rows_of(result)
    return _render(
        "sweep.html.j2",
        title=f"Report on {sweep.location}",
        place=sweep.location,
        names=list(rows[0].settings),
        rows=rows,
        trials=[
            (trial, settings_text(sweep.configurations[trial.configuration]), results[trial.name])
            for trial in sweep.trials
            if trial.name in results and results[trial.name].accuracy
        ],
        failures=[
            f"Trial {name} failed: {one.reason}" for name, one in results.items() if one.reason
        ],
    )


def _render(template: str, **values: Any) -> str:
    folder = files(__package__)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": lambda share: percent(share).replace(" ", NO_BREAK),
        "png": data_uri,
        "moment": _moment,
        "counted": counted,
        "digest": lambda digest: digest[:SHORT_DIGEST],
    }
    shared = environment.from_string(folder.joinpath("parts.html.j2").read_text("utf-8"))
    return environment.from_string(folder.joinpath(template).read_text("utf-8")).render(
        values,
        parts=shared.module,
        style=Markup(folder.joinpath("style.css").read_text("utf-8")),  # noqa: S704 - ours
        made=local_time(datetime.now(UTC)),
        release=version("mnist-stream"),
    )


def _moment(text: str) -> str:
    try:
        return local_time(text)
    except ValueError:  # as the ledger has it
        return text


def _seconds(run: Subject) -> float:
    return float(sum(line["timing"]["seconds"] for line in run.epochs))


def _comparison(run: Subject) -> dict[str, Any] | None:
    """Return the run before with its result on the same split, if it has one."""
    if run.before is None:
        return None
    before = run.before.result
    if before.split != run.result.split:
        return None
    (low, high), (low_before, high_before) = run.result.interval, before.interval
    return {
        "run": run.before,
        "result": before,
        "points": 100 * (run.result.accuracy - before.accuracy),
        "overlap": low <= high_before and low_before <= high,
    }


def _notes(run: Subject, parts: dict[str, Part[Any]]) -> list[Note]:
    """Return what is off, or a line that says that nothing is."""
    notes: list[str] = []
    epochs = run.part("epochs")
    if epochs.value is not None and len(epochs.value) < run.config.epochs:
        notes.append(_unfinished(run, len(epochs.value)))
    findings = Part.of(lambda: Findings.of(run.dataset))
    notes += findings.value.warnings() if findings.value else []
    scorings = parts["scorings"].value or []
    if bad := sum(scoring.is_bad for scoring in scorings):
        notes.append(f"{bad:,} of {counted(len(scorings), 'scoring')} failed or missed a gate.")
    warnings = [scoring.warning for scoring in scorings if scoring.warning]
    notes += warnings[-SHOWN_WARNINGS:]
    expected = {"suspicious"}
    holes = {part.hole for name, part in parts.items() if part.hole and name not in expected}
    notes += [f"Missing here: {hole}" for hole in sorted(holes)]
    return [Note(True, text) for text in notes] or [Note(False, "No problem was noticed.")]


def _unfinished(run: Subject, done: int) -> str:
    """Return how far the training came, and why it came no further, as far as it is known."""
    failure = Part.of(run.run.failure)
    reason = failure.value or failure.hole
    if not reason:
        early = ", was stopped, or stopped early" if run.config.patience else " or was stopped"
        reason = f"It is running{early}."
    return f"The training has finished {done} of {counted(run.config.epochs, 'epoch')}. {reason}"


def _confusion(run: Subject) -> dict[str, Any]:
    """Return the confusion matrix, examples for its worst cells, and each class's metrics."""
    quality = run.quality
    if quality is None:
        raise BadDataError(f"The {run.scores.schema.split} split has no labels.")
    confusion = quality["confusion"]
    names = [entry["name"] for entry in quality["classes"]]
    wrong = [sum(row) - row[number] for number, row in enumerate(confusion)]
    order = sorted(range(len(names)), key=lambda number: -wrong[number])[:MATRIX_CLASSES]
    shown = sorted(order)
    largest = max(
        (confusion[true][answer] for true in shown for answer in shown if true != answer), default=1
    )
    rows = [
        {
            "name": names[true],
            "cells": [
                {
                    "count": confusion[true][answer],
                    "is_hit": true == answer,
                    "strength": round(100 * confusion[true][answer] / max(largest, 1)),
                }
                for answer in shown
            ],
        }
        for true in shown
    ]
    cells = [
        {"truth": names[cell[0]], "answer": names[cell[1]], "count": count, "cell": cell}
        for cell, count in run.worst_cells
    ]
    return {
        "classes": quality["classes"],
        "names": [names[number] for number in shown],
        "left_out": len(names) - len(shown),
        "rows": rows,
        "cells": cells,
        "examples": Part.of(lambda: run.examination.cells),
    }


def _calibration(run: Subject) -> dict[str, Any]:
    """Return the reliability diagram and the expected calibration error."""
    examined = run.examination
    if not examined.is_labelled:
        raise BadDataError(f"The {run.scores.schema.split} split has no labels.")
    filled = examined.bin_rows > 0
    rows, hits = examined.bin_rows[filled].tolist(), examined.bin_hits[filled].tolist()
    confidence = examined.bin_confidence[filled] / examined.bin_rows[filled]
    accuracy = examined.bin_hits[filled] / examined.bin_rows[filled]
    error = examined.calibration_error
    plot = plots.reliability_plot(
        "Reliability diagram",
        f"Accuracy against mean confidence in {len(confidence)} bins. The expected calibration "
        f"error is {error:.4f}.",
        confidence.tolist(),
        accuracy.tolist(),
        [wilson_interval(*pair) for pair in zip(hits, rows, strict=True)],
    )
    return {"error": error, "plot": plot}


def _coverage(run: Subject) -> dict[str, Any]:
    """Return how many rows are decided at each confidence, and how many mistakes remain."""
    examined = run.examination
    points = examined.coverage()
    table = [point for point in points if point[0] in TABLE]
    decided = [point for point in points if point[1]]
    plot = None
    if examined.is_labelled:
        plot = plots.line_plot(
            "Accuracy against coverage",
            "Accuracy among the rows whose confidence reaches a threshold, against their share.",
            [
                plots.Line(
                    "decided",
                    [100 * rows / examined.rows for _, rows, _ in decided],
                    [100 * (1 - wrong / rows) for _, rows, wrong in decided],
                )
            ],
            "rows decided in %",
            "accuracy among them",
            percent=True,
        )
    sentence = next(point for point in table if point[0] == CONFIDENT)
    return {"table": table, "plot": plot, "at": sentence, "examined": examined}


def _weights(run: Subject) -> dict[str, Any]:
    """Return the weights of the first layer's units as images."""
    checkpoint = run.model.members[0].checkpoint
    weights = checkpoint.tensors.get("layer_0")
    shape = run.run.dataset.get("image_shape")
    if weights is None or shape is None:
        raise BadDataError("The run does not record the shape of its images.")
    images = weights_images(weights[1:], shape, UNITS)
    return {"images": images, "units": weights.shape[1], "shown": min(UNITS, weights.shape[1])}


def _dataset(run: Subject) -> dict[str, Any]:
    """Return the splits, class balance, findings and sources of the dataset."""
    dataset = run.dataset
    counts = {name: split.record.class_counts for name, split in dataset.splits.items()}
    findings = Findings.of(dataset)
    largest = max((count for values in counts.values() for count in values), default=0)
    return {
        "dataset": dataset,
        "counts": counts,
        "largest": max(largest, 1),
        "findings": findings and findings.sentences(dataset.class_names, counts),
        "sources": [
            (source["name"], source["split"], _size_of(source), digest_of_source(source) or "-")
            for source in dataset.sources[:SHOWN_SOURCES]
        ],
        "more_sources": max(0, len(dataset.sources) - SHOWN_SOURCES),
    }


def _size_of(source: dict[str, Any]) -> str:
    stored = source.get("stored_bytes")
    return size(stored) if type(stored) is int else "-"


def _class_images(run: Subject) -> list[tuple[str, int, str]]:
    """Return for each class its name, the number of examples, and them as one image."""
    return [
        (name, len(images), data_uri(sprite(images, columns=len(images))))
        for name, images in run.class_images
        if images
    ]


def _drift(run: Subject) -> plots.Plot | None:
    """Return the plot of the drift of each scoring; None if fewer than two have one."""
    scored = [(scoring, scoring.drift["score"]) for scoring in run.scorings if scoring.drift]
    if len(scored) < 2:
        return None
    drifts = np.array([drift for _, drift in scored])
    limits = np.array([scoring.drift_limit for scoring, _ in scored], np.float64)
    largest, drift = max(scored, key=lambda pair: pair[1])
    text = f"The largest of {len(scored)} is {drift:.1f}, of {largest.what}"
    if not np.isnan(limits).all():
        text += f"; {np.sum(drifts > limits)} above the limit"
    days = [_moment(scoring.time)[:DAY_CHARACTERS] for scoring, _ in scored]
    return plots.drift_plot("Drift of each scoring", f"{text}.", drifts, limits, days)


def _provenance(run: Subject) -> dict[str, Any]:
    """Return digests, settings, versions, environment, and the commands to make the run again."""
    defaults = TrainConfig()
    settings = [
        (setting.name, value, value != getattr(defaults, setting.name))
        for setting in fields(TrainConfig)
        if (value := getattr(run.config, setting.name)) is not None
    ]
    epochs = run.part("epochs").value or []
    model, scores = run.part("model").value, run.part("scores").value
    digests = [
        ("dataset", run.run.dataset_digest),
        ("parent's model", (run.run.parent or {}).get("model_digest")),
        ("model", model.digest if model else None),
        ("order of the rows", epochs[-1]["order_digest"] if epochs else None),
        ("scores", scores.digest if scores else None),
    ]
    changed = [
        *(
            _option(option_name(setting), getattr(run.config, setting.name))
            for setting in fields(TrainConfig)
            if getattr(run.config, setting.name) not in (None, getattr(defaults, setting.name))
        ),
    ]
    place = run.run.dataset_place or "DATASET"
    words = ["pipeline", "train", "--dataset", place, "--run", f"{run}-again"]
    if (parent := run.run.parent) is not None:
        words += ["--from", str(run.run.parent_checkpoint)]
        words += ["--from-optimizer"] if parent["optimizer"] else []
    return {
        "digests": [(name, digest) for name, digest in digests if digest],
        "checkpoint": model.names if model else None,
        "settings": settings,
        "command": " ".join([shlex.join(words), *changed]),
        "score": shlex.join(["pipeline", "score", "--run", f"{run}-again"]),
    }


def _option(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else name.replace("--", "--no-", 1)
    return shlex.join([name, str(value)])
