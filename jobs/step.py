"""The arithmetic of a step, version 1: micro-batches apart, summed in a fixed tree.

The bits depend on the configuration alone, not on how many threads did the work.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from jobs.nn.network import GradientSum, Network
from jobs.nn.parameters import Floats
from pipeline.stream import Batch
from pipeline.transforms import scale
from storage.errors import BadDataError

STEP_VERSION = 1
MICRO_BATCH_ROWS = 256
"""Rows that one thread computes at a time in a large batch."""

Given = TypeVar("Given")
Result = TypeVar("Result")


def default_micro_batches(batch_size: int) -> int:
    """m for a batch size, whatever the machine: two halves of small batches, then about
    `MICRO_BATCH_ROWS` rows each, four at the least."""
    if batch_size < 64:
        return 1
    if batch_size < 4 * MICRO_BATCH_ROWS // 2:
        return 2
    return max(4, -(-batch_size // MICRO_BATCH_ROWS))


def one_blas_thread() -> AbstractContextManager[Any]:
    """Hold BLAS to one thread: its bits differ between one and several."""
    return threadpool_limits(limits=1, user_api="blas")


def thread_count(threads: int) -> int:
    """How many threads a setting means; 0 is one per core that this process may use."""
    return threads or len(os.sched_getaffinity(0))


class Workers(Generic[Given, Result]):
    """Threads that apply a function to items and give the results in the items' order."""

    def __init__(self, function: Callable[[Given], Result], threads: int) -> None:
        """`threads` 1 works in the calling thread."""
        self._function = function
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "compute") if threads > 1 else None

    def map(self, items: Iterator[Given]) -> Iterator[Result]:
        """Results in order; at most one item more than there are threads is under way."""
        if self._pool is None:
            yield from map(self._function, items)
            return
        under_way: deque[Future[Result]] = deque()
        for item in items:
            under_way.append(self._pool.submit(self._function, item))
            if len(under_way) > self._threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

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
        return self._network.gradient_sum(parameters, inputs, batch.targets)

    def close(self) -> None:
        """Stop the threads."""
        self._workers.close()
