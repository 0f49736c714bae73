"""How a network's parameters lie in memory: one flat vector, seen as one matrix per layer.

One vector makes an optimiser's step, a sum of gradients and a checkpoint a single operation each,
whatever the network's depth. A layer's part of it is its matrix, row by row, the bias row first:

    layer 0: bias (outputs,), weights (inputs, outputs) | layer 1: bias, weights | ...
"""

from itertools import accumulate
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from jobs.nn.architecture import Layer

Floats: TypeAlias = NDArray[np.floating]
"""An array of float32 or of float64; a computation keeps the one it was given."""


def names(layers: tuple[Layer, ...]) -> list[str]:
    """Return the name under which each layer's matrix is saved: `layer_0`, `layer_1`, ..."""
    return [f"layer_{number}" for number in range(len(layers))]


def views(flat: Floats, layers: tuple[Layer, ...]) -> list[Floats]:
    """Return each layer's part of `flat` as a matrix `(1 + inputs, outputs)`, bias row first.

    The matrices are views: what is written into them is written into `flat` `(parameters,)`.
    `flat` is contiguous, or a matrix would be a copy.
    """
    stops = accumulate(layer.parameter_count for layer in layers)
    return [
        flat[stop - layer.parameter_count : stop].reshape(layer.shape)
        for layer, stop in zip(layers, stops, strict=True)
    ]


def weight_slices(layers: tuple[Layer, ...]) -> list[slice]:
    """Return where the weights that are not biases lie in the flat vector: one slice per layer."""
    stops = accumulate(layer.parameter_count for layer in layers)
    return [
        slice(stop - layer.inputs * layer.outputs, stop)
        for layer, stop in zip(layers, stops, strict=True)
    ]
