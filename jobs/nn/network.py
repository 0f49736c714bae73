"""The network: forward pass, backpropagation, and their reusable buffers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from jobs.nn.activations import ACTIVATIONS, softmax
from jobs.nn.architecture import Layer, count_parameters
from jobs.nn.backpropagation import Backpropagation, Columns, unit_slices
from jobs.nn.loss import cross_entropy
from jobs.nn.parameters import Floats, views

LEAST_UNITS = 16
"""Units in a part of the first layer at least."""
MANY_UNITS = 512
"""Units of a first layer that can keep four cores busy."""


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

    Every method is pure and may be called from several threads at once. `parameters` is the flat
    vector of `jobs.nn.parameters`, in the network's dtype, float32 or float64. `inputs` is
    `(rows, 1 + features)` in that dtype, and begins with a column of ones, the bias. `targets` is
    `(rows, classes)`, one-hot uint8. Arrays of another shape or dtype raise ValueError.

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
    def parts(self) -> int:
        """The parts of the first layer's units if a mini-batch is not divided by its rows.

        It depends on the network alone, because the bits depend on it.
        """
        if len(self.layers) == 1 or self.layers[0].outputs < 2 * LEAST_UNITS:
            return 1
        return 2 if self.layers[0].outputs < MANY_UNITS else 4

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
        """Bytes of a row in the forward and backward pass: sums, masks, deltas and slopes too."""
        outputs = sum(layer.outputs for layer in self.layers)
        partial_sums = self.parts * max(layer.outputs for layer in self.layers)
        values = 2 * (1 + self.layers[0].inputs) + 4 * outputs + partial_sums
        return values * self.dtype.itemsize

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
        outputs, logits = self._forward(weights, inputs, columns)
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
        _, logits = self._forward(views(parameters, self.layers), inputs, columns)
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
        parts: int = 1,
    ) -> GradientSum:
        """Backpropagate the summed cross-entropy to its gradient (Rumelhart et al., 1986).

        The loss of each row is multiplied by `weight`: with 1 / B, the sum is the rows' part of
        the gradient of the mean over B rows, for one factor per class instead of one per
        parameter. `smoothing` is that of the labels (see `cross_entropy`). `masks`, one for each
        hidden layer or none, `(rows, outputs)`, multiply the layers' outputs (dropout). The first
        layer's units are computed in `parts`, on whose number the last bits depend.
        """
        self._check(parameters, inputs, columns, targets)
        gradient = np.empty_like(parameters)
        units = unit_slices(self.layers, parts)
        loss = Backpropagation(self.layers, self.dtype, units).gradient_sum(
            parameters,
            inputs,
            targets,
            columns,
            weight=weight,
            smoothing=smoothing,
            masks=masks,
            out=gradient,
        )
        return GradientSum(loss.loss_sum, loss.correct, len(inputs), gradient)

    def _forward(
        self, weights: list[Floats], inputs: Floats, columns: Columns | None
    ) -> tuple[list[Floats], Floats]:
        """Return each hidden layer's outputs, `(rows, outputs)`, and the last layer's logits."""
        outputs: list[Floats] = []
        first = weights[0] if columns is None else weights[0][columns]
        sums = inputs @ first  # the inputs' first column, ones, meets the bias row
        for number, activation in enumerate(self._hidden, 1):
            outputs.append(activation.apply(sums, sums))
            sums = outputs[-1] @ weights[number][1:]
            sums += weights[number][0]
        return outputs, sums

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
