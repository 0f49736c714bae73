"""Drift: how far scored rows are from those that the model was trained and validated on.

The score is the largest of the distances of single distributions; see docs/explanation/drift.md.
"""

from typing import Any

from jobs.choices import LARGE_DRIFT
from jobs.output import percent
from jobs.scoring.distances import Counts, Distances, distances
from jobs.scoring.remedies import LEAST_ROWS, looks_like
from jobs.training.model import Model
from jobs.training.reference import Observation, Reference
from pipeline.findings import Findings
from storage.dataset import Dataset
from storage.runs import reference_key

NAMES = {"predicted": "predicted classes", "hidden": "hidden layer"}
"""How sentences call distances, if not by their names."""
MOST_REPEATED = 0.5
"""If this share of the rows repeats earlier ones, a scoring says so."""


def drift_of(
    reference: Reference | None,
    observed: Observation,
    model: Model,
    dataset: Dataset,
    split: str,
) -> dict[str, Any] | None:
    """Return the drift of a split's rows as metrics.json records it; None without a reference."""
    if reference is None:
        return None
    rows, repeated = observed.rows, _repeated(dataset, split)
    result: dict[str, Any] = {"score": None, "largest": None, "text": None, "looks_like": None}
    values = distances(reference, observed)
    if min(rows, reference.rows) >= LEAST_ROWS:
        result["score"], result["largest"] = values.score, next(iter(values.all))
        if values.score > LARGE_DRIFT:
            likely = looks_like(reference, observed, model, dataset, split)
            text = drift_text(values, observed.predicted, model.class_names)
            result["looks_like"] = likely
            result["text"] = f"{text}: {likely}?" if likely else f"{text}."
    if repeated is not None and rows > 1 and repeated >= MOST_REPEATED * rows:
        text = f"{repeated:,} of {rows:,} rows repeat an earlier one."
        if repeated == rows - 1:
            text = f"All {rows:,} rows are equal."
        result["text"] = " ".join(filter(None, [result["text"], text]))
    return result | {
        "reference": reference_key(reference.model_digest),
        "psi": values.psi,
        "hidden": values.hidden,
        "rows": rows,
        "duplicates": repeated,
    }


def drift_text(values: Distances, predicted: Counts, class_names: tuple[str, ...]) -> str:
    """Return words that name the largest distances, and the class of most rows."""
    large = {name: value for name, value in values.all.items() if value > LARGE_DRIFT}
    # The hidden layer comes last: it is the least familiar.
    ordered = sorted(list(large)[:2], key=lambda name: name == "hidden")
    named = [f"{NAMES.get(name, name)} {large[name]:.1f}" for name in ordered]
    text = " and ".join(named).capitalize() + " from training"
    if values.psi["predicted"] > LARGE_DRIFT:
        number = int(predicted.argmax())
        share = percent(predicted[number] / predicted.sum(), digits=0)
        text += f" ({share} are '{class_names[number]}')"
    return text


def _repeated(dataset: Dataset, split: str) -> int | None:
    """Return the number of rows that repeat an earlier one, if ingest recorded it."""
    findings = Findings.of(dataset)
    return None if findings is None else findings.splits[split].repeated.count
