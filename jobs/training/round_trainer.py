"""The trainer of `--parallel rounds`: whole rounds of replicas, in this process or on a cluster."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

from jobs.nn.architecture import Layer
from jobs.nn.lr_schedules import learning_rate
from jobs.nn.network import LossSum
from jobs.nn.optimizers import State
from jobs.nn.parameters import Floats
from jobs.training.config import TrainConfig
from jobs.training.local_steps import (
    LocalStep,
    LocalSteps,
    ReplicaResult,
    RoundTask,
    RoundWorkerState,
    ordered_rows,
)
from jobs.training.rounds import VELOCITY, RoundPlan, of_replica, outer_step, replica_rate
from jobs.training.step import UpdateRule
from jobs.training.trainer import Trainer, TrainingState
from pipeline.cluster.client import Cluster
from pipeline.cluster.tasks import Task, results
from pipeline.cluster.worker import hold
from pipeline.rows import IndexOnlyLoader
from storage.dataset import Dataset
from storage.location import Closing

Steps = tuple[LocalStep, ...]


def local_steps(
    job: str, work: RoundTask, turn: LocalSteps, parameters: Floats, state: State
) -> ReplicaResult:
    """Take a replica's steps on a worker."""
    return hold(job, work, lambda: RoundWorkerState(work)).take(turn, parameters, state)


class RoundStepper(Closing):
    """The parameters and what all replicas remember, moved on a round at a time."""

    def __init__(
        self, work: RoundTask, parameters: Floats, memory: State, cluster: Cluster | None
    ) -> None:
        """Start from `parameters` and `memory`, which `initial_memory` of `rounds` lays out."""
        self.parameters = parameters
        self.state = memory
        self._work = work
        self._cluster = cluster
        self._here = RoundWorkerState(work) if cluster is None else None

    def take_round(self, shares: list[Steps]) -> list[LossSum]:
        """Have each replica take its steps, then the outer step; the losses replica by replica."""
        workers = (self._cluster and self._cluster.workers()) or [""]
        served = -(-self._work.plan.replicas // len(workers))
        turns = [LocalSteps(number, steps, served) for number, steps in enumerate(shares) if steps]
        replies = self._replies(turns, workers)
        config = self._work.config
        self.parameters, velocity = outer_step(
            self.parameters,
            [reply.parameters for reply in replies],
            self.state.get(VELOCITY),
            config.outer_learning_rate,
            config.outer_momentum,
        )
        self.state = self.state | {
            f"replica-{turn.replica}.{name}": vector
            for turn, reply in zip(turns, replies, strict=True)
            for name, vector in reply.state.items()
        }
        if velocity is not None:
            self.state[VELOCITY] = velocity
        return [loss for reply in replies for loss in reply.losses]

    def _replies(self, turns: list[LocalSteps], workers: list[str]) -> list[ReplicaResult]:
        """Return what each replica comes to, computed here or on the workers."""
        states = [(turn, self.parameters, of_replica(self.state, turn.replica)) for turn in turns]
        if self._here is not None:
            return [self._here.take(*state) for state in states]
        assert self._cluster is not None
        tasks = [
            Task(
                name="local-steps",
                what=turn.what,
                function=local_steps,
                arguments=(self._cluster.job, self._work, *state),
                worker=workers[turn.replica % len(workers)],
                bulky=True,
            )
            for turn, state in zip(turns, states, strict=True)
        ]
        return list(results(self._cluster, tasks, per_worker=len(tasks)))

    def close(self) -> None:
        """Let go of windows; the cluster stays."""
        if self._here is not None:
            self._here.close()


class RoundTrainer(Trainer):
    """A `Trainer` that moves on by rounds, and can be saved at their borders."""

    loader = IndexOnlyLoader

    def __init__(
        self,
        cluster: Cluster | None,
        config: TrainConfig,
        layers: tuple[Layer, ...],
        dataset: Dataset,
        state: Any = None,
    ) -> None:
        """As `Trainer`; replicas are computed on the `cluster`, or here where there is none."""
        self._cluster = cluster
        super().__init__(config, layers, dataset, state)

    def _make_stepper(
        self,
        rule: UpdateRule,
        parameters: Floats,
        memory: State,
        dataset: Dataset,
        batch_size: int,
    ) -> TrainingState:
        config, rows = self.config, ordered_rows(self.config, dataset)
        whole, rest = divmod(rows.order.rows, batch_size)
        batches = whole if config.drop_last or not rest else whole + 1
        self._plan = RoundPlan(batches, config.replicas, config.sync_every)
        work = RoundTask(rows, config, rule.scaling, batch_size, self._micro_batches, self._plan)
        self._rounds = RoundStepper(work, parameters, memory, self._cluster)
        return self._rounds

    def _losses(self) -> Iterator[list[LossSum]]:
        """Take the epoch's rounds; yield the losses of each."""
        epoch = self.stream.state.epoch
        mini_batches = self.stream.micro_batches(1)
        while self.stream.state.epoch == epoch:
            shares = self._shares(epoch, self.stream.state.next_batch)
            # The stream counts the mini-batches, and has the order's digest at the epoch's end.
            for mini_batch in islice(mini_batches, sum(map(len, shares))):
                deque(mini_batch, maxlen=0)
            yield self._rounds.take_round(shares)

    def _shares(self, epoch: int, taken: int) -> list[Steps]:
        """Each replica's steps in the round after an epoch's `taken` mini-batches."""
        plan, size = self._plan, self.stream.batch_size
        shares = plan.shares(taken)
        count = sum(map(len, shares))
        return [
            tuple(
                LocalStep(
                    epoch=epoch,
                    start=number * size,
                    stop=min((number + 1) * size, self.stream.rows),
                    learning_rate=self._rate(epoch * plan.batches + taken, step, count),
                    number=plan.steps_before(replica, epoch, taken) + step + 1,
                )
                for step, number in enumerate(share)
            )
            for replica, share in enumerate(shares)
        ]

    def _rate(self, first: int, step: int, count: int) -> float:
        """Of each replica's `step` of a round, from 0, which has `count` mini-batches from `first`.

        All replicas have taken that step when `replicas` times as many mini-batches are.
        """
        total = self.config.epochs * self._plan.batches
        place = first + min(step * self._plan.replicas, count - 1)
        maximum = replica_rate(self.config.learning_rate, self._plan.replicas)
        return learning_rate(self.config.schedule, maximum, place, total)
