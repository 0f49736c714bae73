"""Drift: false alarms on slices of genuine rows, and detections of damaged ones."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.choices import LARGE_DRIFT
from jobs.nn.parameters import Floats
from jobs.scoring.distances import Distances, distances
from jobs.training.job import train
from jobs.training.model import Model
from jobs.training.reference import Observation, Reference, make_reference
from pipeline.statistics import ImageStatistics, histograms, image_statistics
from pipeline.transforms import add_bias, shift_images
from storage.dataset import Dataset
from storage.preparation import BYTES
from tests.benchmarks.contest import Verdict
from tests.benchmarks.data import NETWORK, Workplace

Bytes = NDArray[np.uint8]
Damage = Callable[[Bytes, np.random.Generator], Bytes]

SIZES = (100, 500, 5_000)
"""Rows of a slice of genuine rows."""
DAMAGED_ROWS = 500
SLICES = 1_000
SAMPLES = 20
"""Samples of each kind of damage."""
HOLDOUT = 5_000
"""Training rows for the reference, so that the test rows are new to it."""
SHAPE = (28, 28)


@dataclass(frozen=True)
class Judge:
    """A model and its reference, and what slices of rows are judged by."""

    model: Model
    reference: Reference

    def rows(self, images: Bytes) -> "Rows":
        """Return all that the judge needs of images `(rows, 28, 28)`."""
        stored = add_bias(images, 255)
        (probabilities, _), hidden = self.model.predictor.with_hidden(stored)
        values = image_statistics(images, SHAPE, BYTES, np.arange(len(images)))
        return Rows(values, probabilities, hidden)

    def distances(self, rows: "Rows", numbers: NDArray[np.intp]) -> Distances:
        """Return the distances of some of the rows."""
        probabilities = rows.probabilities[numbers]
        return distances(
            self.reference,
            Observation.of(
                ImageStatistics(histograms(rows.values[numbers])),
                (probabilities, probabilities.argmax(axis=1).astype(np.int32)),
                rows.hidden[numbers],
            ),
        )


@dataclass(frozen=True)
class Rows:
    """Rows whose statistics and predictions are known, so that slices of them are cheap."""

    values: NDArray[np.float64]
    probabilities: NDArray[np.float32]
    hidden: Floats


def bench_drift(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Count alarms among genuine slices, and among samples of each kind of damage."""
    dataset = workplace.dataset
    train(
        {"network": NETWORK, "holdout": HOLDOUT},
        dataset=dataset.location,
        run=workplace.directory / "drift",
    )
    model = Model.load(workplace.directory / "drift")
    judge = Judge(model, make_reference(model, dataset, HOLDOUT))
    images, labels = split_rows(dataset, "test")
    yield from false_alarms(judge, images, SIZES, SLICES)
    yield from detections(judge, images, labels, SAMPLES)


def split_rows(dataset: Dataset, name: str) -> tuple[Bytes, NDArray[np.int64]]:
    """Return the images `(rows, 28, 28)` and the labels of a split."""
    split = dataset.split(name)
    blocks = [split.read_chunk(number) for number in range(split.schema.chunks)]
    images = np.concatenate([block.inputs[:, 1:] for block in blocks]).reshape(-1, *SHAPE)
    labels = [block.targets.argmax(axis=1) for block in blocks if block.targets is not None]
    return images, np.concatenate(labels)


def false_alarms(
    judge: Judge, images: Bytes, sizes: tuple[int, ...], slices: int
) -> Iterator[Verdict]:
    """Yield the alarms among random and among contiguous slices of genuine rows."""
    rng, rows = np.random.default_rng(0), judge.rows(images)
    for size in sizes:
        for name in ("random", "contiguous"):
            scores = []
            for _ in range(slices):
                start = rng.integers(len(images) - size + 1)
                numbers = np.arange(start, start + size)
                if name == "random":
                    numbers = rng.choice(len(images), size, replace=False)
                scores.append(judge.distances(rows, numbers).score)
            alarms = sum(score > LARGE_DRIFT for score in scores)
            note = f"of {slices:,}; largest {max(scores):.2f}"
            yield Verdict(
                f"false alarms, {size:,} {name} rows", alarms, 0, unit="slices", note=note
            )


def detections(
    judge: Judge, images: Bytes, labels: NDArray[np.int64], samples: int
) -> Iterator[Verdict]:
    """Yield the alarms among samples of each kind of damage."""
    rng = np.random.default_rng(1)
    cases = {name: (damage, images) for name, damage in DAMAGES.items()}
    for label in np.unique(labels):
        cases[f"all of class {label}"] = (_genuine, images[labels == label])
    for name, (damage, source) in cases.items():
        scores = []
        for _ in range(samples):
            chosen = source[rng.choice(len(source), min(DAMAGED_ROWS, len(source)), replace=False)]
            rows = judge.rows(np.ascontiguousarray(damage(chosen, rng)))
            scores.append(judge.distances(rows, np.arange(len(chosen))).score)
        alarms = sum(score > LARGE_DRIFT for score in scores)
        note = f"of {samples}; smallest {min(scores):.1f}"
        yield Verdict(
            f"detected: {name}", alarms, samples, at_least=True, unit="samples", note=note
        )


def _genuine(images: Bytes, rng: np.random.Generator) -> Bytes:
    return images


def _moved(images: Bytes, rng: np.random.Generator) -> Bytes:
    down, right = ((0, 4), (0, -4), (4, 0), (-4, 0))[rng.integers(4)]
    moved = shift_images(add_bias(images, 255), SHAPE, down, right, BYTES)
    return moved[:, 1:].reshape(images.shape).astype(np.uint8)


STROKES = {
    "A": [(0, 10, 5, 0), (5, 0, 10, 10), (2, 6, 8, 6)],
    "E": [(1, 0, 1, 10), (1, 0, 9, 0), (1, 5, 7, 5), (1, 10, 9, 10)],
    "F": [(1, 0, 1, 10), (1, 0, 9, 0), (1, 5, 7, 5)],
    "H": [(1, 0, 1, 10), (9, 0, 9, 10), (1, 5, 9, 5)],
    "K": [(1, 0, 1, 10), (9, 0, 1, 5), (1, 5, 9, 10)],
    "L": [(1, 0, 1, 10), (1, 10, 9, 10)],
    "M": [(0, 10, 1, 0), (1, 0, 5, 8), (5, 8, 9, 0), (9, 0, 10, 10)],
    "N": [(1, 10, 1, 0), (1, 0, 9, 10), (9, 10, 9, 0)],
    "T": [(0, 0, 10, 0), (5, 0, 5, 10)],
    "V": [(0, 0, 5, 10), (5, 10, 10, 0)],
    "W": [(0, 0, 2, 10), (2, 10, 5, 2), (5, 2, 8, 10), (8, 10, 10, 0)],
    "X": [(0, 0, 10, 10), (10, 0, 0, 10)],
    "Y": [(0, 0, 5, 5), (10, 0, 5, 5), (5, 5, 5, 10)],
}
"""Letters as lines (x, y, x, y) in a square of side 10."""


def _letters(images: Bytes, rng: np.random.Generator) -> Bytes:
    """Return as many drawn letters, in size, pen and centre like the digits of MNIST."""
    return np.stack([_letter(rng) for _ in images])


def _letter(rng: np.random.Generator) -> Bytes:
    lines = np.array(STROKES[rng.choice(list(STROKES))], np.float64).reshape(-1, 2, 2) - 5
    lines += rng.normal(0, 0.35, lines.shape)
    lines = lines @ (np.array([[rng.normal(1.6, 0.2), 0], [rng.normal(-0.3, 0.3), 1.9]]))
    grid = np.stack(np.meshgrid(np.arange(28) - 13.5, np.arange(28) - 13.5), axis=-1)
    distance = np.full(SHAPE, np.inf)
    for start, end in lines:
        along = ((grid - start) @ (end - start)) / max(float((end - start) @ (end - start)), 1e-9)
        nearest = start + np.clip(along, 0, 1)[..., None] * (end - start)
        distance = np.minimum(distance, np.linalg.norm(grid - nearest, axis=-1))
    ink = np.clip((rng.normal(1.5, 0.3) - distance) / 1.2 + 0.5, 0, 1)
    y, x = (ink[..., None] * grid[..., ::-1]).sum(axis=(0, 1)) / ink.sum()
    return np.roll(np.round(255 * ink), (-round(y), -round(x)), axis=(0, 1)).astype(np.uint8)


DAMAGES: dict[str, Damage] = {
    "inverted": lambda images, _: 255 - images,
    "noise": lambda images, rng: rng.integers(0, 256, images.shape, np.uint8),
    "blank": lambda images, _: np.zeros_like(images),
    "one-bit": lambda images, _: np.where(images > 127, np.uint8(255), np.uint8(0)),
    "a quarter of the contrast": lambda images, _: images // 4,
    "moved by 4 pixels": _moved,
    "turned by 90 degrees": lambda images, _: np.rot90(images, axes=(1, 2)),
    "turned by 180 degrees": lambda images, _: images[:, ::-1, ::-1],
    "transposed": lambda images, _: images.swapaxes(1, 2),
    "drawn letters": _letters,
}
"""What may happen to images, each applied to `DAMAGED_ROWS` of them."""
