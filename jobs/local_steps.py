"""One replica's part of a round: some optimiser steps on mini-batches that it reads itself."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from jobs.config import TrainConfig
from jobs.nn.architecture import parse_network
from jobs.nn.network import LossSum, Network
from jobs.nn.optimizers import State, make_optimizer
from jobs.nn.parameters import Floats
from jobs.rounds import RoundPlan
from jobs.step import StepRule
from jobs.stepper import Stepper
from pipeline.rows import OrderedRows, RowReader
from pipeline.stream import Batch
from pipeline.worker_side import hold
from storage.closing import Closing


@dataclass(frozen=True)
class RoundWork:
    """All that the rounds of a training have in common."""

    rows: OrderedRows
    config: TrainConfig
    batch_size: int
    micro_batches: int
    plan: RoundPlan

    def part(self, replica: int) -> tuple[int, int]:
        """The places [start, stop) in an epoch of the rows that are a replica's own."""
        numbers = self.plan.part(replica)
        return numbers.start * self.batch_size, min(numbers.stop * self.batch_size, self.rows.rows)


@dataclass(frozen=True)
class InnerStep:
    """One step of a replica: the places [start, stop) of its rows in an epoch, and how to step."""

    epoch: int
    start: int
    stop: int
    learning_rate: float
    number: int
    """Counted over all steps of the replica in the run, from 1."""


@dataclass(frozen=True)
class Turn:
    """A replica's part of a round, and how many replicas the one who does it has to serve."""

    replica: int
    steps: tuple[InnerStep, ...]
    served: int
    """Of each a window is held; of a single one, the next window as well."""


@dataclass(frozen=True)
class ReplicaReply:
    """A replica at the end of its part of a round."""

    parameters: Floats
    state: State
    losses: tuple[LossSum, ...]
    """Of each step."""


class RoundBench(Closing):
    """What takes the steps of any replica, one after the other."""

    def __init__(self, work: RoundWork) -> None:
        """Nothing is read yet."""
        config = work.config
        self._work = work
        self._readers: OrderedDict[int, RowReader] = OrderedDict()
        """By replica, the one that was served last at the end."""
        self._rule = StepRule(
            Network(parse_network(config.network), config.dtype),
            make_optimizer(config.optimizer, momentum=config.momentum),
            config.l2,
        )

    def take(self, turn: Turn, parameters: Floats, state: State) -> ReplicaReply:
        """The steps, each from where the one before ended; with one thread."""
        work = self._work
        reader = self._reader(turn)
        stepper = Stepper(
            self._rule,
            parameters,
            state,
            reader.schema,
            batch_size=work.batch_size,
            micro_batches=work.micro_batches,
            threads=1,
        )
        with stepper:
            losses = [
                stepper.step(self._cut(reader, step), step.learning_rate, step.number)
                for step in turn.steps
            ]
            return ReplicaReply(
                stepper.parameters.copy(),
                {name: vector.copy() for name, vector in stepper.state.items()},
                tuple(losses),
            )

    def _reader(self, turn: Turn) -> RowReader:
        """The reader of the replica's part; where one holds all rows, there is no other."""
        if self._readers and next(iter(self._readers.values())).holds_all:
            return next(iter(self._readers.values()))
        while len(self._readers) > turn.served or (
            len(self._readers) == turn.served and turn.replica not in self._readers
        ):
            self._readers.popitem(last=False)[1].close()
        if turn.replica not in self._readers:
            part = self._work.part(turn.replica)
            self._readers[turn.replica] = RowReader(self._work.rows, part)
        self._readers.move_to_end(turn.replica)
        reader = self._readers[turn.replica]
        reader.reads_ahead = turn.served == 1
        return reader

    def _cut(self, reader: RowReader, step: InnerStep) -> Iterator[Batch]:
        """The mini-batch's micro-batches, with the sizes of `numpy.array_split`."""
        smaller, larger = divmod(step.stop - step.start, self._work.micro_batches)
        start = step.start
        for part in range(self._work.micro_batches):
            stop = start + smaller + (part < larger)
            if stop > start:
                yield reader.take(step.epoch, start, stop)
            start = stop

    def close(self) -> None:
        """Let go of the windows."""
        while self._readers:
            self._readers.popitem()[1].close()


def local_steps(
    job: str, work: RoundWork, turn: Turn, parameters: Floats, state: State
) -> ReplicaReply:
    """For a worker: `RoundBench.take`, with a bench that it keeps from round to round."""
    return hold(job, work, lambda: RoundBench(work)).take(turn, parameters, state)
