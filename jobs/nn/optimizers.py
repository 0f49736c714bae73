"""The optimisers: each turns parameters, a gradient and its own state into new ones.

All of them work element by element, so a step may be taken on any part of the vectors alone, and
on all parts at once. Nothing the caller passed is changed but `out`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

from jobs.nn.parameters import Floats

State: TypeAlias = dict[str, Floats]
"""What an optimiser remembers between steps: named vectors, each like the parameters."""

Stepped: TypeAlias = tuple[Floats, State]
"""Parameters and state after a step, or the arrays to write them to."""

FLUSH_EVERY = 32
"""Steps between two searches for numbers that have decayed: each costs some passes."""

DECAYED = 1e8
"""Times the smallest normal number: what is below that has decayed to nothing."""


class Optimizer(ABC):
    """A rule for a step. It is a frozen description: what changes is in the state."""

    remembers: ClassVar[tuple[str, ...]] = ()
    """The names of the vectors in its state."""

    decouples_l2: ClassVar[bool] = False
    """Whether L2 shrinks the weights before the step (see `AdamW`), or joins the gradient."""

    def initial_state(self, parameters: Floats) -> State:
        """Return the state before the first step, for parameters of this shape and dtype."""
        return {name: np.zeros_like(parameters) for name in self.remembers}

    @abstractmethod
    def step(
        self, before: Stepped, gradient: Floats, rate: float, step_number: int, out: Stepped
    ) -> None:
        """Write the parameters and the state after a step to the arrays of `out`.

        All vectors are flat `(parameters,)` of one dtype. `gradient` is that of the mean loss, and
        `rate` the learning rate; `step_number` counts the steps of the run from 1, this one
        included. The arrays of `out` are none of the others, but that the new parameters may take
        the gradient's place.
        """


@dataclass(frozen=True)
class Sgd(Optimizer):
    """Gradient descent: w' = w - learning_rate g."""

    def step(
        self, before: Stepped, gradient: Floats, rate: float, step_number: int, out: Stepped
    ) -> None:
        new, _ = out
        np.multiply(gradient, -float(rate), out=new)
        new += before[0]


@dataclass(frozen=True)
class Momentum(Optimizer):
    """The heavy ball (Polyak, 1964): v' = momentum v + g; w' = w - learning_rate v'."""

    momentum: float

    remembers: ClassVar[tuple[str, ...]] = ("velocity",)

    def step(
        self, before: Stepped, gradient: Floats, rate: float, step_number: int, out: Stepped
    ) -> None:
        (parameters, state), (new, new_state) = before, out
        velocity = np.multiply(state["velocity"], self.momentum, out=new_state["velocity"])
        velocity += gradient
        _flush_decayed(velocity, step_number)
        np.multiply(self.direction(gradient, velocity, new), -float(rate), out=new)
        new += parameters

    def direction(self, gradient: Floats, velocity: Floats, out: Floats) -> Floats:
        """Return what the step goes against; `out` may hold it."""
        return velocity


class Nesterov(Momentum):
    """Nesterov's momentum, as Sutskever et al. (2013) and PyTorch write it.

    v' = momentum v + g; w' = w - learning_rate (g + momentum v').
    """

    def direction(self, gradient: Floats, velocity: Floats, out: Floats) -> Floats:
        np.add(gradient, velocity * self.momentum, out=out)
        return out


@dataclass(frozen=True)
class Adam(Optimizer):
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

    remembers: ClassVar[tuple[str, ...]] = ("gradients", "squared_gradients")

    def step(
        self, before: Stepped, gradient: Floats, rate: float, step_number: int, out: Stepped
    ) -> None:
        # The corrected moments are first * M and second^2 * S, and Adam's step is
        # rate first M / (second sqrt(S) + epsilon) = size M / (sqrt(S) + floor).
        first = (1 - self.beta1) / (1 - self.beta1**step_number)
        second = math.sqrt((1 - self.beta2) / (1 - self.beta2**step_number))
        size = float(rate) * first / second
        floor = self.epsilon / second

        (parameters, state), (new, new_state) = before, out
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


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2, as PyTorch).

    Before the step each weight, but no bias, is multiplied by 1 - learning_rate * l2; the caller
    does that, as the caller adds L2 to the gradient for the others.
    """

    decouples_l2 = True


def make_optimizer(name: str, *, momentum: float = 0.9) -> Optimizer:
    """Return the optimiser of one of `OPTIMIZERS`; `momentum` is for momentum and nesterov."""
    if name in ("momentum", "nesterov"):
        return Momentum(momentum) if name == "momentum" else Nesterov(momentum)
    others: dict[str, type[Optimizer]] = {"sgd": Sgd, "adam": Adam, "adamw": AdamW}
    return others[name]()


def _flush_decayed(moment: Floats, step_number: int) -> None:
    """Now and then, set to 0 in place what has decayed to nothing.

    Where the gradient stays 0, as at a pixel that is blank from here on, a moment shrinks step by
    step until it is subnormal, and stays so: 0.9 times the smallest number rounds to itself. With
    such numbers a processor computes a hundred times more slowly; left alone, they made steps a
    third slower after some 10,000 of them.
    """
    if step_number % FLUSH_EVERY == 0:
        moment[np.abs(moment) < DECAYED * np.finfo(moment.dtype).tiny] = 0
