"""Gradients of micro-batches: rows, distorted and scaled, through the network and back.

A gradient depends on the parameters and the rows alone, wherever it is computed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.nn.backpropagation import Backpropagation, Columns, unit_slices
from jobs.nn.network import GradientSum, LossSum, Network, Workspace
from jobs.nn.parameters import Floats
from jobs.training.config import TrainConfig
from jobs.training.dropout import Dropout, dropout_memory
from jobs.training.step import TreeSum, micro_batch_count
from pipeline.distortions import Distorter, Distortions, distorter_memory
from pipeline.stream import Batch
from pipeline.transforms import occupied_columns, scale
from storage.dataset import Dataset
from storage.errors import BadDataError
from storage.preparation import BYTES, ValueRange

ROWS = 256
"""Rows that are scaled at a time: those of a large mini-batch would not fit the cache."""


@dataclass(frozen=True)
class DistortionPlan:
    """The distortions of a run: full strengths first, then half strengths."""

    strengths: Distortions
    image_shape: tuple[int, ...]
    seed: int
    full_epochs: int
    """Epochs at full strength; later ones have half of it."""


@dataclass(frozen=True)
class GradientRule:
    """How rows become a gradient. It holds no state, and is the same for all steps of a run."""

    network: Network
    scaling: ValueRange | None = BYTES
    """The range of stored inputs that is mapped to [0, 1]; see `Preparation`."""
    distortions: DistortionPlan | None = None
    dropout: Dropout | None = None
    label_smoothing: float = 0.0
    """The share of each label that is moved to all classes."""
    parts: int = 1
    """The parts of the first layer's units in each gradient."""

    def memory(self, rows: int) -> int:
        """Return the bytes that distortions and dropout of `rows` need at most."""
        plan = self.distortions
        masks = 0 if self.dropout is None else dropout_memory(self.network, rows)
        if plan is None:
            return masks
        # At full and at half strengths.
        return masks + 2 * distorter_memory(plan.strengths, plan.image_shape, rows)


def network_inputs(
    stored: NDArray[Any],
    dtype: np.dtype[Any],
    scaling: ValueRange | None,
    workspace: Workspace | None = None,
) -> tuple[Floats, Columns | None]:
    """Return stored rows scaled for the network, and its columns if blank ones are left out."""
    workspace = workspace or Workspace()
    columns = occupied_columns(stored, scaling)
    if columns is None:
        out = workspace.array("inputs", stored.shape, dtype)
        return scale(stored, dtype, scaling, out), None
    by_column = workspace.array("inputs", (len(columns), len(stored)), dtype)
    for first in range(0, len(stored), ROWS):
        rows = slice(first, first + ROWS)
        # Indexing stores columns contiguously; `take`, which stores rows, needs twice the time.
        # Matrix products take either layout.
        scale(stored[rows][:, columns], dtype, scaling, by_column.T[rows])
    return by_column.T, columns


def targets_of(batch: Batch) -> NDArray[np.uint8]:
    """Return the one-hot targets `(rows, classes)`; raise `BadDataError` if there are none."""
    if batch.targets is None:
        raise BadDataError("The split has no labels to learn from; choose a labelled one.")
    return batch.targets


def distortions(config: TrainConfig) -> Distortions:
    """Return the strengths of a run's distortions."""
    return Distortions(**{field.name: getattr(config, field.name) for field in fields(Distortions)})


def gradient_rule(config: TrainConfig, network: Network, dataset: Dataset) -> GradientRule:
    """Return the rule of a run on a dataset."""
    plan, strengths = None, distortions(config)
    if strengths.any:
        full_epochs = round(config.distort_until * config.epochs)
        plan = DistortionPlan(strengths, dataset.image_shape, config.seed, full_epochs)
    dropout = Dropout(config.dropout, config.seed) if config.dropout else None
    rows = config.batch_size or dataset.split("train").schema.rows - config.holdout
    by_units = micro_batch_count(config.micro_batches, rows) == 1
    return GradientRule(
        network,
        dataset.preparation.scaling,
        plan,
        dropout,
        config.label_smoothing,
        network.parts if by_units else 1,
    )


class RowScaler:
    """Distorts and scales rows for the network, for one thread: it keeps the memory."""

    def __init__(self, rule: GradientRule) -> None:
        self._rule = rule
        self._workspace = Workspace()
        self._distorters: dict[bool, Distorter] = {}
        """By whether the strengths are full, made on first use."""

    def distort(self, batch: Batch) -> NDArray[Any]:
        """Return the stored inputs as the run's distortions change them in the batch's epoch."""
        plan = self._rule.distortions
        if plan is None:
            return batch.inputs
        full = batch.epoch < plan.full_epochs
        if full not in self._distorters:
            strengths = plan.strengths if full else plan.strengths.halved()
            self._distorters[full] = Distorter(strengths, plan.image_shape, plan.seed)
        return self._distorters[full](batch.inputs, batch.epoch, batch.rows)

    def scale(self, stored: NDArray[Any]) -> tuple[Floats, Columns | None]:
        """Return stored rows scaled for the network, and its columns if blank ones are left out."""
        return network_inputs(stored, self._rule.network.dtype, self._rule.scaling, self._workspace)

    def masks(self, batch: Batch) -> list[Floats] | None:
        """Return the masks of the hidden layers for the batch, if the run has dropout."""
        dropout = self._rule.dropout
        if dropout is None:
            return None
        return dropout.masks(self._rule.network, batch.epoch, batch.rows, self._workspace)


class Gradients:
    """Computes gradients by a rule, for one thread: it keeps the memory that they need."""

    def __init__(self, rule: GradientRule) -> None:
        self._rule = rule
        self._scaler = RowScaler(rule)
        self._workspace = Workspace()
        layers, dtype = rule.network.layers, rule.network.dtype
        self._backpropagation = Backpropagation(layers, dtype, unit_slices(layers, rule.parts))

    def of_subtree(
        self, parameters: Floats, micro_batches: Iterable[Batch], batch_rows: int, out: Floats
    ) -> LossSum:
        """Compute the gradient of micro-batches that are a subtree of the fixed tree.

        They add this to the gradient of the mean loss of a mini-batch of `batch_rows` rows. It is
        written to `out`, `(parameters,)`; the loss is returned. No micro-batch is held while the
        next is taken, because it may be a view of a window. Raises `BadDataError` if they have no
        labels.
        """
        free, numbers = [out], count()

        def compute(batch: Batch) -> GradientSum:
            if not free:
                name = f"subtree-{next(numbers)}"
                free.append(self._workspace.array(name, out.shape, out.dtype))
            return self._gradient_sum(parameters, batch, batch_rows, free.pop())

        def add(left: GradientSum, right: GradientSum, _: int) -> GradientSum:
            free.append(right.gradient)
            np.add(left.gradient, right.gradient, out=left.gradient)
            loss = left + right
            return GradientSum(loss.loss_sum, loss.correct, loss.rows, left.gradient)

        tree = TreeSum[GradientSum](add)
        for gradient_sum in map(compute, micro_batches):
            tree.add(gradient_sum)
        total = tree.result()  # its gradient is `out`: sums are written over their left part
        return LossSum(total.loss_sum, total.correct, total.rows)

    def _gradient_sum(
        self, parameters: Floats, batch: Batch, batch_rows: int, out: Floats
    ) -> GradientSum:
        inputs, columns = self._scaler.scale(self._scaler.distort(batch))
        loss = self._backpropagation.gradient_sum(
            parameters,
            inputs,
            targets_of(batch),
            columns,
            weight=1 / batch_rows,
            smoothing=self._rule.label_smoothing,
            masks=self._scaler.masks(batch),
            out=out,
        )
        return GradientSum(loss.loss_sum, loss.correct, len(inputs), out)
