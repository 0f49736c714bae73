"""Compare an exported file's predictions with those of the model, on rows of a dataset."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jobs.training.environment import one_blas_thread
from jobs.training.model import Model
from storage.dataset import Dataset
from storage.errors import BadDataError

ROWS = 10_000
"""The most rows that are compared."""
ROUNDING = 1e-5
"""Probabilities of a model and its export may differ by this much in either order of sums. Two
classes that are nearer to each other are a tie."""
DIFFERENCE = 1e-3
"""Larger differences are an error of the export, also if all classes are the same."""

Predict: TypeAlias = Callable[[NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]
"""Returns the probabilities `(rows, classes)` and the classes `(rows,)` of images."""


@dataclass(frozen=True)
class Comparison:
    """How the predictions of an exported file differ from the model's."""

    split: str
    """The split whose first rows were compared."""
    rows: int
    """The number of those rows."""
    ties: int
    """Rows of another class whose two most probable classes differ by rounding only."""
    largest_difference: float
    """The largest difference of a probability."""


def compare(model: Model, predict: Predict, dataset: Dataset, split: str) -> Comparison:
    """Compare predictions for the first rows of a split whose images fit the model.

    Raises `BadDataError` if they differ by more than rounding.
    """
    rows = ties = 0
    largest = 0.0
    for inputs in _chunks(dataset, split):
        stored = inputs.astype(model.element_type or inputs.dtype, copy=False)
        with one_blas_thread():
            expected, classes = model.predictor(stored)
        images = stored[:, 1:].reshape(len(stored), *(model.image_shape or (model.features,)))
        probabilities, predicted = predict(np.ascontiguousarray(images))
        largest = max(largest, float(np.abs(probabilities - expected).max()))
        other = np.flatnonzero(predicted != classes)
        gaps = expected[other, classes[other]] - expected[other, predicted[other]]
        if (gaps > ROUNDING).any() or not largest <= DIFFERENCE:
            raise BadDataError(
                f"The exported file was not written: its predictions for rows {rows:,} to "
                f"{rows + len(stored) - 1:,} of the {split} split of {dataset.location} differ "
                f"from the model's. {len(other):,} have another class, and probabilities differ by "
                f"up to {largest:.2g}. Please report this."
            )
        rows, ties = rows + len(stored), ties + len(other)
    return Comparison(split, rows, ties, largest)


def _chunks(dataset: Dataset, split: str) -> Iterator[NDArray[Any]]:
    """Yield the first rows of a split, chunk by chunk, bias first."""
    data, left = dataset.split(split), ROWS
    for number in range(data.schema.chunks):
        inputs = data.read_chunk(number).inputs[:left]
        left -= len(inputs)
        if len(inputs):
            yield inputs


def predict_onnx(data: bytes) -> Predict:
    """Return the predictions of an ONNX file by onnxruntime; raise `ImportError` without it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def predict(images: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        probabilities, classes = session.run(["probabilities", "class"], {"images": images})
        return probabilities, classes

    return predict


def predict_python(data: bytes) -> Predict:
    """Return the predictions of a Python file, which this process has just generated."""
    module = ModuleType("exported_model")
    exec(compile(data, "model.py", "exec"), module.__dict__)  # noqa: S102 - see above

    def predict(images: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        probabilities = module.predict_proba(images)
        return probabilities, probabilities.argmax(axis=1)

    return predict
