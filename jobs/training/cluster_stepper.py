"""Data-parallel steps on a cluster: workers compute gradient sums, the client updates parameters.

The parameters live in the client. A gradient sum is a pure function of the parameters and the
rows, so a task can be repeated on any worker; sums are added in the same fixed tree as on one
machine, so the bits are the same too.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jobs.nn.architecture import Layer
from jobs.nn.network import LossSum, Workspace
from jobs.nn.optimizers import State, Stepped
from jobs.nn.parameters import Floats
from jobs.training.cluster_gradients import (
    GradientResult,
    GradientTask,
    Span,
    gradient_sum,
    ordered_rows,
)
from jobs.training.config import TrainConfig
from jobs.training.step import (
    TreeSum,
    UpdateRule,
    ignore_overflow,
    subtree_size,
    thread_count,
    tree_reduce,
)
from jobs.training.trainer import Trainer
from pipeline.cluster.connect import Cluster
from pipeline.cluster.shared_memory import SharedVector, SharedVectorTransport
from pipeline.cluster.tasks import Task
from pipeline.rows import IndexOnlyLoader
from pipeline.stream import Batch
from storage.dataset import Dataset
from storage.location import Closing

MOST_SUMS = 16
"""Sums of a step that are kept apart, at most, but for clusters of half as many workers or more."""

BLOCK = 262_144
"""Elements of the vectors that a thread steps at a time: with fewer, threads wait for one another
(four threads took 28 MB through AdamW in 39 ms by blocks of 65,536, in 11 ms by these)."""

Position = Callable[[], tuple[int, int]]
"""The epoch, and the place in it of the next mini-batch's first row."""


class ClusterDataParallelStep(Closing):
    """Takes steps from micro-batches, on a cluster, with the bits of one process."""

    missing_processes = 0
    """Dask makes good for its own."""

    def __init__(
        self,
        cluster: Cluster,
        work: GradientTask,
        rule: UpdateRule,
        parameters: Floats,
        state: State,
        position: Position,
        threads: int,
    ) -> None:
        """Start from `parameters` and the optimiser's `state`, which are copied.

        `position` tells where the mini-batch begins that the next `step` is of; `threads` add up
        the sums and take the step.
        """
        self._cluster = cluster
        self._work = work
        self._rule = rule
        self._position = position
        # Two of each by turns: workers read the one while the step writes the other.
        self._shared = [SharedVector(len(parameters), str(parameters.dtype)) for _ in range(2)]
        self._shared[0].array[:] = parameters
        self._generations: list[Stepped] = [
            (vector.array, {name: values.copy() for name, values in state.items()})
            for vector in self._shared
        ]
        self._now = 0
        self._showing = SharedVectorTransport(cluster)
        self._pool = ThreadPoolExecutor(threads, "step")
        self._spans = np.linspace(0, len(parameters), threads + 1).astype(int).tolist()
        self._workspaces = [Workspace() for _ in range(threads)]

    @property
    def parameters(self) -> Floats:
        """The flat vector `(parameters,)`, to be read before the next step."""
        return self._generations[self._now][0]

    @property
    def state(self) -> State:
        """What the optimiser remembers, to be read before the next step."""
        return self._generations[self._now][1]

    def step(
        self, micro_batches: Iterator[Batch], rows: int, learning_rate: float, step_number: int
    ) -> LossSum:
        """Take the step of a mini-batch of so many rows, its micro-batches in order; its loss.

        Of the micro-batches only the sizes count: workers read the rows themselves.
        """
        epoch, place = self._position()
        spans: list[Span] = []
        for part in micro_batches:
            spans.append((place, place + len(part.rows)))
            place += len(part.rows)
        replies = self._gradients(step_number, epoch, spans, rows)
        losses = TreeSum[float](lambda left, right, _: left + right)
        for reply, _ in replies:
            losses.add(reply.loss)
        self._take_step([sums for _, sums in replies], learning_rate, step_number)
        return LossSum(losses.result(), sum(reply.correct for reply, _ in replies), rows)

    def _gradients(
        self, step: int, epoch: int, spans: list[Span], rows: int
    ) -> list[tuple[GradientResult, Floats]]:
        """Each subtree's reply and gradient sum, in order."""
        workers = self._cluster.workers() or [""]
        size = subtree_size(len(spans), len(workers), max(MOST_SUMS, 2 * len(workers)))
        tasks = [
            self._task(step, epoch, tuple(spans[first : first + size]), rows, workers[number])
            for first, number in zip(
                range(0, len(spans), size), _round_robin(len(workers)), strict=False
            )
        ]
        return self._showing.results(
            [(task, self._shared[self._now].handle, self.parameters) for task in tasks]
        )

    def _task(self, step: int, epoch: int, spans: tuple[Span, ...], rows: int, worker: str) -> Task:
        return Task(
            name="gradient",
            what=f"rows {spans[0][0]}..{spans[-1][1] - 1} in the order of epoch {epoch + 1}",
            function=gradient_sum,
            arguments=(self._cluster.job, self._work, step, epoch, spans, rows),
            worker=worker,
        )

    def _take_step(self, sums: list[Floats], learning_rate: float, step_number: int) -> None:
        """Add the sums up and step, a stretch of the parameters per thread."""
        stretches = zip(self._workspaces, self._spans[:-1], self._spans[1:], strict=True)
        before, after = self._generations[self._now], self._generations[1 - self._now]

        def take(stretch: tuple[Workspace, int, int]) -> None:
            workspace, start, end = stretch
            with ignore_overflow():
                for first in range(start, end, BLOCK):
                    block = slice(first, min(first + BLOCK, end))
                    gradient = tree_reduce([found[block] for found in sums], workspace)
                    self._rule.apply(block, before, gradient, learning_rate, step_number, after)

        list(self._pool.map(take, stretches))
        self._now = 1 - self._now

    def close(self) -> None:
        """Let go of the shared memory; the cluster stays."""
        self._pool.shutdown(cancel_futures=True)
        self._showing.close()
        for vector in self._shared:
            vector.close()


def _round_robin(count: int) -> Iterator[int]:
    """0 to count - 1, again and again."""
    while True:
        yield from range(count)


class ClusterTrainer(Trainer):
    """A `Trainer` whose gradients come from a cluster's workers, to the same bits."""

    loader = IndexOnlyLoader

    def __init__(
        self,
        cluster: Cluster,
        config: TrainConfig,
        layers: tuple[Layer, ...],
        dataset: Dataset,
        state: Any = None,
    ) -> None:
        """As `Trainer`, on a cluster that stays open."""
        self._cluster = cluster
        super().__init__(config, layers, dataset, state)

    def _make_stepper(
        self,
        rule: UpdateRule,
        parameters: Floats,
        memory: State,
        dataset: Dataset,
        batch_size: int,
    ) -> ClusterDataParallelStep:
        work = GradientTask(
            ordered_rows(self.config, dataset),
            self.config.network,
            self.config.dtype,
            rule.scaling,
        )
        return ClusterDataParallelStep(
            self._cluster,
            work,
            rule,
            parameters,
            memory,
            lambda: (self.stream.state.epoch, self.stream.place),
            thread_count(self.config.threads),
        )
