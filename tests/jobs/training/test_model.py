"""The model of a run: the choice of a checkpoint, and errors."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.training import select_checkpoint
from jobs.training.choose_model import choose_model
from jobs.training.job import train
from jobs.training.model import Model, model_of
from jobs.training.result import TrainResult
from storage import documents
from storage.checkpoints import MANIFEST, STATE, CheckpointName
from storage.errors import BadDataError, UsageError
from storage.places import open_location
from storage.runs import RECORD, Run, open_run
from tests.jobs.trainings import small

CONFIG = small(
    epochs=6, holdout=50, learning_rate=0.03, schedule="constant", l2=0.0, checkpoint_every=6
)


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run whose best epoch is not its last, with all its checkpoints."""
    return train(CONFIG, dataset=digits, run=tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def run(trained: TrainResult, tmp_path: Path) -> Run:
    """A copy of that run, which a test may change."""
    return open_run(open_location(shutil.copytree(trained.run.location.path, tmp_path / "run")))


def load_model(run: Run, choice: str) -> Model:
    """The model of the checkpoint that is chosen."""
    return model_of(choose_model(run, choice)[0])


def damage(run: Run, name: CheckpointName) -> None:
    """Flip a bit of a checkpoint's tensors."""
    path = run.location.path / name.key / STATE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_best(run: Run, trained: TrainResult) -> None:
    """`best` is the checkpoint with the lowest validation cross-entropy."""
    model = load_model(run, "best")
    assert trained.best == model.checkpoint
    assert CheckpointName(6, 0) != model.checkpoint
    assert trained.metrics[model.checkpoint.epoch - 1]["parameters_digest"] == model.digest
    assert () == select_checkpoint.choose_checkpoint(run, "best")[1]


def test_latest(run: Run, trained: TrainResult) -> None:
    """`latest` is the newest."""
    model = load_model(run, "latest")
    assert (CheckpointName(6, 0), trained.parameters_digest) == (model.checkpoint, model.digest)


def test_latest_within_an_epoch(run: Run) -> None:
    """`latest` may be within an epoch."""
    shutil.rmtree(run.location.path / CheckpointName(6, 0).key)
    assert CheckpointName(5, 6) == load_model(run, "latest").checkpoint


@pytest.mark.parametrize("epoch", range(1, 7))
def test_epoch(epoch: int, run: Run, trained: TrainResult) -> None:
    """A number is the checkpoint at that epoch's end."""
    model = load_model(run, str(epoch))
    expected = (CheckpointName(epoch, 0), trained.metrics[epoch - 1]["parameters_digest"])
    assert expected == (model.checkpoint, model.digest)


def test_best_without_validation(digits: Path, tmp_path: Path) -> None:
    """Without validation rows, `best` is the latest."""
    result = train(small(epochs=2), dataset=digits, run=tmp_path / "run")
    assert CheckpointName(2, 0) == load_model(result.run, "best").checkpoint


@pytest.mark.parametrize("choice", ["", "bset", "-1", "1.5", "²", "1 "])
def test_invalid_choice(choice: str, run: Run) -> None:
    """Any other choice is refused with the valid ones."""
    with pytest.raises(UsageError, match="expected best, latest, the number of an epoch"):
        load_model(run, choice)


def test_epoch_that_is_not_kept(run: Run) -> None:
    """An epoch without a checkpoint is refused with the epochs that have one."""
    shutil.rmtree(run.location.path / CheckpointName(2, 0).key)
    with pytest.raises(BadDataError, match=r"no checkpoint 000002-000000 .* 000001-0"):
        load_model(run, "2")


def test_no_checkpoint(run: Run) -> None:
    """A run without checkpoints is refused with advice to train it."""
    shutil.rmtree(run.location.path / "checkpoints")
    with pytest.raises(BadDataError, match=r"no checkpoint yet. Train it with `pipeline train`"):
        load_model(run, "best")


def test_damaged_newest(run: Run, trained: TrainResult) -> None:
    """If the newest checkpoint is damaged, `latest` is an error and `best` a warning."""
    damage(run, CheckpointName(6, 0))
    with pytest.raises(BadDataError, match=r"000006-000000 is not used.* --checkpoint 000005-0"):
        load_model(run, "latest")
    chosen, warnings = select_checkpoint.choose_checkpoint(run, "000005-000006")
    assert (CheckpointName(5, 6), ()) == (chosen.name, warnings)
    best, (warning,) = select_checkpoint.choose_checkpoint(run, "best")
    assert trained.best == best.name
    assert "000006-000000" in warning


def test_damaged_newest_that_is_the_best(digits: Path, tmp_path: Path) -> None:
    """If the best checkpoint by the metrics is damaged, `best` is an error."""
    trained = train(small(epochs=2, holdout=50), dataset=digits, run=tmp_path / "run")
    assert CheckpointName(2, 0) == trained.best
    damage(trained.run, trained.best)
    with pytest.raises(BadDataError, match="000002-000000 is not used"):
        load_model(trained.run, "best")


def test_damaged_choice(run: Run, trained: TrainResult) -> None:
    """An explicit choice of a damaged checkpoint is an error."""
    damage(run, CheckpointName(3, 0))
    with pytest.raises(BadDataError, match="000003-000000"):
        load_model(run, "3")
    assert trained.best is not None
    damage(run, trained.best)
    with pytest.raises(BadDataError, match=str(trained.best)):
        load_model(run, "best")


def test_parameters_of_another_digest(run: Run) -> None:
    """A manifest with a valid seal and another model's digest is refused."""
    manifest = run.location.path / CheckpointName(6, 0).key / MANIFEST
    document = json.loads(manifest.read_text()) | {"parameters_digest": "0" * 64}
    manifest.write_bytes(documents.sealed_bytes(document))
    with pytest.raises(BadDataError, match="it is damaged"):
        load_model(run, "6")


def test_invalid_network(run: Run) -> None:
    """A record with an invalid network is bad data, and its place is named."""
    record = run.location.path / RECORD
    document = json.loads(record.read_text())
    document["configuration"]["network"] = "784-10"
    record.write_bytes(documents.sealed_bytes(document))
    with pytest.raises(BadDataError, match=r"run\.json: "):
        load_model(open_run(run.location), "best")


@pytest.mark.parametrize(
    "images",
    [{"image_shape": [28, "28"]}, {"image_shape": 784}, {"element_type": "text"}],
)
def test_invalid_images(images: dict[str, Any], run: Run) -> None:
    """A record with an impossible shape or type of images is refused."""
    with pytest.raises(BadDataError, match=r"run\.json gives its images the shape"):
        load_model(replace(run, dataset=run.dataset | images), "latest")


@pytest.mark.parametrize("labels", [7, [0.5] * 10, [1, 2], [{}] * 10, [3] * 10, [*range(10), 9]])
def test_invalid_labels(labels: object, run: Run) -> None:
    """A record without a distinct integer for each class is refused."""
    with pytest.raises(BadDataError, match=r"run\.json has the labels"):
        load_model(replace(run, dataset=run.dataset | {"labels": labels}), "latest")


def test_a_choice_that_is_pruned_is_chosen_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a training run prunes the chosen checkpoint while it is read, the choice is repeated."""
    listed = select_checkpoint.list_checkpoints

    def prune_once(run: Run) -> list[CheckpointName]:
        names = listed(run)
        monkeypatch.undo()
        shutil.rmtree(run.location.path / names[-1].key)
        return names

    monkeypatch.setattr(select_checkpoint, "list_checkpoints", prune_once)
    with pytest.raises(BadDataError, match=r"no checkpoint 000006-000000 "):
        load_model(run, "6")
