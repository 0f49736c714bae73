"""Train and evaluate by epochs: the trainer of a configuration, its evaluators, their metrics."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.nn.architecture import Layer
from jobs.training.config import TrainConfig
from jobs.training.evaluate import Evaluator
from jobs.training.history import Metrics
from jobs.training.portable import check_arithmetic
from jobs.training.step import thread_count
from jobs.training.trainer import SavedState, Start, Trainer
from storage.dataset import Dataset

if TYPE_CHECKING:
    from pipeline.cluster.client import Cluster


def make_trainer(
    config: TrainConfig,
    layers: tuple[Layer, ...],
    dataset: Dataset,
    state: SavedState | Start | None,
    cluster: "Cluster | None",
) -> Trainer:
    """Return a new trainer, from a `Start` if given, or one in the state of a checkpoint.

    Raises `UsageError` if this process does not compute with the configuration's arithmetic.
    """
    check_arithmetic(config.arithmetic)
    trainer: type[Trainer] = Trainer
    if config.parallel == "rounds":
        from jobs.training.round_trainer import RoundTrainer

        trainer = RoundTrainer
    elif cluster is not None:
        from jobs.training.cluster_stepper import ClusterTrainer

        trainer = ClusterTrainer
    return trainer(config, layers, dataset, state, cluster)


@contextmanager
def open_evaluators(
    trainer: Trainer, dataset: Dataset, times: int
) -> Iterator[dict[str, Evaluator]]:
    """Open the evaluator of each split that a trainer's settings name, for `times` epochs."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(_evaluator(trainer, dataset, name, times))
            for name in trainer.config.evaluations(dataset.splits)
        }


def _evaluator(trainer: Trainer, dataset: Dataset, name: str, times: int) -> Evaluator:
    """Return the evaluator of a split or, for validation, of the held-out rows."""
    config = trainer.config
    trained = dataset.split("train").schema.rows - config.holdout
    split, first_row, rows = name, 0, trained
    if name not in dataset.splits:
        split, first_row, rows = "train", trained, config.holdout
    elif name != "train":
        rows = dataset.split(name).schema.rows
    return Evaluator(
        trainer.network,
        dataset,
        split,
        first_row=first_row,
        rows=rows,
        times=times,
        threads=thread_count(config.threads),
        average_shifts=config.average_shifts,
    )


def epoch_metrics(trainer: Trainer, evaluators: Mapping[str, Evaluator]) -> Metrics:
    """Return the metrics of the epoch that just ended; they do not depend on interruptions.

    Raises `QualityGateError` or `BadDataError` if a cross-entropy is not finite.
    """
    evaluations = {}
    for name, evaluator in evaluators.items():
        evaluation = evaluator.evaluate(trainer.parameters)
        value = evaluation.cross_entropy
        trainer.check_finite(f"the cross-entropy of {name}", value, evaluator.split)
        evaluations[name] = asdict(evaluation)
    sums, state = trainer.sums, trainer.stream.state
    return {
        "epoch": state.epoch,
        "steps": trainer.steps,
        "loss": sums.loss_sum / sums.rows,
        "accuracy": sums.correct / sums.rows,
        "learning_rate": trainer.learning_rate(trainer.steps - 1),
        "evaluation": evaluations,
        "order_digest": state.order_digest,
        "parameters_digest": trainer.parameters_digest,
    }
