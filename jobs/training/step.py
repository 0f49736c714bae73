"""The arithmetic of a step, version 1: micro-batches apart, summed in a fixed tree.

The bits depend on the configuration alone, not on how many cores did the work.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from jobs.nn.network import Columns, Network
from jobs.nn.optimizers import Optimizer, Stepped
from jobs.nn.parameters import Floats, weight_slices
from jobs.nn.workspace import Workspace
from pipeline.transforms import occupied_columns, scale

STEP_VERSION = 1
MICRO_BATCH_ROWS = 256
"""Rows that one core computes at a time in a large batch."""

Item = TypeVar("Item")


def default_micro_batches(batch_size: int) -> int:
    """m for a batch size, whatever the machine.

    Parts of 32 to 80 rows in small batches, four or more of at most `MICRO_BATCH_ROWS` in large
    ones.
    """
    if batch_size < 64:
        return 1
    if batch_size < 160:
        return 2
    return max(4, -(-batch_size // MICRO_BATCH_ROWS))


def unheeded_overflow() -> AbstractContextManager[Any]:
    """No NumPy warnings where a training diverges: its loss tells, once. For one thread only."""
    return np.errstate(over="ignore", invalid="ignore")


def thread_count(threads: int) -> int:
    """How many cores a setting means; 0 is all that this process may use."""
    return threads or len(os.sched_getaffinity(0))


def network_inputs(
    stored: NDArray[Any], dtype: np.dtype[Any], workspace: Workspace | None = None
) -> tuple[Floats, Columns | None]:
    """Stored rows as the network takes them: scaled, and narrowed to their occupied columns."""
    columns = occupied_columns(stored)
    narrow = stored if columns is None else stored[:, columns]
    out = None if workspace is None else workspace.array("inputs", narrow.shape, dtype)
    return scale(narrow, dtype, out), columns


class TreeSum(Generic[Item]):
    """A sum in a fixed binary tree over the items' index, in memory for log2(items) of them.

    Neighbours are added, then neighbouring pairs, and so on; what is left over at the end joins
    from the right.
    """

    def __init__(self, add: Callable[[Item, Item, int], Item]) -> None:
        """`add(left, right, depth)` adds two; what it gives is the only sum of that depth."""
        self._add = add
        self._subtrees: list[tuple[int, Item]] = []  # (items, sum), the largest first

    def add(self, item: Item) -> None:
        """The next item, by index."""
        items = 1
        while self._subtrees and self._subtrees[-1][0] == items:
            left_items, left = self._subtrees.pop()
            item = self._add(left, item, len(self._subtrees))
            items += left_items
        self._subtrees.append((items, item))

    def result(self) -> Item:
        """The sum of all items, at least one."""
        _, total = self._subtrees.pop()
        while self._subtrees:
            _, left = self._subtrees.pop()
            total = self._add(left, total, len(self._subtrees))
        return total


@dataclass(frozen=True)
class StepRule:
    """How a mean gradient becomes new parameters. It holds no state."""

    network: Network
    optimizer: Optimizer
    l2: float
    """The weight decay; see `--l2`."""

    def apply(
        self,
        block: slice,
        before: Stepped,
        gradient: Floats,
        learning_rate: float,
        step_number: int,
        after: Stepped,
    ) -> None:
        """Take a step on one block of the flat vectors, from `before` into `after`.

        `gradient` is the block's mean gradient, and is overwritten.
        """
        parameters = before[0][block]
        if self.l2 and self.optimizer.decouples_l2:
            parameters = parameters.copy()
            for weights in self._weights(block):
                parameters[weights] *= 1 - learning_rate * self.l2
        elif self.l2:
            for weights in self._weights(block):
                gradient[weights] += parameters[weights] * self.l2
        state = {name: vector[block] for name, vector in before[1].items()}
        new_state = {name: vector[block] for name, vector in after[1].items()}
        self.optimizer.step(
            parameters, gradient, state, learning_rate, step_number, (after[0][block], new_state)
        )

    def _weights(self, block: slice) -> list[slice]:
        """Where in the block the weights are that L2 pulls at: all but the biases."""
        size = block.stop - block.start
        return [
            slice(max(0, weights.start - block.start), min(size, weights.stop - block.start))
            for weights in weight_slices(self.network.layers)
            if weights.start < block.stop and block.start < weights.stop
        ]
