"""The rounds of `--parallel rounds`: replicas that step by themselves, then agree.

In a round each of R replicas takes H optimiser steps from the same parameters, on mini-batches of
its own part of the order; then the parameters become what the outer step makes of the replicas'
mean. With an outer learning rate of 1 and no outer momentum that is the mean itself (local SGD:
Stich, arXiv 1805.09767); with others it is the outer Nesterov step of DiLoCo (arXiv 2311.08105,
algorithm 1). The inner optimiser's state stays with its replica. This is another algorithm than
`steps`, with another result; it does not depend on where, or in which order, the replicas are
computed.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from jobs.nn.architecture import parse_network
from jobs.nn.network import LossSum, Network
from jobs.nn.optimizers import State, make_optimizer
from jobs.nn.parameters import Floats
from jobs.training.config import TrainConfig
from jobs.training.data_parallel import DataParallelStep
from jobs.training.step import TreeSum, UpdateRule
from pipeline.order import EpochOrder, cut
from pipeline.rows import OrderedRows, RowReader, reader_memory
from pipeline.stream import Batch, chunks_per_window
from storage.dataset import Dataset
from storage.location import Closing
from storage.preparation import ValueRange
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
        """Return a replica's steps in an epoch; rounds before the epoch's last one are whole."""
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
    """Return the state that is kept between steps, as it is before the first step."""
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


def ordered_rows(config: TrainConfig, dataset: Dataset) -> OrderedRows:
    """Return the rows that a training visits, for workers to find."""
    schema = dataset.split("train").schema
    return OrderedRows(
        dataset=dataset.location,
        dataset_digest=dataset.digest,
        split="train",
        order=EpochOrder(
            seed=config.seed,
            epoch=0,
            rows=schema.rows - config.holdout,
            chunk_rows=schema.chunk_rows,
            window_chunks=chunks_per_window(schema, config.shuffle_memory, config.shuffle),
            shuffle=config.shuffle,
        ),
        epochs=config.epochs,
    )


@dataclass(frozen=True)
class RoundTask:
    """All that the rounds of a training have in common."""

    rows: OrderedRows
    config: TrainConfig
    scaling: ValueRange | None
    batch_size: int
    micro_batches: int
    plan: RoundPlan

    def part(self, replica: int) -> tuple[int, int]:
        """Return the places [start, stop) in an epoch of a replica's own rows."""
        numbers, rows = self.plan.part(replica), self.rows.order.rows
        return numbers.start * self.batch_size, min(numbers.stop * self.batch_size, rows)


@dataclass(frozen=True)
class LocalStep:
    """One step of a replica: the places [start, stop) of its rows in an epoch, and how to step."""

    epoch: int
    start: int
    stop: int
    learning_rate: float
    number: int
    """Counted over all steps of the replica in the run, from 1."""


@dataclass(frozen=True)
class LocalSteps:
    """A replica's part of a round, and how many replicas the one who does it has to serve."""

    replica: int
    steps: tuple[LocalStep, ...]
    served: int
    """Replicas that a worker serves: it holds a window for each, or two for a single one."""

    @property
    def what(self) -> str:
        """The rows, for errors to name."""
        first, last = self.steps[0], self.steps[-1]
        return f"rows {first.start}..{last.stop - 1} in the order of epoch {first.epoch + 1}"


@dataclass(frozen=True)
class ReplicaResult:
    """A replica at the end of its part of a round."""

    parameters: Floats
    state: State
    losses: tuple[LossSum, ...]
    """The loss of each step."""


class RoundWorkerState(Closing):
    """What takes the steps of any replica, one after the other."""

    def __init__(self, work: RoundTask) -> None:
        """Nothing is read yet."""
        config = work.config
        self._work = work
        self._lock = threading.Lock()
        self._idle: OrderedDict[int, RowReader] = OrderedDict()
        """By replica, the one that was served last at the end."""
        self._all: RowReader | None = None
        self._rule = UpdateRule(
            Network(parse_network(config.network), config.dtype),
            make_optimizer(config.optimizer, momentum=config.momentum),
            config.l2,
            work.scaling,
        )

    def take(self, turn: LocalSteps, parameters: Floats, state: State) -> ReplicaResult:
        """Take the steps, each from where the one before ended, with one thread."""
        work = self._work
        with (
            self._reading(turn) as reader,
            DataParallelStep(
                self._rule,
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
                for step in turn.steps
            ]
            return ReplicaResult(
                stepper.parameters.copy(),
                {name: vector.copy() for name, vector in stepper.state.items()},
                tuple(losses),
            )

    @contextmanager
    def _reading(self, turn: LocalSteps) -> Iterator[RowReader]:
        """Give the reader of the replica's part, which no other thread has at the same time.

        Where the reader of one holds all rows, all have that one, at the same time too.
        """
        another = None
        with self._lock:
            reader = self._all or self._idle.pop(turn.replica, None)
            while len(self._idle) >= turn.served:
                self._idle.popitem(last=False)[1].close()
            if reader is None:
                reader = RowReader(self._work.rows, self._work.part(turn.replica))
                if reader.holds_all:
                    self._all = reader
        reader.reads_ahead = turn.served == 1
        try:
            yield reader
        finally:
            with self._lock:
                if reader is not self._all:
                    another = self._idle.pop(turn.replica, None)  # of a turn that was taken twice
                    self._idle[turn.replica] = reader
            if another is not None:
                another.close()

    def _cut(self, reader: RowReader, step: LocalStep) -> Iterator[Batch]:
        """Yield the mini-batch's micro-batches."""
        for start, stop in cut(step.start, step.stop, self._work.micro_batches):
            yield reader.take(step.epoch, start, stop)

    def close(self) -> None:
        """Let go of the windows."""
        if self._all is not None:
            self._all.close()
        while self._idle:
            self._idle.popitem()[1].close()
