"""Scores beside their labels and images, chunk by chunk: mistakes, calibration, coverage."""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jobs.scoring.images import Pixels, pixels_of
from storage.dataset import Dataset
from storage.errors import BadDataError
from storage.scores import Scores

MISTAKES = 24
"""The number of worst mistakes, and of most uncertain rows, that are kept."""
CELL_EXAMPLES = 5
BINS = 15
"""Bins of confidence for the calibration error."""
TABLE = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)
"""Confidences in the table of coverage."""
THRESHOLDS = np.unique([*TABLE, *np.linspace(0, 0.98, 50), *(1 - np.logspace(-6, -2, 60))])

Cell = tuple[int, int]
"""A cell of the confusion matrix: true class and predicted class, by number."""


@dataclass(frozen=True)
class Example:
    """A scored row with its image."""

    row: int
    """Its number in the split, from 0."""
    pixels: Pixels
    truth: str | None
    """Name of the true class; None without labels."""
    answer: str
    """Name of the predicted class."""
    probability: float
    """Probability of the predicted class."""
    of_truth: float | None
    """Probability of the true class; None without labels."""


@dataclass
class Ranking:
    """The rows with the smallest keys, lowest first, and of equal keys those that come first."""

    count: int
    entries: list[tuple[float, Example]] = field(default_factory=list)

    def add(self, entries: Iterable[tuple[float, Example]]) -> None:
        """Add rows; only the first `count` of all are kept."""
        merged = sorted([*self.entries, *entries], key=lambda entry: (entry[0], entry[1].row))
        self.entries = merged[: self.count]

    @property
    def examples(self) -> list[Example]:
        return [example for _, example in self.entries]


@dataclass
class Examination:
    """What scores, labels and images say together about a split."""

    rows: int
    errors: int = 0
    """Rows whose predicted class is not their label."""
    is_labelled: bool = False
    mistakes: Ranking = field(default_factory=lambda: Ranking(MISTAKES))
    """Wrong rows, the lowest probability of the true class first."""
    uncertain: Ranking = field(default_factory=lambda: Ranking(MISTAKES))
    """Rows, the lowest probability of the predicted class first."""
    cells: dict[Cell, Ranking] = field(default_factory=dict)
    """For chosen cells of the confusion matrix, the most confident rows."""
    bin_rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    bin_hits: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    bin_confidence: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    """The sum of the confidences in each bin."""
    decided: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(THRESHOLDS) + 1, np.int64)
    )
    """Rows between each two of `THRESHOLDS`; the first ones are below all."""
    decided_wrong: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(THRESHOLDS) + 1, np.int64)
    )
    """Those of them that are wrong."""

    @property
    def calibration_error(self) -> float:
        """The expected calibration error: mean |accuracy - confidence|, weighted by rows."""
        return float(np.abs(self.bin_hits - self.bin_confidence).sum()) / self.rows

    def coverage(self) -> list[tuple[float, int, int]]:
        """Return each confidence with the rows that reach it, and the mistakes among them."""
        reached = self.decided[::-1].cumsum()[::-1][1:].tolist()
        wrong = self.decided_wrong[::-1].cumsum()[::-1][1:].tolist()
        return list(zip(THRESHOLDS.tolist(), reached, wrong, strict=True))


def examine(dataset: Dataset, scores: Scores, cells: Collection[Cell] = ()) -> Examination:
    """Read scores with their rows, one chunk at a time.

    Raises `BadDataError` if a chunk of either is damaged, or if the scores are of other rows.
    """
    schema = scores.schema
    split = dataset.split(schema.split)
    if schema.dataset_digest != dataset.digest or schema.rows != split.schema.rows:
        raise BadDataError(
            f"{scores.location} has scores of other rows than {dataset.location} has now."
        )
    columns = np.array([_column(name, scores) for name in dataset.class_names])
    result = Examination(schema.rows, cells={cell: Ranking(CELL_EXAMPLES) for cell in cells})
    block = None
    for number in range(split.schema.chunks):
        block = split.read_chunk(number, block)
        start, stop = split.schema.chunk_bounds(number)
        probabilities, predicted = _rows_of(scores, start, stop)
        truth = None if block.targets is None else columns[block.targets.argmax(axis=1)]
        _Chunk(result, dataset, scores, start, block.inputs, probabilities, predicted, truth).add()
    return result


def _column(name: str, scores: Scores) -> int:
    if name not in scores.schema.class_names:
        raise BadDataError(f"{scores.location} has no probabilities of the class {name!r}.")
    return scores.schema.class_names.index(name)


def _rows_of(
    scores: Scores, start: int, stop: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return the scores of the rows [start, stop), whose chunks may have another size."""
    size = scores.schema.chunk_rows
    first = start // size
    chunks = [scores.read_chunk(number) for number in range(first, -(-stop // size))]
    part = slice(start - first * size, stop - first * size)
    return (
        np.concatenate([probabilities for probabilities, _ in chunks])[part],
        np.concatenate([predicted for _, predicted in chunks])[part],
    )


@dataclass
class _Chunk:
    """The rows of a chunk, to be added to an examination."""

    result: Examination
    dataset: Dataset
    scores: Scores
    start: int
    inputs: NDArray[np.generic]
    probabilities: NDArray[np.float32]
    predicted: NDArray[np.int32]
    truth: NDArray[np.int64] | None

    def add(self) -> None:
        result, rows = self.result, np.arange(len(self.predicted))
        confidence = self.probabilities[rows, self.predicted].astype(np.float64)
        result.uncertain.add(self._ranked(confidence, rows, MISTAKES))
        place = np.searchsorted(THRESHOLDS, confidence, side="right")
        result.decided += np.bincount(place, minlength=len(result.decided))
        if self.truth is None:
            return
        result.is_labelled = True
        wrong = self.predicted != self.truth
        result.errors += int(wrong.sum())
        result.decided_wrong += np.bincount(place[wrong], minlength=len(result.decided))
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        result.bin_rows += np.bincount(bins, minlength=BINS)
        result.bin_hits += np.bincount(bins[~wrong], minlength=BINS)
        result.bin_confidence += np.bincount(bins, confidence, minlength=BINS)
        of_truth = self.probabilities[rows, self.truth].astype(np.float64)
        result.mistakes.add(self._ranked(of_truth, np.flatnonzero(wrong), MISTAKES))
        for (true, answer), ranking in result.cells.items():
            inside = np.flatnonzero((self.truth == true) & (self.predicted == answer))
            ranking.add(self._ranked(-confidence, inside, CELL_EXAMPLES))

    def _ranked(
        self, keys: NDArray[np.float64], rows: NDArray[np.int64], count: int
    ) -> list[tuple[float, Example]]:
        """Return the rows with the smallest keys, with copies of their images."""
        first = rows[np.argsort(keys[rows], kind="stable")][:count]
        return [(float(keys[row]), self._example(row)) for row in first.tolist()]

    def _example(self, row: int) -> Example:
        names = self.scores.schema.class_names
        truth = None if self.truth is None else int(self.truth[row])
        return Example(
            row=self.start + row,
            pixels=pixels_of(self.inputs[row], self.dataset),
            truth=None if truth is None else names[truth],
            answer=names[self.predicted[row]],
            probability=float(self.probabilities[row, self.predicted[row]]),
            of_truth=None if truth is None else float(self.probabilities[row, truth]),
        )


def wilson_interval(
    hits: int, rows: int, deviations: float = 1.959963984540054
) -> tuple[float, float]:
    """Return Wilson's interval of a share, of 95 % for the default number of deviations.

    Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    square = deviations**2
    centre = (hits + square / 2) / (rows + square)
    spread = hits * (rows - hits) / rows + square / 4
    half = deviations * math.sqrt(spread) / (rows + square)
    return max(0.0, centre - half), min(1.0, centre + half)
