"""Evaluate a network on rows of a dataset: forward passes, cross-entropy, accuracy."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jobs.nn.network import LossSum, Network
from jobs.nn.parameters import Floats
from jobs.thread_map import Workers
from jobs.training.step import ignore_overflow, network_inputs
from pipeline.stream import Batch, BatchStream
from storage.dataset import Dataset
from storage.errors import BadDataError
from storage.location import Closing
from storage.preparation import ValueRange

BLOCK_ROWS = 500
"""Rows of one forward pass; fixed, so that the bits do not depend on the number of threads."""


@dataclass(frozen=True)
class Evaluation:
    """The quality on some rows."""

    accuracy: float
    """Share of rows whose most probable class is the target's, in [0, 1]."""
    cross_entropy: float
    """Mean over the rows, in nats."""

    def to_json(self) -> dict[str, Any]:
        """Both figures by name."""
        return dict(vars(self))


class Evaluator(Closing):
    """Evaluates one range of rows again and again; reads the next time's first rows ahead."""

    def __init__(
        self,
        network: Network,
        dataset: Dataset,
        split: str,
        *,
        first_row: int,
        rows: int,
        times: int,
        threads: int,
    ) -> None:
        """Over rows [first_row, first_row + rows) of a labelled split, at most `times` times."""
        if not dataset.split(split).schema.classes:
            raise BadDataError(f"Split {split} has no labels; leave it out of --evaluate.")
        self._network = network
        self._scaling = dataset.preparation.scaling
        self._workers = Workers(self._block, threads)
        self._stream = BatchStream(
            dataset,
            split,
            batch_size=min(BLOCK_ROWS, rows),
            shuffle=False,
            first_row=first_row,
            rows=rows,
            epochs=times,
        )

    def evaluate(self, parameters: Floats) -> Evaluation:
        """Read all the rows once and judge the parameters by them."""
        loss_sum, correct, rows = 0.0, 0, 0
        for block in self._workers.map(self._blocks(parameters)):
            loss_sum += block.loss_sum
            correct += block.correct
            rows += block.rows
        return Evaluation(correct / rows, loss_sum / rows)

    def _blocks(self, parameters: Floats) -> Iterator[tuple[Floats, Batch]]:
        for batch in self._stream:
            yield parameters, batch
            del batch  # it is a view, and would keep its window in memory

    def _block(self, work: tuple[Floats, Batch]) -> LossSum:
        parameters, batch = work
        assert batch.targets is not None  # the split is labelled
        inputs, columns = network_inputs(batch.inputs, self._network.dtype, self._scaling)
        with ignore_overflow():
            return self._network.loss(parameters, inputs, batch.targets, columns)

    def close(self) -> None:
        """Stop the stream and the threads."""
        self._workers.close()
        self._stream.close()


Predictions: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int32]]
"""Probabilities `(rows, classes)` and predicted classes `(rows,)`."""


class Forward:
    """The forward pass of one block of rows."""

    def __init__(self, network: Network, parameters: Floats, scaling: ValueRange | None) -> None:
        """With the network's `parameters`, `(parameters,)`, and the run's `scaling` of inputs."""
        self._network = network
        self._scaling = scaling
        self._parameters = parameters

    def __call__(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """`(rows, 1 + features)` as stored to the probabilities `(rows, classes)`."""
        scaled, columns = network_inputs(inputs, self._network.dtype, self._scaling)
        with ignore_overflow():  # non-finite probabilities are never written
            probabilities = self._network.forward(self._parameters, scaled, columns)
        return probabilities.astype(np.float32, copy=False)


def predict(forward: Forward, inputs: NDArray[Any]) -> Predictions:
    """Probabilities and classes of a chunk's rows, block by block."""
    starts = range(0, len(inputs), BLOCK_ROWS)
    probabilities = np.concatenate(
        [forward(inputs[start : start + BLOCK_ROWS]) for start in starts]
    )
    return probabilities, probabilities.argmax(axis=1).astype(np.int32)
