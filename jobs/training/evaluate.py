"""Evaluate networks on rows of a dataset: probabilities, cross-entropy, accuracy."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.nn.loss import loss_of_probabilities
from jobs.nn.network import NO_ROWS, LossSum, Network
from jobs.nn.parameters import Floats
from jobs.training.gradients import network_inputs
from jobs.training.step import ignore_overflow
from jobs.training.thread_map import ThreadMap
from pipeline.stream import Batch, BatchStream
from pipeline.transforms import shift_images
from storage.dataset import Dataset
from storage.location import Closing
from storage.preparation import ValueRange
from storage.scores import Predictions

BLOCK_ROWS = 500
"""Rows of one forward pass; fixed, so that the bits do not depend on the number of threads."""
HIDDEN_UNITS = 128
"""Units of the last hidden layer whose outputs are compared between sets of rows, at most."""
DIRECTIONS = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Up, down, left and right, as pixels down and right."""


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
        average_shifts: int = 0,
    ) -> None:
        """Take rows [first_row, first_row + rows) of a labelled split, at most `times` times.

        With `average_shifts` the metrics are those of probabilities averaged as by `Predictor`.
        """
        self.split = split
        self._network = network
        self._scaling = dataset.preparation.scaling
        self._image_shape = dataset.image_shape
        self._average_shifts = average_shifts
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
        if self._average_shifts:
            shifts = self._image_shape, self._average_shifts
            members = (TrainedNetwork(self._network, parameters),)
            predictions = Predictor(members, self._scaling, *shifts)(batch.inputs)
            return _loss_sum(predictions, batch.targets)
        inputs, columns = network_inputs(batch.inputs, self._network.dtype, self._scaling)
        with ignore_overflow():
            return self._network.loss(parameters, inputs, batch.targets, columns)

    def close(self) -> None:
        self._stream.close()


def _loss_sum(predictions: Predictions, targets: NDArray[np.uint8]) -> LossSum:
    """Return the loss of mean probabilities."""
    probabilities, predicted = predictions
    labels = targets.argmax(axis=1)
    loss_sum = loss_of_probabilities(probabilities, labels)
    return LossSum(loss_sum, int(np.count_nonzero(predicted == labels)), len(labels))


def evaluation_memory(network: Network, rows: int, threads: int, average_shifts: int = 0) -> int:
    """Return the bytes of `threads` that each evaluate a block of at most `rows`."""
    shifted = 8 * network.layers[0].shape[0] if average_shifts else 0
    block = min(BLOCK_ROWS, rows) * (network.forward_memory + shifted)
    return threads * (network.first_layer_memory + block)


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network and its parameters."""

    network: Network
    """The layers and the floating-point type."""
    parameters: Floats
    """The flat vector of `jobs.nn.parameters`, layer by layer."""


@dataclass(frozen=True)
class Predictor:
    """Predicts the probabilities and classes of rows.

    The probabilities are means over the members and over shifts of the images: none, and 1 to
    `average_shifts` pixels up, down, left and right. Shifts come first, the members of each in
    their order. Sums are float64, so that the mean of one is that one, and means float32. Members
    may differ in their networks, but not in the numbers of inputs and classes.
    """

    members: tuple[TrainedNetwork, ...]
    """At least one."""
    scaling: ValueRange | None
    """The run's range of input values."""
    image_shape: tuple[int, ...] | None = None
    """Height and width of the stored images, which shifts need."""
    average_shifts: int = 0

    def __call__(self, inputs: NDArray[Any]) -> Predictions:
        """Return probabilities `(rows, classes)` and classes `(rows,)` of `(rows, 1 + features)`.

        They are computed in blocks of `BLOCK_ROWS`, so the bits do not depend on the threads.
        """
        return self.with_hidden(inputs)[0]

    def with_hidden(self, inputs: NDArray[Any]) -> tuple[Predictions, Floats]:
        """Return the predictions, and outputs of the last hidden layer: `(rows, units)`.

        They are those of the first member for the images as they are, of all units if these are at
        most `HIDDEN_UNITS`, otherwise of some at equal intervals.
        """
        rows = len(inputs)
        probabilities = np.empty((rows, self.classes), np.float32)
        hidden = np.empty((rows, self.hidden_units), self._first.dtype)
        with ignore_overflow():  # non-finite probabilities are never written
            for start in range(0, rows, BLOCK_ROWS):
                block = slice(start, start + BLOCK_ROWS)
                self._write_mean(inputs[block], probabilities[block], hidden[block])
        return (probabilities, probabilities.argmax(axis=1).astype(np.int32)), hidden

    @property
    def classes(self) -> int:
        """The columns of the probabilities."""
        return self._first.layers[-1].outputs

    @property
    def hidden_units(self) -> int:
        """The units whose outputs `with_hidden` returns; 0 without hidden layers."""
        return len(self._units)

    @property
    def _units(self) -> range:
        outputs = self._first.layers[-1].inputs if len(self._first.layers) > 1 else 0
        return range(0, outputs, -(-outputs // HIDDEN_UNITS) or 1)

    @property
    def _first(self) -> Network:
        return self.members[0].network

    def _write_mean(self, block: NDArray[Any], mean: NDArray[np.float32], hidden: Floats) -> None:
        """Write the mean probabilities of a block's rows, and outputs of the hidden layer."""
        dtypes = dict.fromkeys(member.network.dtype for member in self.members)
        total: Floats | None = None
        terms = 0
        for shifted in self._shifted(block):
            inputs = {dtype: network_inputs(shifted, dtype, self.scaling) for dtype in dtypes}
            for member in self.members:
                probabilities, outputs = member.network.forward_with_hidden(
                    member.parameters, *inputs[member.network.dtype]
                )
                if total is None:
                    total, hidden[:] = probabilities, outputs[:, :: self._units.step]
                else:
                    total = np.add(total, probabilities, dtype=np.float64)
                terms += 1
        assert total is not None  # a model has a member
        np.divide(total, terms, out=mean, casting="same_kind")

    def _shifted(self, block: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Yield the rows, then the rows with shifted images, the smallest shifts first."""
        yield block
        for pixels in range(1, self.average_shifts + 1):
            assert self.image_shape is not None  # checked where the model was chosen
            for down, right in DIRECTIONS:
                shift = pixels * down, pixels * right
                yield shift_images(block, self.image_shape, *shift, self.scaling)
