"""The forward pass of scoring: a chunk's rows as stored to probabilities and predicted classes."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jobs.nn.network import Network
from jobs.nn.parameters import Floats
from jobs.training.evaluate import BLOCK_ROWS
from jobs.training.step import network_inputs, unheeded_overflow
from storage.preparation import ValueRange

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
        with unheeded_overflow():  # non-finite probabilities are never written
            probabilities = self._network.forward(self._parameters, scaled, columns)
        return probabilities.astype(np.float32, copy=False)


def predict(forward: Forward, inputs: NDArray[Any]) -> Predictions:
    """Probabilities and classes of a chunk's rows, block by block."""
    starts = range(0, len(inputs), BLOCK_ROWS)
    probabilities = np.concatenate(
        [forward(inputs[start : start + BLOCK_ROWS]) for start in starts]
    )
    return probabilities, probabilities.argmax(axis=1).astype(np.int32)
