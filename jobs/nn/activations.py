"""The activations: what a layer applies to its weighted sums, and the derivatives.

A derivative is written in terms of the activation's output, which the backward pass has at hand.
As in NumPy's own functions, `out` may name the array to write to, the input itself among them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jobs.nn.parameters import Floats


@dataclass(frozen=True)
class Activation:
    """An activation of the hidden layers with its derivative."""

    apply: Callable[[Floats, Floats | None], Floats]
    """`apply(sums, out)`: the activation of each of `sums`, written to `out` if it is given."""

    derivative: Callable[[Floats], Floats]
    """`derivative(output)`: the slope at each point, from the activation's output there."""


def relu(sums: Floats, out: Floats | None = None) -> Floats:
    """Return max(0, x) of each element; the shape and dtype of `sums`."""
    # NumPy's maximum is vectorised for two arrays but not for an array and a number.
    return np.maximum(sums, np.zeros(sums.shape[-1:], sums.dtype), out=out)


def relu_derivative(output: Floats) -> Floats:
    """Return 1 where relu's `output` is positive, else 0; the slope at exactly 0 is taken as 0."""
    return np.greater(output, 0, out=np.empty_like(output))


def sigmoid(sums: Floats, out: Floats | None = None) -> Floats:
    """Return 1 / (1 + exp(-x)) of each element; the shape and dtype of `sums`."""
    result = np.negative(sums, out=out)
    # Far below zero exp(-x) overflows to infinity, whose reciprocal is the sigmoid's limit, 0.
    with np.errstate(over="ignore"):
        np.exp(result, out=result)
    result += 1
    return np.divide(1, result, out=result)


def sigmoid_derivative(output: Floats) -> Floats:
    """Return s (1 - s) of each element s of sigmoid's `output`."""
    slope = np.subtract(1, output)
    slope *= output
    return slope


def tanh(sums: Floats, out: Floats | None = None) -> Floats:
    """Return the hyperbolic tangent of each element; the shape and dtype of `sums`."""
    return np.tanh(sums, out=out)


def tanh_derivative(output: Floats) -> Floats:
    """Return 1 - t^2 of each element t of tanh's `output`."""
    slope = np.square(output)
    return np.subtract(1, slope, out=slope)


def softmax(logits: Floats) -> Floats:
    """Return exp(x) / sum of exp over the row's classes: `(rows, classes)` -> `(rows, classes)`.

    The row's maximum is subtracted first, which changes nothing but keeps exp from overflowing.
    """
    probabilities = by_class(logits)
    probabilities -= np.maximum.reduce(probabilities, axis=0)
    np.exp(probabilities, out=probabilities)
    probabilities /= np.add.reduce(probabilities, axis=0)
    return np.ascontiguousarray(probabilities.T)


def by_class(logits: Floats) -> Floats:
    """Return a copy of `(rows, classes)` as `(classes, rows)`, contiguous.

    NumPy reduces along the long rows of this layout some ten times faster than along the few
    classes of a row.
    """
    return logits.T.copy(order="C")


ACTIVATIONS = {
    "relu": Activation(relu, relu_derivative),
    "sigmoid": Activation(sigmoid, sigmoid_derivative),
    "tanh": Activation(tanh, tanh_derivative),
}
"""The hidden layers' activations by name."""
