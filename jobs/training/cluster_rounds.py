"""Rounds on a cluster: a replica's parameters and state travel as one vector, there and back."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from distributed import get_worker

from jobs.nn.architecture import count_parameters, parse_network
from jobs.nn.network import LossSum
from jobs.nn.optimizers import State, make_optimizer
from jobs.nn.parameters import Floats
from jobs.training.local_steps import LocalSteps, ReplicaResult, RoundTask, RoundWorkerState
from pipeline.cluster.connect import Cluster
from pipeline.cluster.shared_memory import (
    Handle,
    RemoteBuffers,
    SharedBufferPool,
    SharedVector,
    SharedVectorTransport,
)
from pipeline.cluster.tasks import Task
from pipeline.cluster.worker import hold
from storage.location import Closing


@dataclass(frozen=True)
class LocalStepsResult:
    """A replica at the end of its turn."""

    vector: Handle | Floats | None
    """None where the worker cannot map the vector that it was shown: it is to be sent it."""
    losses: tuple[LossSum, ...]
    worker: str


class ReplicaVector:
    """How parameters and the inner optimiser's state lie in one vector."""

    def __init__(self, work: RoundTask) -> None:
        """The parameters first, then the state's vectors by name."""
        config = work.config
        self.parameters = count_parameters(parse_network(config.network))
        optimizer = make_optimizer(config.optimizer, momentum=config.momentum)
        self.names = sorted(optimizer.initial_state(np.zeros(1, config.dtype)))
        self.size = self.parameters * (1 + len(self.names))
        self.dtype = config.dtype

    def pack(self, parameters: Floats, state: State, out: Floats) -> None:
        """Write both into a vector `(size,)`."""
        parts = [parameters, *(state[name] for name in self.names)]
        np.concatenate(parts, out=out)

    def unpack(self, vector: Floats) -> tuple[Floats, State]:
        """Both, as views of a vector `(size,)`."""
        parameters, *parts = vector.reshape(-1, self.parameters)
        return parameters, dict(zip(self.names, parts, strict=True))


class ReplicaWorkerState(Closing):
    """What a worker keeps from round to round."""

    def __init__(self, work: RoundTask) -> None:
        """Nothing is read yet."""
        self.steps = RoundWorkerState(work)
        self.layout = ReplicaVector(work)
        self.given = RemoteBuffers()
        self.replies = SharedBufferPool(self.layout.size, self.layout.dtype)

    def close(self) -> None:
        """Let go of the windows and of all vectors."""
        self.steps.close()
        self.given.close()
        self.replies.close()


def local_steps(
    job: str, work: RoundTask, turn: LocalSteps, round_number: int, vector: Handle | Floats
) -> LocalStepsResult:
    """For a worker: a replica's turn, from the vector before it to the one after it.

    Where the vector was shown and not sent, so is the other.
    """
    bench = hold(job, work, lambda: ReplicaWorkerState(work))
    worker = get_worker().address
    shown = isinstance(vector, Handle)
    if isinstance(vector, Handle):
        try:
            vector = bench.given.array(vector)
        except OSError:
            return LocalStepsResult(None, (), worker)
    reply = bench.steps.take(turn, *bench.layout.unpack(vector))
    if shown:
        lent = bench.replies.borrow(round_number)
        bench.layout.pack(reply.parameters, reply.state, lent.array)
        return LocalStepsResult(bench.replies.lend(round_number, lent), reply.losses, worker)
    sent = np.empty_like(vector)
    bench.layout.pack(reply.parameters, reply.state, sent)
    return LocalStepsResult(sent, reply.losses, worker)


class ClusterRounds(Closing):
    """Has the replicas' turns taken by the workers of a cluster."""

    def __init__(self, cluster: Cluster, work: RoundTask) -> None:
        """Nothing is handed out yet."""
        self._cluster = cluster
        self._work = work
        self._layout = ReplicaVector(work)
        self._showing = SharedVectorTransport(cluster)
        self._vectors: dict[int, SharedVector] = {}
        self._round = 0

    def take(self, turns: Iterable[tuple[LocalSteps, Floats, State]]) -> list[ReplicaResult]:
        """Each turn from its parameters and state; in order."""
        self._round += 1
        workers = self._cluster.workers() or [""]
        tasks = []
        for turn, parameters, state in turns:
            vector = self._vector(turn.replica)
            self._layout.pack(parameters, state, vector.array)
            task = self._task(turn, workers[turn.replica % len(workers)])
            tasks.append((task, vector.handle, vector.array))
        return [self._reply(reply, vector) for reply, vector in self._showing.results(tasks)]

    def _vector(self, replica: int) -> SharedVector:
        if replica not in self._vectors:
            self._vectors[replica] = SharedVector(self._layout.size, self._layout.dtype)
        return self._vectors[replica]

    def _reply(self, reply: LocalStepsResult, vector: Floats) -> ReplicaResult:
        """A copy: the worker's memory is used again in the next round."""
        return ReplicaResult(*self._layout.unpack(vector.copy()), reply.losses)

    def _task(self, turn: LocalSteps, worker: str) -> Task:
        first, last = turn.steps[0], turn.steps[-1]
        return Task(
            name="local-steps",
            what=f"rows {first.start}..{last.stop - 1} in the order of epoch {first.epoch + 1}",
            function=local_steps,
            arguments=(self._cluster.job, self._work, turn, self._round),
            worker=worker,
        )

    def close(self) -> None:
        """Let go of the shared memory; the cluster stays."""
        self._showing.close()
        for vector in self._vectors.values():
            vector.close()
