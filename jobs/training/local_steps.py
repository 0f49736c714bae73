"""One replica's part of a round: some optimiser steps on mini-batches that it reads itself."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jobs.nn.architecture import parse_network
from jobs.nn.network import LossSum, Network
from jobs.nn.optimizers import State, make_optimizer
from jobs.nn.parameters import Floats
from jobs.training.config import TrainConfig
from jobs.training.data_parallel import DataParallelStep
from jobs.training.rounds import RoundPlan
from jobs.training.step import UpdateRule
from pipeline.order import EpochOrder, cut
from pipeline.rows import OrderedRows, RowReader
from pipeline.stream import Batch, chunks_per_window
from storage.dataset import Dataset
from storage.location import Closing
from storage.preparation import ValueRange


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
    """Of each a window is held; of a single one, the next window as well."""

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
    """Of each step."""


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
