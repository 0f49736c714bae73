"""Evaluate a network on rows of a dataset: forward passes, cross-entropy, accuracy."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.nn.network import NO_ROWS, LossSum, Network
from jobs.nn.parameters import Floats
from jobs.thread_map import ThreadMap
from jobs.training.gradients import network_inputs
from jobs.training.step import ignore_overflow
from pipeline.stream import Batch, BatchStream
from storage.dataset import Dataset
from storage.location import Closing
from storage.preparation import ValueRange
from storage.scores import Predictions

BLOCK_ROWS = 500
"""Rows of one forward pass; fixed, so that the bits do not depend on the number of threads."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracy and loss of a model on some rows."""

    accuracy: float
    """Share of rows whose most probable class is the target's, in [0, 1]."""
    cross_entropy: float
    """Mean over the rows, in nats."""


class Evaluator(Closing):
    """Evaluates a range of rows repeatedly, and reads the next evaluation's first rows ahead."""

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
        """Take rows [first_row, first_row + rows) of a labelled split, at most `times` times."""
        self._network = network
        self._scaling = dataset.preparation.scaling
        self._threads = threads
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
        """Return the accuracy and loss of `parameters` on all the rows."""
        total = NO_ROWS
        with ThreadMap(partial(self._block, parameters), self._threads) as threads:
            for block in threads.map(iter(self._stream)):
                total += block
        return Evaluation(total.correct / total.rows, total.loss_sum / total.rows)

    def _block(self, parameters: Floats, batch: Batch) -> LossSum:
        assert batch.targets is not None  # the split has labels
        inputs, columns = network_inputs(batch.inputs, self._network.dtype, self._scaling)
        with ignore_overflow():
            return self._network.loss(parameters, inputs, batch.targets, columns)

    def close(self) -> None:
        self._stream.close()


def evaluation_memory(network: Network, rows: int, threads: int) -> int:
    """Return the bytes of `threads` that each evaluate a block of at most `rows`."""
    block = min(BLOCK_ROWS, rows) * network.forward_memory
    return threads * (network.first_layer_memory + block)


@dataclass(frozen=True)
class Predictor:
    """Predicts the probabilities and classes of rows."""

    network: Network
    parameters: Floats
    """The flat vector `(parameters,)`."""
    scaling: ValueRange | None
    """The run's range of input values."""

    def __call__(self, inputs: NDArray[Any]) -> Predictions:
        """Return probabilities `(rows, classes)` and classes `(rows,)` of `(rows, 1 + features)`.

        They are computed in blocks of `BLOCK_ROWS`, so the bits do not depend on the threads.
        """
        blocks = [np.empty((0, self.network.layers[-1].outputs), np.float32)]
        with ignore_overflow():  # non-finite probabilities are never written
            for start in range(0, len(inputs), BLOCK_ROWS):
                block = inputs[start : start + BLOCK_ROWS]
                scaled, columns = network_inputs(block, self.network.dtype, self.scaling)
                probabilities = self.network.forward(self.parameters, scaled, columns)
                blocks.append(probabilities.astype(np.float32, copy=False))
        probabilities = np.concatenate(blocks)
        return probabilities, probabilities.argmax(axis=1).astype(np.int32)
