"""The arithmetic of `--parallel rounds`: replicas that step by themselves, then agree.

In a round each of R replicas takes H optimiser steps from the same parameters, on mini-batches of
its own part of the order; then the parameters become what the outer step makes of the replicas'
mean. With an outer learning rate of 1 and no outer momentum that is the mean itself (local SGD:
Stich, arXiv 1805.09767); with others it is the outer Nesterov step of DiLoCo (arXiv 2311.08105,
algorithm 1). The inner optimiser's state stays with its replica. This is another algorithm than
`steps`, with another result; it does not depend on where, or in which order, the replicas are
computed.
"""

import math
from dataclasses import dataclass

import numpy as np

from jobs.nn.network import Network
from jobs.nn.optimizers import State, make_optimizer
from jobs.nn.parameters import Floats
from jobs.training.config import TrainConfig
from jobs.training.step import TreeSum
from pipeline.rows import reader_memory
from storage.schema import SplitSchema

VELOCITY = "outer.velocity"
FORMS_PER_REPLICA = 11
"""Its parameters and the optimiser's two vectors, before and after a round, twice in a checkpoint,
and what the allocator keeps between the two."""


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

    def part(self, replica: int) -> range:
        """Return a replica's own part of the order: contiguous, so that few windows hold its rows.

        The parts' sizes are those of `numpy.array_split`.
        """
        smaller, larger = divmod(self.batches, self.replicas)
        start = replica * smaller + min(replica, larger)
        return range(start, start + smaller + (replica < larger))

    def shares(self, taken: int) -> list[range]:
        """Each replica's in the round after `taken` mini-batches: the next ones of its part.

        In the last round of an epoch they are shorter, differ by one, and some may have none.
        """
        before = self._steps_in_epoch(taken)
        return [
            self.part(replica)[before : before + self.sync_every]
            for replica in range(self.replicas)
        ]

    def steps_before(self, replica: int, epoch: int, taken: int) -> int:
        """Return a replica's steps in the run before the round after `taken` mini-batches."""
        return epoch * len(self.part(replica)) + self._steps_in_epoch(taken)

    def _steps_in_epoch(self, taken: int) -> int:
        """Of each replica: every round before an epoch's last one is whole."""
        return taken // self.round_batches * self.sync_every


def replicas_memory(replicas: int, network: Network, schema: SplitSchema, window: int) -> int:
    """Return the bytes of all replicas where no cluster has them, for windows of so many chunks."""
    vectors = replicas * FORMS_PER_REPLICA * network.parameter_memory
    # Where one window does not hold all rows, each replica has its own.
    return vectors + (replicas * reader_memory(schema, window) if window < schema.chunks else 0)


def replica_rate(learning_rate: float, replicas: int) -> float:
    """Return the step size of each of so many replicas, for a run's `learning_rate`.

    The mean of R replicas has gone one step's way on R mini-batches, so steps are larger: by the
    square root of R, as Krizhevsky (arXiv 1404.5997) and, for Adam, Malladi et al. (arXiv
    2205.10287) have it for a batch that is R times as large.
    """
    return learning_rate * math.sqrt(replicas)


def initial_memory(config: TrainConfig, parameters: Floats) -> State:
    """Return what is remembered between steps, besides the parameters, before the first one."""
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
    """Return the inner optimiser's state of one replica."""
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
    """Return the parameters `(parameters,)` after a round, and the new velocity, if any.

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
