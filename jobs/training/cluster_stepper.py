"""Data-parallel steps on a cluster: workers compute gradient sums, the client updates parameters.

The parameters stay in the client. Workers read the rows themselves, by their positions in the
order, and keep their window from step to step. A gradient sum is a pure function of the parameters
and the rows, so a task can be repeated on any worker. Sums are added in the same fixed tree as on
one machine, so the bits are the same too.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from jobs.nn.network import LossSum, Workspace
from jobs.nn.optimizers import State, Stepped
from jobs.nn.parameters import Floats
from jobs.training.gradients import GradientRule, Gradients
from jobs.training.portable import arithmetic_of_workers, check_worker
from jobs.training.step import (
    TreeSum,
    UpdateRule,
    ignore_overflow,
    subtree_size,
    thread_count,
    tree_reduce,
)
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
from pipeline.rows import OrderedRows, RowReader
from pipeline.stream import Batch
from storage.location import Closing

MOST_SUMS = 16
"""Gradient sums of a step at most; on larger clusters, two for each worker."""

BLOCK = 262_144
"""Elements that a thread updates at a time. With smaller blocks threads wait for one another. For
AdamW on 28 MB, four threads took 39 ms with blocks of 65,536, and 11 ms with these."""

Span = tuple[int, int]
"""The positions [start, stop) of a micro-batch's rows in an epoch."""

Position = Callable[[], tuple[int, int]]
"""Returns the epoch, and the position in it of the next mini-batch's first row."""


@dataclass(frozen=True)
class GradientTask:
    """The arguments that all gradient tasks of a training run share."""

    rows: OrderedRows
    rule: GradientRule
    arithmetic: str = ""
    """What `arithmetic_of_workers` returned."""


class ThreadGradients(threading.local):
    """The computation of gradients in each thread of a worker."""

    def __init__(self, rule: GradientRule) -> None:
        self.gradients = Gradients(rule)


class GradientWorkerState(Closing):
    """A worker's state between the steps of one training run."""

    def __init__(self, task: GradientTask) -> None:
        """Open the dataset; raise `UnreachableError` if this worker computes differently."""
        check_worker(task.arithmetic)
        self.reader = RowReader(task.rows)
        self.thread = ThreadGradients(task.rule)
        self.lent = SharedBufferPool()

    def close(self) -> None:
        """Release the window and all vectors."""
        self.reader.close()
        self.lent.close()


def gradient_sum(
    job: str,
    task: GradientTask,
    step: int,
    epoch: int,
    spans: tuple[Span, ...],
    batch_rows: int,
    parameters: Handle | Floats,
) -> VectorResult:
    """Compute the part of micro-batches in the gradient of a mini-batch of `batch_rows` rows.

    The micro-batches are one subtree of the fixed tree, in which the loss is summed too. Raises
    `BadDataError` if the rows cannot be read.
    """
    state = hold(job, task, lambda: GradientWorkerState(task))

    def compute(parameters: Floats, out: Floats) -> LossSum:
        micro_batches = (state.reader.take(epoch, *span) for span in spans)
        with ignore_overflow():
            return state.thread.gradients.of_subtree(parameters, micro_batches, batch_rows, out)

    return state.lent.answer(step, parameters, compute)


class ClusterDataParallelStep(Closing):
    """Takes optimizer steps on a cluster, to the same bits as one process."""

    def __init__(
        self,
        cluster: Cluster,
        task: GradientTask,
        update: UpdateRule,
        parameters: Floats,
        state: State,
        position: Position,
        threads: int,
    ) -> None:
        """Start from copies of `parameters` and of the optimizer's `state`.

        `position` returns where the next mini-batch begins. `threads` threads add up the sums and
        take the step.
        """
        self._cluster = cluster
        self._task = task
        self._update = update
        self._position = position
        # Two copies: workers read one while the step writes the other.
        self._shared = [SharedVector(len(parameters), str(parameters.dtype)) for _ in range(2)]
        self._shared[0].array[:] = parameters
        self._generations: list[Stepped] = [
            (vector.array, {name: values.copy() for name, values in state.items()})
            for vector in self._shared
        ]
        self._now = 0
        self._exchange = SharedVectorTransport(cluster)
        self._pool = ThreadPoolExecutor(threads, "step")
        self._spans = np.linspace(0, len(parameters), threads + 1).astype(int).tolist()
        self._workspaces = [Workspace() for _ in range(threads)]

    @property
    def parameters(self) -> Floats:
        """The flat vector `(parameters,)`, valid until the next step."""
        return self._generations[self._now][0]

    @property
    def state(self) -> State:
        """The optimizer's vectors by name, valid until the next step."""
        return self._generations[self._now][1]

    def step(
        self, micro_batches: Iterator[Batch], rows: int, learning_rate: float, step_number: int
    ) -> LossSum:
        """Take the step of a mini-batch of `rows`, its micro-batches in order; return its loss.

        Only the sizes of the micro-batches are used: workers read the rows themselves.
        """
        epoch, place = self._position()
        spans: list[Span] = []
        for part in micro_batches:
            spans.append((place, place + len(part.rows)))
            place += len(part.rows)
        losses = TreeSum[LossSum](lambda left, right, _: left + right)
        sums = []
        for loss, gradient in self._gradients(step_number, epoch, spans, rows):
            losses.add(loss)
            sums.append(gradient)
        self._take_step(sums, learning_rate, step_number)
        return losses.result()

    def _gradients(
        self, step: int, epoch: int, spans: list[Span], rows: int
    ) -> Iterator[tuple[LossSum, Floats]]:
        """Return each subtree's loss and gradient sum, in order."""
        workers = self._cluster.workers() or [""]
        size = subtree_size(len(spans), len(workers), max(MOST_SUMS, 2 * len(workers)))
        tasks = []
        for first, worker in zip(range(0, len(spans), size), cycle(workers), strict=False):
            part = tuple(spans[first : first + size])
            description = f"rows {part[0][0]}..{part[-1][1] - 1} in the order of epoch {epoch + 1}"
            arguments = (self._cluster.job, self._task, step, epoch, part, rows)
            tasks.append(Task("gradient", description, gradient_sum, arguments, worker))
        parameters = self._shared[self._now]
        return self._exchange.results([(task, parameters) for task in tasks])

    def _take_step(self, sums: list[Floats], learning_rate: float, step_number: int) -> None:
        """Add up the sums and take the step, each thread on its stretch of the parameters."""
        stretches = zip(self._workspaces, self._spans[:-1], self._spans[1:], strict=True)
        before, after = self._generations[self._now], self._generations[1 - self._now]

        def take(stretch: tuple[Workspace, int, int]) -> None:
            workspace, start, end = stretch
            with ignore_overflow():
                for first in range(start, end, BLOCK):
                    block = slice(first, min(first + BLOCK, end))
                    gradient = tree_reduce([vector[block] for vector in sums], workspace)
                    self._update.apply(block, before, gradient, learning_rate, step_number, after)

        list(self._pool.map(take, stretches))
        self._now = 1 - self._now

    def close(self) -> None:
        """Release the shared memory; the cluster stays connected."""
        self._pool.shutdown(cancel_futures=True)
        for vector in self._shared:
            vector.close()


class ClusterTrainer(Trainer):
    """A `Trainer` whose gradients are computed by a cluster's workers, to the same bits."""

    reads_rows = False

    def _make_stepper(
        self, rule: GradientRule, update: UpdateRule, parameters: Floats, state: State
    ) -> TrainingState:
        assert self._cluster is not None
        self._step = ClusterDataParallelStep(
            self._cluster,
            GradientTask(self._ordered_rows(), rule, arithmetic_of_workers(self.config.arithmetic)),
            update,
            parameters,
            state,
            lambda: (self.stream.state.epoch, self.stream.place),
            thread_count(self.config.threads),
        )
        return self._step
