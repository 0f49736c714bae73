"""The optimisers: each turns parameters, a gradient and its own state into new ones.

All of them work element by element, so a step may be taken on any part of the vectors alone, and
on all parts at once. Nothing the caller passed is changed but `out`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

import numpy as np

from jobs.nn.parameters import Floats

State: TypeAlias = dict[str, Floats]
"""What an optimiser remembers between steps: named vectors, each like the parameters."""

Stepped: TypeAlias = tuple[Floats, State]
"""Parameters and state after a step, or the arrays to write them to."""

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw")
"""The optimisers by name."""

FLUSH_EVERY = 32
"""Steps from one look for numbers that have decayed to the next: each costs some passes."""

DECAYED = 1e8
"""Times the smallest normal number: what is below that has decayed to nothing."""


class Optimizer(Protocol):
    """A rule for a step. It is a frozen description: what changes is in the state it returns."""

    name: ClassVar[str]
    """The name that `make_optimizer` knows it by."""

    decouples_l2: ClassVar[bool]
    """Whether L2 shrinks the weights before the step (see `AdamW`), or joins the gradient."""

    def initial_state(self, parameters: Floats) -> State:
        """The state before the first step, for parameters of this shape and dtype."""

    def step(
        self,
        parameters: Floats,
        gradient: Floats,
        state: State,
        learning_rate: float,
        step_number: int,
        out: Stepped | None = None,
    ) -> Stepped:
        """The new parameters and the new state, in the arrays of `out` or in new ones.

        `parameters` and `gradient` are flat `(parameters,)` vectors of one dtype, the gradient
        that of the mean loss; `step_number` counts the steps of the run from 1, this one included.
        The arrays of `out` are none of the others, but that the new parameters may take the
        gradient's place.
        """


def make_optimizer(name: str, *, momentum: float = 0.9) -> Optimizer:
    """The optimiser of that name; raises ValueError where there is none.

    `momentum` matters to momentum and nesterov.
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
        return AdamW()
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
        out: Stepped | None = None,
    ) -> Stepped:
        """See `Optimizer.step`."""
        new, _ = out or _like(parameters, state)
        np.multiply(gradient, -float(learning_rate), out=new)
        new += parameters
        return new, {}


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
        out: Stepped | None = None,
    ) -> Stepped:
        """See `Optimizer.step`."""
        new, new_state = out or _like(parameters, state)
        velocity = np.multiply(state["velocity"], self.momentum, out=new_state["velocity"])
        velocity += gradient
        _flush_decayed(velocity, step_number)
        np.multiply(velocity, -float(learning_rate), out=new)
        new += parameters
        return new, new_state


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
        out: Stepped | None = None,
    ) -> Stepped:
        """See `Optimizer.step`."""
        new, new_state = out or _like(parameters, state)
        velocity = np.multiply(state["velocity"], self.momentum, out=new_state["velocity"])
        velocity += gradient
        _flush_decayed(velocity, step_number)
        np.add(gradient, velocity * self.momentum, out=new)
        new *= -float(learning_rate)
        new += parameters
        return new, new_state


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
        out: Stepped | None = None,
    ) -> Stepped:
        """See `Optimizer.step`."""
        # The corrected moments are first * M and second^2 * S, and Adam's step is
        # rate first M / (second sqrt(S) + epsilon) = size M / (sqrt(S) + floor).
        first = (1 - self.beta1) / (1 - self.beta1**step_number)
        second = math.sqrt((1 - self.beta2) / (1 - self.beta2**step_number))
        size = float(learning_rate) * first / second
        floor = self.epsilon / second

        new, new_state = out or _like(parameters, state)
        gradients = np.multiply(state["gradients"], self.beta1, out=new_state["gradients"])
        gradients += gradient
        squares = new_state["squared_gradients"]
        np.multiply(state["squared_gradients"], self.beta2, out=squares)
        squares += np.square(gradient, out=new)
        for moment in (gradients, squares):
            _flush_decayed(moment, step_number)
        np.sqrt(squares, out=new)
        new += floor
        np.divide(gradients, new, out=new)
        new *= size
        np.subtract(parameters, new, out=new)
        return new, new_state


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2, as PyTorch).

    Before the step each weight, but no bias, is multiplied by 1 - learning_rate * l2; the caller
    does that, as the caller adds L2 to the gradient for the others.
    """

    name: ClassVar[str] = "adamw"
    decouples_l2: ClassVar[bool] = True


def _flush_decayed(moment: Floats, step_number: int) -> None:
    """Now and then, set to 0 in place what has decayed to nothing.

    Where the gradient stays 0, as at a pixel that is blank from here on, a moment shrinks step by
    step until it is subnormal, and stays so: 0.9 times the smallest number rounds to itself. With
    such numbers a processor computes a hundred times more slowly; left alone, they made steps a
    third slower after some 10,000 of them.
    """
    if step_number % FLUSH_EVERY == 0:
        moment[np.abs(moment) < DECAYED * np.finfo(moment.dtype).tiny] = 0


def _like(parameters: Floats, state: State) -> Stepped:
    """New arrays of these shapes and dtypes."""
    return np.empty_like(parameters), {
        name: np.empty_like(vector) for name, vector in state.items()
    }
