"""Warm start: a run begins with the parameters of another run's checkpoint."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.nn.initialise import initialise
from jobs.nn.parameters import views
from jobs.training.config import TrainConfig
from jobs.training.job import train
from jobs.training.model import Model
from jobs.training.reproduce import reproduce
from jobs.training.result import TrainResult
from pipeline.ingest import ingest
from storage.checkpoints import CheckpointName
from storage.errors import BadDataError, ConflictError, PipelineError, StoppedError, UsageError
from storage.places import open_location
from storage.preparation import ValueRange
from storage.runs import open_run
from tests.jobs.trainings import Log, StopAt, checkpoints, outcome, stopped_at, tree

NETWORK = "relu-9-sigmoid-7"
PLAIN = {"network": NETWORK, "batch_size": 97, "micro_batches": 2, "keep": 100, "threads": 2}
STILL = {"learning_rate": 0.0, "epochs": 1, "batch_size": 97}
"""Settings with which training leaves all parameters as they are."""


@pytest.fixture(scope="module")
def base(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run of three epochs, the parent of others."""
    run = tmp_path_factory.mktemp("base") / "run"
    return train({**PLAIN, "epochs": 3, "checkpoint_every": 4}, dataset=digits, run=run)


@pytest.fixture
def parent(base: TrainResult) -> Path:
    """The place of `base`."""
    return Path(str(base.run.location))


def dataset_of(names: list[str], place: Path) -> Path:
    """A dataset of 150 random images with these classes."""
    values = np.random.default_rng(3)
    images = values.integers(0, 256, (150, 28, 28), dtype=np.uint8)
    np.savez(place / "set.npz", x=images, y=np.arange(150) % len(names))
    ingest(str(place / "set.npz"), place / "dataset", class_names=names)
    return place / "dataset"


@pytest.mark.parametrize("choice", ["", "@best", "@latest", "@1", "@000001-000004", "@digest"])
def test_parameters_are_the_parents(
    choice: str, base: TrainResult, digits: Path, tmp_path: Path
) -> None:
    """Network and parameters are those of the chosen checkpoint, and the record names it."""
    first = base.metrics[0]["parameters_digest"]
    by_choice = {"@1": first, "@digest": first, "@000001-000004": None}
    parent = f"{base.run.location}{choice.replace('digest', first[:9])}"
    result = train(STILL, dataset=digits, run=tmp_path / "run", parent=parent)
    digest = by_choice.get(choice, base.parameters_digest)
    if digest is None:
        digest = Model.load(base.run.location, choice[1:]).digest
    assert digest == result.parameters_digest
    record = open_run(open_location(tmp_path / "run"))
    assert record.parent is not None
    assert (base.run.run_id, digest, False) == tuple(
        record.parent[name] for name in ("run_id", "model_digest", "optimizer")
    )
    assert str(base.run.location) == record.parent_place
    assert 1 == record.versions["start"]
    assert "start" not in base.run.versions
    assert "parent" not in (base.run.location.path / "run.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "nesterov", "sgd"])
def test_the_state_of_the_optimizer(optimizer: str, digits: Path, tmp_path: Path) -> None:
    """With its state, and rows in a fixed order, training continues the parent's to the same bits.

    That holds for a run from that run as well, and after a resume.
    """
    settings = {
        **PLAIN,
        "optimizer": optimizer,
        "schedule": "constant",
        "shuffle": False,
        "checkpoint_every": 4,
    }
    whole = train({**settings, "epochs": 4}, dataset=digits, run=tmp_path / "whole")
    last = str(whole.run.location)
    for name in ("second", "third"):
        result = train(
            {**settings, "epochs": 2},
            dataset=digits,
            run=tmp_path / name,
            parent=f"{last}@1",
            from_optimizer=True,
        )
        last = str(result.run.location)
    assert whole.metrics[3]["parameters_digest"] == result.parameters_digest
    half = stopped_at(tmp_path / "third", CheckpointName(0, 8), tmp_path / "half")
    resumed = train({}, dataset=digits, run=half, resume=True)
    assert whole.metrics[3]["parameters_digest"] == resumed.parameters_digest
    parent = tmp_path / "second@1"
    without = train({**settings, "epochs": 2}, dataset=digits, run=tmp_path / "new", parent=parent)
    is_same = whole.metrics[3]["parameters_digest"] == without.parameters_digest
    assert (optimizer == "sgd") == is_same  # which has no state


def test_other_classes(base: TrainResult, parent: Path, tmp_path: Path, log: Log) -> None:
    """Other classes get a new last layer, drawn from the new seed; the other layers are kept."""
    dataset = dataset_of(["a", "b", "c"], tmp_path)
    result = train(STILL | {"seed": 5}, dataset=dataset, run=tmp_path / "run", parent=parent)
    model = Model.load(tmp_path / "run")
    layers = model.network.layers
    before = views(Model.load(parent).parameters, Model.load(parent).network.layers)
    after = views(model.parameters, layers)
    new = views(initialise("scaled", layers, 5), layers)
    assert "784-relu-9-sigmoid-7-softmax-3" == result.config.network
    for kept, now in zip(before[:-1], after[:-1], strict=True):
        np.testing.assert_array_equal(kept, now)
    np.testing.assert_array_equal(new[-1], after[-1])
    assert "the last layer is new" in log.text


def test_classes_in_another_order(parent: Path, tmp_path: Path, log: Log) -> None:
    """The same classes in another order keep their outputs."""
    names = list("9876543210")
    train(STILL, dataset=dataset_of(names, tmp_path), run=tmp_path / "run", parent=parent)
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    before, after = Model.load(parent), Model.load(tmp_path / "run")
    assert names == list(after.class_names)
    np.testing.assert_array_equal(
        before.predict_proba(images).argmax(axis=1), 9 - after.predict_proba(images).argmax(axis=1)
    )
    np.testing.assert_allclose(
        before.predict_proba(images)[:, ::-1], after.predict_proba(images), rtol=1e-6
    )
    assert "in the order of the dataset's classes" in log.text


@pytest.mark.slow
def test_settings_are_not_the_parents(digits: Path, tmp_path: Path) -> None:
    """Network and dtype come from the parent, even with a recipe; all else from the defaults."""
    settings = {"network": "tanh-5", "dtype": "float64", "batch_size": 300, "optimizer": "sgd"}
    train(settings | {"epochs": 1}, dataset=digits, run=tmp_path / "base")
    given = {"recipe": "quick", "epochs": 1}
    result = train(given, dataset=digits, run=tmp_path / "run", parent=tmp_path / "base")
    config = result.config
    assert ("784-tanh-5-softmax-10", "float64") == (config.network, config.dtype)
    recipe = TrainConfig().optimizer, 1
    assert recipe == (config.optimizer, config.epochs)
    assert train(given, dataset=digits, run=tmp_path / "run", resume=True).already_done


@pytest.mark.slow
def test_refused(base: TrainResult, parent: Path, digits: Path, tmp_path: Path) -> None:
    """Whatever does not fit is named with both sides, and nothing is created."""
    small = tmp_path / "small.npz"
    np.savez(small, x=np.zeros((30, 8, 8), np.uint8), y=np.arange(30) % 3)
    ingest(str(small), tmp_path / "small")
    ingest("synthetic:50,10", tmp_path / "scaled", scale=ValueRange(0.0, 100.0))
    ingest("synthetic:50,10", tmp_path / "turned", transpose=True)
    flat = train({"network": "softmax", "epochs": 1}, dataset=digits, run=tmp_path / "flat")
    rounds = {"parallel": "rounds", "epochs": 1, "network": "relu-4"}
    train(rounds, dataset=digits, run=tmp_path / "rounds")
    letters = dataset_of(["a", "b"], tmp_path)
    missing, itself = tmp_path / "none", tmp_path / "new"
    optimizer = {"from_optimizer": True}
    cases: list[tuple[type[PipelineError], str, dict[str, Any]]] = [
        (BadDataError, "no run at", {"parent": missing}),
        (BadDataError, "contains no run.json", {"parent": digits}),
        (UsageError, "the run to train", {"parent": itself}),
        (UsageError, "--from is ''", {"parent": ""}),
        (UsageError, "--from is '@best'", {"parent": "@best"}),
        (UsageError, "expected best, latest", {"parent": f"{parent}@"}),
        (UsageError, "expected best, latest", {"parent": f"{parent}@bset"}),
        (UsageError, "no parameters to start from", {"parent": f"{parent}@average"}),
        (UsageError, "no parameters to start from", {"parent": f"{parent}@1,2"}),
        (BadDataError, "no checkpoint 000099-000000", {"parent": f"{parent}@99"}),
        (UsageError, f"relu-8.*{NETWORK}", {"config": {"network": "relu-8"}}),
        (UsageError, f"relu-200-sigmoid-80.*{NETWORK}", {"config": TrainConfig()}),
        (UsageError, "float64.*float32", {"config": {"dtype": "float64"}}),
        (BadDataError, "8 x 8.*28 x 28", {"dataset": tmp_path / "small"}),
        (BadDataError, "0 to 100 .*0 to 255 ", {"dataset": tmp_path / "scaled"}),
        (BadDataError, "transposed; checkpoint", {"dataset": tmp_path / "turned"}),
        (UsageError, "no hidden layer", {"parent": flat.run.location, "dataset": letters}),
        (UsageError, "classes in the same order", {"dataset": letters, **optimizer}),
        (UsageError, "adamw, not adam", {"config": {"optimizer": "adam"}, **optimizer}),
        (UsageError, "beta2 0.999, not 0.9", {"config": {"beta2": 0.9}, **optimizer}),
        (UsageError, "--parallel steps", {"parent": tmp_path / "rounds", **optimizer}),
        (UsageError, "needs --from RUN", {"parent": None, **optimizer}),
    ]
    for error, words, changes in cases:
        arguments = {"config": {}, "dataset": digits, "parent": parent, "run": itself} | changes
        with pytest.raises(error, match=re.compile(words)):
            train(**arguments)
        assert not itself.exists(), words


@pytest.mark.slow
def test_start_again_without_a_checkpoint(
    parent: Path, digits: Path, tmp_path: Path, log: Log
) -> None:
    """A run killed before its first checkpoint starts again from the recorded parent."""
    run, moved = tmp_path / "run", shutil.copytree(parent, tmp_path / "parent")
    whole = train(PLAIN | {"epochs": 2}, dataset=digits, run=run, parent=f"{moved}@1")
    expected = outcome(whole)
    for directory in ("checkpoints", "references"):
        shutil.rmtree(run / directory)
    assert expected == outcome(train({}, dataset=digits, run=run, resume=True))
    shutil.rmtree(run / "checkpoints")

    record = (run / "run.json").read_bytes()
    checkpoint = moved / "checkpoints" / "000001-000000"
    checkpoint.rename(tmp_path / "checkpoint")
    resume: Callable[[], Any] = lambda: train({}, dataset=digits, run=run, resume=True)  # noqa: E731
    with pytest.raises(BadDataError, match=r"no checkpoint 000001-000000.*Restore that checkpoint"):
        resume()
    shutil.rmtree(moved)
    with pytest.raises(BadDataError, match=r"no run at .*parent.*Restore that checkpoint"):
        resume()
    train(PLAIN | {"epochs": 1, "seed": 7}, dataset=digits, run=moved)
    with pytest.raises(BadDataError, match=r"is now model .*; expected "):
        resume()
    assert record == (run / "run.json").read_bytes()
    assert not checkpoints(run)


@pytest.mark.slow
def test_reproduce(parent: Path, digits: Path, tmp_path: Path) -> None:
    """A run from a parent can be reproduced from its first epoch, while the parent is there."""
    moved = shutil.copytree(parent, tmp_path / "parent")
    run = train(PLAIN | {"epochs": 2}, dataset=digits, run=tmp_path / "run", parent=moved).run
    assert "the same bits: 2 of 2 epochs" == reproduce(run.location).summary
    shutil.rmtree(moved)
    with pytest.raises(BadDataError, match="cannot start from its parent again"):
        reproduce(run.location)
    assert reproduce(run.location, first=2).is_same


def test_resume_names_the_same_parent(parent: Path, digits: Path, tmp_path: Path) -> None:
    """--resume takes the recorded parent, however it is written, and refuses another."""
    run, digest = tmp_path / "run", Model.load(parent, 2).digest
    train(STILL, dataset=digits, run=run, parent=f"{parent}@2")
    before = tree(run)
    link = tmp_path / "link"
    link.symlink_to(parent)
    same = [f"{link}@2", f"{parent}@{digest[:8]}", f"{parent}@000002-000000", str(parent)]
    for name in (None, *same, f"{parent}@latest"):
        again = train({}, dataset=digits, run=run, parent=name, resume=True)
        assert again.already_done
    for name in (f"{parent}@1", f"{parent}@{digest[::-1][:8]}", tmp_path / "other", run):
        with pytest.raises(ConflictError, match="was started from checkpoint 000002-000000 of"):
            train({}, dataset=digits, run=run, parent=name, resume=True)
    with pytest.raises(ConflictError, match="without the optimizer's state"):
        train({}, dataset=digits, run=run, parent=parent, from_optimizer=True, resume=True)
    with pytest.raises(ConflictError, match="was not started from another run"):
        train({}, dataset=digits, run=parent, parent=run, resume=True)
    assert before == tree(run)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["steps", "rounds"])
def test_threads_and_interruptions(
    parallel: str, parent: Path, digits: Path, tmp_path: Path
) -> None:
    """The same bits on one thread and on three, and after a stop and a resume."""
    settings = PLAIN | {"parallel": parallel, "sync_every": 2, "epochs": 2, "dropout": 0.2}
    whole = train(settings, dataset=digits, run=tmp_path / "whole", parent=parent)
    other = settings | {"threads": 3}
    stopper = StopAt(5 if parallel == "steps" else 2)
    arguments: dict[str, Any] = {"dataset": digits, "run": tmp_path / "run", "parent": parent}
    with pytest.raises(StoppedError):
        train(other, progress=stopper, stop=stopper.signal, **arguments)
    assert outcome(whole) == outcome(train(other, resume=True, **arguments))
    fresh = train(settings, dataset=digits, run=tmp_path / "fresh")
    assert fresh.parameters_digest != whole.parameters_digest
