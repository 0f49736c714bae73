"""One replica's part of a round: some optimiser steps on mini-batches that it reads itself."""

from collections.abc import Iterator
from dataclasses import dataclass

from jobs.config import TrainConfig
from jobs.nn.architecture import parse_network
from jobs.nn.network import LossSum, Network
from jobs.nn.optimizers import State, make_optimizer
from jobs.nn.parameters import Floats
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
class ReplicaReply:
    """A replica at the end of its part of a round."""

    parameters: Floats
    state: State
    losses: tuple[LossSum, ...]
    """Of each step."""


class RoundBench(Closing):
    """What takes the steps of any replica, one after the other."""

    def __init__(self, work: RoundWork) -> None:
        """Opens the dataset."""
        config = work.config
        self._work = work
        self._reader = RowReader(work.rows)
        self._rule = StepRule(
            Network(parse_network(config.network), config.dtype),
            make_optimizer(config.optimizer, momentum=config.momentum),
            config.l2,
        )

    def take(self, parameters: Floats, state: State, steps: tuple[InnerStep, ...]) -> ReplicaReply:
        """The steps, each from where the one before ended; with one thread."""
        work = self._work
        stepper = Stepper(
            self._rule,
            parameters,
            state,
            self._reader.schema,
            batch_size=work.batch_size,
            micro_batches=work.micro_batches,
            threads=1,
        )
        with stepper:
            losses = [
                stepper.step(self._cut(step), step.learning_rate, step.number) for step in steps
            ]
            return ReplicaReply(
                stepper.parameters.copy(),
                {name: vector.copy() for name, vector in stepper.state.items()},
                tuple(losses),
            )

    def _cut(self, step: InnerStep) -> Iterator[Batch]:
        """The mini-batch's micro-batches, with the sizes of `numpy.array_split`."""
        smaller, larger = divmod(step.stop - step.start, self._work.micro_batches)
        start = step.start
        for part in range(self._work.micro_batches):
            stop = start + smaller + (part < larger)
            if stop > start:
                yield self._reader.take(step.epoch, start, stop)
            start = stop

    def close(self) -> None:
        """Let go of the windows."""
        self._reader.close()


def local_steps(
    job: str,
    work: RoundWork,
    steps: tuple[InnerStep, ...],
    parameters: Floats,
    state: State,
) -> ReplicaReply:
    """For a worker: `RoundBench.take`, with a bench that it keeps from round to round."""
    return hold(job, work, lambda: RoundBench(work)).take(parameters, state, steps)
