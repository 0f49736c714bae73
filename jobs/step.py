"""The arithmetic of a step, version 1: micro-batches apart, summed in a fixed tree.

The bits depend on the configuration alone, not on how many threads did the work.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from jobs.nn.network import Columns, GradientSum, Network
from jobs.nn.parameters import Floats
from pipeline.stream import Batch
from pipeline.transforms import occupied_columns, scale
from storage.errors import BadDataError

STEP_VERSION = 1
MICRO_BATCH_ROWS = 256
"""Rows that one thread computes at a time in a large batch."""

Given = TypeVar("Given")
Result = TypeVar("Result")


def default_micro_batches(batch_size: int) -> int:
    """m for a batch size, whatever the machine: parts of 32 to 80 rows in small batches, four
    parts or more of at most `MICRO_BATCH_ROWS` rows in large ones."""
    if batch_size < 64:
        return 1
    if batch_size < 160:
        return 2
    return max(4, -(-batch_size // MICRO_BATCH_ROWS))


def one_blas_thread() -> AbstractContextManager[Any]:
    """Hold BLAS to one thread: its bits differ between one and several."""
    limits: AbstractContextManager[Any] = threadpool_limits(limits=1, user_api="blas")
    return limits


def unheeded_overflow() -> AbstractContextManager[Any]:
    """No NumPy warnings where a training diverges: its loss tells, once. For one thread only."""
    return np.errstate(over="ignore", invalid="ignore")


def thread_count(threads: int) -> int:
    """How many threads a setting means; 0 is one per core that this process may use."""
    return threads or len(os.sched_getaffinity(0))


def network_inputs(stored: NDArray[Any], dtype: np.dtype[Any]) -> tuple[Floats, Columns | None]:
    """Stored rows as the network takes them: scaled, and narrowed to their occupied columns."""
    columns = occupied_columns(stored)
    return scale(stored if columns is None else stored[:, columns], dtype), columns


class Workers(Generic[Given, Result]):
    """Threads that apply a function to items and give the results in the items' order."""

    def __init__(self, function: Callable[[Given], Result], threads: int) -> None:
        """`threads` 1 works in the calling thread."""
        self._function = function
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, "compute") if threads > 1 else None

    def map(self, items: Iterator[Given]) -> Iterator[Result]:
        """Results in order; no more items are taken ahead than there are threads.

        The calling thread does its share: handing work over costs as much as a small micro-batch.
        """
        if self._pool is None:
            yield from map(self._function, items)
            return
        while group := list(islice(items, self._threads)):
            others = [self._pool.submit(self._function, item) for item in group[1:]]
            yield self._function(group[0])
            for other in others:
                yield other.result()

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class TreeSum:
    """A sum in a fixed binary tree over the items' index, in memory for log2(items) of them.

    Neighbours are added, then neighbouring pairs, and so on; what is left over at the end joins
    from the right. The items' arrays are taken over: sums are made in place in them.
    """

    def __init__(self) -> None:
        self._subtrees: list[tuple[int, GradientSum]] = []  # (items, sum), the largest first

    def add(self, item: GradientSum) -> None:
        """The next item, by index."""
        items = 1
        while self._subtrees and self._subtrees[-1][0] == items:
            left_items, left = self._subtrees.pop()
            item = _added(left, item)
            items += left_items
        self._subtrees.append((items, item))

    def result(self) -> GradientSum:
        """The sum of all items, at least one."""
        _, total = self._subtrees.pop()
        while self._subtrees:
            _, left = self._subtrees.pop()
            total = _added(left, total)
        return total


def _added(left: GradientSum, right: GradientSum) -> GradientSum:
    np.add(left.gradient, right.gradient, out=left.gradient)
    return GradientSum(
        left.gradient,
        left.loss_sum + right.loss_sum,
        left.correct + right.correct,
        left.rows + right.rows,
    )


class StepArithmetic:
    """Gradients of whole mini-batches from their micro-batches, on several threads."""

    def __init__(self, network: Network, threads: int) -> None:
        """At most `threads` micro-batches are computed at once; the bits are those of one."""
        self._network = network
        self._workers = Workers(self._micro_batch, threads)

    def gradient_sum(self, parameters: Floats, micro_batches: Iterator[Batch]) -> GradientSum:
        """The sums over a mini-batch, given as its micro-batches in order."""
        tree = TreeSum()
        for part in self._workers.map((parameters, batch) for batch in micro_batches):
            tree.add(part)
        return tree.result()

    def _micro_batch(self, work: tuple[Floats, Batch]) -> GradientSum:
        parameters, batch = work
        if batch.targets is None:
            raise BadDataError("The split has no labels to learn from; choose a labelled one.")
        inputs = scale(batch.inputs, self._network.dtype)
        with unheeded_overflow():
            return self._network.gradient_sum(parameters, inputs, batch.targets)

    def close(self) -> None:
        """Stop the threads."""
        self._workers.close()
