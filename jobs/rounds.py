"""The arithmetic of `--parallel rounds`: replicas that step by themselves, then agree.

In a round each of R replicas takes H optimiser steps from the same parameters, on mini-batches of
its own; then the parameters become what the outer step makes of the replicas' mean. With an outer
learning rate of 1 and no outer momentum that is the mean itself (local SGD: Stich, arXiv
1805.09767); with others it is the outer Nesterov step of DiLoCo (arXiv 2311.08105, algorithm 1).
The inner optimiser's state stays with its replica. This is another algorithm than `steps`, with
another result; it does not depend on where, or in which order, the replicas are computed.
"""

from dataclasses import dataclass

import numpy as np

from jobs.config import TrainConfig
from jobs.nn.optimizers import State, make_optimizer
from jobs.nn.parameters import Floats
from jobs.step import TreeSum

VELOCITY = "outer.velocity"


@dataclass(frozen=True)
class RoundPlan:
    """Who takes which mini-batches of an epoch, by their numbers from 0."""

    batches: int
    """Mini-batches of an epoch."""
    replicas: int
    sync_every: int
    """Steps of a replica in a round; the epoch's last round may have fewer."""

    @property
    def round_batches(self) -> int:
        """Mini-batches of a whole round."""
        return self.replicas * self.sync_every

    def shares(self, first: int) -> list[range]:
        """Of the round that begins with mini-batch `first`: each replica's, contiguous.

        In the last round of an epoch they may differ by one, and some may have none.
        """
        count = min(self.round_batches, self.batches - first)
        smaller, larger = divmod(count, self.replicas)
        shares = []
        for replica in range(self.replicas):
            size = smaller + (replica < larger)
            shares.append(range(first, first + size))
            first += size
        return shares

    def steps_before(self, replica: int, epoch: int, first: int) -> int:
        """Steps that a replica has taken in the run when a round begins."""
        whole = self.batches // self.round_batches
        last = self.shares(whole * self.round_batches)[replica]
        per_epoch = whole * self.sync_every + len(last)
        return epoch * per_epoch + first // self.round_batches * self.sync_every


def initial_memory(config: TrainConfig, parameters: Floats) -> State:
    """What there is to remember between steps before the first one, besides the parameters."""
    optimizer = make_optimizer(config.optimizer, momentum=config.momentum)
    if config.parallel == "steps":
        return optimizer.initial_state(parameters)
    memory = {
        f"replica-{replica}.{name}": vector
        for replica in range(config.replicas)
        for name, vector in optimizer.initial_state(parameters).items()
    }
    if config.outer_momentum:
        memory[VELOCITY] = np.zeros_like(parameters)
    return memory


def of_replica(memory: State, replica: int) -> State:
    """The inner optimiser's state of one replica."""
    prefix = f"replica-{replica}."
    return {
        name.removeprefix(prefix): vector
        for name, vector in memory.items()
        if name.startswith(prefix)
    }


def outer_step(
    parameters: Floats,
    replicas: list[Floats],
    velocity: Floats | None,
    learning_rate: float,
    momentum: float,
) -> tuple[Floats, Floats | None]:
    """The parameters `(parameters,)` after a round, and the new velocity where there is one.

    `replicas` are the parameters of those that took a step; they are added in the fixed tree.
    """
    tree = TreeSum[Floats](lambda left, right, _: left + right)
    for replica in replicas:
        tree.add(replica)
    mean = tree.result() / parameters.dtype.type(len(replicas))
    if learning_rate == 1 and velocity is None:
        return mean, None
    change = parameters - mean
    step = change
    if velocity is not None:
        velocity = velocity * parameters.dtype.type(momentum) + change
        step = change + velocity * parameters.dtype.type(momentum)
    return parameters - step * parameters.dtype.type(learning_rate), velocity
