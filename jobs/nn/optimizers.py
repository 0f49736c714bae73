"""Optimizers: each computes new parameters and state from parameters, gradient and state.

They work element by element, so a step can be taken on parts of the vectors separately, even in
parallel. Of the caller's arrays only those of `out` are changed.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

from jobs.nn.parameters import Floats

State: TypeAlias = dict[str, Floats]
"""An optimizer's vectors between steps, by name, each with the parameters' shape and dtype."""

Stepped: TypeAlias = tuple[Floats, State]
"""Parameters and state before or after a step, or the arrays for them."""

FLUSH_EVERY = 32
"""Steps between two searches for decayed numbers, each of which costs some passes."""

DECAYED = 1e8
"""Numbers below this multiple of the smallest normal number count as decayed."""


class Optimizer(ABC):
    """A rule for steps. It is immutable: everything that changes is in the state."""

    remembers: ClassVar[tuple[str, ...]] = ()
    """The names of the vectors in the state."""

    decouples_l2: ClassVar[bool] = False
    """Whether L2 shrinks the weights before the step (see `AdamW`), or is in the gradient."""

    def initial_state(self, parameters: Floats) -> State:
        """Return the state before the first step, for parameters of the same shape and dtype."""
        return {name: np.zeros_like(parameters) for name in self.remembers}

    @abstractmethod
    def step(
        self, before: Stepped, gradient: Floats, rate: float, step_number: int, out: Stepped
    ) -> None:
        """Write the parameters and the state after a step to the arrays of `out`.

        All vectors are flat `(parameters,)` of one dtype. `gradient` is that of the mean loss,
        `rate` the learning rate, and `step_number` the number of the step in the run, from 1. The
        gradient is overwritten. `out` may be `before`, for a step in place; otherwise it shares no
        memory with the arguments.
        """


@dataclass(frozen=True)
class Sgd(Optimizer):
    """Gradient descent: w' = w - learning_rate g."""

    def step(
        self, before: Stepped, gradient: Floats, rate: float, step_number: int, out: Stepped
    ) -> None:
        np.multiply(gradient, -float(rate), out=gradient)
        np.add(before[0], gradient, out=out[0])


@dataclass(frozen=True)
class Momentum(Optimizer):
    """Heavy-ball momentum (Polyak, 1964): v' = momentum v + g; w' = w - learning_rate v'."""

    momentum: float

    remembers: ClassVar[tuple[str, ...]] = ("velocity",)

    def step(
        self, before: Stepped, gradient: Floats, rate: float, step_number: int, out: Stepped
    ) -> None:
        (parameters, state), (new, new_state) = before, out
        velocity = np.multiply(state["velocity"], self.momentum, out=new_state["velocity"])
        velocity += gradient
        _flush_decayed(velocity, step_number)
        np.multiply(self.direction(gradient, velocity), -float(rate), out=gradient)
        np.add(parameters, gradient, out=new)

    def direction(self, gradient: Floats, velocity: Floats) -> Floats:
        """Return the direction that the step is opposite to; it may overwrite the gradient."""
        return velocity


class Nesterov(Momentum):
    """Nesterov's momentum (Sutskever et al., 2013), in PyTorch's form.

    v' = momentum v + g; w' = w - learning_rate (g + momentum v').
    """

    def direction(self, gradient: Floats, velocity: Floats) -> Floats:
        gradient += velocity * self.momentum
        return gradient


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015, algorithm 1).

    Their moments are m = (1 - beta1) M and v = (1 - beta2) S of the decaying sums
    M' = beta1 M + g and S' = beta2 S + g^2. The state holds the sums: the constant factors are
    combined with the bias corrections in two numbers per step, which saves four passes.
    """

    beta1: float = 0.9
    """Decay of the sum of gradients."""

    beta2: float = 0.999
    """Decay of the sum of squared gradients."""

    epsilon: float = 1e-8
    """Added to the root of the second moment."""

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
        squares += np.square(gradient, out=gradient)
        for moment in (gradients, squares):
            _flush_decayed(moment, step_number)
        step = np.sqrt(squares, out=gradient)
        step += floor
        np.divide(gradients, step, out=step)
        step *= size
        np.subtract(parameters, step, out=new)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2, as PyTorch).

    Before the step the caller multiplies each weight, but no bias, by 1 - learning_rate * l2. For
    the other optimizers the caller adds L2 to the gradient.
    """

    decouples_l2 = True


def make_optimizer(
    name: str, *, momentum: float = 0.9, beta1: float = 0.9, beta2: float = 0.999
) -> Optimizer:
    """Return one of `OPTIMIZERS` by name.

    `momentum` is for momentum and nesterov, `beta1` and `beta2` are for adam and adamw.
    """
    if name in ("momentum", "nesterov"):
        return Momentum(momentum) if name == "momentum" else Nesterov(momentum)
    if name in ("adam", "adamw"):
        return (Adam if name == "adam" else AdamW)(beta1, beta2)
    return {"sgd": Sgd}[name]()


def _flush_decayed(moment: Floats, step_number: int) -> None:
    """Every `FLUSH_EVERY` steps, set decayed numbers to 0 in place.

    If a gradient stays 0, as for a blank pixel, the moment shrinks until it is subnormal. It stays
    subnormal: 0.9 times the smallest number rounds to itself. Arithmetic with subnormal numbers can
    be a hundred times slower; without this, steps were a third slower after about 10,000.
    """
    if step_number % FLUSH_EVERY == 0:
        moment[np.abs(moment) < DECAYED * np.finfo(moment.dtype).tiny] = 0
