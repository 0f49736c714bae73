"""Activation functions and their derivatives.

A derivative is a function of the activation's output, which the backward pass has already. As in
NumPy's own functions, `out` is an optional array for the result. That of an activation may be the
input itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jobs.nn.parameters import Floats


@dataclass(frozen=True)
class Activation:
    """An activation function of hidden layers, with its derivative."""

    apply: Callable[[Floats, Floats | None], Floats]
    """`apply(sums, out)` returns the activation of each element, written to `out` if given."""

    derivative: Callable[[Floats, Floats | None], Floats]
    """`derivative(output, out)` returns the slope at each element from the activation's output."""


def relu(sums: Floats, out: Floats | None = None) -> Floats:
    """Return max(0, x) for each element, with the shape and dtype of `sums`."""
    # NumPy's maximum is vectorised for two arrays but not for an array and a number.
    return np.maximum(sums, np.zeros(sums.shape[-1:], sums.dtype), out=out)


def relu_derivative(output: Floats, out: Floats | None = None) -> Floats:
    """Return 1 where relu's `output` is positive, else 0; the slope at 0 is defined as 0."""
    return np.greater(output, 0, out=np.empty_like(output) if out is None else out)


def sigmoid(sums: Floats, out: Floats | None = None) -> Floats:
    """Return 1 / (1 + exp(-x)) for each element, with the shape and dtype of `sums`."""
    result = np.negative(sums, out=out)
    # For very negative x, exp(-x) overflows to infinity; its reciprocal 0 is the sigmoid's limit.
    with np.errstate(over="ignore"):
        np.exp(result, out=result)
    result += 1
    return np.divide(1, result, out=result)


def sigmoid_derivative(output: Floats, out: Floats | None = None) -> Floats:
    """Return s (1 - s) for each element s of sigmoid's `output`."""
    slope = np.subtract(1, output, out=out)
    slope *= output
    return slope


def tanh(sums: Floats, out: Floats | None = None) -> Floats:
    """Return the hyperbolic tangent of each element, with the shape and dtype of `sums`."""
    return np.tanh(sums, out=out)


def tanh_derivative(output: Floats, out: Floats | None = None) -> Floats:
    """Return 1 - t^2 for each element t of tanh's `output`."""
    slope = np.square(output, out=out)
    return np.subtract(1, slope, out=slope)


def softmax(logits: Floats) -> Floats:
    """Return exp(x) / sum of exp over the row's classes: `(rows, classes)` -> `(rows, classes)`.

    The row's maximum is subtracted first, which does not change the result and avoids overflow.
    """
    probabilities = by_class(logits)
    probabilities -= np.maximum.reduce(probabilities, axis=0)
    np.exp(probabilities, out=probabilities)
    probabilities /= np.add.reduce(probabilities, axis=0)
    return np.ascontiguousarray(probabilities.T)


def by_class(logits: Floats) -> Floats:
    """Return a copy of `(rows, classes)` as `(classes, rows)`, contiguous.

    NumPy reduces along the long rows of this layout about ten times faster than along the few
    classes of a row.
    """
    return logits.T.copy(order="C")


ACTIVATIONS = {
    "relu": Activation(relu, relu_derivative),
    "sigmoid": Activation(sigmoid, sigmoid_derivative),
    "tanh": Activation(tanh, tanh_derivative),
}
"""Activation functions of hidden layers, by name."""
