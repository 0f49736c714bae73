"""The data-parallel step: all cores update the parameters and the optimizer's state together.

A step has two halves. First each process computes the gradient sums of some micro-batches. Then
each adds up all sums, and takes the step, on its own stretch of the parameters. The processes
exchange everything in shared memory, and no process writes where another one reads.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from jobs.nn.network import LossSum, Workspace
from jobs.nn.optimizers import State
from jobs.nn.parameters import Floats
from jobs.training.environment import one_blas_thread
from jobs.training.gradients import GradientRule, Gradients
from jobs.training.process_pool import PROCESS_MEMORY, Meet, ProcessPool, Reply, Task, shared_array
from jobs.training.step import (
    BLOCK,
    TreeSum,
    UpdateRule,
    ignore_overflow,
    subtree_size,
    tree_reduce,
)
from pipeline.stream import Batch
from pipeline.windows import ROW_NUMBERS
from storage.location import Closing
from storage.schema import SplitSchema

MOST_SPAN = 8
"""Micro-batches in a gradient sum at most: a process holds the rows of all of them."""

GROUP = 16
"""Gradient sums kept until the step, or more on many cores. Larger mini-batches are added up
group by group; a power of two makes each group one subtree of the fixed tree."""

GRADIENT, STEP = 0, 1


class DataParallelStep(Closing):
    """Takes optimizer steps on several cores, to the same bits as on one.

    Micro-batches may be views of windows. Those of the other processes are copied; this process
    takes its own one at a time, and holds none while it takes the next.
    """

    def __init__(
        self,
        rule: GradientRule,
        update: UpdateRule,
        parameters: Floats,
        state: State,
        schema: SplitSchema,
        *,
        batch_size: int,
        micro_batches: int,
        threads: int,
    ) -> None:
        """Start from copies of `parameters` and of the optimizer's `state`.

        Mini-batches have at most `batch_size` rows of a split with this `schema`, in
        `micro_batches` parts, or one per row if there are fewer rows. At most as many `threads`
        as parts are used.
        """
        self._size = min(threads, micro_batches)
        self._micro_batches = micro_batches
        self._span = process_span(micro_batches, self._size)
        self._gradients = Gradients(rule)  # each fork continues with its own copy
        self._update = update
        generations = [
            (_shared_copy(parameters), {name: _shared_copy(state[name]) for name in state})
            for _ in range(min(2, self._size))
        ]
        # A single process never repeats a step, so it steps in place.
        self._generations = generations[0], generations[-1]
        self._now = 0
        group = max(GROUP, 1 << (self._size - 1).bit_length())
        self._sums = [
            shared_array(parameters.shape, parameters.dtype)
            for _ in range(min(group, self._tasks(batch_size)))
        ]
        """The arrays that gradient sums are written to."""
        self._own: Iterator[Batch] = iter(())
        """The micro-batches that this process computes itself."""
        rows = self._span * -(-batch_size // micro_batches)
        others = range(self._size - 1)
        self._inputs = [shared_array((rows, schema.columns), schema.dtype) for _ in others]
        self._targets = [shared_array((rows, schema.classes), np.uint8) for _ in others]
        self._numbers = [shared_array((rows,), np.int64) for _ in others]
        self._schema = schema
        self._bounds = np.linspace(0, len(parameters), self._size + 1).astype(int).tolist()
        self._workspace = Workspace()
        with one_blas_thread():  # the forks inherit the limit
            self._pool = ProcessPool(self._work, self._size)

    @property
    def parameters(self) -> Floats:
        return self._generations[self._now][0]

    @property
    def state(self) -> State:
        return self._generations[self._now][1]

    @property
    def process_numbers(self) -> list[int]:
        """The process identifiers of the forks that are alive."""
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
        """Return the number of gradient sums of a mini-batch of `rows`."""
        return -(-min(self._micro_batches, rows) // self._span)

    def _sum_gradients(self, micro_batches: Iterator[Batch], rows: int) -> tuple[int, LossSum]:
        """Compute the gradient sums; return how many of `_sums` hold them, and the loss."""
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
                groups.add(self._reduced(used).copy())
        if tasks > most:
            self._sums[0][:] = groups.result()
        return (1 if tasks > most else used), losses.result()

    def _reduced(self, used: int) -> Floats:
        """Return the sum of the first `used` of `_sums`, written over the first."""
        tree = TreeSum[Floats](_add_in_place)
        for gradient_sum in self._sums[:used]:
            tree.add(gradient_sum)
        return tree.result()

    def _gradient_task(
        self, micro_batches: Iterator[Batch], batch_rows: int, first: int, place: int
    ) -> Task:
        """Return a gradient task, after copying its micro-batches for its process.

        `first` is the number of the group's first task, and `place` the task's place in the group.
        """
        member = place % self._size
        done = (first + place) * self._span
        parts = min(self._span, min(self._micro_batches, batch_rows) - done)
        rows = epoch = 0
        if member == self._size - 1:
            self._own = islice(micro_batches, parts)
        else:
            for _ in range(parts):
                rows, epoch = self._copy(next(micro_batches), member, rows)
        return (GRADIENT, self._now, member, parts, rows, epoch, batch_rows, place)

    def _copy(self, micro_batch: Batch, member: int, start: int) -> tuple[int, int]:
        """Copy a micro-batch to a process's rows from `start` on; return end and epoch."""
        stop = start + len(micro_batch.inputs)
        self._inputs[member][start:stop] = micro_batch.inputs
        self._numbers[member][start:stop] = micro_batch.rows
        if micro_batch.targets is not None:
            self._targets[member][start:stop] = micro_batch.targets
        return stop, micro_batch.epoch

    def _copied(self, member: int, parts: int, rows: int, epoch: int) -> Iterator[Batch]:
        """Return a process's micro-batches, cut as a mini-batch is: the larger ones come first."""
        cuts = (
            np.array_split(array[member][:rows], parts)
            for array in (self._inputs, self._targets, self._numbers)
        )
        for inputs, targets, numbers in zip(*cuts, strict=True):
            yield Batch(inputs, targets if self._schema.classes else None, numbers, epoch)

    def _work(self, task: Task, meet: Meet) -> Reply:
        """Compute a task; repeated, it has the same result."""
        action, *details = task
        with ignore_overflow():
            if action == GRADIENT:
                return self._gradient(*(int(detail) for detail in details))
            now, sums, learning_rate, step_number, stretch = details
            self._step(int(now), int(sums), learning_rate, int(step_number), int(stretch))
            return ()

    def _gradient(
        self,
        now: int,
        member: int,
        parts: int,
        rows: int,
        epoch: int,
        batch_rows: int,
        place: int,
    ) -> Reply:
        """Compute the gradient sum of a process's micro-batches."""
        own = member == self._size - 1
        loss = self._gradients.of_subtree(
            self._generations[now][0],
            self._own if own else self._copied(member, parts, rows, epoch),
            batch_rows,
            self._sums[place],
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
            blocks = [gradient_sum[block] for gradient_sum in self._sums[:sums]]
            # A process that never repeats a step may overwrite its only sum.
            overwrites = self._size == sums == 1
            gradient = blocks[0] if overwrites else tree_reduce(blocks, self._workspace)
            self._update.apply(block, before, gradient, learning_rate, step_number, after)

    def close(self) -> None:
        """End the other processes."""
        self._pool.close()


def row_parallel_memory(
    rule: GradientRule, schema: SplitSchema, batch_size: int, micro_batches: int, threads: int
) -> int:
    """Return the bytes of a `DataParallelStep` at most, without its two copies of the state."""
    network = rule.network
    size = min(threads, micro_batches)
    span = process_span(micro_batches, size)
    tasks = -(-micro_batches // span)
    sums = min(tasks, 2 * max(GROUP, size)) + tasks.bit_length() + size * span.bit_length()
    rows = -(-batch_size // micro_batches)
    process = (
        PROCESS_MEMORY
        + rows * (network.gradient_memory + span * (schema.row_bytes + ROW_NUMBERS))
        + rule.memory(rows)
        + 2 * network.first_layer_memory
    )
    return sums * network.parameter_memory + size * process


def process_span(micro_batches: int, processes: int) -> int:
    """Return the number of micro-batches in each gradient sum."""
    return min(MOST_SPAN, subtree_size(micro_batches, processes, most=micro_batches))


def _add_in_place(left: Floats, right: Floats, _: int) -> Floats:
    return np.add(left, right, out=left)


def _shared_copy(values: Floats) -> Floats:
    """Return an array of the same shape, dtype and values in shared memory."""
    shared = shared_array(values.shape, values.dtype)
    shared[:] = values
    return shared
