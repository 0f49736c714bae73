"""The network: forward pass, backpropagation, and their reusable buffers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from jobs.nn.activations import ACTIVATIONS, softmax
from jobs.nn.architecture import Layer, count_parameters
from jobs.nn.loss import cross_entropy
from jobs.nn.parameters import Floats, views


class Workspace:
    """Reusable arrays by name, for one thread. `array` may overwrite what it returned before."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, np.dtype[Any]], NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return a contiguous, uninitialised array in the memory of this name."""
        size = math.prod(shape)
        key = (name, np.dtype(dtype))
        buffer = self._buffers.get(key)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[key] = np.empty(size, key[1])
        return buffer[:size].reshape(shape)


Columns: TypeAlias = NDArray[np.intp]
"""Ascending indices of input columns; 0 is the bias."""


@dataclass(frozen=True)
class LossSum:
    """Loss and correct predictions, summed over a block of rows."""

    loss_sum: float
    """The cross-entropy summed over the rows, in nats."""

    correct: int
    """The number of rows whose most probable class is the target."""

    rows: int
    """The number of rows."""

    def __add__(self, other: "LossSum") -> "LossSum":
        return LossSum(
            self.loss_sum + other.loss_sum, self.correct + other.correct, self.rows + other.rows
        )


NO_ROWS = LossSum(0.0, 0, 0)


@dataclass(frozen=True, eq=False)
class GradientSum(LossSum):
    """Loss and gradient of a block of rows, as sums, not means."""

    gradient: Floats
    """The gradient of `weight` times `loss_sum`, `(parameters,)`, in the network's dtype."""


class Network:
    """A multilayer perceptron with given layers and dtype. It holds no parameters and no state.

    Every method is pure and may be called from several threads at once, each with its own
    `workspace` or none. `parameters` is the flat vector of `jobs.nn.parameters`, in the network's
    dtype, float32 or float64. `inputs` is `(rows, 1 + features)` in that dtype, and begins with a
    column of ones, the bias. `targets` is `(rows, classes)`, one-hot uint8. Arrays of another
    shape or dtype raise ValueError.

    `columns` are the columns of the input that `inputs` has, if some are left out. Those must be
    zero in all rows, so they do not change the sums and have no gradient. A third of the pixels of
    handwritten digits are blank in a whole mini-batch; leaving them out saves a fifth of a step.
    """

    def __init__(self, layers: tuple[Layer, ...], dtype: DTypeLike = np.float32) -> None:
        self.layers = layers
        self.dtype = np.dtype(dtype)
        self.parameter_count = count_parameters(layers)
        self._hidden = [ACTIVATIONS[layer.activation] for layer in layers[:-1]]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Network):
            return NotImplemented
        return (self.layers, self.dtype) == (other.layers, other.dtype)

    def __hash__(self) -> int:
        return hash((self.layers, self.dtype))

    @property
    def parameter_memory(self) -> int:
        """Bytes of a parameter vector."""
        return self.parameter_count * self.dtype.itemsize

    @property
    def first_layer_memory(self) -> int:
        """Bytes of the first layer's weights, or of their gradient, for some columns at most."""
        return self.layers[0].parameter_count * self.dtype.itemsize

    @property
    def forward_memory(self) -> int:
        """Bytes of a row in the forward pass: inputs, sums, outputs, probabilities."""
        widths = [layer.outputs for layer in self.layers]
        values = 2 * self.layers[0].inputs + sum(widths) + max(widths) + 2 * widths[-1]
        return values * self.dtype.itemsize

    @property
    def gradient_memory(self) -> int:
        """Bytes of a row in the forward and backward pass: sums, outputs and deltas too."""
        outputs = sum(layer.outputs for layer in self.layers)
        return (2 * (1 + self.layers[0].inputs) + 4 * outputs) * self.dtype.itemsize

    def forward(self, parameters: Floats, inputs: Floats, columns: Columns | None = None) -> Floats:
        """Return the probability of each class for each row: `(rows, classes)`."""
        return self.forward_with_hidden(parameters, inputs, columns)[0]

    def forward_with_hidden(
        self, parameters: Floats, inputs: Floats, columns: Columns | None = None
    ) -> tuple[Floats, Floats]:
        """Return the probabilities and the last hidden layer's outputs, `(rows, outputs)`.

        A network without hidden layers has no such outputs: `(rows, 0)`.
        """
        self._check(parameters, inputs, columns)
        weights = views(parameters, self.layers)
        outputs, logits = self._forward(weights, inputs, columns, Workspace())
        return softmax(logits), outputs[-1] if outputs else logits[:, :0]

    def loss(
        self,
        parameters: Floats,
        inputs: Floats,
        targets: NDArray[np.uint8],
        columns: Columns | None = None,
    ) -> LossSum:
        """Return the summed loss and the correct rows; from logits, so there is no log(0)."""
        self._check(parameters, inputs, columns, targets)
        _, logits = self._forward(views(parameters, self.layers), inputs, columns, Workspace())
        loss = cross_entropy(logits, targets)
        return LossSum(loss.loss_sum, loss.correct, len(inputs))

    def gradient_sum(
        self,
        parameters: Floats,
        inputs: Floats,
        targets: NDArray[np.uint8],
        columns: Columns | None = None,
        *,
        weight: float = 1.0,
        smoothing: float = 0.0,
        masks: Sequence[Floats] | None = None,
        out: Floats | None = None,
        workspace: Workspace | None = None,
    ) -> GradientSum:
        """Backpropagate the summed cross-entropy to its gradient (Rumelhart et al., 1986).

        The loss of each row is multiplied by `weight`: with 1 / B, the sum is the rows' part of
        the gradient of the mean over B rows, for one factor per class instead of one per
        parameter. `smoothing` is that of the labels (see `cross_entropy`). `masks`, one for each
        hidden layer or none, `(rows, outputs)`, multiply the layers' outputs (dropout). The
        gradient is written to `out`, `(parameters,)`, if given; `workspace` saves allocations.
        """
        self._check(parameters, inputs, columns, targets)
        workspace = workspace or Workspace()
        weights = views(parameters, self.layers)
        outputs, logits = self._forward(weights, inputs, columns, workspace, masks)
        loss = cross_entropy(logits, targets, smoothing)

        gradient = np.empty_like(parameters) if out is None else out
        gradients = views(gradient, self.layers)
        # (rows, outputs of the layer): the gradient with respect to the layer's sums
        delta = np.multiply(loss.delta, weight, out=loss.delta)
        for layer in range(len(self.layers) - 1, 0, -1):
            output = outputs[layer - 1]
            below = self._masked(output, layer, masks, workspace)
            np.matmul(below.T, delta, out=gradients[layer][1:])
            np.add.reduce(delta, axis=0, out=gradients[layer][0])
            back = workspace.array(f"delta-{layer}", output.shape, self.dtype)
            delta = np.matmul(delta, weights[layer][1:].T, out=back)
            slope = workspace.array("slope", output.shape, self.dtype)
            delta *= self._hidden[layer - 1].derivative(output, slope)
            if masks:
                delta *= masks[layer - 1]
        self._first_gradient(inputs, delta, columns, gradients[0], workspace)
        return GradientSum(loss.loss_sum, loss.correct, len(inputs), gradient)

    def _first_gradient(
        self,
        inputs: Floats,
        delta: Floats,
        columns: Columns | None,
        gradient: Floats,
        workspace: Workspace,
    ) -> None:
        """Write the first layer's gradient; the rows of columns left out are zero."""
        if columns is None:
            np.matmul(inputs.T, delta, out=gradient)
            return
        occupied = len(columns)
        narrow = workspace.array("gradient", (occupied + 1, gradient.shape[1]), self.dtype)
        np.matmul(inputs.T, delta, out=narrow[:occupied])
        narrow[occupied] = 0  # the zero row of blank columns
        places = np.full(len(gradient), occupied)
        places[columns] = np.arange(occupied)
        np.take(narrow, places, axis=0, out=gradient, mode="clip")

    def _forward(
        self,
        weights: list[Floats],
        inputs: Floats,
        columns: Columns | None,
        workspace: Workspace,
        masks: Sequence[Floats] | None = None,
    ) -> tuple[list[Floats], Floats]:
        """Return each hidden layer's outputs, `(rows, outputs)`, and the last layer's logits.

        The outputs are those before the masks, which the derivatives need.
        """
        outputs: list[Floats] = []
        sums = workspace.array("sums-0", (len(inputs), self.layers[0].outputs), self.dtype)
        first = self._first_weights(weights[0], columns, workspace)
        np.matmul(inputs, first, out=sums)  # the inputs' first column, ones, meets the bias row
        for number, activation in enumerate(self._hidden, 1):
            output = activation.apply(sums, sums)
            outputs.append(output)
            shape = (len(inputs), self.layers[number].outputs)
            sums = workspace.array(f"sums-{number}", shape, self.dtype)
            below = self._masked(output, number, masks, workspace)
            np.matmul(below, weights[number][1:], out=sums)
            sums += weights[number][0]
        return outputs, sums

    def _masked(
        self, output: Floats, number: int, masks: Sequence[Floats] | None, workspace: Workspace
    ) -> Floats:
        """Return hidden layer `number`'s outputs times its mask, if there are masks."""
        if not masks:
            return output
        masked: Floats = workspace.array(f"masked-{number}", output.shape, self.dtype)
        return np.multiply(output, masks[number - 1], out=masked)

    def _first_weights(
        self, weights: Floats, columns: Columns | None, workspace: Workspace
    ) -> Floats:
        if columns is None:
            return weights
        narrow = workspace.array("weights", (len(columns), weights.shape[1]), self.dtype)
        # mode="clip" keeps NumPy from copying `out` first; all indices are in range.
        return np.take(weights, columns, axis=0, out=narrow, mode="clip")

    def _check(
        self,
        parameters: Floats,
        inputs: Floats,
        columns: Columns | None,
        targets: NDArray[np.uint8] | None = None,
    ) -> None:
        width = self.layers[0].shape[0] if columns is None else len(columns)
        rows, classes = len(inputs), self.layers[-1].outputs
        expected: list[tuple[str, NDArray[Any] | None, tuple[int, ...], Any]] = [
            ("parameters", parameters, (self.parameter_count,), self.dtype),
            ("inputs", inputs, (rows, width), self.dtype),
            ("targets", targets, (rows, classes), np.uint8),
        ]
        for name, array, shape, dtype in expected:
            if array is not None and (array.shape != shape or array.dtype != dtype):
                raise ValueError(
                    f"The {name} are {array.dtype} of the shape {array.shape}: expected "
                    f"{np.dtype(dtype)} of the shape {shape}."
                )
