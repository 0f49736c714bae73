"""The result of a training run."""

from dataclasses import dataclass
from typing import Any

from jobs.output import percent
from jobs.training.config import TrainConfig
from jobs.training.history import Metrics, history_columns
from storage.checkpoints import CheckpointName
from storage.runs import Run


@dataclass(frozen=True, repr=False)
class TrainResult:
    """The result of `train`."""

    run: Run
    """The run's record."""
    config: TrainConfig
    """All settings of the run."""
    metrics: tuple[Metrics, ...]
    """The metrics of each epoch of the run, as in `metrics.jsonl`."""
    parameters_digest: str
    """SHA-256 that identifies the model after the last epoch."""
    order_digest: str
    """SHA-256 over the rows of all mini-batches, in order."""
    best: CheckpointName | None
    """The checkpoint with the lowest validation cross-entropy; None without validation."""
    already_done: bool
    """True if the run had been finished before."""
    stopped_early: bool
    """True if `patience` ended the training."""

    @property
    def history(self) -> dict[str, list[Any]]:
        """The metrics as columns, for `pandas.DataFrame(result.history)` or a plot.

        The columns are `epoch`, `steps`, `loss`, `accuracy`, `learning_rate`, `NAME_accuracy` and
        `NAME_cross_entropy` of each evaluated split, `seconds`, `rows_per_second`,
        `seconds_waited` and `time`. Epochs of early releases have None as `learning_rate` and
        `time`.
        """
        return history_columns(self.metrics)

    def __repr__(self) -> str:
        accuracies = "".join(
            f", {name.removesuffix('_accuracy')} accuracy {percent(column[-1])}"
            for name, column in self.history.items()
            if name.endswith("_accuracy")
        )
        best = f", best: checkpoint {self.best}" if self.best else ""
        return (
            f"<TrainResult of {self.run.location}>\n"
            f"  epochs: {len(self.metrics)} of {self.config.epochs}{accuracies}{best}\n"
            f"  last model: {self.parameters_digest[:12]}, order: {self.order_digest[:12]}"
        )
