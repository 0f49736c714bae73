"""The trainer: parameters, optimizer and stream, which advance together by mini-batches."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from jobs.nn import parameters as layout
from jobs.nn.architecture import Layer, count_parameters, format_network
from jobs.nn.initialise import initialise
from jobs.nn.lr_schedules import learning_rate
from jobs.nn.network import NO_ROWS, LossSum, Network
from jobs.nn.optimizers import State
from jobs.nn.parameters import Floats
from jobs.training.config import TrainConfig
from jobs.training.gradients import GradientRule, gradient_rule
from jobs.training.local_step import local_step
from jobs.training.rounds import initial_state
from jobs.training.step import (
    UpdateRule,
    core_count,
    micro_batch_count,
    thread_count,
    update_rule,
)
from pipeline.order import EpochOrder
from pipeline.rows import OrderedRows
from pipeline.stream import Batch, BatchStream, StreamState, chunks_per_window
from pipeline.values import largest_input
from storage.checkpoints import Tensors
from storage.dataset import Dataset
from storage.documents import check_fields
from storage.errors import BadDataError, PipelineError, QualityGateError
from storage.location import Closing
from storage.preparation import LARGEST

if TYPE_CHECKING:
    from pipeline.cluster.client import Cluster

FAR_FROM_ONE = 10.0
"""Scaled inputs larger than this get a warning, and are a likelier cause of divergence than the
learning rate."""
OPTIMIZER_STEPS = "optimizer_steps"
"""In a checkpoint's progress: the steps before the run that its optimizer's state comes from."""


SavedState: TypeAlias = tuple[Tensors, dict[str, Any]]
"""The tensors and the progress of a checkpoint."""


@dataclass(frozen=True)
class Start:
    """The state of a training before its first step."""

    parameters: Floats
    vectors: State
    """The optimizer's."""
    optimizer_steps: int = 0
    """Steps that the optimizer's state comes from, which Adam's bias correction depends on."""


class TrainingState(Protocol):
    """Parameters and the optimizer's state, updated by steps or rounds."""

    @property
    def parameters(self) -> Floats:
        """The flat vector `(parameters,)`, valid until the next step."""

    @property
    def state(self) -> State:
        """The optimizer's vectors by name, valid until the next step."""

    def close(self) -> None:
        """Release all resources."""


class TrainingStep(TrainingState, Protocol):
    """Parameters and the optimizer's state, updated by mini-batches."""

    def step(
        self, micro_batches: Iterator[Batch], rows: int, learning_rate: float, step_number: int
    ) -> LossSum:
        """Take the step of a mini-batch of `rows`, its micro-batches in order; return its loss."""


class Trainer(Closing):
    """The state of a training run, and the steps that change it."""

    reads_rows = True
    """Whether this process reads the rows, or only follows their order."""

    def __init__(
        self,
        config: TrainConfig,
        layers: tuple[Layer, ...],
        dataset: Dataset,
        state: SavedState | Start | None = None,
        cluster: "Cluster | None" = None,
    ) -> None:
        """Start training, from a `Start` if given, or continue from `(tensors, progress)`."""
        self.config = config
        self._dataset = dataset
        self._cluster = cluster
        self.network = Network(layers, config.dtype)
        self.sums = NO_ROWS
        """Loss and correct rows of the current epoch, each row before the step that used it."""
        stream_state = None
        if state is None:
            parameters = initialise(config.init, layers, config.seed, config.dtype)
            start = Start(parameters, initial_state(config, parameters))
        elif isinstance(state, Start):
            start = state
        else:
            tensors, progress = state
            start = saved_state(config, layers, tensors, progress)
            self.sums = _sums_from_json(progress.get("sums"))
            stream_state = StreamState.from_json(progress.get("stream"))
        self._optimizer_steps = start.optimizer_steps
        rows = dataset.split("train").schema.rows - config.holdout
        self._batch_size = config.batch_size or rows
        self._micro_batches = micro_batch_count(config.micro_batches, self._batch_size)
        self.cores = core_count(
            self.network, self._batch_size, self._micro_batches, thread_count(config.threads)
        )
        """The cores that take the steps, unless a cluster does."""
        # The stepper forks, which must precede the stream's threads.
        self._stepper = self._make_stepper(
            gradient_rule(config, self.network, dataset),
            update_rule(config, self.network),
            start.parameters,
            start.vectors,
        )
        try:
            self.stream = BatchStream(
                dataset,
                "train",
                batch_size=config.batch_size,
                seed=config.seed,
                shuffle=config.shuffle,
                shuffle_memory=config.shuffle_memory,
                drop_last=config.drop_last,
                rows=rows,
                epochs=config.epochs,
                busy_cores=self.cores,
                state=stream_state,
                reads_rows=self.reads_rows,
            )
        except BaseException:
            self._stepper.close()
            raise

    def _make_stepper(
        self, rule: GradientRule, update: UpdateRule, parameters: Floats, state: State
    ) -> TrainingState:
        """Return the object that takes the steps, here on the cores of this machine."""
        self._step: TrainingStep = local_step(
            rule,
            update,
            parameters,
            state,
            self._dataset.split("train").schema,
            batch_size=self._batch_size,
            micro_batches=self._micro_batches,
            threads=self.cores,
        )
        return self._step

    def _ordered_rows(self) -> OrderedRows:
        """Return the training rows in order, from which workers and replicas read."""
        config, schema = self.config, self._dataset.split("train").schema
        return OrderedRows(
            dataset=self._dataset.location,
            dataset_digest=self._dataset.digest,
            split="train",
            order=EpochOrder(
                seed=config.seed,
                epoch=0,
                rows=schema.rows - config.holdout,
                chunk_rows=schema.chunk_rows,
                window_chunks=chunks_per_window(schema, config.shuffle_memory, config.shuffle),
                shuffle=config.shuffle,
            ),
            epochs=config.epochs,
        )

    @property
    def parameters(self) -> Floats:
        """The flat vector `(parameters,)`, valid until the next step."""
        return self._stepper.parameters

    @property
    def parameters_digest(self) -> str:
        """SHA-256 of the model as it is now."""
        return parameters_digest(self.network.layers, self.parameters)

    @property
    def steps(self) -> int:
        """Optimizer steps of the run so far."""
        return self.stream.batches_taken

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return rate_of_step(self.config, self.config.learning_rate, step, self.stream.batches)

    def train_epoch(self, after_step: Callable[[], None]) -> None:
        """Train on the rest of the current epoch; call `after_step` after each step.

        Raises `QualityGateError` if the loss or a parameter is no longer a finite number.
        """
        for losses in self._losses():
            for loss in losses:
                self.sums += loss
            self.check_finite(f"the loss of step {self.steps}", self.sums.loss_sum)
            after_step()
        # No loss includes the last step yet.
        self.check_finite("the largest parameter", float(np.abs(self.parameters).max()))

    def _losses(self) -> Iterator[list[LossSum]]:
        """Take the epoch's steps; yield a list of losses for each step or round."""
        for micro_batches in self.stream.micro_batches(self._micro_batches):
            rows, rate = self.stream.next_rows, self.learning_rate(self.steps)
            number = self._optimizer_steps + self.steps + 1
            yield [self._step.step(micro_batches, rows, rate, number)]

    def check_finite(self, quantity: str, value: float, split: str = "train") -> None:
        """Raise `QualityGateError` if `value` is not finite: the training has diverged.

        The error names the values of `split` if they are the likely cause. It is a `BadDataError`
        if they are too large for the arithmetic.
        """
        if not math.isfinite(value):
            raise self._diverged(f"Training diverged: {quantity} is {value}.", split)

    def _diverged(self, text: str, split: str) -> PipelineError:
        scaling = self._dataset.preparation.scaling
        row, stored, size = largest_input(self._dataset.split(split), scaling)
        if size <= FAR_FROM_ONE:
            rate = f"{self.config.learning_rate:g}"
            return QualityGateError(
                f"{text} Start another run with a --learning-rate below {rate}."
            )
        cause = (
            f"{text} The data is the likely cause: row {row} of the {split} split holds {stored}, "
            "and a network learns from inputs of about 0 to 1. "
        )
        if size > LARGEST:
            return BadDataError(
                f"{cause}Put another value in its place and ingest the files again."
            )
        return QualityGateError(
            f"{cause}Ingest the files again with the --scale LOW,HIGH of most values."
        )

    def tensors(self) -> Tensors:
        """Return a checkpoint's tensors: each layer's matrix and the optimizer's vectors."""
        return layer_tensors(self.network.layers, self.parameters) | {
            f"optimizer.{name}": vector for name, vector in self._stepper.state.items()
        }

    def progress(self) -> dict[str, Any]:
        """Return the rest of the state, for a checkpoint's manifest."""
        progress = {"stream": self.stream.state.to_json(), "sums": asdict(self.sums)}
        return progress | (
            {OPTIMIZER_STEPS: self._optimizer_steps} if self._optimizer_steps else {}
        )

    def close(self) -> None:
        """Close the processes and the stream."""
        self._stepper.close()
        self.stream.close()


def rate_of_step(config: TrainConfig, maximum: float, step: int, batches: int) -> float:
    """Return the learning rate of a step of the run, whose epochs have `batches` steps."""
    cycles = [epochs * batches for epochs in config.cycles]
    return learning_rate(
        config.schedule, maximum, step, cycles, config.warm_up, config.restart_factor
    )


def template(config: TrainConfig, layers: tuple[Layer, ...]) -> Tensors:
    """Return tensors with the names, shapes and dtypes of this configuration's checkpoints."""
    parameters = np.zeros(count_parameters(layers), config.dtype)
    return layer_tensors(layers, parameters) | {
        f"optimizer.{name}": vector for name, vector in initial_state(config, parameters).items()
    }


def saved_state(
    config: TrainConfig, layers: tuple[Layer, ...], tensors: Tensors, progress: dict[str, Any]
) -> Start:
    """Return the parameters and the optimizer's vectors of a checkpoint."""
    parameters = flat_parameters(layers, tensors)
    vectors = {name: tensors[f"optimizer.{name}"] for name in initial_state(config, parameters)}
    steps = {OPTIMIZER_STEPS: 0} | progress
    check_fields(steps, {OPTIMIZER_STEPS: int}, "The trainer's state in a checkpoint")
    return Start(parameters, vectors, steps[OPTIMIZER_STEPS])


def steps_taken(progress: dict[str, Any]) -> int:
    """Return the optimizer steps that a run had taken when a checkpoint was saved."""
    stream = StreamState.from_json(progress.get("stream"))
    return stream.epoch * stream.batches + stream.next_batch


def layer_tensors(layers: tuple[Layer, ...], parameters: Floats) -> Tensors:
    """Return the parameters as one named matrix `(1 + inputs, outputs)` per layer."""
    matrices = layout.views(parameters, layers)
    return dict(zip(layout.names(layers), matrices, strict=True))


def flat_parameters(layers: tuple[Layer, ...], tensors: Tensors) -> Floats:
    """Return the flat vector `(parameters,)` from the named matrices."""
    return np.concatenate([tensors[name].reshape(-1) for name in layout.names(layers)])


def parameters_digest(layers: tuple[Layer, ...], parameters: Floats) -> str:
    """Return SHA-256 of a model: its network's text, dtype, and little-endian parameters."""
    content = hashlib.sha256(f"{format_network(layers)}|{parameters.dtype}|".encode())
    content.update(parameters.astype(parameters.dtype.newbyteorder("<"), copy=False).data)
    return content.hexdigest()


def _sums_from_json(document: Any) -> LossSum:
    """Return the sums recorded in a checkpoint; raise `BadDataError` if they are invalid."""
    types = {"loss_sum": float, "correct": int, "rows": int}
    check_fields(document, types, "The trainer's state in a checkpoint")
    if not 0 <= document["correct"] <= document["rows"]:
        raise BadDataError(
            "The trainer's state in a checkpoint has more correct rows than rows; it is damaged."
        )
    return LossSum(**{name: document[name] for name in types})
