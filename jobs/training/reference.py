"""The reference of a model: distributions of its rows, with which later rows are compared.

It has the statistics of the training images, and what the model makes of rows that it was not
trained on: predicted classes, confidence, and the last hidden layer's outputs.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from jobs.nn.parameters import Floats
from jobs.training.config import VALIDATION
from jobs.training.environment import one_blas_thread
from jobs.training.evaluate import BLOCK_ROWS, Predictor
from jobs.training.model import Model
from pipeline.statistics import (
    BINS,
    ImageStatistics,
    counts_text,
    histograms,
    is_sampled,
    parse_counts,
)
from pipeline.stream import BatchStream
from storage import documents
from storage.dataset import Dataset
from storage.errors import BadDataError
from storage.runs import REFERENCE_FORMAT, REFERENCE_VERSION, Run, reference_key
from storage.scores import Predictions

logger = logging.getLogger(__name__)

REFERENCE_ROWS = 10_000
"""The most rows that a model is applied to for its reference."""
COUNTED_IMAGES = 1_000
"""About this number of a split's images have their statistics counted; more tell little more."""
LEAST_UNCERTAINTY = 1e-6
"""Confidences nearer to 1 are counted as this far from it."""
FIELDS = {
    "model_digest": str,
    "dataset_digest": str,
    "split": str,
    "rows": int,
    "predicted": str,
    "confidence": str,
    "hidden_mean": list,
    "hidden_covariance": list,
}
"""The fields of a reference, without `statistics`, which may be null."""


@dataclass(eq=False)
class Observation:
    """Distributions of some rows: of their images, and of what a model makes of them."""

    images: ImageStatistics
    predicted: NDArray[np.int64]
    """Rows of each predicted class, `(classes,)`."""
    confidence: NDArray[np.int64]
    """Histogram of the largest probability p, mapped to log10(1 - p) / -6."""
    hidden_sum: Floats
    """Sum of the outputs of the last hidden layer, `(units,)`."""

    @classmethod
    def empty(cls, predictor: Predictor) -> Self:
        """Return the observation of no rows, to add others to."""
        counts = np.zeros(predictor.classes, np.int64), np.zeros(BINS, np.int64)
        return cls(ImageStatistics.empty(), *counts, np.zeros(predictor.hidden_units))

    @classmethod
    def of(cls, images: ImageStatistics, predictions: Predictions, hidden: Floats) -> Self:
        """Observe rows with the statistics of their images, if they are counted."""
        probabilities, predicted = predictions
        largest = probabilities[np.arange(len(predicted)), predicted].astype(np.float64)
        uncertainty = np.fmin(1 - largest, 1)  # 1 for NaN, which is never written
        logarithm = np.log10(np.maximum(uncertainty, LEAST_UNCERTAINTY))
        confidence = logarithm[:, None] / np.log10(LEAST_UNCERTAINTY)
        return cls(
            images,
            np.bincount(predicted, minlength=probabilities.shape[1]),
            histograms(np.clip(confidence, 0, 1))[0],
            hidden.sum(axis=0, dtype=np.float64),
        )

    @property
    def rows(self) -> int:
        """The number of rows."""
        return int(self.predicted.sum())

    def add(self, other: "Observation") -> None:
        """Add other rows; added in the order of the chunks, the sums have the same bits."""
        self.images.add(other.images)
        self.predicted = self.predicted + other.predicted
        self.confidence = self.confidence + other.confidence
        self.hidden_sum = self.hidden_sum + other.hidden_sum


@dataclass(frozen=True)
class Observer:
    """Observes rows of a split chunk by chunk, in any order and on any thread."""

    predictor: Predictor
    image_shape: tuple[int, ...]
    rows: int
    """Rows of the split, some of which are sampled for the statistics of images."""

    def observe(
        self, start: int, inputs: NDArray[Any], predictions: Predictions, hidden: Floats | None
    ) -> Observation:
        """Observe stored rows from row `start`; `hidden` is computed if it is None."""
        if hidden is None:
            first = replace(self.predictor, members=self.predictor.members[:1], average_shifts=0)
            hidden = first.with_hidden(inputs)[1]
        sampled = is_sampled(start, start + len(inputs), self.rows, COUNTED_IMAGES)
        scaling = self.predictor.scaling
        images = ImageStatistics.of(inputs[:, 1:], self.image_shape, scaling, sampled)
        return Observation.of(images, predictions, hidden)


@dataclass(frozen=True, eq=False)
class Reference:
    """The distributions with which rows that a model scores are compared."""

    model_digest: str
    dataset_digest: str
    split: str
    """The split whose rows the model was applied to; `validation` may be held-out rows."""
    statistics: ImageStatistics | None
    """Those of the training images; None if the dataset does not record them."""
    predicted: NDArray[np.int64]
    confidence: NDArray[np.int64]
    hidden_mean: Floats
    hidden_covariance: Floats
    """`(units, units)`."""

    @property
    def rows(self) -> int:
        """The rows that the model was applied to."""
        return int(self.predicted.sum())

    def to_json(self) -> dict[str, Any]:
        """Return the reference as a document; a covariance is a list of rows of its triangle."""
        triangle = [row[: number + 1] for number, row in enumerate(self.hidden_covariance)]
        return {
            "format": REFERENCE_FORMAT,
            "format_version": REFERENCE_VERSION,
            "model_digest": self.model_digest,
            "dataset_digest": self.dataset_digest,
            "split": self.split,
            "rows": self.rows,
            "statistics": self.statistics and self.statistics.to_json(),
            "predicted": counts_text(self.predicted),
            "confidence": counts_text(self.confidence),
            "hidden_mean": _short(self.hidden_mean),
            "hidden_covariance": [_short(row) for row in triangle],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any], classes: int, units: int, place: str) -> Self:
        """Return the inverse of `to_json`; raise `BadDataError` that names `place`."""
        documents.check_format(document, REFERENCE_FORMAT, (REFERENCE_VERSION,), place)
        documents.check_fields(document, FIELDS, place)
        mean, triangle = document["hidden_mean"], document["hidden_covariance"]
        lengths = [len(row) if isinstance(row, list) else None for row in [mean, *triangle]]
        numbers = [number for row in [mean, *triangle] if isinstance(row, list) for number in row]
        if lengths != [units, *range(1, units + 1)] or not set(map(type, numbers)) <= {float}:
            raise BadDataError(
                f"{place} does not describe {units} units of the last hidden layer. Remove it; "
                "`pipeline score` makes it again."
            )
        covariance = np.zeros((units, units))
        covariance[np.tril_indices(units)] = numbers[units:]
        statistics = document.get("statistics")
        return cls(
            document["model_digest"],
            document["dataset_digest"],
            document["split"],
            statistics and ImageStatistics.from_json(statistics, f"{place}: statistics"),
            parse_counts(document["predicted"], classes, f"{place}: predicted"),
            parse_counts(document["confidence"], BINS, f"{place}: confidence"),
            np.array(mean),
            covariance + np.tril(covariance, -1).T,
        )


def _short(numbers: Floats) -> list[float]:
    """Return numbers with nine digits, which is more than they are known to."""
    return [float(f"{number:.9g}") for number in numbers]


def read_reference(run: Run, model: Model) -> Reference | None:
    """Return the reference of a model that its run has; None if it has none.

    Raises `BadDataError` if it is damaged or belongs to another model.
    """
    key = reference_key(model.digest)
    place = f"{run.location}/{key}"
    try:
        document = documents.read_sealed(run.location, key)
    except FileNotFoundError:
        return None
    units = model.predictor.hidden_units
    reference = Reference.from_json(document, len(model.class_names), units, place)
    if reference.model_digest != model.digest:
        raise BadDataError(
            f"{place} is the reference of model {reference.model_digest}, not {model.digest}. "
            "Remove it; `pipeline score` makes it again."
        )
    return reference


def ensure_reference(
    run: Run, model: Model, dataset_of: Callable[[], Dataset], holdout: int
) -> Reference:
    """Return a model's reference; make it from the run's dataset if there is none.

    A damaged one is made again. Several jobs may make it at once: they write the same document,
    each atomically. What a killed job left of it is removed.
    """
    key, reference, damage = reference_key(model.digest), None, None
    run.location.sweep_partial(key)
    try:
        reference = read_reference(run, model)
    except BadDataError as error:
        damage = error
    if reference is None:
        reference = make_reference(model, dataset_of(), holdout)
        content = documents.sealed_bytes(reference.to_json(), indent=None)
        run.location.put(key, content)
        if damage is not None:
            logger.warning("%s It was made again.", damage)
    return reference


def make_reference(model: Model, dataset: Dataset, holdout: int) -> Reference:
    """Apply a model to rows that it was not trained on, if there are any.

    These are the first of the validation split or of the last `holdout` training rows, else of the
    test split, else the last training rows.
    """
    name, split, first_row, rows = _rows_of(dataset, holdout)
    predictor = model.predictor
    observation = Observation.empty(predictor)
    squares = np.zeros((predictor.hidden_units, predictor.hidden_units))
    size = min(BLOCK_ROWS, rows)
    blocks = BatchStream(
        dataset, split, batch_size=size, shuffle=False, first_row=first_row, rows=rows, epochs=1
    )
    with one_blas_thread(), blocks as stream:
        for batch in stream:
            predictions, hidden = predictor.with_hidden(batch.inputs)
            observation.add(Observation.of(ImageStatistics.empty(), predictions, hidden))
            wide = hidden.astype(np.float64)
            squares += wide.T @ wide
    if not np.isfinite(squares).all():  # outputs too large to be compared
        observation.hidden_sum, squares = np.zeros(len(squares)), np.zeros_like(squares)
    mean = observation.hidden_sum / rows
    return Reference(
        model.digest,
        dataset.digest,
        name,
        ImageStatistics.recorded(dataset),
        observation.predicted,
        observation.confidence,
        mean,
        squares / rows - np.outer(mean, mean),
    )


def _rows_of(dataset: Dataset, holdout: int) -> tuple[str, str, int, int]:
    """Return a name, a split, the first row and the number of rows for a reference."""
    for name in (VALIDATION, "test"):
        if name in dataset.splits:
            return name, name, 0, min(dataset.splits[name].schema.rows, REFERENCE_ROWS)
        if name == VALIDATION and holdout:
            first = dataset.splits["train"].schema.rows - holdout
            return VALIDATION, "train", first, min(holdout, REFERENCE_ROWS)
    rows = dataset.splits["train"].schema.rows
    used = min(rows, REFERENCE_ROWS)
    return "train", "train", rows - used, used
