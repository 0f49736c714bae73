"""Quality of predictions: accuracy, cross-entropy, per-class metrics, the confusion matrix."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.nn.loss import loss_of_probabilities
from storage.documents import check_fields
from storage.errors import BadDataError
from storage.location import Location
from storage.scores import METRICS, Predictions, Scores, ScoresSchema, open_scores


def check_quality(document: Any, classes: int, place: str) -> None:
    """Raise `BadDataError` that names `place` unless it is a report on `classes` classes."""
    types = {"accuracy": float, "cross_entropy": float, "classes": list, "confusion": list}
    check_fields(document, types, place)
    class_types = {"name": str, "precision": float, "recall": float, "f1": float, "rows": int}
    for entry in document["classes"]:
        check_fields(entry, class_types, place)
    rows = document["confusion"]
    square = all(type(row) is list and len(row) == classes for row in rows)
    square = square and all(type(count) is int for row in rows for count in row)
    if {classes} != {len(rows), len(document["classes"])} or not square:
        raise BadDataError(f"{place} does not have metrics for {classes:,} classes.")


def open_scored(home: Location) -> Scores:
    """Open complete scores; raise `BadDataError` if their metrics are malformed."""
    scores = open_scores(home)
    quality = scores.metrics.get("quality")
    if quality is not None:
        check_quality(quality, scores.schema.classes, f"{home}/{METRICS}")
    return scores


class ConfusionCounter:
    """Counts predictions block by block; needs memory for the confusion matrix only."""

    def __init__(
        self, class_names: tuple[str, ...], target_names: tuple[str, ...] | None = None
    ) -> None:
        """Start with no rows.

        `target_names`, by default all, are the classes of the targets' columns: a dataset may lack
        some of the model's classes.
        """
        self._names = class_names
        self._columns = np.array([class_names.index(name) for name in target_names or class_names])
        self._confusion = np.zeros((len(class_names), len(class_names)), dtype=np.int64)
        self._loss_sum = 0.0

    def add(
        self,
        probabilities: NDArray[np.float32],
        predicted: NDArray[np.int32],
        targets: NDArray[np.uint8],
    ) -> None:
        """Count a block: `(rows, classes)`, `(rows,)` and one-hot `(rows, classes)`."""
        truth = self._columns[targets.argmax(axis=1)]
        pairs = truth * len(self._names) + predicted
        self._confusion += np.bincount(pairs, minlength=self._confusion.size).reshape(
            self._confusion.shape
        )
        self._loss_sum += loss_of_probabilities(probabilities, truth)

    def merge(self, counted: "ConfusionCounter") -> None:
        """Add the counts of one block; merged in the blocks' order, the sums have the same bits."""
        self._confusion += counted._confusion
        self._loss_sum += counted._loss_sum

    def result(self) -> dict[str, Any]:
        """Return the metrics of all rows counted, at least one, as stored in metrics.json.

        `accuracy` is a share in [0, 1], `cross_entropy` the mean over the rows in nats, and
        `confusion[true][predicted]` a number of rows.
        """
        rows = int(self._confusion.sum())
        return {
            "accuracy": int(np.trace(self._confusion)) / rows,
            "cross_entropy": self._loss_sum / rows,
            "classes": [self._class_metrics(number) for number in range(len(self._names))],
            "confusion": self._confusion.tolist(),
        }

    def _class_metrics(self, number: int) -> dict[str, Any]:
        """Return a class's precision, recall and F1 score; 0 if undefined."""
        hits = int(self._confusion[number, number])
        rows = int(self._confusion[number].sum())
        predicted = int(self._confusion[:, number].sum())
        return {
            "name": self._names[number],
            "precision": hits / predicted if predicted else 0.0,
            "recall": hits / rows if rows else 0.0,
            "f1": 2 * hits / (rows + predicted) if rows + predicted else 0.0,
            "rows": rows,
        }


def count_chunk(
    schema: ScoresSchema,
    class_names: tuple[str, ...],
    predictions: Predictions,
    targets: NDArray[np.uint8] | None,
) -> ConfusionCounter | None:
    """Count a chunk's predictions; None without targets. `class_names` are the targets'."""
    if targets is None:
        return None
    counted = ConfusionCounter(schema.class_names, class_names)
    counted.add(*predictions, targets)
    return counted
