"""The layout of a network's parameters: one flat vector, viewed as one matrix per layer.

With one vector an optimizer step, a sum of gradients and a checkpoint are single operations for
networks of any depth. Each layer's part is its matrix, row by row, the bias row first:

    layer 0: bias (outputs,), weights (inputs, outputs) | layer 1: bias, weights | ...
"""

from itertools import accumulate
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from jobs.nn.architecture import Layer

Floats: TypeAlias = NDArray[np.floating]
"""An array of float32 or float64; computations keep the type."""


def names(layers: tuple[Layer, ...]) -> list[str]:
    """Return the name of each layer's matrix in a checkpoint: `layer_0`, `layer_1`, ..."""
    return [f"layer_{number}" for number in range(len(layers))]


def views(flat: Floats, layers: tuple[Layer, ...]) -> list[Floats]:
    """Return each layer's part of `flat` as a matrix `(1 + inputs, outputs)`, bias row first.

    The matrices are views: writing to them writes to `flat` `(parameters,)`, which must be
    contiguous.
    """
    stops = accumulate(layer.parameter_count for layer in layers)
    return [
        flat[stop - layer.parameter_count : stop].reshape(layer.shape)
        for layer, stop in zip(layers, stops, strict=True)
    ]


def weight_slices(layers: tuple[Layer, ...]) -> list[slice]:
    """Return the slice of each layer's weights, without biases, in the flat vector."""
    stops = accumulate(layer.parameter_count for layer in layers)
    return [
        slice(stop - layer.inputs * layer.outputs, stop)
        for layer, stop in zip(layers, stops, strict=True)
    ]
