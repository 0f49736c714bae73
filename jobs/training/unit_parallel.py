"""The step of a mini-batch that is not divided by rows: cores share the units of the first layer.

Each process owns the first layer's columns and the second layer's rows of its units, with their
optimizer state, and updates them in place. Processes meet once in a step, with their parts of the
second layer's sums. What lies above them is small: each computes it, and the owner updates it.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.nn.backpropagation import Backpropagation, Columns, SplitMatrices, unit_slices
from jobs.nn.loss import CrossEntropy
from jobs.nn.network import LossSum
from jobs.nn.optimizers import Sgd, State
from jobs.nn.parameters import Floats
from jobs.training.environment import one_blas_thread
from jobs.training.gradients import GradientRule, RowScaler, targets_of
from jobs.training.process_pool import (
    PROCESS_MEMORY,
    Meet,
    ProcessPool,
    Reply,
    Task,
    shared_array,
)
from jobs.training.step import BLOCK, UpdateRule, ignore_overflow
from jobs.training.unit_layout import UnitLayout
from pipeline.stream import Batch
from pipeline.windows import ROW_NUMBERS, as_items
from storage.location import Closing
from storage.schema import SplitSchema


class UnitParallelStep(Closing):
    """Takes optimizer steps on several cores, to the same bits as on one."""

    def __init__(
        self,
        rule: GradientRule,
        update: UpdateRule,
        parameters: Floats,
        state: State,
        schema: SplitSchema,
        *,
        batch_size: int,
        threads: int,
    ) -> None:
        """Start from copies of `parameters` and of the optimizer's `state`.

        Mini-batches have at most `batch_size` rows of a split with this `schema`.
        """
        layers, dtype = rule.network.layers, rule.network.dtype
        units = unit_slices(layers, rule.parts)
        size = min(threads, len(units))
        self._rule = rule
        self._layout = UnitLayout(layers, units)
        self._update = UpdateRule(rule.network, update.optimizer, update.l2, self._layout.weights)
        self._only_occupied = isinstance(update.optimizer, Sgd) and not update.l2
        """Whether the update leaves the rows of blank columns as they are."""
        allocate = shared_array if size > 1 else np.empty
        self._vectors = {name: allocate(parameters.shape, dtype) for name in ("", *state)}
        """The parameters and the optimizer's state, in `_layout`."""
        for name, vector in self._vectors.items():
            self._layout.put(state[name] if name else parameters, vector)
        self._weights = self._layout.matrices(self._vectors[""])
        self._first_items = [as_items(matrix) for matrix in self._weights.first]
        self._gradient = np.empty_like(parameters)
        self._gradients = self._layout.matrices(self._gradient)
        self._scaler = RowScaler(rule)
        self._saves = False
        self._columns: Columns | None = None
        self._passes = Backpropagation(layers, dtype, units, rows=batch_size, shared=allocate)
        others = 1 if size > 1 else 0
        self._undo = {
            name: shared_array((others * len(parameters),), dtype) for name in self._vectors
        }
        """What a fork is about to change, in case that it dies while it does."""
        self._undo_stops = shared_array((len(units),), np.int64)
        """For each part, the end of what `_undo` holds of its section, or 0."""
        rows = others * batch_size
        self._inputs = shared_array((rows, schema.columns), schema.dtype)
        self._targets = shared_array((rows, schema.classes), np.uint8)
        self._numbers = shared_array((rows,), np.int64)
        distorted = batch_size if rule.distortions else 0
        self._distorted = shared_array((distorted, schema.columns), schema.dtype)
        with one_blas_thread():  # the forks inherit the limit
            self._pool = ProcessPool(self._work, size)

    @property
    def parameters(self) -> Floats:
        """A copy of the flat vector `(parameters,)`."""
        return self._layout.plain(self._vectors[""])

    @property
    def state(self) -> State:
        """Copies of the optimizer's vectors by name."""
        return {name: self._layout.plain(vector) for name, vector in self._vectors.items() if name}

    @property
    def process_numbers(self) -> list[int]:
        """The process identifiers of the forks that are alive."""
        return self._pool.process_numbers

    def step(
        self, micro_batches: Iterator[Batch], rows: int, learning_rate: float, step_number: int
    ) -> LossSum:
        """Take the step of a mini-batch of `rows`, a single micro-batch; return its loss."""
        (batch,) = micro_batches
        targets = targets_of(batch)
        with ignore_overflow():
            return self._step(batch, targets, learning_rate, step_number)

    def _step(
        self, batch: Batch, targets: NDArray[np.uint8], learning_rate: float, number: int
    ) -> LossSum:
        pool = self._pool
        *others, own = self._shares(len(targets), batch.epoch, learning_rate, number)
        if others:
            batch = self._copy(batch, targets)
        pool.begin(others)
        mine = [own]
        """What this process computes: its share, and those of forks that are gone."""
        if self._rule.distortions:
            self._distort(batch, own)
            mine += self._missing(others, partial(self._distort, batch))
        self._prepare(batch)
        for share in mine:
            self._forward(share)
        mine += self._missing(others, self._forward)
        loss = self._middle(targets, self._gradients)
        for share in mine:
            self._update_parts(share)
        result = LossSum(loss.loss_sum, loss.correct, len(targets))
        lost = [others[fork] for fork, reply in pool.finish().items() if reply is None]
        for share in lost:
            self._restore(share)
            self._forward(share)
            self._update_parts(share)
        self._apply(self._layout.sections[-1], own)
        return result

    def _missing(self, others: list["_Share"], do: Callable[["_Share"], None]) -> list["_Share"]:
        """Meet the forks, and do the part of those that do not come; return their shares."""
        missing = [others[fork] for fork in self._pool.gather()]
        for share in missing:
            do(share)
        self._pool.proceed()
        return missing

    def _work(self, numbers: Task, meet: Meet) -> Reply:
        """Compute a share of a step in a fork."""
        share = _Share(*numbers)
        self._saves = True
        rows = slice(0, int(share.rows))
        targets = self._targets[rows]
        batch = Batch(self._inputs[rows], targets, self._numbers[rows], int(share.epoch))
        with ignore_overflow():
            if self._rule.distortions:
                self._distort(batch, share)
                meet()
            self._prepare(batch)
            self._forward(share)
            meet()
            self._middle(targets, None)
            self._update_parts(share)
        return ()

    def _shares(self, rows: int, epoch: int, learning_rate: float, number: int) -> list["_Share"]:
        """Return the share of each process; this one, which has more to do, is the last."""
        parts, processes = len(self._weights.first), 1 + len(self._pool)
        return [
            _Share(number, learning_rate, epoch, rows, *bounds)
            for bounds in _bounds(parts, rows, processes)
        ]

    def _copy(self, batch: Batch, targets: NDArray[np.uint8]) -> Batch:
        """Copy a mini-batch for the other processes."""
        rows = slice(0, len(targets))
        self._undo_stops[:] = 0
        self._inputs[rows] = batch.inputs
        self._targets[rows] = targets
        self._numbers[rows] = batch.rows
        return Batch(self._inputs[rows], targets, batch.rows, batch.epoch)

    def _distort(self, batch: Batch, share: "_Share") -> None:
        """Distort a share of the rows for all processes."""
        rows = slice(int(share.first_row), int(share.last_row))
        if rows.start < rows.stop:
            self._distorted[rows] = self._scaler.distort(batch.part(rows))

    def _prepare(self, batch: Batch) -> None:
        """Scale the rows, and leave out blank columns."""
        stored = batch.inputs
        if self._rule.distortions:
            stored = self._distorted[: len(stored)]
        inputs, self._columns = self._scaler.scale(stored)
        self._passes.start(inputs, self._columns, self._scaler.masks(batch))

    def _forward(self, share: "_Share") -> None:
        for part in share.parts:
            self._passes.forward(part, self._weights)

    def _middle(self, targets: NDArray[np.uint8], gradient: SplitMatrices | None) -> CrossEntropy:
        return self._passes.middle(
            self._weights,
            targets,
            weight=1 / len(targets),
            smoothing=self._rule.label_smoothing,
            gradient=gradient,
        )

    def _update_parts(self, share: "_Share") -> None:
        """Compute the gradients of a share's parts, and take the step on its parameters."""
        for part in share.parts:
            delta = self._passes.backward(part, self._weights, self._gradients)
            section, first = self._layout.sections[part], self._weights.first[part]
            if self._only_occupied and self._columns is not None:
                self._update_occupied(part, delta, share.learning_rate)
                section = slice(section.start + first.size, section.stop)
            else:
                self._passes.first_gradient(delta, self._gradients.first[part])
            self._apply(section, share, part)

    def _update_occupied(self, part: int, delta: Floats, learning_rate: float) -> None:
        """Take the step on the rows of the columns in use: the others have no gradient."""
        narrow = self._passes.narrow_weights[part]
        gradient = self._passes.narrow_gradient(delta)
        step = self._update.optimizer.step
        step((narrow, {}), gradient, learning_rate, 1, (gradient, {}))
        self._put(part, gradient)

    def _put(self, part: int, narrow: Floats) -> None:
        """Write the weights of the columns in use to their rows of the first layer."""
        item = self._first_items[part].dtype
        self._first_items[part][self._columns] = narrow.view(item).reshape(-1)

    def _apply(self, section: slice, share: "_Share", part: int | None = None) -> None:
        """Take the step on a section of the vectors, block by block."""
        now = self._vectors[""], {name: self._vectors[name] for name in self._vectors if name}
        for start in range(section.start, section.stop, BLOCK):
            block = slice(start, min(start + BLOCK, section.stop))
            if self._saves:
                self._save(part, block)
            gradient = self._gradient[block]
            rate, number = share.learning_rate, int(share.number)
            self._update.apply(block, now, gradient, rate, number, now)

    def _save(self, part: int | None, block: slice) -> None:
        """Keep a block that this fork is about to change."""
        for name, vector in self._vectors.items():
            self._undo[name][block] = vector[block]
        self._undo_stops[part] = block.stop

    def _restore(self, share: "_Share") -> None:
        """Undo what a fork changed before it died."""
        for part in share.parts:
            section, stop = self._layout.sections[part], int(self._undo_stops[part])
            if self._only_occupied and self._columns is not None:
                self._put(part, self._passes.narrow_weights[part])
                section = slice(section.start + self._weights.first[part].size, section.stop)
            for name, vector in self._vectors.items():
                vector[section.start : stop] = self._undo[name][section.start : stop]

    def close(self) -> None:
        """End the other processes."""
        self._pool.close()


def unit_parallel_memory(
    rule: GradientRule, schema: SplitSchema, batch_size: int, threads: int
) -> int:
    """Return the bytes of a `UnitParallelStep` at most, without its two copies of the state."""
    network = rule.network
    rows = 2 * schema.row_bytes + ROW_NUMBERS  # plain and distorted
    process = (
        PROCESS_MEMORY
        + batch_size * network.gradient_memory
        + rule.memory(batch_size)
        + network.parameter_memory
        + network.first_layer_memory
    )
    return batch_size * rows + network.first_layer_memory + min(threads, rule.parts) * process


class _Share(NamedTuple):
    """What a process does in a step, as numbers."""

    number: float
    learning_rate: float
    epoch: float
    rows: float
    first_part: float
    last_part: float
    first_row: float
    last_row: float

    @property
    def parts(self) -> range:
        """The parts of the units that it computes."""
        return range(int(self.first_part), int(self.last_part))


@lru_cache
def _bounds(parts: int, rows: int, processes: int) -> list[tuple[int, int, int, int]]:
    """Return the bounds of each process's parts and rows, the larger shares first."""
    cuts = [(-(-parts * i // processes), -(-rows * i // processes)) for i in range(processes + 1)]
    return [(part, end, row, stop) for (part, row), (end, stop) in pairwise(cuts)]
