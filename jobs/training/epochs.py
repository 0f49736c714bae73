"""One training from its open run to its end: epochs, evaluations, metrics, checkpoints."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.environment import environment
from jobs.nn.architecture import Layer
from jobs.signals import StopSignal
from jobs.training.config import VALIDATION, TrainConfig
from jobs.training.evaluate import Evaluation, Evaluator
from jobs.training.history import Metrics, history_of
from jobs.training.select_checkpoint import best_checkpoint
from jobs.training.step import thread_count
from jobs.training.trainer import FAR_FROM_ONE, RunningSums, Trainer, parameters_digest
from pipeline.values import largest_input
from storage.checkpoints import Checkpoint, CheckpointName, prune_checkpoints, save_checkpoint
from storage.dataset import Dataset
from storage.preparation import BYTES
from storage.runs import Run

if TYPE_CHECKING:
    from pipeline.cluster.client import Cluster


class TrainListener:
    """Told of what a training does; every method may be left as it is."""

    def planned(self, memory: int) -> None:
        """The training needs `memory` bytes at most."""

    def started(self, run: Run, config: TrainConfig, resumed_at: str | None) -> None:
        """The run is open; `resumed_at` is the checkpoint's name, or None for a fresh start."""

    def warned(self, text: str) -> None:
        """Something is not as it should be, and the training goes on."""

    def stepped(self, epoch: int, rows: int, total: int, loss: float) -> None:
        """Rows of the epoch (from 1) done, of how many, and the mean loss so far."""

    def finished_epoch(self, metrics: Metrics) -> None:
        """A line of metrics, as it is recorded."""


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


class TrainJob:
    """A training at work; lives inside `train`."""

    def __init__(
        self,
        run: Run,
        config: TrainConfig,
        dataset: Dataset,
        layers: tuple[Layer, ...],
        checkpoint: Checkpoint | None,
        listener: TrainListener,
        stop: StopSignal,
        cluster: "Cluster | None",
    ) -> None:
        """Goes on from `checkpoint`, or begins at the beginning."""
        self.cluster = cluster
        self.run = run
        self.config = config
        self.dataset = dataset
        self.layers = layers
        self.checkpoint = checkpoint
        self.listener = listener
        self.stop = stop
        self._missing_processes = 0
        self._last_batch = 0
        """Where the epoch stood when it was last looked whether to save."""
        self.metrics: list[Metrics] = []
        if checkpoint is not None:
            self.metrics = history_of(checkpoint)
        run.rewrite_metrics(self.metrics)

    def run_to_end(self) -> TrainResult:
        """Train what epochs are left."""
        resumed_at = None if self.checkpoint is None else str(self.checkpoint.name)
        self.listener.started(self.run, self.config, resumed_at)
        self._warn_of_environment()
        with self._trainer() as trainer:
            self.trainer = trainer
            already_done = self._finished
            if not already_done:
                self._warn_of_values()
                self._train_epochs()
            return TrainResult(
                run=self.run,
                config=self.config,
                metrics=tuple(self.metrics),
                parameters_digest=self._digest(),
                order_digest=trainer.stream.state.order_digest,
                best=best_checkpoint(self.metrics),
                already_done=already_done,
                stopped_early=self._out_of_patience,
            )

    def _trainer(self) -> Trainer:
        state = self.checkpoint and (self.checkpoint.tensors, self.checkpoint.progress)
        self.checkpoint = None
        if self.config.parallel == "rounds":
            from jobs.training.round_trainer import RoundTrainer

            return RoundTrainer(self.cluster, self.config, self.layers, self.dataset, state)
        if self.cluster is None:
            return Trainer(self.config, self.layers, self.dataset, state)
        from jobs.training.cluster_stepper import ClusterTrainer

        return ClusterTrainer(self.cluster, self.config, self.layers, self.dataset, state)

    def _train_epochs(self) -> None:
        evaluators = self._evaluators()
        try:
            while not self._finished:
                self._train_epoch(evaluators)
        finally:
            for evaluator in evaluators.values():
                evaluator.close()

    def _train_epoch(self, evaluators: dict[str, Evaluator]) -> None:
        began = time.perf_counter()
        self._last_batch = self.trainer.stream.state.next_batch
        first_row, waited = self.trainer.sums.rows, self.trainer.stream.seconds_waited
        self.trainer.train_epoch(self._after_step)
        seconds = time.perf_counter() - began
        rows = self.trainer.sums.rows - first_row
        evaluations = {
            name: evaluator.evaluate(self.trainer.parameters)
            for name, evaluator in evaluators.items()
        }
        for name, found in evaluations.items():
            split = name if name in self.dataset.splits else "train"
            self.trainer.check_finite(f"the cross-entropy of {name}", found.cross_entropy, split)
        timing = {
            "seconds": round(seconds, 3),
            "rows_per_second": round(rows / max(seconds, 1e-9)),
            "seconds_waited": round(self.trainer.stream.seconds_waited - waited, 3),
        }
        line = self._line(evaluations) | {"timing": timing}
        self.metrics.append(line)
        self.trainer.sums = RunningSums()
        self.run.append_metrics(line, self.metrics[:-1])
        self._save()
        self.listener.finished_epoch(line)
        self._warn_of_processes()
        self._stop_if_asked()

    def _line(self, evaluations: dict[str, Evaluation]) -> Metrics:
        """What there is to say of the epoch just ended; the same, to the bit, however it ran."""
        sums, state = self.trainer.sums, self.trainer.stream.state
        return {
            "epoch": state.epoch,
            "steps": self.trainer.steps,
            "loss": sums.loss_sum / sums.rows,
            "accuracy": sums.correct / sums.rows,
            "evaluation": {name: found.to_json() for name, found in evaluations.items()},
            "order_digest": state.order_digest,
            "parameters_digest": self._digest(),
        }

    def _after_step(self) -> None:
        sums, stream = self.trainer.sums, self.trainer.stream
        self.listener.stepped(
            len(self.metrics) + 1, sums.rows, stream.rows, sums.loss_sum / sums.rows
        )
        next_batch = stream.batches_taken % stream.batches
        if not next_batch:
            return  # the epoch's end, which is recorded and saved as such
        every = self.config.checkpoint_every
        # Where several mini-batches are a round, its border may lie past the one that is due.
        due = every and next_batch // every != self._last_batch // every
        self._last_batch = next_batch
        if due or self.stop.requested:
            self._save()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.stop.requested and not self._finished:
            self.stop.raise_stopped(
                f"Stopped after {self.trainer.steps:,} steps; the checkpoint is saved. "
                "Run the same command with --resume to go on."
            )

    def _save(self) -> None:
        """Save a checkpoint, then let go of the oldest."""
        state = self.trainer.stream.state
        name = CheckpointName(state.epoch, state.next_batch)
        save_checkpoint(
            self.run,
            name,
            self.trainer.tensors(),
            parameters_digest=self._digest(),
            config_digest=self.config.digest,
            progress=self.trainer.progress() | {"metrics": self.metrics},
        )
        best = best_checkpoint(self.metrics)
        prune_checkpoints(self.run, name, self.config.keep, {best} if best else set())

    def _evaluators(self) -> dict[str, Evaluator]:
        """One for each split to evaluate, and one for validation where there are rows for it."""
        rows = {name: split.schema.rows for name, split in self.dataset.splits.items()}
        kept = rows["train"] - self.config.holdout
        ranges = {name: (name, 0, count) for name, count in rows.items()}
        ranges["train"] = ("train", 0, kept)
        if self.config.holdout:
            ranges[VALIDATION] = ("train", kept, self.config.holdout)
        return {
            name: Evaluator(
                self.trainer.network,
                self.dataset,
                split,
                first_row=first_row,
                rows=count,
                times=self.config.epochs - len(self.metrics),
                threads=thread_count(self.config.threads),
            )
            for name in self.config.evaluations(rows)
            for split, first_row, count in [ranges[name]]
        }

    @property
    def _finished(self) -> bool:
        return len(self.metrics) >= self.config.epochs or self._out_of_patience

    @property
    def _out_of_patience(self) -> bool:
        best = best_checkpoint(self.metrics)
        patience = self.config.patience
        return bool(patience and best and len(self.metrics) - best.epoch >= patience)

    def _digest(self) -> str:
        return parameters_digest(self.layers, self.trainer.parameters)

    def _warn_of_processes(self) -> None:
        missing = self.trainer.missing_processes
        if missing > self._missing_processes:
            self.listener.warned(
                f"{missing} of the processes that compute gradients are gone, killed or never "
                "given by the system. The others do their part: the bits are the same, it takes "
                "longer."
            )
        self._missing_processes = missing

    def _warn_of_values(self) -> None:
        """Say so where inputs are far from [0, 1], as far as the first chunk shows."""
        split, scaling = self.dataset.split("train"), self.dataset.preparation.scaling
        if split.schema.dtype == "uint8" and scaling == BYTES:
            return
        row, stored, size = largest_input(split, scaling, chunks=1)
        if size > FAR_FROM_ONE:
            self.listener.warned(
                f"The network will learn badly: row {row} of the training split holds {stored}, "
                f"and the dataset has its {self.dataset.preparation}. Ingest the files again with "
                "a --scale LOW,HIGH that most values lie in."
            )

    def _warn_of_environment(self) -> None:
        here = environment()
        differing = [
            f"{name}: {self.run.environment.get(name)!r} then, {here[name]!r} now"
            for name in here
            if self.run.environment.get(name) != here[name]
        ]
        if differing:
            self.listener.warned(
                "The run was begun in another environment, so its last bits may differ from here "
                f"on ({'; '.join(differing)})."
            )
