"""Fixtures that the tests of the commands share: a set of files, a dataset, a run, and a call."""

from collections.abc import Callable
from contextlib import chdir
from importlib import import_module
from pathlib import Path

import pytest

from jobs.training.config import TrainConfig
from jobs.training.job import train
from pipeline.ingest import ingest
from tests.commands.process import Ended, run_here
from tests.commands.sets import copy, write_set
from tests.object_store.server import Store

Call = Callable[..., Ended]

SMALL = ("--network", "784-relu-8-softmax-10", "--batch-size", "50")
"""Options for training that takes a moment."""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory after the commands without options: `files`, `data/mnist` and `runs/mnist`."""
    place = tmp_path_factory.mktemp("made")
    config = TrainConfig(network=SMALL[1], batch_size=int(SMALL[3]), epochs=2)
    with chdir(place):
        ingest(str(write_set(Path("files"))), "data/mnist", rows_per_chunk=64)
        train(config, dataset="data/mnist", run="runs/mnist")
    return place


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MNIST_DIR", raising=False)
    return tmp_path


@pytest.fixture
def files(made: Path, here: Path) -> Path:
    """The four raw files of a small set, in `files`."""
    return copy(made / "files", here / "files")


@pytest.fixture
def dataset(made: Path, here: Path) -> Path:
    """The dataset made of them, in `data/mnist`."""
    return copy(made / "data" / "mnist", here / "data" / "mnist")


@pytest.fixture
def run(made: Path, here: Path) -> Path:
    """A run of two epochs with `SMALL` on that dataset, in `runs/mnist`."""
    return copy(made / "runs" / "mnist", here / "runs" / "mnist")


@pytest.fixture
def call(here: Path) -> Call:
    """`call(*arguments)` runs the command in this process, in the directory `here`."""
    return run_here


@pytest.fixture
def environment(store: Store, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The AWS variables, for commands in this process and in others."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    return store.environment


@pytest.fixture
def home(store: Store, environment: dict[str, str], call: Call) -> str:
    """A prefix in the store with a dataset, `set`, and a run of one epoch, `run`."""
    place = str(store.new_place())
    ingest = ("ingest", "synthetic:300,60", "--rows-per-chunk", 64, "--out", f"{place}/set")
    assert 0 == call(*ingest).code
    where = ("--dataset", f"{place}/set", "--run", f"{place}/run", "--schedule", "constant")
    assert 0 == call("train", *SMALL, "--epochs", 1, *where).code
    return place


@pytest.fixture(scope="session")
def fonts() -> None:
    """Build matplotlib's font cache first: a slow build prints a warning on stderr."""
    import_module("matplotlib.font_manager")
