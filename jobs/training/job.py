"""The training job: open or resume a run, train by epochs, evaluate, record, save."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jobs.choices import DEFAULT_CHECKPOINT, DEFAULT_RUN
from jobs.nn.architecture import Layer
from jobs.nn.network import NO_ROWS, Network
from jobs.signals import StopSignal
from jobs.training.choose_model import choose_model
from jobs.training.config import TrainConfig
from jobs.training.description import describe, describe_member, tensor_metadata
from jobs.training.environment import one_blas_thread
from jobs.training.epochs import epoch_metrics, make_trainer, open_evaluators
from jobs.training.evaluate import Evaluator
from jobs.training.history import EpochTable, Metrics, history_of, timing_text
from jobs.training.memory import check_memory, train_memory
from jobs.training.model import model_of
from jobs.training.portable import check_arithmetic, warn_of_samples
from jobs.training.prepare import (
    asked_arithmetic,
    begin_run,
    changed_settings,
    check_dataset,
    check_fit,
    configure,
    reconfigured,
    recorded_run,
    warn_of_environment,
    warn_of_evaluation,
    warn_of_no_effect,
    warn_of_values,
)
from jobs.training.reference import ensure_reference
from jobs.training.result import TrainResult
from jobs.training.select_checkpoint import (
    best_checkpoint,
    newest_checkpoint,
    open_chosen_dataset,
    snapshots,
    stopped_early,
)
from jobs.training.signature import signature_of
from jobs.training.step import core_count, thread_count
from jobs.training.trainer import SavedState, Start, Trainer, template
from jobs.training.warm_start import (
    check_parent,
    check_recorded_parent,
    open_parent,
    starting_state,
)
from storage.checkpoints import (
    CheckpointName,
    prune_checkpoints,
    save_checkpoint,
    sweep_checkpoints,
)
from storage.dataset import Dataset
from storage.errors import (
    BadDataError,
    ConflictError,
    PipelineError,
    QualityGateError,
    counted,
)
from storage.events import Progress, event, for_people, no_progress
from storage.location import TakeOver
from storage.places import Place, open_location
from storage.runs import REFERENCES, Run, check_place, run_exists, run_lock

if TYPE_CHECKING:
    from pipeline.cluster.client import Cluster, OpenCluster

logger = logging.getLogger(__name__)


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
    until: int | None = None,
    cluster: "Cluster | OpenCluster | None" = None,
    parent: Place | None = None,
    from_optimizer: bool = False,
) -> TrainResult:
    """Train a network on a dataset's training split, and save checkpoints in a run.

    Parameters
    ----------
    config
        All settings, or a mapping of some, such as `{"recipe": "quick", "epochs": 5}`. The others
        are those of the recipe, of the resumed run, or the defaults.
    dataset
        The dataset. None: the dataset of the resumed run, or `data/mnist`.
    run
        Where to save the run.
    storage_options
        Options of an S3 store, for a dataset or run given by its URL.
    resume
        Continue the run from its newest checkpoint, with the same result as an uninterrupted one. A
        run without a checkpoint is started.
    take_over
        Allows taking the lock of a dead writer in an object store; called with its description.
    progress
        Called after each step with the rows done; may raise to stop.
    stop
        Set by a signal handler to stop after the current step, with a checkpoint.
    until
        Return after this epoch, with its checkpoint. A resume trains the others, to the same bits.
    cluster
        Dask cluster whose workers compute the gradients, to the same bits; or a function that
        connects to it, which is called when the arithmetic has been checked.
    parent
        A run to start from, with its best checkpoint or another one: `runs/base@latest`, the number
        of an epoch, or the first digits of a model's digest after the `@`. Network and dtype are
        the parent's. All other settings are those given, or the defaults.
    from_optimizer
        Start with the state of the parent's optimizer as well.

    Raises
    ------
    UsageError
        If a setting is invalid or does not fit the dataset or the parent. `RestartError` if Python
        must be started with other environment variables for the setting `arithmetic`.
    BadDataError
        If the dataset, the run or the parent is damaged, or the parent had other images.
    ConflictError
        If the run exists and `resume` is false, is locked, or has other settings, another dataset
        or another parent.
    QualityGateError
        If the training diverges.
    UnreachableError
        If storage or the cluster cannot be used.
    StoppedError
        After a signal; the checkpoint is saved.
    """
    given = {} if config is None else config
    location = open_location(run, storage_options)
    record = recorded_run(location, resume=resume)
    check_arithmetic(asked_arithmetic(given, record))  # a restart must precede the connection
    cluster = cluster() if callable(cluster) else cluster
    data = open_chosen_dataset(record, dataset, storage_options)
    if record is not None:
        check_dataset(record, data)
    check_recorded_parent(record, parent, storage_options, optimizer=from_optimizer)
    source = None
    if record is None and parent is not None:
        source = open_parent(parent, location, storage_options)
    inherited = source.settings if source else None
    config = configure(given, record, data, inherited)
    if source:
        check_parent(source, config, data, optimizer=from_optimizer)
    network = Network(check_fit(config, data), config.dtype)
    warn_of_no_effect(given, config)
    needed = train_memory(config, network, data, from_parent=parent is not None)
    check_memory(needed, thread_count(config.threads))
    if not run_exists(location):
        check_place(location)  # before the lock creates its file in another program's directory
    elif not resume:
        raise ConflictError(
            f"The run {location} exists. Pass --resume to continue it, or choose another --run."
        )
    with run_lock(location, take_over) as location, one_blas_thread():
        location.sweep()
        location.sweep(REFERENCES)
        # Another process may have begun the run before this one had the lock.
        record = recorded_run(location, resume=resume)
        check_recorded_parent(record, parent, storage_options, optimizer=from_optimizer)
        config = configure(given, record, data, inherited)
        layers = check_fit(config, data)
        check_arithmetic(config.arithmetic)
        if record is None:
            origin = source.record(location, optimizer=from_optimizer) if source else None
            record = begin_run(location, given, config, data, origin)
        check_dataset(record, data)
        return _Training(
            record,
            config,
            data,
            layers,
            cluster,
            progress,
            stop or StopSignal(),
            until,
            storage_options,
        ).run_to_end()


@dataclass
class _Training:
    """A training run in progress: its record, its trainer, and the metrics of its epochs."""

    run: Run
    config: TrainConfig
    dataset: Dataset
    layers: tuple[Layer, ...]
    cluster: "Cluster | None"
    progress: Progress
    stop: StopSignal
    until: int | None = None
    storage_options: Mapping[str, str] | None = None
    """For the parent, if the run starts from one."""
    metrics: list[Metrics] = field(default_factory=list)
    last_batch: int = 0
    """The epoch's next mini-batch when saving was last considered."""

    def run_to_end(self) -> TrainResult:
        """Train the remaining epochs."""
        with self._resumed_trainer() as trainer:
            self.trainer = trainer
            already_done = self._finished
            if not already_done:
                warn_of_values(self.dataset)
                warn_of_evaluation(self.config, self.dataset)
                with self._recorded_failure():
                    self._train_epochs()
            if self._finished:
                self._make_reference()
            return TrainResult(
                run=self.run,
                config=self.config,
                metrics=tuple(self.metrics),
                parameters_digest=trainer.parameters_digest,
                order_digest=trainer.stream.state.order_digest,
                best=best_checkpoint(self.metrics),
                already_done=already_done,
                stopped_early=self._stopped_early,
            )

    @contextmanager
    def _recorded_failure(self) -> Iterator[None]:
        """Record an error that a resume would meet again."""
        try:
            yield
        except (BadDataError, QualityGateError) as error:
            with suppress(PipelineError):  # the error is raised, even if it cannot be recorded
                self.run.record_failure(error)
            raise

    def _make_reference(self) -> None:
        """Write the distributions that scored rows are compared with, if there are none yet.

        If the chosen checkpoint or the rows are damaged, the training is finished all the same.
        """
        try:
            chosen, _ = choose_model(self.run, DEFAULT_CHECKPOINT)
            model = model_of(chosen)
            ensure_reference(self.run, model, lambda: self.dataset, self.config.holdout)
        except BadDataError as error:
            logger.warning("Scorings cannot be compared with training: %s", error)

    def _resumed_trainer(self) -> Trainer:
        """Return a trainer in the state of the newest checkpoint, or a new one."""
        sweep_checkpoints(self.run)
        newest, warnings = newest_checkpoint(self.run, template(self.config, self.layers))
        for warning in warnings:
            logger.warning("%s", warning)
        self.run = reconfigured(self.run, self.config, newest)
        self.metrics = [] if newest is None else history_of(newest)
        self.run.rewrite_metrics(self.metrics)
        self.run.remove_failure()
        self._announce(newest.name if newest else None)
        warn_of_environment(self.run)
        warn_of_samples(self.config.arithmetic)
        state: SavedState | Start | None
        if newest is None:
            state = starting_state(self.run, self.config, self.dataset, self.storage_options)
        else:
            state = newest.tensors, newest.progress
        return make_trainer(self.config, self.layers, self.dataset, state, self.cluster)

    def _announce(self, checkpoint: CheckpointName | None) -> None:
        """Log the network, dataset and starting point, without texts if the run is finished."""
        config, data = self.config, self.dataset
        rows = data.split("train").schema.rows - config.holdout
        texts = (
            f"Training {config.network} on {counted(rows, 'row')} of {data.location}",
            f"Run {self.run.location}: {counted(config.epochs, 'epoch')} on {self._computers()}",
            _resumed_text(checkpoint) if checkpoint else "",
        )
        training, run, resumed = ("", "", "") if self._finished else texts
        place, digest = str(data.location), data.digest
        event(logger, "training", training, dataset=place, dataset_digest=digest, rows=rows)
        event(
            logger,
            "run",
            run,
            run=str(self.run.location),
            configuration=config.to_json(),
            settings=changed_settings(config, data),
        )
        if checkpoint is not None:
            event(logger, "resumed", resumed, checkpoint=str(checkpoint))

    def _computers(self) -> str:
        """Return the number of cores or workers that compute gradients, as a text."""
        config = self.config
        if self.cluster is not None:
            workers = len(self.cluster.workers())
            return counted(workers, "worker") if workers else "a cluster"
        if config.parallel == "rounds":
            return counted(1, "core")
        assert config.micro_batches is not None  # the configuration is complete
        batch_size = config.batch_size or self.dataset.split("train").schema.rows - config.holdout
        network, threads = Network(self.layers, config.dtype), thread_count(config.threads)
        return counted(core_count(network, batch_size, config.micro_batches, threads), "core")

    def _train_epochs(self) -> None:
        times = self.config.epochs - len(self.metrics)
        with open_evaluators(self.trainer, self.dataset, times) as evaluators:
            self.table = EpochTable(self.config.epochs, list(evaluators))
            for_people(logger, self.table.header)
            until = self.config.epochs if self.until is None else self.until
            while not self._finished and len(self.metrics) < until:
                self._train_epoch(evaluators)
                self._stop_if_requested()

    def _train_epoch(self, evaluators: Mapping[str, Evaluator]) -> None:
        began = time.perf_counter()
        trainer = self.trainer
        self.last_batch = trainer.stream.state.next_batch
        first_row, waited = trainer.sums.rows, trainer.stream.seconds_waited
        trainer.train_epoch(self._after_step)
        seconds = time.perf_counter() - began
        timing = {
            "seconds": round(seconds, 3),
            "rows_per_second": round((trainer.sums.rows - first_row) / max(seconds, 1e-9)),
            "seconds_waited": round(trainer.stream.seconds_waited - waited, 3),
        }
        line = epoch_metrics(trainer, evaluators)
        line["timing"] = timing | {"time": datetime.now(UTC).isoformat(timespec="milliseconds")}
        self.metrics.append(line)
        trainer.sums = NO_ROWS
        self.run.append_metrics(line, self.metrics[:-1])
        self._save()
        event(logger, "epoch", self.table.row(line), **line)
        for_people(logger, timing_text(line), logging.DEBUG)

    def _after_step(self) -> None:
        sums, stream = self.trainer.sums, self.trainer.stream
        stage = f"epoch {len(self.metrics) + 1}/{self.config.epochs}"
        self.progress(stage, sums.rows, stream.rows, f"loss {sums.loss_sum / sums.rows:.4f}")
        next_batch = stream.batches_taken % stream.batches
        if not next_batch:
            return  # the end of the epoch is saved separately
        every = self.config.checkpoint_every
        # A round has several mini-batches, so it may end past the due one.
        due = every and next_batch // every != self.last_batch // every
        self.last_batch = next_batch
        if due or self.stop.requested:
            self._save()
        self._stop_if_requested()

    def _stop_if_requested(self) -> None:
        if self.stop.requested and not self._finished:
            self.stop.raise_stopped(
                f"Stopped after {counted(self.trainer.steps, 'step')}; the checkpoint is saved. "
                "Run the same command with --resume to continue."
            )

    def _save(self) -> None:
        """Save a checkpoint, and remove those beyond `keep` but the best and the snapshots."""
        state = self.trainer.stream.state
        name = CheckpointName(state.epoch, state.next_batch)
        save_checkpoint(
            self.run,
            name,
            self.trainer.tensors(),
            parameters_digest=self.trainer.parameters_digest,
            config_digest=self.config.digest,
            progress=self.trainer.progress() | {"metrics": self.metrics},
            metadata=self._metadata(),
        )
        best = best_checkpoint(self.metrics)
        also = {*snapshots(self.config, state.epoch), *([best] if best else [])}
        prune_checkpoints(self.run, name, self.config.keep, also)

    def _metadata(self) -> dict[str, str]:
        """Return a description of the parameters, so that other programs can use a checkpoint."""
        network, signature = self.trainer.network, signature_of(self.run)
        member = describe_member(network, self.trainer.parameters_digest, self.run.dataset_digest)
        return tensor_metadata(describe(signature, [member], average_shifts=0))

    @property
    def _finished(self) -> bool:
        return len(self.metrics) >= self.config.epochs or self._stopped_early

    @property
    def _stopped_early(self) -> bool:
        return stopped_early(self.config, self.metrics)


def _resumed_text(checkpoint: CheckpointName) -> str:
    place = f"epoch {checkpoint.epoch}"
    if checkpoint.step:
        place = f"step {checkpoint.step} of epoch {checkpoint.epoch + 1}"
    return f"Resumed after {place}, from checkpoint {checkpoint}"
