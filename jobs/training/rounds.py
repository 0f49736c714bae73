"""The rounds of `--parallel rounds`: replicas that take local steps, then synchronise.

In a round each of R replicas takes H optimizer steps from the same parameters, on mini-batches of
its own part of the order. Then an outer step moves the parameters towards the replicas' mean. With
an outer learning rate of 1 and no outer momentum it takes the mean itself (local SGD: Stich, arXiv
1805.09767). Otherwise it is the Nesterov step of DiLoCo (arXiv 2311.08105, algorithm 1). Each
replica keeps the state of its inner optimizer. The result differs from that of `steps`, and does
not depend on where, or in which order, the replicas are computed.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from jobs.nn.network import LossSum, Network
from jobs.nn.optimizers import State
from jobs.nn.parameters import Floats
from jobs.training.config import TrainConfig
from jobs.training.gradients import GradientRule
from jobs.training.local_step import local_step
from jobs.training.step import TreeSum, optimizer_of, update_rule
from pipeline.order import cut
from pipeline.rows import OrderedRows, RowReader, reader_memory
from pipeline.stream import Batch
from storage.location import Closing
from storage.schema import SplitSchema

VELOCITY = "outer.velocity"
FORMS_PER_REPLICA = 11
"""Vectors of a replica: parameters and two of the optimizer, before and after a round and in a
checkpoint, with the memory that the allocator keeps."""


@dataclass(frozen=True)
class RoundPlan:
    """The mini-batches of an epoch, by number from 0, that each replica takes."""

    batches: int
    """Mini-batches of an epoch."""
    replicas: int
    sync_every: int
    """Steps of a replica in a round; fewer in the last round of an epoch."""

    @property
    def round_batches(self) -> int:
        """Mini-batches of a full round."""
        return self.replicas * self.sync_every

    def part(self, replica: int) -> range:
        """Return a replica's part of the order: contiguous, so that few windows hold its rows.

        The parts have the sizes that `numpy.array_split` gives.
        """
        smaller, larger = divmod(self.batches, self.replicas)
        start = replica * smaller + min(replica, larger)
        return range(start, start + smaller + (replica < larger))

    def shares(self, taken: int) -> list[range]:
        """Return each replica's mini-batches in the round after `taken`: the next of its part.

        In the last round of an epoch there are fewer, their numbers differ by one, and some
        replicas may have none.
        """
        before = self._steps_in_epoch(taken)
        return [
            self.part(replica)[before : before + self.sync_every]
            for replica in range(self.replicas)
        ]

    def steps_before(self, replica: int, epoch: int, taken: int) -> int:
        """Return the steps of the run that a replica took before the round after `taken`."""
        return epoch * len(self.part(replica)) + self._steps_in_epoch(taken)

    def _steps_in_epoch(self, taken: int) -> int:
        """Return a replica's steps in an epoch, all of whose rounds but the last are full."""
        return taken // self.round_batches * self.sync_every


def replicas_memory(replicas: int, network: Network, schema: SplitSchema, window: int) -> int:
    """Return the bytes of all replicas in one process, for windows of `window` chunks."""
    vectors = replicas * FORMS_PER_REPLICA * network.parameter_memory
    # If one window does not hold all rows, each replica has its own.
    return vectors + (replicas * reader_memory(schema, window) if window < schema.chunks else 0)


def replica_rate(learning_rate: float, replicas: int) -> float:
    """Return the learning rate of each replica.

    The mean of R replicas moves by one step for R mini-batches, as with a batch R times as large.
    The rate is multiplied by the square root of R, which Krizhevsky (arXiv 1404.5997) and, for
    Adam, Malladi et al. (arXiv 2205.10287) recommend for such a batch.
    """
    return learning_rate * math.sqrt(replicas)


def initial_state(config: TrainConfig, parameters: Floats) -> State:
    """Return the optimizer's vectors before the first step, by name."""
    optimizer = optimizer_of(config)
    if config.parallel == "steps":
        return optimizer.initial_state(parameters)
    state = {
        f"replica-{replica}.{name}": vector
        for replica in range(config.replicas)
        for name, vector in optimizer.initial_state(parameters).items()
    }
    if config.outer_momentum:
        state[VELOCITY] = np.zeros_like(parameters)
    return state


def of_replica(state: State, replica: int) -> State:
    """Return the state of one replica's inner optimizer."""
    prefix = f"replica-{replica}."
    return {
        name.removeprefix(prefix): vector
        for name, vector in state.items()
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

    `replicas` are the parameters of the replicas that took a step, summed in the fixed tree.
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


@dataclass(frozen=True)
class RoundTask:
    """The arguments that all rounds of a training run share."""

    rows: OrderedRows
    config: TrainConfig
    rule: GradientRule
    batch_size: int
    micro_batches: int
    plan: RoundPlan
    arithmetic: str = ""
    """What `arithmetic_of_workers` returned."""

    def part(self, replica: int) -> tuple[int, int]:
        """Return the positions [start, stop) in an epoch of a replica's rows."""
        numbers, rows = self.plan.part(replica), self.rows.order.rows
        return numbers.start * self.batch_size, min(numbers.stop * self.batch_size, rows)


@dataclass(frozen=True)
class LocalStep:
    """One step of a replica, on the rows at the positions [start, stop) of an epoch."""

    epoch: int
    start: int
    stop: int
    learning_rate: float
    number: int
    """The step's number among all steps of the replica in the run, from 1."""


@dataclass(frozen=True)
class LocalSteps:
    """The steps of a replica in a round, for the worker that takes them."""

    replica: int
    steps: tuple[LocalStep, ...]
    served: int
    """Replicas of the worker, which holds a window for each, or two for a single one."""

    @property
    def what(self) -> str:
        """The rows, for messages."""
        first, last = self.steps[0], self.steps[-1]
        return f"rows {first.start}..{last.stop - 1} in the order of epoch {first.epoch + 1}"


@dataclass(frozen=True)
class ReplicaResult:
    """A replica at the end of a round."""

    parameters: Floats
    state: State
    losses: tuple[LossSum, ...]
    """The loss of each step."""


class RoundWorkerState(Closing):
    """The readers and the rules of a process that takes steps for one or more replicas."""

    def __init__(self, work: RoundTask) -> None:
        """Prepare to take steps; rows are read by `take`."""
        self._work = work
        self._lock = threading.Lock()
        self._idle: OrderedDict[int, RowReader] = OrderedDict()
        """Readers by replica; the most recently used is the last."""
        self._all: RowReader | None = None
        self._update = update_rule(work.config, work.rule.network)

    def take(self, steps: LocalSteps, parameters: Floats, state: State) -> ReplicaResult:
        """Take the steps one after the other, with one thread."""
        work = self._work
        with (
            self._reading(steps) as reader,
            local_step(
                work.rule,
                self._update,
                parameters,
                state,
                reader.schema,
                batch_size=work.batch_size,
                micro_batches=work.micro_batches,
                threads=1,
            ) as stepper,
        ):
            losses = [
                stepper.step(
                    self._cut(reader, step),
                    step.stop - step.start,
                    step.learning_rate,
                    step.number,
                )
                for step in steps.steps
            ]
            return ReplicaResult(
                stepper.parameters.copy(),
                {name: vector.copy() for name, vector in stepper.state.items()},
                tuple(losses),
            )

    @contextmanager
    def _reading(self, steps: LocalSteps) -> Iterator[RowReader]:
        """Give the reader of the replica's rows, which no other thread uses at the same time.

        A reader that holds all rows is shared by all replicas, even at the same time.
        """
        another = None
        with self._lock:
            reader = self._all or self._idle.pop(steps.replica, None)
            while len(self._idle) >= steps.served:
                self._idle.popitem(last=False)[1].close()
            if reader is None:
                reader = RowReader(self._work.rows, self._work.part(steps.replica))
                if reader.holds_all:
                    self._all = reader
        reader.reads_ahead = steps.served == 1
        try:
            yield reader
        finally:
            with self._lock:
                if reader is not self._all:
                    another = self._idle.pop(steps.replica, None)  # left by a repeated task
                    self._idle[steps.replica] = reader
            if another is not None:
                another.close()

    def _cut(self, reader: RowReader, step: LocalStep) -> Iterator[Batch]:
        """Yield the mini-batch's micro-batches."""
        for start, stop in cut(step.start, step.stop, self._work.micro_batches):
            yield reader.take(step.epoch, start, stop)

    def close(self) -> None:
        """Release the windows."""
        if self._all is not None:
            self._all.close()
        while self._idle:
            self._idle.popitem()[1].close()
