"""The stepper: parameters and the optimiser's state, moved on by all cores at once.

A step has two halves. First each core computes the gradient sums of some micro-batches, then each
adds them up and takes the step on its own stretch of the parameters. Whatever the processes
exchange lies in memory that they share; no sum is written where another one reads.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from jobs.environment import one_blas_thread
from jobs.nn.network import LossSum, Workspace
from jobs.nn.optimizers import State, Stepped
from jobs.nn.parameters import Floats
from jobs.training.process_pool import ProcessPool, Reply, Task, shared_array
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


def member_span(micro_batches: int, members: int) -> int:
    """How many micro-batches each member of a team adds up by itself before it takes others."""
    return min(MOST_SPAN, subtree_size(micro_batches, members, most=micro_batches))


class DataParallelStep(Closing):
    """Takes steps from micro-batches, on several cores, with the bits of one."""

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

        Mini-batches have at most `batch_size` rows of a split with this `schema`, in at most
        `micro_batches` parts. More `threads` than parts are not used.
        """
        size = min(threads, micro_batches)
        self._span = member_span(micro_batches, size)
        self._tasks = -(-micro_batches // self._span)
        self._rule = rule
        self._generations = [_shared_copy(parameters, state) for _ in range(2)]
        self._now = 0
        self._alone = size == self._tasks == 1
        group = max(GROUP, 1 << (size - 1).bit_length())
        self._shared_sums = [
            shared_array(parameters.shape, parameters.dtype)
            for _ in range(0 if self._alone else min(group, self._tasks))
        ]
        self._own: Iterator[Batch] = iter(())
        """The micro-batches that this process takes at last, as it comes to them."""
        rows = self._span * -(-batch_size // micro_batches)
        others = range(size - 1)
        self._inputs = [shared_array((rows, schema.columns), schema.dtype) for _ in others]
        self._targets = [shared_array((rows, schema.classes), np.uint8) for _ in others]
        self._size = size
        self._schema = schema
        self._spans = np.linspace(0, len(parameters), size + 1).astype(int).tolist()
        self._workspace = Workspace()
        with one_blas_thread():  # which the forks inherit
            self._team = ProcessPool(self._work, size)

    @property
    def parameters(self) -> Floats:
        """The flat vector `(parameters,)`, to be read before the next step."""
        return self._generations[self._now][0]

    @property
    def state(self) -> State:
        """What the optimiser remembers, to be read before the next step."""
        return self._generations[self._now][1]

    @property
    def process_numbers(self) -> list[int]:
        """The forked processes that are at work for this one."""
        return self._team.process_numbers

    @property
    def missing_processes(self) -> int:
        """Forked processes that are dead or could not be had; their work is done here."""
        return self._team.missing

    def step(
        self, micro_batches: Iterator[Batch], rows: int, learning_rate: float, step_number: int
    ) -> LossSum:
        """Take the step of a mini-batch of so many rows, its micro-batches in order; its loss."""
        sums, loss = self._sum_gradients(micro_batches, rows)
        step = (STEP, self._now, sums, learning_rate, step_number)
        self._team.run([(*step, span) for span in range(self._size)])
        self._now = 1 - self._now
        return loss

    @property
    def _sums(self) -> list[Floats]:
        """Where gradient sums are written.

        With one task there is one sum, and it lies where the new parameters will be: block by
        block they take its place. So a step touches less memory than the cache holds.
        """
        return [self._generations[1 - self._now][0]] if self._alone else self._shared_sums

    def _sum_gradients(
        self, micro_batches: Iterator[Batch], batch_rows: int
    ) -> tuple[int, LossSum]:
        """Compute the gradient sums; in how many of `_sums` they are left, and the loss."""
        losses = TreeSum[float](lambda left, right, _: left + right)
        groups = TreeSum[Floats](_add_in_place)
        in_groups = len(self._sums) < self._tasks
        used = correct = rows = 0
        while tasks := list(self._gradient_tasks(micro_batches, batch_rows, used)):
            for loss, right, size in self._team.run(tasks):
                losses.add(loss)
                correct += int(right)
                rows += int(size)
            used += len(tasks)
            if in_groups and used == len(self._sums):
                groups.add(self._added_up(used).copy())
                used = 0
        if in_groups:
            if used:
                groups.add(self._added_up(used))
            self._sums[0][:] = groups.result()
            used = 1
        return used, LossSum(losses.result(), correct, rows)

    def _added_up(self, used: int) -> Floats:
        """The first so many of `_sums` as one, which is written over the first."""
        tree = TreeSum[Floats](_add_in_place)
        for gradient_sum in self._sums[:used]:
            tree.add(gradient_sum)
        return tree.result()

    def _gradient_tasks(
        self, micro_batches: Iterator[Batch], batch_rows: int, used: int
    ) -> Iterator[Task]:
        """Lay the next micro-batches where the team finds them, a span of them for each member.

        They are copied, but for those that this process takes at last, so that no window is
        kept when the stream goes on to the next.
        """
        for member in range(min(self._size, len(self._sums) - used)):
            parts = rows = 0
            if member == self._size - 1:
                first = next(micro_batches, None)
                if first is None:
                    return
                self._own = _with_first(first, islice(micro_batches, self._span - 1))
                del first
            else:
                for part in islice(micro_batches, self._span):
                    self._lay(part, member, rows)
                    parts, rows = parts + 1, rows + len(part.inputs)
                    del part
                if not parts:
                    return
            yield (GRADIENT, self._now, member, parts, rows, batch_rows, used + member)

    def _lay(self, part: Batch, member: int, start: int) -> None:
        """Copy a micro-batch's rows to a member's, from row `start` on."""
        stop = start + len(part.inputs)
        self._inputs[member][start:stop] = part.inputs
        if part.targets is not None:
            self._targets[member][start:stop] = part.targets

    def _laid(self, member: int, parts: int, rows: int) -> Iterator[Batch]:
        """A member's micro-batches: of a mini-batch's parts, the larger ones come first."""
        cuts = (
            np.array_split(whole[member][:rows], parts) for whole in (self._inputs, self._targets)
        )
        for inputs, targets in zip(*cuts, strict=True):
            yield Batch(inputs, targets if self._schema.classes else None, NO_NUMBERS)

    def _work(self, task: Task) -> Reply:
        """What a member of the team does; twice with the same result."""
        kind, *details = task
        with ignore_overflow():
            if kind == GRADIENT:
                return self._gradient(*(int(detail) for detail in details))
            now, sums, learning_rate, step_number, span = details
            self._step(int(now), int(sums), learning_rate, int(step_number), int(span))
            return ()

    def _gradient(
        self, now: int, member: int, parts: int, rows: int, batch_rows: int, place: int
    ) -> Reply:
        """Compute the gradient sum of a member's micro-batches."""
        own = member == self._size - 1
        found = gradient_of_subtree(
            self._rule.network,
            self._rule.scaling,
            self._generations[now][0],
            self._own if own else self._laid(member, parts, rows),
            batch_rows,
            self._sums[place],
            self._workspace,
        )
        return found.loss_sum, found.correct, found.rows

    def _step(self, now: int, sums: int, learning_rate: float, step_number: int, span: int) -> None:
        """Take the step on one stretch of the parameters, block by block."""
        before, after = self._generations[now], self._generations[1 - now]
        start, end = self._spans[span], self._spans[span + 1]
        for first in range(start, end, BLOCK):
            block = slice(first, min(first + BLOCK, end))
            of_block = [gradient_sum[block] for gradient_sum in self._sums[:sums]]
            # A lone process takes no step twice, so its only sum may be overwritten.
            gradient = of_block[0] if self._alone else tree_reduce(of_block, self._workspace)
            self._rule.apply(block, before, gradient, learning_rate, step_number, after)

    def close(self) -> None:
        """End the other processes."""
        self._team.close()


def _with_first(first: Batch, others: Iterator[Batch]) -> Iterator[Batch]:
    """All of them in order, none held while the next is taken."""
    yield first
    del first
    yield from others


def _add_in_place(left: Floats, right: Floats, _: int) -> Floats:
    return np.add(left, right, out=left)


def _shared_copy(parameters: Floats, state: State) -> Stepped:
    """The same values in shared memory."""
    return _shared_like(parameters), {name: _shared_like(values) for name, values in state.items()}


def _shared_like(values: Floats) -> Floats:
    """An array of the same shape, dtype and values in shared memory."""
    shared = shared_array(values.shape, values.dtype)
    shared[:] = values
    return shared
