"""Reproduce a run: train it again in memory and compare each epoch with what the run recorded."""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from jobs.choices import DEFAULT_RUN
from jobs.nn.architecture import Layer
from jobs.nn.network import NO_ROWS, Network
from jobs.signals import StopSignal
from jobs.training.config import TrainConfig
from jobs.training.environment import one_blas_thread
from jobs.training.epochs import epoch_metrics, make_trainer, open_evaluators
from jobs.training.evaluate import Evaluator
from jobs.training.history import EpochTable, Metrics, check_history, history_of
from jobs.training.memory import check_memory, train_memory
from jobs.training.model import checked_parameters
from jobs.training.portable import check_arithmetic
from jobs.training.prepare import (
    check_dataset,
    check_fit,
    check_versions,
    configure,
    environment_changes,
    warn_of_environment,
)
from jobs.training.select_checkpoint import open_chosen_dataset
from jobs.training.step import thread_count
from jobs.training.trainer import Trainer, template
from jobs.training.warm_start import starting_state
from storage.checkpoints import Checkpoint, CheckpointName, list_checkpoints, load_checkpoint
from storage.errors import BadDataError, QualityGateError, UsageError, counted, listed
from storage.events import Progress, event, for_people, no_progress
from storage.places import Place, open_location
from storage.runs import METRICS, Run, open_run

if TYPE_CHECKING:
    from pipeline.cluster.client import Cluster, OpenCluster

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"
PARAMETERS = "parameters"
QUANTITIES = {
    "order_digest": "order",
    "parameters_digest": PARAMETERS,
    "learning_rate": "learning rate",
}
"""Names of recorded fields in messages, where they are not the field's own."""
SHOWN = 12
"""Digits of a digest that a message shows."""


@dataclass(frozen=True)
class ReproducedEpoch:
    """An epoch that was trained again."""

    metrics: Metrics
    """What was computed, as in `metrics.jsonl` but without the timing."""
    differences: dict[str, str]
    """What differs from the record, and how, by quantity or checkpoint; empty for the same bits."""


@dataclass(frozen=True)
class Reproduction:
    """The result of `reproduce`."""

    run: Run
    """The run's record."""
    recorded: int
    """Number of epochs that the run has."""
    first: int
    """The first epoch that was to be trained again."""
    last: int
    """The last one."""
    epochs: tuple[ReproducedEpoch, ...]
    """The epochs that were trained: all up to the first one with other parameters."""
    environment_changes: str
    """How the environment differs from the recorded one; empty if it does not."""

    @property
    def is_same(self) -> bool:
        """Whether all recorded values and checkpoints were reproduced, bit for bit."""
        return not any(epoch.differences for epoch in self.epochs)

    @property
    def summary(self) -> str:
        """The number of epochs with the same bits, as a text."""
        same = sum(not epoch.differences for epoch in self.epochs)
        asked = 1 + self.last - self.first
        numbers = f"{self.first}" if asked == 1 else f"{self.first} to {self.last}"
        part = f" ({numbers} of {self.recorded})" if asked < self.recorded else ""
        return f"the same bits: {same:,} of {counted(asked, 'epoch')}{part}"

    def check(self) -> None:
        """Raise `QualityGateError` that names the first epoch that differs, if one does."""
        differing = next((epoch for epoch in self.epochs if epoch.differences), None)
        if differing is None:
            return
        details = "; ".join(f"{name}: {text}" for name, text in differing.differences.items())
        raise QualityGateError(
            f"Epoch {differing.metrics['epoch']} of {self.run.location} was not reproduced "
            f"({details}). {self._cause(differing)} In all, {self.summary}."
        )

    def _cause(self, differing: ReproducedEpoch) -> str:
        if all(name.startswith(CHECKPOINT) for name in differing.differences):
            return "All its recorded metrics were: restore the checkpoint from a copy."
        if self.environment_changes:
            return f"The run was started in another environment: {self.environment_changes}."
        return (
            "The run was started in this environment, so it was continued in another one, or its "
            "record was changed."
        )


def reproduce(
    run: Place = DEFAULT_RUN,
    *,
    first: int = 1,
    last: int | None = None,
    dataset: Place | None = None,
    threads: int = 0,
    storage_options: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
    stop: StopSignal | None = None,
    cluster: "Cluster | OpenCluster | None" = None,
) -> Reproduction:
    """Train epochs of a run again, and compare them with what the run recorded.

    The run is only read, and no file is written. Training ends after the first epoch whose
    parameters differ.

    Parameters
    ----------
    run
        The run. It may be unfinished, and in training at the same time.
    first, last
        The epochs to train again, from the checkpoint before `first`, if that is not the first of
        the run. None: up to the last one that the run has.
    dataset
        The dataset. None: the one that the run records.
    threads
        CPU cores to compute on; 0 for all.
    storage_options
        Options of an S3 store, for a run or dataset given by its URL.
    progress
        Called after each step with the rows done; may raise to stop.
    stop
        Set by a signal handler to stop after the current step.
    cluster
        Dask cluster whose workers compute the gradients, to the same bits; or a function that
        connects to it.

    Raises
    ------
    UsageError
        If the run does not have these epochs.
    BadDataError
        If the record is damaged, or the run does not keep the checkpoint before `first`.
    ConflictError
        If the dataset is another one, or another release trained the run with other arithmetic.
    QualityGateError
        If the training diverges.
    UnreachableError
        If storage or the cluster cannot be used.
    StoppedError
        After a signal.
    """
    opened = open_run(open_location(run, storage_options))
    check_versions(opened, "Reproduce")
    data = open_chosen_dataset(opened, dataset, storage_options)
    check_dataset(opened, data)
    config = configure({"threads": threads}, opened, data)
    network = Network(check_fit(config, data), config.dtype)
    check_arithmetic(config.arithmetic)
    check_memory(train_memory(config, network, data), thread_count(config.threads))
    record = _Record.read(opened, config, network.layers)
    last = record.last_epoch(first, last)
    state = record.state_before(first) or starting_state(opened, config, data, storage_options)
    cluster = cluster() if callable(cluster) else cluster
    place, epochs_text = str(opened.location), f"epochs {first} to {last}"
    if first == last:
        epochs_text = f"epoch {first}"
    text = f"Training {epochs_text} of {place} again, on {data.location}"
    event(logger, "reproduction", text, run=place, dataset=str(data.location), epochs=[first, last])
    warn_of_environment(opened)
    with (
        one_blas_thread(),
        make_trainer(config, network.layers, data, state, cluster) as trainer,
        open_evaluators(trainer, data, 1 + last - first) as evaluators,
    ):
        stop = stop or StopSignal()
        epochs = tuple(_Repetition(record, trainer, evaluators, progress, stop).train(last))
    changes = environment_changes(opened)
    return Reproduction(opened, len(record.metrics), first, last, epochs, changes)


@dataclass(frozen=True)
class _Record:
    """What a run recorded, as read at one moment: training may add to it."""

    run: Run
    config: TrainConfig
    layers: tuple[Layer, ...]
    metrics: list[Metrics]
    kept: list[CheckpointName]

    @classmethod
    def read(cls, run: Run, config: TrainConfig, layers: tuple[Layer, ...]) -> Self:
        """Raise `BadDataError` unless metrics.jsonl has an epoch, and those of all checkpoints."""
        kept = list_checkpoints(run)  # before the metrics, to which training appends first
        metrics = check_history(run.metrics(), f"{run.location}/{METRICS}")
        if kept and kept[-1].epoch > len(metrics):
            raise BadDataError(
                f"{run.location}/{METRICS} has {counted(len(metrics), 'epoch')}; the newest "
                f"checkpoint is {kept[-1]} (epoch-step). Restore the file from a copy, or let "
                "`pipeline train --resume` write it again."
            )
        if not metrics:
            raise BadDataError(
                f"The run {run.location} has no complete epoch yet. Train it with `pipeline train "
                "--resume`."
            )
        return cls(run, config, layers, metrics, kept)

    def last_epoch(self, first: int, last: int | None) -> int:
        """Return the last epoch to train; raise `UsageError` unless the run has all of them."""
        end = len(self.metrics) if last is None else last
        if not 1 <= first <= end <= len(self.metrics):
            asked = "on" if last is None else f"to {last}"
            raise UsageError(
                f"The run {self.run.location} has epochs 1 to {len(self.metrics)}; it cannot be "
                f"reproduced from epoch {first} {asked}."
            )
        return end

    def state_before(self, first: int) -> Any:
        """Return the tensors and the progress before an epoch; None before the run's first one.

        Raises `BadDataError` unless the run keeps that checkpoint, sound.
        """
        if first == 1:
            return None
        name = CheckpointName(first - 1, 0)
        if name not in self.kept:
            starts = [other.epoch + 1 for other in self.kept if not other.step]
            texts = [str(start) for start in [1, *starts] if start <= len(self.metrics)]
            raise BadDataError(
                f"The run {self.run.location} keeps no checkpoint {name} (epoch-step), from which "
                f"epoch {first} starts. Epochs that can be the first: {', '.join(texts)}."
            )
        checkpoint = self.checkpoint(name)
        return checkpoint.tensors, checkpoint.progress

    def checkpoint(self, name: CheckpointName) -> Checkpoint:
        """Return a checkpoint; raise `BadDataError` if it contradicts itself or metrics.jsonl."""
        checkpoint = load_checkpoint(self.run, name, template(self.config, self.layers))
        checked_parameters(self.layers, checkpoint)
        metrics, digest = self.metrics[: name.epoch], checkpoint.parameters_digest
        is_last_digest = bool(name.step) or digest == metrics[-1]["parameters_digest"]
        if history_of(checkpoint) != metrics or not is_last_digest:
            raise BadDataError(f"Checkpoint {name} does not have the metrics of {METRICS}.")
        return checkpoint


@dataclass
class _Repetition:
    """A training in memory that is compared with a record."""

    record: _Record
    trainer: Trainer
    evaluators: Mapping[str, Evaluator]
    progress: Progress
    stop: StopSignal
    differences: dict[str, str] = field(default_factory=dict)
    """Those of the current epoch."""

    def train(self, last: int) -> Iterator[ReproducedEpoch]:
        """Yield each epoch up to `last`, or to the first one with other parameters."""
        table = EpochTable(len(self.record.metrics), list(self.evaluators))
        for_people(logger, f"{table.header}  bits")
        while self.trainer.stream.state.epoch < last and PARAMETERS not in self.differences:
            began = time.perf_counter()
            metrics = self._train_epoch()
            seconds = round(time.perf_counter() - began, 3)
            if metrics["epoch"] == last:
                self._check_later(last)
            verdict = "differ" if self.differences else "same"
            row = table.row(metrics | {"timing": {"seconds": seconds}})
            facts = metrics | {"seconds": seconds, "differences": self.differences}
            event(logger, "reproduced", f"{row}  {verdict}", **facts)
            yield ReproducedEpoch(metrics, self.differences)

    def _train_epoch(self) -> Metrics:
        self.differences = {}
        self.trainer.sums = NO_ROWS
        self.trainer.train_epoch(self._after_step)
        metrics = epoch_metrics(self.trainer, self.evaluators)
        self.trainer.sums = NO_ROWS  # as in the checkpoint after the epoch
        recorded = self.record.metrics[metrics["epoch"] - 1]
        self.differences |= metrics_differences(recorded, metrics)
        self._compare_checkpoint()
        return metrics

    def _after_step(self) -> None:
        trainer, stream = self.trainer, self.trainer.stream
        in_epoch = stream.state.next_batch > 0
        stage = f"epoch {stream.state.epoch + in_epoch}/{len(self.record.metrics)}"
        note = f"loss {trainer.sums.loss_sum / trainer.sums.rows:.4f}"
        self.progress(stage, trainer.sums.rows, stream.rows, note)
        self.stop.check("Stopped. The run is unchanged, and nothing was written.")
        if in_epoch:
            self._compare_checkpoint()

    def _compare_checkpoint(self) -> None:
        """Compare the trainer's state with the checkpoint that the run keeps of it, if any."""
        state = self.trainer.stream.state
        name = CheckpointName(state.epoch, state.next_batch)
        checkpoint = self._load(name) if name in self.record.kept else None
        if checkpoint is None:
            return
        saved, computed = checkpoint.tensors, self.trainer.tensors()
        differing = [key for key in saved if saved[key].tobytes() != computed[key].tobytes()]
        position = self.trainer.progress()
        differing += [key for key in position if position[key] != checkpoint.progress.get(key)]
        if differing:
            self.differences[f"{CHECKPOINT} {name}"] = f"saved and computed {listed(differing)}"

    def _load(self, name: CheckpointName) -> Checkpoint | None:
        """Return a checkpoint of the run; None if it is damaged, or was pruned since."""
        try:
            return self.record.checkpoint(name)
        except BadDataError as error:
            if name in list_checkpoints(self.record.run):
                self.differences[f"{CHECKPOINT} {name}"] = str(error).removesuffix(".")
            return None

    def _check_later(self, last: int) -> None:
        """Check those checkpoints of an incomplete epoch that are not compared."""
        for name in self.record.kept:
            if CheckpointName(last, 0) < name < CheckpointName(last + 1, 0):
                self._load(name)


def metrics_differences(recorded: Metrics, computed: Metrics) -> dict[str, str]:
    """Return which values of an epoch differ from the recorded ones, and how.

    The timing is left out, as are values that early releases did not record.
    """
    pairs = {
        QUANTITIES.get(name, name): (recorded[name], value)
        for name, value in computed.items()
        if name in recorded and name != "evaluation"
    }
    for split, figures in recorded["evaluation"].items():
        for name, value in figures.items():
            now = computed["evaluation"].get(split, {}).get(name)
            pairs[f"{split} {name.replace('_', '-')}"] = (value, now)
    return {
        name: f"{_shown(before)} recorded, {_shown(now)} computed"
        for name, (before, now) in pairs.items()
        if before != now
    }


def _shown(value: Any) -> str:
    return value[:SHOWN] if isinstance(value, str) else repr(value)
