"""The training job: open or resume the run, train epoch by epoch, evaluate, record, save."""

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from jobs.choices import DEFAULT_RUN
from jobs.environment import one_blas_thread
from jobs.nn.network import NO_ROWS, Network
from jobs.signals import StopSignal
from jobs.training.config import TrainConfig
from jobs.training.evaluate import Evaluator
from jobs.training.history import Metrics, epoch_text, history_of
from jobs.training.memory import check_memory, train_memory
from jobs.training.prepare import (
    begin_run,
    check_dataset,
    check_fit,
    newest_checkpoint,
    reconfigured,
    run_and_config,
    warn_of_environment,
    warn_of_values,
)
from jobs.training.select_checkpoint import best_checkpoint, open_chosen_dataset
from jobs.training.step import thread_count
from jobs.training.trainer import Trainer, parameters_digest, template
from storage.checkpoints import (
    CheckpointName,
    prune_checkpoints,
    save_checkpoint,
    sweep_checkpoints,
)
from storage.dataset import Dataset
from storage.errors import ConflictError
from storage.events import Progress, event, no_progress
from storage.location import TakeOver
from storage.places import Place, open_location
from storage.runs import Run, check_place, run_exists, run_lock

if TYPE_CHECKING:
    from pipeline.cluster.client import Cluster

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a training came to."""

    run: Run
    config: TrainConfig
    metrics: tuple[Metrics, ...]
    """A line per epoch, all of the run's epochs."""
    parameters_digest: str
    """Of the final parameters: the model's digest."""
    order_digest: str
    """Two runs that show the same have seen the same rows in the same batches in order."""
    best: CheckpointName | None
    """The checkpoint with the lowest validation cross-entropy, where there is a validation."""
    already_done: bool
    """True where the run had been finished before."""
    stopped_early: bool


def train(
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    dataset: Place | None = None,
    run: Place = DEFAULT_RUN,
    storage_options: Mapping[str, str] | None = None,
    resume: bool = False,
    take_over: TakeOver | None = None,
    progress: Progress = no_progress,
    stop: StopSignal | None = None,
    cluster: "Cluster | None" = None,
) -> TrainResult:
    """Train a network on a dataset's training split, into a run.

    Gradients are computed by the workers of a `cluster` where one is given, to the same bits.

    With `resume` a run that has a checkpoint continues from it, to the same bits as if it had never
    stopped, and one that has none is started. `config` may be a mapping of some settings: the
    others, and a `dataset` of None, are those of the run that is resumed, or the defaults. A
    `TrainConfig` gives all settings. `storage_options` are for URLs of a store. `take_over` allows
    taking the lock of a dead writer in a store. `progress` is called after each step.

    Raises `UsageError` for settings that do not fit the dataset, `BadDataError` for damage,
    `ConflictError` where the run exists (without `resume`), is locked, or has another configuration
    or dataset, `StoppedError` after a signal.
    """
    given = {} if config is None else config
    location = open_location(run, storage_options)
    record, config = run_and_config(location, given, resume=resume)
    data = open_chosen_dataset(record, dataset, storage_options)
    if record is not None:
        check_dataset(record, data)
    network = Network(check_fit(config, data), config.dtype)
    memory = check_memory(train_memory(config, network, data), thread_count(config.threads))
    event(logger, "memory", f"memory at most {memory / 1e6:,.0f} MB", bytes=memory)
    if run_exists(location) and not resume:
        raise ConflictError(
            f"The run {location} exists. Pass --resume to continue it, or choose another --run."
        )
    if not run_exists(location):
        check_place(location)  # before the lock leaves its file in what is not ours
    with run_lock(location, take_over) as location, one_blas_thread():
        location.sweep()
        # Another process may have begun the run in the meantime.
        record, config = run_and_config(location, given, resume=resume)
        check_fit(config, data)
        if record is None:
            record, config = begin_run(location, config, data)
        check_dataset(record, data)
        training = _Training(record, config, data, cluster, progress, stop or StopSignal())
        return training.run_to_end()


class _Training:
    """A training at work: its run, its trainer, and the metrics of its epochs."""

    def __init__(
        self,
        run: Run,
        config: TrainConfig,
        dataset: Dataset,
        cluster: "Cluster | None",
        progress: Progress,
        stop: StopSignal,
    ) -> None:
        self._run = run
        self._config = config
        self._dataset = dataset
        self._cluster = cluster
        self._progress = progress
        self._stop = stop
        self._layers = check_fit(config, dataset)
        self._metrics: list[Metrics] = []
        self._last_batch = 0
        """Where the epoch stood when it was last looked whether to save."""

    def run_to_end(self) -> TrainResult:
        """Train what epochs are left."""
        with self._resumed_trainer() as self._trainer:
            already_done = self._finished
            if not already_done:
                warn_of_values(self._dataset)
                self._train_epochs()
            return TrainResult(
                run=self._run,
                config=self._config,
                metrics=tuple(self._metrics),
                parameters_digest=self._digest(),
                order_digest=self._trainer.stream.state.order_digest,
                best=best_checkpoint(self._metrics),
                already_done=already_done,
                stopped_early=self._out_of_patience,
            )

    def _resumed_trainer(self) -> Trainer:
        """Return a trainer where the newest checkpoint was saved, or at the beginning."""
        sweep_checkpoints(self._run)
        newest = newest_checkpoint(self._run, template(self._config, self._layers))
        self._run = reconfigured(self._run, self._config, newest)
        self._metrics = [] if newest is None else history_of(newest)
        self._run.rewrite_metrics(self._metrics)
        event(
            logger,
            "run",
            f"run {self._run.location}",
            run=str(self._run.location),
            configuration=self._config.to_json(),
        )
        if newest is not None:
            event(
                logger,
                "resumed",
                f"resumed from checkpoint {newest.name}",
                checkpoint=str(newest.name),
            )
        warn_of_environment(self._run)
        return self._make_trainer(newest and (newest.tensors, newest.progress))

    def _make_trainer(self, state: Any) -> Trainer:
        if self._config.parallel == "rounds":
            from jobs.training.round_trainer import RoundTrainer

            return RoundTrainer(self._cluster, self._config, self._layers, self._dataset, state)
        if self._cluster is None:
            return Trainer(self._config, self._layers, self._dataset, state)
        from jobs.training.cluster_stepper import ClusterTrainer

        return ClusterTrainer(self._cluster, self._config, self._layers, self._dataset, state)

    def _train_epochs(self) -> None:
        with ExitStack() as stack:
            evaluators = {
                name: stack.enter_context(self._evaluator(name))
                for name in self._config.evaluations(self._dataset.splits)
            }
            while not self._finished:
                self._train_epoch(evaluators)
                self._stop_if_asked()

    def _evaluator(self, name: str) -> Evaluator:
        """Return what evaluates a split or, for validation, the rows that are held out."""
        split, first_row = name, 0
        trained = self._dataset.split("train").schema.rows - self._config.holdout
        if name not in self._dataset.splits:
            split, first_row = "train", trained
        rows = trained if name == "train" else self._dataset.split(split).schema.rows - first_row
        return Evaluator(
            self._trainer.network,
            self._dataset,
            split,
            first_row=first_row,
            rows=rows,
            times=self._config.epochs - len(self._metrics),
            threads=thread_count(self._config.threads),
        )

    def _train_epoch(self, evaluators: Mapping[str, Evaluator]) -> None:
        began = time.perf_counter()
        trainer = self._trainer
        self._last_batch = trainer.stream.state.next_batch
        first_row, waited = trainer.sums.rows, trainer.stream.seconds_waited
        trainer.train_epoch(self._after_step)
        seconds = time.perf_counter() - began
        timing = {
            "seconds": round(seconds, 3),
            "rows_per_second": round((trainer.sums.rows - first_row) / max(seconds, 1e-9)),
            "seconds_waited": round(trainer.stream.seconds_waited - waited, 3),
        }
        line = self._line(evaluators) | {"timing": timing}
        self._metrics.append(line)
        trainer.sums = NO_ROWS
        self._run.append_metrics(line, self._metrics[:-1])
        self._save()
        event(logger, "epoch", epoch_text(line, self._config.epochs), **line)

    def _line(self, evaluators: Mapping[str, Evaluator]) -> Metrics:
        """Return the metrics of the epoch just ended; the same, to the bit, however it ran."""
        evaluations = {}
        for name, evaluator in evaluators.items():
            found = evaluator.evaluate(self._trainer.parameters)
            split = name if name in self._dataset.splits else "train"
            self._trainer.check_finite(f"the cross-entropy of {name}", found.cross_entropy, split)
            evaluations[name] = asdict(found)
        sums, state = self._trainer.sums, self._trainer.stream.state
        return {
            "epoch": state.epoch,
            "steps": self._trainer.steps,
            "loss": sums.loss_sum / sums.rows,
            "accuracy": sums.correct / sums.rows,
            "evaluation": evaluations,
            "order_digest": state.order_digest,
            "parameters_digest": self._digest(),
        }

    def _after_step(self) -> None:
        sums, stream = self._trainer.sums, self._trainer.stream
        stage = f"epoch {len(self._metrics) + 1}/{self._config.epochs}"
        self._progress(stage, sums.rows, stream.rows, f"loss {sums.loss_sum / sums.rows:.4f}")
        next_batch = stream.batches_taken % stream.batches
        if not next_batch:
            return  # the epoch's end, which is recorded and saved as such
        every = self._config.checkpoint_every
        # Where several mini-batches are a round, its border may lie past the one that is due.
        due = every and next_batch // every != self._last_batch // every
        self._last_batch = next_batch
        if due or self._stop.requested:
            self._save()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._stop.requested and not self._finished:
            self._stop.raise_stopped(
                f"Stopped after {self._trainer.steps:,} steps; the checkpoint is saved. "
                "Run the same command with --resume to go on."
            )

    def _save(self) -> None:
        """Save a checkpoint, then remove the oldest."""
        state = self._trainer.stream.state
        name = CheckpointName(state.epoch, state.next_batch)
        save_checkpoint(
            self._run,
            name,
            self._trainer.tensors(),
            parameters_digest=self._digest(),
            config_digest=self._config.digest,
            progress=self._trainer.progress() | {"metrics": self._metrics},
        )
        best = best_checkpoint(self._metrics)
        prune_checkpoints(self._run, name, self._config.keep, {best} if best else set())

    @property
    def _finished(self) -> bool:
        return len(self._metrics) >= self._config.epochs or self._out_of_patience

    @property
    def _out_of_patience(self) -> bool:
        best = best_checkpoint(self._metrics)
        patience = self._config.patience
        return bool(patience and best and len(self._metrics) - best.epoch >= patience)

    def _digest(self) -> str:
        return parameters_digest(self._layers, self._trainer.parameters)
