"""The trainer of `--parallel steps` on a cluster: another stepper, a stream that reads no rows."""

from typing import Any

from jobs.config import TrainConfig
from jobs.nn.architecture import Layer
from jobs.nn.optimizers import State
from jobs.nn.parameters import Floats
from jobs.training.cluster_gradients import GradientWork
from jobs.training.cluster_rows import ordered_rows
from jobs.training.cluster_stepper import ClusterStepper
from jobs.training.step import StepRule, thread_count
from jobs.training.trainer import Trainer
from pipeline.cluster import Cluster
from pipeline.rows import Unread
from storage.dataset import Dataset


class ClusterTrainer(Trainer):
    """A `Trainer` whose gradients come from a cluster's workers, to the same bits."""

    loader = Unread

    def __init__(
        self,
        cluster: Cluster,
        config: TrainConfig,
        layers: tuple[Layer, ...],
        dataset: Dataset,
        state: Any = None,
    ) -> None:
        """As `Trainer`, on a cluster that stays open."""
        self._cluster = cluster
        super().__init__(config, layers, dataset, state)

    def _make_stepper(
        self,
        rule: StepRule,
        parameters: Floats,
        memory: State,
        dataset: Dataset,
        batch_size: int,
    ) -> ClusterStepper:
        work = GradientWork(
            ordered_rows(self.config, dataset),
            self.config.network,
            self.config.dtype,
            rule.scaling,
        )
        return ClusterStepper(
            self._cluster,
            work,
            rule,
            parameters,
            memory,
            lambda: (self.stream.state.epoch, self.stream.place),
            thread_count(self.config.threads),
        )
