"""The trainer of `--parallel rounds`: whole rounds of replicas, in this process or on a cluster."""

from collections import deque
from collections.abc import Iterator
from itertools import islice

import numpy as np

from jobs.nn.network import LossSum
from jobs.nn.optimizers import State
from jobs.nn.parameters import Floats
from jobs.training.gradients import GradientRule
from jobs.training.portable import arithmetic_of_workers, check_worker
from jobs.training.rounds import (
    VELOCITY,
    LocalStep,
    LocalSteps,
    ReplicaResult,
    RoundPlan,
    RoundTask,
    RoundWorkerState,
    of_replica,
    outer_step,
    replica_rate,
)
from jobs.training.step import UpdateRule
from jobs.training.trainer import Trainer, TrainingState, rate_of_step
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
    """Write a replica's parameters, then its optimizer's vectors by name, to one vector."""
    np.concatenate([parameters, *(state[name] for name in sorted(state))], out=out)


def unpack(vector: Floats, names: list[str]) -> tuple[Floats, State]:
    """Return the parameters and the optimizer's vectors of sorted `names` as views of a vector."""
    parameters, *parts = vector.reshape(1 + len(names), -1)
    return parameters, dict(zip(names, parts, strict=True))


class ReplicaWorkerState(Closing):
    """A worker's state between rounds."""

    def __init__(self, work: RoundTask) -> None:
        """Raise `UnreachableError` if this worker computes differently from the job."""
        check_worker(work.arithmetic)
        self.steps = RoundWorkerState(work)
        self.lent = SharedBufferPool()

    def close(self) -> None:
        """Release the windows and all vectors."""
        self.steps.close()
        self.lent.close()


def local_steps(
    job: str,
    work: RoundTask,
    steps: LocalSteps,
    names: list[str],
    round_number: int,
    vector: Handle | Floats,
) -> VectorResult:
    """Take a replica's steps on a worker; return the packed replica after them, and the losses."""
    state = hold(job, work, lambda: ReplicaWorkerState(work))

    def compute(before: Floats, after: Floats) -> tuple[LossSum, ...]:
        result = state.steps.take(steps, *unpack(before, names))
        pack(result.parameters, result.state, after)
        return result.losses

    return state.lent.answer(round_number, vector, compute)


class ClusterRounds(Closing):
    """Takes the replicas' steps on the workers of a cluster."""

    def __init__(self, cluster: Cluster, work: RoundTask) -> None:
        self._cluster = cluster
        self._work = work
        self._exchange = SharedVectorTransport(cluster)
        self._vectors: dict[int, SharedVector] = {}
        self._round = 0

    def take(self, replicas: list[tuple[LocalSteps, Floats, State]]) -> list[ReplicaResult]:
        """Take each replica's steps from its parameters and state; return the results in order."""
        self._round += 1
        workers = self._cluster.workers() or [""]
        names = sorted(replicas[0][2])
        tasks = []
        for steps, parameters, state in replicas:
            size = len(parameters) * (1 + len(names))
            if steps.replica not in self._vectors:
                self._vectors[steps.replica] = SharedVector(size, str(parameters.dtype))
            vector = self._vectors[steps.replica]
            pack(parameters, state, vector.array)
            arguments = (self._cluster.job, self._work, steps, names, self._round)
            worker = workers[steps.replica % len(workers)]
            tasks.append((Task("local-steps", steps.what, local_steps, arguments, worker), vector))
        return [
            ReplicaResult(*unpack(vector.copy(), names), losses)
            for losses, vector in self._exchange.results(tasks)
        ]

    def close(self) -> None:
        """Release the shared memory; the cluster stays connected."""
        for vector in self._vectors.values():
            vector.close()


class RoundStepper(Closing):
    """Holds the parameters and the replicas' optimizer states, and updates them round by round."""

    def __init__(
        self, work: RoundTask, parameters: Floats, state: State, cluster: Cluster | None
    ) -> None:
        """Start from `parameters` and from the vectors of `initial_state` or of a checkpoint."""
        self.parameters = parameters
        self.state = state
        self._work = work
        self._cluster = cluster
        self._local = RoundWorkerState(work) if cluster is None else None
        self._remote = ClusterRounds(cluster, work) if cluster else None

    def take_round(self, shares: list[Steps]) -> list[LossSum]:
        """Take each replica's steps, then the outer step; return the losses replica by replica."""
        workers = len(self._cluster.workers()) if self._cluster else 1
        served = -(-self._work.plan.replicas // max(1, workers))
        replicas = [
            (LocalSteps(number, steps, served), self.parameters, of_replica(self.state, number))
            for number, steps in enumerate(shares)
            if steps
        ]
        if self._local is not None:
            results = [self._local.take(*replica) for replica in replicas]
        elif self._remote is not None:
            results = self._remote.take(replicas)
        config = self._work.config
        self.parameters, velocity = outer_step(
            self.parameters,
            [result.parameters for result in results],
            self.state.get(VELOCITY),
            config.outer_learning_rate,
            config.outer_momentum,
        )
        self.state = self.state | {
            f"replica-{steps.replica}.{name}": vector
            for (steps, _, _), result in zip(replicas, results, strict=True)
            for name, vector in result.state.items()
        }
        if velocity is not None:
            self.state[VELOCITY] = velocity
        return [loss for result in results for loss in result.losses]

    def close(self) -> None:
        """Release windows and vectors; the cluster stays connected."""
        for part in (self._local, self._remote):
            if part is not None:
                part.close()


class RoundTrainer(Trainer):
    """A `Trainer` that advances by rounds, and can be saved between them."""

    reads_rows = False

    def _make_stepper(
        self, rule: GradientRule, update: UpdateRule, parameters: Floats, state: State
    ) -> TrainingState:
        config, rows = self.config, self._ordered_rows()
        size = self._batch_size
        whole, rest = divmod(rows.order.rows, size)
        batches = whole if config.drop_last or not rest else whole + 1
        self._plan = RoundPlan(batches, config.replicas, config.sync_every)
        arithmetic = arithmetic_of_workers(config.arithmetic)
        work = RoundTask(rows, config, rule, size, self._micro_batches, self._plan, arithmetic)
        self._rounds = RoundStepper(work, parameters, state, self._cluster)
        return self._rounds

    def _losses(self) -> Iterator[list[LossSum]]:
        """Take the epoch's rounds; yield the losses of each round."""
        epoch = self.stream.state.epoch
        mini_batches = self.stream.micro_batches(1)
        while self.stream.state.epoch == epoch:
            shares = self._shares(epoch, self.stream.state.next_batch)
            # The stream counts the mini-batches and updates the order's digest.
            for mini_batch in islice(mini_batches, sum(map(len, shares))):
                deque(mini_batch, maxlen=0)
            yield self._rounds.take_round(shares)

    def _shares(self, epoch: int, taken: int) -> list[Steps]:
        """Return each replica's steps in the round after `taken` mini-batches of an epoch."""
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

        The round has `count` mini-batches from number `first` of the run. A step of all replicas
        uses one mini-batch for each of them.
        """
        place = first + min(step * self._plan.replicas, count - 1)
        maximum = replica_rate(self.config.learning_rate, self._plan.replicas)
        return rate_of_step(self.config, maximum, place, self._plan.batches)
