"""Trainings for clusters, and harm during their steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from jobs.training.config import TrainConfig
from jobs.training.job import train
from jobs.training.settings import option_name
from pipeline.cluster.connect import connect
from pipeline.cluster.options import ClusterOptions
from tests.cluster import processes
from tests.jobs.trainings import outcome

__all__ = ["ROUNDS", "STEPS", "HarmAt", "Reference", "outcome", "train_on"]

STEPS = TrainConfig(
    network="784-relu-12-softmax-10",
    epochs=3,
    batch_size=170,  # 13 batches of the 2,100 rows, the last of 60
    micro_batches=5,
    learning_rate=0.01,
    schedule="constant",
    rotate=10.0,
    elastic=1.0,
    distort_until=0.6,  # one epoch of three at half strength
    dropout=0.2,
    label_smoothing=0.1,
    shuffle_memory=2**20,  # two windows of three chunks: an epoch has four
    checkpoint_every=5,
    keep=100,
)
ROUNDS = TrainConfig(
    **(
        STEPS.to_json()
        | {"parallel": "rounds", "replicas": 3, "sync_every": 2, "outer_learning_rate": 0.7}
    )
)

CONNECTING_SECONDS = 300.0
"""Timeout of a cluster that works, on a busy machine."""

SETTINGS = [
    argument
    for setting in fields(STEPS)
    if (value := getattr(STEPS, setting.name)) != STEPS.default(setting)
    for argument in (option_name(setting), str(value))
]
"""`STEPS` as options of `pipeline train`."""


@dataclass(frozen=True)
class Reference:
    """The results of the two trainings without a cluster, and the directory of their runs."""

    steps: dict[str, Any]
    rounds: dict[str, Any]
    home: Path


class HarmAt:
    """Does harm during given steps, counted from 1."""

    def __init__(self, harm: Mapping[int, Callable[[], object]]) -> None:
        self._harm = harm
        self._steps = 0
        self.done = False

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        self._steps += 1
        if self._steps in self._harm:
            self._harm[self._steps]()
            self.done = True


def train_on(
    cluster: processes.Cluster,
    config: TrainConfig,
    dataset: Path,
    run: Path,
    harm: Mapping[int, Callable[[], object]] | None = None,
    timeout: float = CONNECTING_SECONDS,
) -> dict[str, Any]:
    """Train on a cluster, with harm during given steps; return the outcome.

    `timeout` applies from the harm on: before that, a busy machine may be slow.
    """
    opened = connect(ClusterOptions(scheduler=cluster.address, timeout=CONNECTING_SECONDS))
    assert opened is not None

    def then_lose_patience(act: Callable[[], object]) -> None:
        act()
        opened.timeout = timeout

    with opened:
        result = train(
            config,
            dataset=dataset,
            run=run,
            resume=True,
            progress=HarmAt({step: partial(then_lose_patience, harm[step]) for step in harm or ()}),
            cluster=opened,
        )
    return outcome(result)
