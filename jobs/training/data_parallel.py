"""The data-parallel step: parameters and the optimiser's state, moved on by all cores at once.

A step has two halves. First each process computes the gradient sums of some micro-batches, then
each adds them up and takes the step on its own stretch of the parameters. Whatever the processes
exchange lies in memory that they share; no sum is written where another one reads.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from jobs.environment import one_blas_thread
from jobs.nn.network import LossSum, Network, Workspace
from jobs.nn.optimizers import State
from jobs.nn.parameters import Floats
from jobs.training.process_pool import PROCESS_MEMORY, ProcessPool, Reply, Task, shared_array
from jobs.training.step import (
    TreeSum,
    UpdateRule,
    gradient_of_subtree,
    ignore_overflow,
    subtree_size,
    tree_reduce,
)
from pipeline.order import RowNumbers
from pipeline.stream import Batch
from storage.location import Closing
from storage.schema import SplitSchema

MOST_SPAN = 8
"""Micro-batches that a process adds up by itself, at most: it holds all their rows."""

GROUP = 16
"""Gradient sums that are kept apart until the step, at least. Larger mini-batches are added up
group by group; a power of two makes each group one subtree of the fixed tree."""

BLOCK = 65_536
"""Elements of the vectors that are stepped at a time: all that Adam touches fits the cache."""

GRADIENT, STEP = 0, 1

NO_NUMBERS: RowNumbers = np.empty(0, np.int64)
"""Those of rows whose numbers do not matter any more."""


class DataParallelStep(Closing):
    """Takes steps from micro-batches, on several cores, with the bits of one.

    Micro-batches may be views of windows. They are copied for the other processes, and taken by
    this one as it comes to them: none is held while the next is taken.
    """

    def __init__(
        self,
        rule: UpdateRule,
        parameters: Floats,
        state: State,
        schema: SplitSchema,
        *,
        batch_size: int,
        micro_batches: int,
        threads: int,
    ) -> None:
        """Start from `parameters` and the optimiser's `state`, which are copied.

        Mini-batches have at most `batch_size` rows of a split with this `schema`, in
        `micro_batches` parts or one per row. More `threads` than parts are not used.
        """
        self._size = min(threads, micro_batches)
        self._micro_batches = micro_batches
        self._span = process_span(micro_batches, self._size)
        self._rule = rule
        self._generations = [
            (_shared_copy(parameters), {name: _shared_copy(state[name]) for name in state})
            for _ in range(2)
        ]
        self._now = 0
        tasks = self._tasks(batch_size)
        self._alone = self._size == tasks == 1
        group = max(GROUP, 1 << (self._size - 1).bit_length())
        self._shared_sums = [
            shared_array(parameters.shape, parameters.dtype)
            for _ in range(0 if self._alone else min(group, tasks))
        ]
        self._own: Iterator[Batch] = iter(())
        """The micro-batches that this process takes at last, as it comes to them."""
        rows = self._span * -(-batch_size // micro_batches)
        others = range(self._size - 1)
        self._inputs = [shared_array((rows, schema.columns), schema.dtype) for _ in others]
        self._targets = [shared_array((rows, schema.classes), np.uint8) for _ in others]
        self._schema = schema
        self._bounds = np.linspace(0, len(parameters), self._size + 1).astype(int).tolist()
        self._workspace = Workspace()
        with one_blas_thread():  # which the forks inherit
            self._pool = ProcessPool(self._work, self._size)

    @property
    def parameters(self) -> Floats:
        return self._generations[self._now][0]

    @property
    def state(self) -> State:
        return self._generations[self._now][1]

    @property
    def process_numbers(self) -> list[int]:
        """The forked processes that are at work for this one."""
        return self._pool.process_numbers

    def step(
        self, micro_batches: Iterator[Batch], rows: int, learning_rate: float, step_number: int
    ) -> LossSum:
        """Take the step of a mini-batch of `rows`, its micro-batches in order; return its loss."""
        sums, loss = self._sum_gradients(micro_batches, rows)
        step = (STEP, self._now, sums, learning_rate, step_number)
        self._pool.run([(*step, stretch) for stretch in range(self._size)])
        self._now = 1 - self._now
        return loss

    def _tasks(self, rows: int) -> int:
        """Return how many gradient sums a mini-batch of so many rows has."""
        return -(-min(self._micro_batches, rows) // self._span)

    @property
    def _sums(self) -> list[Floats]:
        """Where gradient sums are written.

        With one task there is one sum, and it lies where the new parameters will be: block by
        block they take its place. So a step touches less memory than the cache holds.
        """
        return [self._generations[1 - self._now][0]] if self._alone else self._shared_sums

    def _sum_gradients(self, micro_batches: Iterator[Batch], rows: int) -> tuple[int, LossSum]:
        """Compute the gradient sums; return in how many of `_sums` they are left, and the loss."""
        losses = TreeSum[LossSum](lambda left, right, _: left + right)
        groups = TreeSum[Floats](_add_in_place)
        tasks, most = self._tasks(rows), len(self._sums)
        for first in range(0, tasks, most):
            used = min(most, tasks - first)
            for start in range(0, used, self._size):
                places = range(start, min(start + self._size, used))
                for loss, correct, size in self._pool.run(
                    [self._gradient_task(micro_batches, rows, first, place) for place in places]
                ):
                    losses.add(LossSum(loss, int(correct), int(size)))
            if tasks > most:
                groups.add(self._added_up(used).copy())
        if tasks > most:
            self._sums[0][:] = groups.result()
        return (1 if tasks > most else used), losses.result()

    def _added_up(self, used: int) -> Floats:
        """Return the first `used` of `_sums` as one, which is written over the first."""
        tree = TreeSum[Floats](_add_in_place)
        for gradient_sum in self._sums[:used]:
            tree.add(gradient_sum)
        return tree.result()

    def _gradient_task(
        self, micro_batches: Iterator[Batch], batch_rows: int, first: int, place: int
    ) -> Task:
        """Lay a task's micro-batches where its process finds them.

        `first` is the number of the group's first task, and `place` that of the task in the group.
        """
        member = place % self._size
        done = (first + place) * self._span
        parts = min(self._span, min(self._micro_batches, batch_rows) - done)
        rows = 0
        if member == self._size - 1:
            self._own = islice(micro_batches, parts)
        else:
            for _ in range(parts):
                rows += self._lay(next(micro_batches), member, rows)
        return (GRADIENT, self._now, member, parts, rows, batch_rows, place)

    def _lay(self, part: Batch, member: int, start: int) -> int:
        """Copy a micro-batch's rows to a process's, from row `start` on; return how many."""
        stop = start + len(part.inputs)
        self._inputs[member][start:stop] = part.inputs
        if part.targets is not None:
            self._targets[member][start:stop] = part.targets
        return stop - start

    def _laid(self, member: int, parts: int, rows: int) -> Iterator[Batch]:
        """Return a process's micro-batches: of a mini-batch's parts, the larger ones come first."""
        cuts = (
            np.array_split(whole[member][:rows], parts) for whole in (self._inputs, self._targets)
        )
        for inputs, targets in zip(*cuts, strict=True):
            yield Batch(inputs, targets if self._schema.classes else None, NO_NUMBERS)

    def _work(self, task: Task) -> Reply:
        """Do a process's task; twice with the same result."""
        action, *details = task
        with ignore_overflow():
            if action == GRADIENT:
                return self._gradient(*(int(detail) for detail in details))
            now, sums, learning_rate, step_number, stretch = details
            self._step(int(now), int(sums), learning_rate, int(step_number), int(stretch))
            return ()

    def _gradient(
        self, now: int, member: int, parts: int, rows: int, batch_rows: int, place: int
    ) -> Reply:
        """Compute the gradient sum of a process's micro-batches."""
        own = member == self._size - 1
        loss = gradient_of_subtree(
            self._rule.network,
            self._rule.scaling,
            self._generations[now][0],
            self._own if own else self._laid(member, parts, rows),
            batch_rows,
            self._sums[place],
            self._workspace,
        )
        return loss.loss_sum, loss.correct, loss.rows

    def _step(
        self, now: int, sums: int, learning_rate: float, step_number: int, stretch: int
    ) -> None:
        """Take the step on one stretch of the parameters, block by block."""
        before, after = self._generations[now], self._generations[1 - now]
        start, end = self._bounds[stretch], self._bounds[stretch + 1]
        for first in range(start, end, BLOCK):
            block = slice(first, min(first + BLOCK, end))
            of_block = [gradient_sum[block] for gradient_sum in self._sums[:sums]]
            # A lone process takes no step twice, so its only sum may be overwritten.
            gradient = of_block[0] if self._alone else tree_reduce(of_block, self._workspace)
            self._rule.apply(block, before, gradient, learning_rate, step_number, after)

    def close(self) -> None:
        """End the other processes."""
        self._pool.close()


def step_memory(
    network: Network, schema: SplitSchema, batch_size: int, micro_batches: int, threads: int
) -> int:
    """Return the bytes that a `DataParallelStep` takes at most, its two generations left out."""
    size = min(threads, micro_batches)
    span = process_span(micro_batches, size)
    tasks = -(-micro_batches // span)
    sums = min(tasks, 2 * max(GROUP, size)) + tasks.bit_length() + size * span.bit_length()
    rows = -(-batch_size // micro_batches)
    process = (
        PROCESS_MEMORY
        + rows * (network.gradient_memory + span * schema.row_bytes)
        + 2 * network.first_layer_memory
    )
    return sums * network.parameter_memory + size * process


def process_span(micro_batches: int, processes: int) -> int:
    """Return how many micro-batches each process adds up by itself before it takes others."""
    return min(MOST_SPAN, subtree_size(micro_batches, processes, most=micro_batches))


def _add_in_place(left: Floats, right: Floats, _: int) -> Floats:
    return np.add(left, right, out=left)


def _shared_copy(values: Floats) -> Floats:
    """Return an array of the same shape, dtype and values in shared memory."""
    shared = shared_array(values.shape, values.dtype)
    shared[:] = values
    return shared
