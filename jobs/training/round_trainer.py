"""The trainer of `--parallel rounds`: whole rounds of replicas, in this process or on a cluster."""

from collections import deque
from collections.abc import Iterator
from itertools import islice

import numpy as np

from jobs.nn.lr_schedules import learning_rate
from jobs.nn.network import LossSum
from jobs.nn.optimizers import State
from jobs.nn.parameters import Floats
from jobs.training.rounds import (
    VELOCITY,
    LocalStep,
    LocalSteps,
    ReplicaResult,
    RoundPlan,
    RoundTask,
    RoundWorkerState,
    of_replica,
    ordered_rows,
    outer_step,
    replica_rate,
)
from jobs.training.step import UpdateRule
from jobs.training.trainer import Trainer, TrainingState
from pipeline.cluster.client import Cluster
from pipeline.cluster.tasks import (
    Handle,
    SharedBufferPool,
    SharedVector,
    SharedVectorTransport,
    Task,
    VectorResult,
)
from pipeline.cluster.worker import hold
from storage.location import Closing

Steps = tuple[LocalStep, ...]


def pack(parameters: Floats, state: State, out: Floats) -> None:
    """Write a replica's parameters, and then its optimiser's vectors by name, into one vector."""
    np.concatenate([parameters, *(state[name] for name in sorted(state))], out=out)


def unpack(vector: Floats, names: list[str]) -> tuple[Floats, State]:
    """Return parameters and the optimiser's vectors, of these sorted names, as views of one."""
    parameters, *parts = vector.reshape(1 + len(names), -1)
    return parameters, dict(zip(names, parts, strict=True))


class ReplicaWorkerState(Closing):
    """What a worker keeps from round to round."""

    def __init__(self, work: RoundTask) -> None:
        self.steps = RoundWorkerState(work)
        self.lent = SharedBufferPool()

    def close(self) -> None:
        """Let go of the windows and of all vectors."""
        self.steps.close()
        self.lent.close()


def local_steps(
    job: str,
    work: RoundTask,
    turn: LocalSteps,
    names: list[str],
    round_number: int,
    vector: Handle | Floats,
) -> VectorResult:
    """Take a replica's steps on a worker, from the vector before them to the one after them."""
    state = hold(job, work, lambda: ReplicaWorkerState(work))

    def compute(before: Floats, after: Floats) -> tuple[LossSum, ...]:
        result = state.steps.take(turn, *unpack(before, names))
        pack(result.parameters, result.state, after)
        return result.losses

    return state.lent.answer(round_number, vector, compute)


class ClusterRounds(Closing):
    """Has the replicas' steps taken by the workers of a cluster."""

    def __init__(self, cluster: Cluster, work: RoundTask) -> None:
        self._cluster = cluster
        self._work = work
        self._exchange = SharedVectorTransport(cluster)
        self._vectors: dict[int, SharedVector] = {}
        self._round = 0

    def take(self, turns: list[tuple[LocalSteps, Floats, State]]) -> list[ReplicaResult]:
        """Take each replica's steps from its parameters and state; return the results in order."""
        self._round += 1
        workers = self._cluster.workers() or [""]
        names = sorted(turns[0][2])
        tasks = []
        for turn, parameters, state in turns:
            size = len(parameters) * (1 + len(names))
            if turn.replica not in self._vectors:
                self._vectors[turn.replica] = SharedVector(size, str(parameters.dtype))
            vector = self._vectors[turn.replica]
            pack(parameters, state, vector.array)
            arguments = (self._cluster.job, self._work, turn, names, self._round)
            worker = workers[turn.replica % len(workers)]
            tasks.append((Task("local-steps", turn.what, local_steps, arguments, worker), vector))
        return [
            ReplicaResult(*unpack(vector.copy(), names), losses)
            for losses, vector in self._exchange.results(tasks)
        ]

    def close(self) -> None:
        """Let go of the shared memory; the cluster stays."""
        for vector in self._vectors.values():
            vector.close()


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
        self._there = ClusterRounds(cluster, work) if cluster else None

    def take_round(self, shares: list[Steps]) -> list[LossSum]:
        """Have each replica take its steps, then the outer step; the losses replica by replica."""
        workers = len(self._cluster.workers()) if self._cluster else 1
        served = -(-self._work.plan.replicas // max(1, workers))
        turns = [
            (LocalSteps(number, steps, served), self.parameters, of_replica(self.state, number))
            for number, steps in enumerate(shares)
            if steps
        ]
        if self._here is not None:
            results = [self._here.take(*turn) for turn in turns]
        elif self._there is not None:
            results = self._there.take(turns)
        config = self._work.config
        self.parameters, velocity = outer_step(
            self.parameters,
            [result.parameters for result in results],
            self.state.get(VELOCITY),
            config.outer_learning_rate,
            config.outer_momentum,
        )
        self.state = self.state | {
            f"replica-{turn.replica}.{name}": vector
            for (turn, _, _), result in zip(turns, results, strict=True)
            for name, vector in result.state.items()
        }
        if velocity is not None:
            self.state[VELOCITY] = velocity
        return [loss for result in results for loss in result.losses]

    def close(self) -> None:
        """Let go of windows and vectors; the cluster stays."""
        for taker in (self._here, self._there):
            if taker is not None:
                taker.close()


class RoundTrainer(Trainer):
    """A `Trainer` that moves on by rounds, and can be saved at their borders."""

    reads_rows = False

    def _make_stepper(self, rule: UpdateRule, parameters: Floats, memory: State) -> TrainingState:
        config, rows = self.config, ordered_rows(self.config, self._dataset)
        size = self._batch_size
        whole, rest = divmod(rows.order.rows, size)
        batches = whole if config.drop_last or not rest else whole + 1
        self._plan = RoundPlan(batches, config.replicas, config.sync_every)
        work = RoundTask(rows, config, rule.scaling, size, self._micro_batches, self._plan)
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
        """Return the learning rate of step `step` (from 0) of each replica in a round.

        The round has `count` mini-batches from number `first` of the run. When all replicas have
        taken the step, `replicas` times as many mini-batches are used up.
        """
        total = self.config.epochs * self._plan.batches
        place = first + min(step * self._plan.replicas, count - 1)
        maximum = replica_rate(self.config.learning_rate, self._plan.replicas)
        return learning_rate(self.config.schedule, maximum, place, total)
