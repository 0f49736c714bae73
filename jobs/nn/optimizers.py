"""The optimisers: each turns parameters, a gradient and its own state into new ones.

The vectors are walked in blocks that fit the processor's cache, so that the several passes of a
step read main memory once. Nothing the caller passed is changed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

import numpy as np

from jobs.nn.architecture import Layer
from jobs.nn.parameters import Floats, weight_slices

State: TypeAlias = dict[str, Floats]
"""What an optimiser remembers between steps: named vectors, each like the parameters."""

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw")
"""The optimisers by name."""

BLOCK = 32_768
"""Elements of a block: with the eight vectors that Adam touches, 1 MiB in float32."""


class Optimizer(Protocol):
    """A rule for a step. It is a frozen description: what changes is in the state it returns."""

    name: ClassVar[str]
    """The name that `make_optimizer` knows it by."""

    decouples_l2: ClassVar[bool]
    """Whether it applies L2 by itself; else the caller adds the penalty's gradient."""

    def initial_state(self, parameters: Floats) -> State:
        """The state before the first step, for parameters of this shape and dtype."""

    def step(
        self,
        parameters: Floats,
        gradient: Floats,
        state: State,
        learning_rate: float,
        step_number: int,
    ) -> tuple[Floats, State]:
        """The new parameters and the new state, in new arrays of the parameters' dtype.

        `parameters` and `gradient` are flat `(parameters,)` vectors of one dtype, the gradient
        that of the mean loss; `step_number` counts the steps of the run from 1, this one included.
        """


def make_optimizer(
    name: str, layers: tuple[Layer, ...], *, momentum: float = 0.9, l2: float = 0.0
) -> Optimizer:
    """The optimiser of that name; raises ValueError where there is none.

    `momentum` matters to momentum and nesterov. `l2` matters to adamw, the only one that decouples
    it: for the others, add `Network.l2_gradient` to the gradient.
    """
    if name == "sgd":
        return Sgd()
    if name == "momentum":
        return Momentum(momentum)
    if name == "nesterov":
        return Nesterov(momentum)
    if name == "adam":
        return Adam()
    if name == "adamw":
        return AdamW(layers=layers, l2=l2)
    raise ValueError(f"The optimizer is {name!r}: expected one of {', '.join(OPTIMIZERS)}.")


@dataclass(frozen=True)
class Sgd:
    """Gradient descent: w' = w - learning_rate g."""

    name: ClassVar[str] = "sgd"
    decouples_l2: ClassVar[bool] = False

    def initial_state(self, parameters: Floats) -> State:
        """Nothing is remembered."""
        return {}

    def step(
        self,
        parameters: Floats,
        gradient: Floats,
        state: State,
        learning_rate: float,
        step_number: int,
    ) -> tuple[Floats, State]:
        """See `Optimizer.step`."""
        rate = float(learning_rate)
        stepped = np.empty_like(parameters)
        for block in _blocks(parameters):
            new = np.multiply(gradient[block], -rate, out=stepped[block])
            new += parameters[block]
        return stepped, {}


@dataclass(frozen=True)
class Momentum:
    """The heavy ball (Polyak, 1964): v' = momentum v + g; w' = w - learning_rate v'."""

    momentum: float

    name: ClassVar[str] = "momentum"
    decouples_l2: ClassVar[bool] = False

    def initial_state(self, parameters: Floats) -> State:
        """The ball at rest."""
        return {"velocity": np.zeros_like(parameters)}

    def step(
        self,
        parameters: Floats,
        gradient: Floats,
        state: State,
        learning_rate: float,
        step_number: int,
    ) -> tuple[Floats, State]:
        """See `Optimizer.step`."""
        rate = float(learning_rate)
        stepped, velocities = np.empty_like(parameters), np.empty_like(parameters)
        for block in _blocks(parameters):
            velocity = np.multiply(state["velocity"][block], self.momentum, out=velocities[block])
            velocity += gradient[block]
            new = np.multiply(velocity, -rate, out=stepped[block])
            new += parameters[block]
        return stepped, {"velocity": velocities}


@dataclass(frozen=True)
class Nesterov:
    """Nesterov's momentum, as Sutskever et al. (2013) and PyTorch write it.

    v' = momentum v + g; w' = w - learning_rate (g + momentum v').
    """

    momentum: float

    name: ClassVar[str] = "nesterov"
    decouples_l2: ClassVar[bool] = False

    def initial_state(self, parameters: Floats) -> State:
        """The ball at rest."""
        return {"velocity": np.zeros_like(parameters)}

    def step(
        self,
        parameters: Floats,
        gradient: Floats,
        state: State,
        learning_rate: float,
        step_number: int,
    ) -> tuple[Floats, State]:
        """See `Optimizer.step`."""
        rate = float(learning_rate)
        stepped, velocities = np.empty_like(parameters), np.empty_like(parameters)
        for block in _blocks(parameters):
            velocity = np.multiply(state["velocity"][block], self.momentum, out=velocities[block])
            velocity += gradient[block]
            new = np.multiply(velocity, self.momentum, out=stepped[block])
            new += gradient[block]
            new *= -rate
            new += parameters[block]
        return stepped, {"velocity": velocities}


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba, 2015, algorithm 1).

    Their moments are m = (1 - beta1) M and v = (1 - beta2) S of the decaying sums
    M' = beta1 M + g and S' = beta2 S + g^2. The sums are what is kept: the constant factors join
    the bias corrections in two numbers per step, which saves four passes over the vectors.
    """

    beta1: float = 0.9
    """The decay of the sum of gradients."""

    beta2: float = 0.999
    """The decay of the sum of squared gradients."""

    epsilon: float = 1e-8
    """What is added to the root of the second moment."""

    name: ClassVar[str] = "adam"
    decouples_l2: ClassVar[bool] = False

    def initial_state(self, parameters: Floats) -> State:
        """Empty sums."""
        return {
            "gradients": np.zeros_like(parameters),
            "squared_gradients": np.zeros_like(parameters),
        }

    def step(
        self,
        parameters: Floats,
        gradient: Floats,
        state: State,
        learning_rate: float,
        step_number: int,
    ) -> tuple[Floats, State]:
        """See `Optimizer.step`."""
        stepped = np.empty_like(parameters)
        return self._step_into(
            stepped, parameters, gradient, state, float(learning_rate), step_number
        )

    def _step_into(
        self,
        stepped: Floats,
        parameters: Floats,
        gradient: Floats,
        state: State,
        rate: float,
        step_number: int,
    ) -> tuple[Floats, State]:
        """Write the new parameters into `stepped`, which may be `parameters` itself."""
        # The corrected moments are first * M and second^2 * S, and Adam's step is
        # rate first M / (second sqrt(S) + epsilon) = size M / (sqrt(S) + floor).
        first = (1 - self.beta1) / (1 - self.beta1**step_number)
        second = math.sqrt((1 - self.beta2) / (1 - self.beta2**step_number))
        size = rate * first / second
        floor = self.epsilon / second

        gradients, squares = np.empty_like(parameters), np.empty_like(parameters)
        workspace = np.empty_like(parameters[:BLOCK])
        for block in _blocks(parameters):
            new_gradient = gradient[block]
            scratch = workspace[: len(new_gradient)]
            gradient_sum = np.multiply(state["gradients"][block], self.beta1, out=gradients[block])
            gradient_sum += new_gradient
            square_sum = np.multiply(
                state["squared_gradients"][block], self.beta2, out=squares[block]
            )
            square_sum += np.square(new_gradient, out=scratch)
            np.sqrt(square_sum, out=scratch)
            scratch += floor
            np.divide(gradient_sum, scratch, out=scratch)
            scratch *= size
            np.subtract(parameters[block], scratch, out=stepped[block])
        return stepped, {"gradients": gradients, "squared_gradients": squares}


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2, as PyTorch).

    Before the step each weight, but no bias, is multiplied by 1 - learning_rate * l2.
    """

    layers: tuple[Layer, ...] = ()
    """The network's layers, which say where the weights lie."""

    l2: float = 0.0
    """The weight decay."""

    name: ClassVar[str] = "adamw"
    decouples_l2: ClassVar[bool] = True

    def step(
        self,
        parameters: Floats,
        gradient: Floats,
        state: State,
        learning_rate: float,
        step_number: int,
    ) -> tuple[Floats, State]:
        """See `Optimizer.step`."""
        rate = float(learning_rate)
        stepped = parameters.copy()
        for weights in weight_slices(self.layers):
            stepped[weights] *= 1 - rate * self.l2
        return self._step_into(stepped, stepped, gradient, state, rate, step_number)


def _blocks(vector: Floats) -> Iterator[slice]:
    """Slices of at most BLOCK elements that cover the vector."""
    return (slice(start, start + BLOCK) for start in range(0, len(vector), BLOCK))
