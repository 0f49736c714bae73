"""Backpropagation of a block of rows, with the units of the first layer in parts.

Processes can compute the parts of one block at the same time, and meet only once: each part of the
second layer's sums needs the outputs of its own units alone. It is the division of a multilayer
perceptron in Megatron-LM (Shoeybi et al., 2019, section 3).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from jobs.nn.activations import ACTIVATIONS
from jobs.nn.architecture import Layer
from jobs.nn.loss import CrossEntropy, cross_entropy
from jobs.nn.parameters import Floats, views

Columns: TypeAlias = NDArray[np.intp]
"""Ascending indices of input columns; 0 is the bias."""

Allocate: TypeAlias = Callable[[tuple[int, ...], Any], NDArray[Any]]
"""Returns an array of a shape and dtype."""


@dataclass(frozen=True, eq=False)
class SplitMatrices:
    """A network's parameters, or their gradient, with the first layer's units in parts."""

    first: list[Floats]
    """The first layer's columns of each part: `(1 + features, units)`, bias row first."""
    second: list[Floats]
    """The second layer's rows of each part: `(units, outputs)`, and before them the bias row in the
    first part. Empty without a second layer."""
    upper: list[Floats]
    """The matrices of the layers above, `(1 + inputs, outputs)`."""


def unit_slices(layers: Sequence[Layer], parts: int) -> list[slice]:
    """Return the units of the first layer in `parts` nearly equal parts, none of them empty."""
    width = layers[0].outputs
    edges = np.linspace(0, width, min(parts, width) + 1).astype(int).tolist()
    return [slice(start, stop) for start, stop in pairwise(edges)]


def with_bias(units: slice) -> slice:
    """Return where a part's units are after a bias, and the bias too in the first part."""
    return slice(units.start + 1 if units.start else 0, units.stop + 1)


def split(flat: Floats, layers: tuple[Layer, ...], units: Sequence[slice]) -> SplitMatrices:
    """Return views of a flat vector `(parameters,)`, in the layout of `jobs.nn.parameters`."""
    first, *others = views(flat, layers)
    second = [others[0][with_bias(part)] for part in units if others]
    return SplitMatrices([first[:, part] for part in units], second, others[1:])


@dataclass(frozen=True, eq=False)
class _Activations:
    """The arrays of a number of rows, for each layer: `(units, rows)`, or with a row of ones."""

    outputs: list[Floats]
    """`(1 + units, rows)`: ones, which meet the bias, and the sums that outputs replace."""
    masked: list[Floats]
    """The same times the masks."""
    deltas: list[Floats]
    """`(units, rows)`: the gradient with respect to the sums."""
    slopes: list[Floats]
    partial_sums: Floats
    """`(parts, units of the second layer, rows)`."""


class Backpropagation:
    """Takes one block of rows at a time through a network, forward and back, in reused memory.

    Activations are `(units, rows)`, so those of a part are contiguous. For each block call
    `start`, `forward` for all parts, `middle`, and `backward` for all parts. Another process may
    compute some of the parts, with an object of its own that shares the memory of `shared`.
    """

    def __init__(
        self,
        layers: tuple[Layer, ...],
        dtype: DTypeLike,
        units: Sequence[slice],
        *,
        rows: int = 0,
        shared: Allocate = np.empty,
    ) -> None:
        """`rows` is the most that is expected, `shared` allocates what the processes share."""
        self._layers = layers
        self._dtype = np.dtype(dtype)
        self._units = units
        self._hidden = [ACTIVATIONS[layer.activation] for layer in layers[:-1]]
        inputs, _ = layers[0].shape
        self._narrow = [shared((inputs * (part.stop - part.start),), self._dtype) for part in units]
        most = max(part.stop - part.start for part in units)
        self._gradient = np.empty((inputs + 1) * most, self._dtype)
        self._places, self._numbers = np.empty(inputs, np.intp), np.arange(inputs)
        self._shared = shared
        self._last_rows = -1
        self._reserve(rows)

    def _reserve(self, rows: int) -> None:
        """Allocate the arrays of at most `rows` rows."""
        self._rows = rows
        self._by_rows: dict[int, _Activations] = {}
        widths = [layer.outputs for layer in self._layers]
        self._memory = {
            name: [np.empty((1 + width) * rows, self._dtype) for width in widths]
            for name in ("outputs", "masked", "deltas", "slopes")
        }
        second = widths[1] if self._hidden else 0
        self._partial_sums = self._shared((len(self._units) * second * rows,), self._dtype)

    def _activations(self, rows: int) -> _Activations:
        """Return the arrays of a block of `rows` rows, which share the memory of all blocks."""
        if rows > self._rows:
            self._reserve(rows)
        if rows not in self._by_rows:
            widths = [layer.outputs for layer in self._layers]
            arrays = {
                name: [
                    memory[: (1 + width) * rows].reshape(1 + width, rows)
                    for memory, width in zip(memories, widths, strict=True)
                ]
                for name, memories in self._memory.items()
            }
            parts, second = len(self._units), widths[1] if self._hidden else 0
            partial_sums = self._partial_sums[: parts * second * rows]
            self._by_rows[rows] = _Activations(
                **arrays, partial_sums=partial_sums.reshape(parts, second, rows)
            )
        now = self._by_rows[rows]
        for array in (*now.outputs, *now.masked):
            array[0] = 1
        return now

    def gradient_sum(
        self,
        parameters: Floats,
        inputs: Floats,
        targets: NDArray[np.uint8],
        columns: Columns | None,
        *,
        weight: float,
        smoothing: float,
        masks: Sequence[Floats] | None,
        out: Floats,
    ) -> CrossEntropy:
        """Write the gradient of a block of rows to `out`; see `Network.gradient_sum`."""
        weights = split(parameters, self._layers, self._units)
        gradient = split(out, self._layers, self._units)
        parts = range(len(self._units))
        self.start(inputs, columns, masks)
        for part in parts:
            self.forward(part, weights)
        loss = self.middle(weights, targets, weight=weight, smoothing=smoothing, gradient=gradient)
        for part in parts:
            delta = self.backward(part, weights, gradient)
            self.first_gradient(delta, gradient.first[part])
        return loss

    def start(
        self, inputs: Floats, columns: Columns | None, masks: Sequence[Floats] | None = None
    ) -> None:
        """Begin a block of rows. The arguments are those of `Network.gradient_sum`."""
        if len(inputs) != self._last_rows:
            self._now, self._last_rows = self._activations(len(inputs)), len(inputs)
        self._inputs, self._columns, self._masks = inputs.T, columns, masks
        if columns is not None:
            shapes = ((len(columns), units.stop - units.start) for units in self._units)
            self.narrow_weights = [
                memory[: math.prod(shape)].reshape(shape)
                for memory, shape in zip(self._narrow, shapes, strict=True)
            ]
            """The first layer's weights of the columns in use, as they were before the step."""

    def forward(self, part: int, weights: SplitMatrices) -> None:
        """Compute the outputs of a part's units, and their part of the second layer's sums."""
        units, first = self._units[part], weights.first[part]
        if self._columns is not None:
            # mode="clip" keeps NumPy from copying `out` first; all indices are in range.
            out = self.narrow_weights[part]
            first = np.take(first, self._columns, axis=0, out=out, mode="clip")
        sums = self._now.outputs[0][1:][units]
        # The first column of the inputs, ones, meets the bias row.
        np.matmul(first.T, self._inputs, out=sums)
        if self._hidden:
            self._hidden[0].apply(sums, sums)
            self._mask(0, units)
            below = self._below(0)[with_bias(units)]
            np.matmul(weights.second[part].T, below, out=self._now.partial_sums[part])

    def middle(
        self,
        weights: SplitMatrices,
        targets: NDArray[np.uint8],
        *,
        weight: float = 1.0,
        smoothing: float = 0.0,
        gradient: SplitMatrices | None = None,
    ) -> CrossEntropy:
        """Compute all layers above the parts, to the loss and back; after `forward` of all parts.

        The gradient of these layers is written to `gradient`, if it is given.
        """
        now, last = self._now, len(self._layers) - 1
        sums = now.outputs[0][1:]
        if self._hidden:
            sums = now.partial_sums[0]
            for partial_sum in now.partial_sums[1:]:
                sums = np.add(sums, partial_sum, out=now.outputs[1][1:])
        for number in range(2, last + 1):
            self._hidden[number - 1].apply(sums, now.outputs[number - 1][1:])
            self._mask(number - 1)
            sums = now.outputs[number][1:]
            np.matmul(weights.upper[number - 2].T, self._below(number - 1), out=sums)
        loss = cross_entropy(sums.T, targets, smoothing)
        # (outputs of the layer, rows): the gradient with respect to the layer's sums
        delta = np.multiply(loss.delta, weight, out=loss.delta).T
        for number in range(last, 1, -1):
            if gradient is not None:
                np.matmul(self._below(number - 1), delta.T, out=gradient.upper[number - 2])
            below = now.deltas[number - 1][1:]
            delta = np.matmul(weights.upper[number - 2][1:], delta, out=below)
            self._multiply_slope(delta, number - 1)
        self._delta = delta
        return loss

    def backward(self, part: int, weights: SplitMatrices, gradient: SplitMatrices) -> Floats:
        """Return the gradient with respect to the sums of a part's units, `(units, rows)`.

        That of the second layer's rows of the part is written to `gradient`. Call after `middle`.
        """
        units = self._units[part]
        if not self._hidden:
            return self._delta[units]
        below, second = self._below(0)[with_bias(units)], weights.second[part]
        np.matmul(below, self._delta.T, out=gradient.second[part])
        delta = self._now.deltas[0][1:][units]
        np.matmul(second[len(second) - len(delta) :], self._delta, out=delta)
        self._multiply_slope(delta, 0, units)
        return delta

    def narrow_gradient(self, delta: Floats) -> Floats:
        """Return the first layer's gradient of the columns in use, `(columns, units)`.

        `delta` is what `backward` returned. The memory is reused.
        """
        shape = len(self._inputs), len(delta)
        narrow = self._gradient[: shape[0] * shape[1]].reshape(shape)
        return np.matmul(self._inputs, delta.T, out=narrow)

    def first_gradient(self, delta: Floats, out: Floats) -> None:
        """Write the first layer's gradient to `out`; the rows of columns left out are zero."""
        if self._columns is None:
            np.matmul(self._inputs, delta.T, out=out)
            return
        self.narrow_gradient(delta)
        occupied = len(self._columns)
        narrow = self._gradient[: (occupied + 1) * len(delta)].reshape(occupied + 1, len(delta))
        narrow[occupied] = 0  # the zero row of blank columns
        self._places.fill(occupied)
        self._places[self._columns] = self._numbers[:occupied]
        np.take(narrow, self._places, axis=0, out=out, mode="clip")

    def _below(self, number: int) -> Floats:
        """Return what layer `number + 1` multiplies: ones, and the outputs times their mask."""
        return (self._now.masked if self._masks else self._now.outputs)[number]

    def _mask(self, number: int, units: slice = slice(None)) -> None:
        """Multiply a hidden layer's outputs by its mask, if there are masks."""
        if self._masks:
            outputs, masked = self._now.outputs[number][1:], self._now.masked[number][1:]
            np.multiply(outputs[units], self._masks[number].T[units], out=masked[units])

    def _multiply_slope(self, delta: Floats, number: int, units: slice = slice(None)) -> None:
        """Multiply the gradient of a hidden layer's outputs by their derivatives, in place."""
        outputs, slopes = self._now.outputs[number][1:], self._now.slopes[number][1:]
        delta *= self._hidden[number].derivative(outputs[units], slopes[units])
        if self._masks:
            delta *= self._masks[number].T[units]
