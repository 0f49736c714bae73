"""Learning: the accuracy of the default settings on MNIST, and of the original ones."""

import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from jobs.nn.choices import OPTIMIZERS
from jobs.training.config import TrainConfig
from jobs.training.job import train
from pipeline.ingest import ingest

pytestmark = pytest.mark.slow

SEEDS = range(2)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory shared by all pytest-xdist workers of this session."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "learning"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="session")
def mnist(mnist_dir: Path, shared: Path) -> Path:
    """Real MNIST as a dataset."""
    with FileLock(shared / "mnist.lock"):  # the second worker reuses the first one's dataset
        ingest(str(mnist_dir), shared / "mnist")
    return shared / "mnist"


def accuracy(seed: int, mnist: Path) -> float:
    """The test accuracy of the default training; an existing run is reused."""
    run = mnist.with_name(f"seed-{seed}")
    with FileLock(f"{run}.lock"):
        result = train(TrainConfig(seed=seed), dataset=mnist, run=run, resume=True)
    assert 10 == len(result.metrics)
    return float(result.metrics[-1]["evaluation"]["test"]["accuracy"])


@pytest.mark.parametrize("seed", SEEDS)
def test_each_seed(seed: int, mnist: Path) -> None:
    """The default training reaches 98.0 % on MNIST with every seed."""
    assert 0.98 <= accuracy(seed, mnist)


def test_on_average(mnist: Path) -> None:
    """The default training reaches 98.2 % on average over the seeds."""
    assert 0.982 <= sum(accuracy(seed, mnist) for seed in SEEDS) / len(SEEDS)


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "adamw"])
def test_each_optimizer(optimizer: str, mnist: Path, tmp_path: Path) -> None:
    """Every optimizer reaches 97.5 % at its default learning rate; adamw is the default above.

    Six epochs suffice.
    """
    config = TrainConfig(optimizer=optimizer, epochs=6)
    result = train(config, dataset=mnist, run=tmp_path / "run")
    assert 6 == len(result.metrics)
    assert 0.975 <= result.metrics[-1]["evaluation"]["test"]["accuracy"]


def test_rounds(mnist: Path, tmp_path: Path) -> None:
    """Rounds with the default settings lose at most 0.3 points compared with steps."""
    result = train(TrainConfig(parallel="rounds"), dataset=mnist, run=tmp_path / "run")
    reached = result.metrics[-1]["evaluation"]["test"]["accuracy"]
    assert accuracy(0, mnist) - 0.003 <= reached


ORIGINAL = {
    "epochs": 1,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "schedule": "constant",
    "shuffle": False,
    "init": "normal-0.1",
}


@pytest.mark.parametrize(
    ("settings", "steps", "least"),
    [
        ({"batch_size": 100, "l2": 0.0}, 600, 0.85),
        ({"batch_size": 1000, "l2": 0.0}, 60, 0.55),
        ({"batch_size": 1000, "l2": 0.01}, 60, 0.5),
        ({"batch_size": 0, "l2": 0.0}, 1, 0.05),
    ],
)
def test_original_settings(
    settings: dict[str, Any], steps: int, least: float, mnist: Path, tmp_path: Path
) -> None:
    """The original notebook's settings reach the expected accuracy in an epoch."""
    config = TrainConfig(**ORIGINAL | settings)
    result = train(config, dataset=mnist, run=tmp_path / "run")
    assert steps == result.metrics[0]["steps"]
    assert least <= result.metrics[0]["evaluation"]["test"]["accuracy"]


def test_drawn_digits(tmp_path: Path) -> None:
    """Drawn digits are neither easy nor too hard: the default training reaches 95 to 99.5 %."""
    ingest("synthetic:12000,2000", tmp_path / "data")
    result = train(TrainConfig(), dataset=tmp_path / "data", run=tmp_path / "run")
    assert 0.95 <= result.metrics[-1]["evaluation"]["test"]["accuracy"] <= 0.995
