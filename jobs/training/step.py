"""The arithmetic of a step, version 4: sums in a fixed tree, and the update.

The bits depend on the configuration alone, not on the number of cores.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np

from jobs.nn.network import Network, Workspace
from jobs.nn.optimizers import Optimizer, Stepped, make_optimizer
from jobs.nn.parameters import Floats, weight_slices
from jobs.training.config import TrainConfig
from pipeline.windows import usable_cores

STEP_VERSION = 4
MICRO_BATCH_ROWS = 256
"""Rows of a micro-batch of a large batch at most."""
LEAST_WORK = 10_000_000
"""Rows times parameters of a mini-batch below which a second core costs more than it saves."""
BLOCK = 262_144
"""Elements updated at a time. Smaller blocks fit the cache, but cost more calls than they save."""

Item = TypeVar("Item")


def default_micro_batches(batch_size: int) -> int:
    """Return the number of micro-batches of a mini-batch, the same on every machine.

    One below 320 rows, whose work is divided by the units of the first layer, then four or more of
    at most `MICRO_BATCH_ROWS`. Smaller ones would keep more cores busy, but each costs a pass over
    all parameters.
    """
    return 1 if batch_size < 320 else max(4, -(-batch_size // MICRO_BATCH_ROWS))


def micro_batch_count(chosen: int | None, batch_size: int) -> int:
    """Return the number of micro-batches: `--micro-batches` or the default, none of them empty."""
    return min(chosen or default_micro_batches(batch_size), batch_size)


def core_count(network: Network, batch_size: int, micro_batches: int, threads: int) -> int:
    """Return the cores that the steps of mini-batches of `batch_size` rows use, of `threads`."""
    if micro_batches > 1:
        return min(threads, micro_batches)
    return min(threads, network.parts) if batch_size * network.parameter_count >= LEAST_WORK else 1


def subtree_size(micro_batches: int, workers: int, most: int) -> int:
    """Return the number of micro-batches in a gradient sum: a power of two, which is a subtree.

    Among the sizes that give at most `most` sums, it minimises the time of the last worker. Of
    equals it is the largest.
    """
    sizes = [1 << depth for depth in range((micro_batches - 1).bit_length() + 1)]

    def rounds(size: int) -> int:
        tasks = -(-micro_batches // size)
        return -(-tasks // workers) * min(size, micro_batches)

    fitting = [size for size in sizes if -(-micro_batches // size) <= most]
    return min(fitting, key=lambda size: (rounds(size), -size))


def ignore_overflow() -> AbstractContextManager[Any]:
    """Silence NumPy's warnings in this thread: divergence is detected from the loss."""
    return np.errstate(over="ignore", invalid="ignore")


def thread_count(threads: int) -> int:
    """Return the number of cores for `--threads`; 0 means all that this process may use."""
    return threads or usable_cores()


class TreeSum(Generic[Item]):
    """A sum in a fixed binary tree over the items' index, which holds log2(items) of them.

    Neighbours are added, then neighbouring pairs, and so on; the rest at the end is added from
    the right.
    """

    def __init__(self, add: Callable[[Item, Item, int], Item]) -> None:
        """`add(left, right, depth)` returns the sum of two; one sum per depth exists at a time."""
        self._add = add
        self._subtrees: list[tuple[int, Item]] = []  # (items, sum), the largest first

    def add(self, item: Item) -> None:
        """Add the next item."""
        items = 1
        while self._subtrees and self._subtrees[-1][0] == items:
            left_items, left = self._subtrees.pop()
            item = self._add(left, item, len(self._subtrees))
            items += left_items
        self._subtrees.append((items, item))

    def result(self) -> Item:
        """Return the sum of all items; there must be one."""
        _, total = self._subtrees.pop()
        while self._subtrees:
            _, left = self._subtrees.pop()
            total = self._add(left, total, len(self._subtrees))
        return total


def tree_reduce(sums: list[Floats], workspace: Workspace) -> Floats:
    """Return the sum of the subtrees' sums in the fixed tree: the gradient of a mini-batch.

    `sums` and the result, which is scratch memory, cover one stretch of the parameters.
    """
    shape, dtype = sums[0].shape, sums[0].dtype

    def add(left: Floats, right: Floats, depth: int) -> Floats:
        scratch: Floats = workspace.array(f"sum-{depth}", shape, dtype)
        return np.add(left, right, out=scratch)

    tree = TreeSum[Floats](add)
    for gradient_sum in sums:
        tree.add(gradient_sum)
    if len(sums) > 1:
        return tree.result()
    copy: Floats = workspace.array("sum-0", shape, dtype)
    copy[:] = sums[0]
    return copy


@dataclass(frozen=True)
class UpdateRule:
    """The update of the parameters by a mini-batch's gradient. It holds no state."""

    network: Network
    optimizer: Optimizer
    l2: float
    """The strength of L2 regularisation; see `--l2`."""
    weights: tuple[slice, ...] | None = None
    """The elements that L2 applies to; None: all but the biases in `jobs.nn.parameters`' layout."""

    def apply(
        self,
        block: slice,
        before: Stepped,
        gradient: Floats,
        learning_rate: float,
        step_number: int,
        after: Stepped,
    ) -> None:
        """Update one block of the flat vectors from `before` into `after`.

        `gradient` is the block's part of the gradient of the mean loss. It is overwritten. `after`
        may be `before`, for a step in place.
        """
        parameters = before[0][block]
        if self.l2 and self.optimizer.decouples_l2:
            after[0][block] = parameters
            parameters = after[0][block]
            for weights in self._weights(block):
                parameters[weights] *= 1 - learning_rate * self.l2
        elif self.l2:
            for weights in self._weights(block):
                gradient[weights] += parameters[weights] * self.l2
        state = {name: vector[block] for name, vector in before[1].items()}
        new_state = {name: vector[block] for name, vector in after[1].items()}
        out = after[0][block], new_state
        self.optimizer.step((parameters, state), gradient, learning_rate, step_number, out)

    @cached_property
    def _all_weights(self) -> Sequence[slice]:
        return self.weights or weight_slices(self.network.layers)

    def _weights(self, block: slice) -> list[slice]:
        """Return the slices of the block that L2 applies to: all weights, no biases."""
        size = block.stop - block.start
        return [
            slice(max(0, weights.start - block.start), min(size, weights.stop - block.start))
            for weights in self._all_weights
            if weights.start < block.stop and block.start < weights.stop
        ]


def optimizer_of(config: TrainConfig) -> Optimizer:
    """Return the optimizer of a run, and of each replica in it."""
    return make_optimizer(
        config.optimizer, momentum=config.momentum, beta1=config.beta1, beta2=config.beta2
    )


def update_rule(config: TrainConfig, network: Network) -> UpdateRule:
    """Return the rule of a run's steps, and of each replica's."""
    return UpdateRule(network, optimizer_of(config), config.l2)
