"""Ensembles: the members of a model come from several runs, which may have different networks."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.scoring.config import ScoreConfig
from jobs.scoring.job import run_batch, score
from jobs.scoring.promote import PromoteConfig, promote, undo
from jobs.training.job import train
from jobs.training.model import Model
from storage import documents
from storage.checkpoints import CheckpointName, list_checkpoints, prune_checkpoints
from storage.dataset import open_dataset
from storage.errors import BadDataError, UsageError
from storage.models import open_name
from storage.places import open_location
from storage.runs import RECORD, REFERENCES, open_run
from storage.scores import average_digest
from tests.jobs.inboxes import Events, ledger, put_images
from tests.jobs.scoring.test_job import finished_files, predictions
from tests.jobs.trainings import small
from tests.storage.artefacts import stored_rows


@pytest.fixture(scope="module")
def trained_other(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with another network, dtype and seed, which held out rows."""
    place = tmp_path_factory.mktemp("other") / "run"
    settings = {"network": "784-tanh-7-relu-5-softmax-10", "dtype": "float64", "holdout": 100}
    train(small(epochs=2, seed=1, learning_rate=0.003, **settings), dataset=digits, run=place)
    return place


@pytest.fixture
def other(trained_other: Path, tmp_path: Path) -> Path:
    """A copy of it, beside the run."""
    return shutil.copytree(trained_other, tmp_path / "other")


def edit_record(run: Path, field: str, **changes: Any) -> None:
    """Change the run's record, with a valid seal."""
    document = json.loads((run / RECORD).read_text())
    document[field] |= changes
    (run / RECORD).write_bytes(documents.sealed_bytes(document))


def test_scores(run: Path, other: Path, digits: Path, events: Events) -> None:
    """The probabilities are the mean of the runs' own; the scores are below the first run."""
    models = [Model.load(run), Model.load(other, 1)]
    images = stored_rows(open_dataset(open_location(digits)).split("test")).inputs[:, 1:]
    result = score(run=[run, f"{other}@1"], dataset=digits)
    probabilities, _ = predictions(result)
    expected = np.mean([model.predict_proba(images) for model in models], axis=0)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-6)
    digest = average_digest([model.digest for model in models], 0)
    facts = {
        "model_digest": digest,
        "checkpoint": "000003-000000,000001-000000",
        "runs": [".", "../other"],
    }
    assert facts.items() <= result.metrics.items()
    (line,) = ledger(run)
    assert facts.items() <= line.items()
    assert [str(run), str(other)] == events.named("started")[0]["runs"]
    assert result.scores.schema.home.startswith("test-average2-")
    assert run / "scores" == Path(str(result.scores.location)).parent
    assert not (other / "scores").exists()
    model = Model.load([run, (other, "1")])
    assert (digest, probabilities.tobytes()) == (
        model.digest,
        model.predict_proba(images).tobytes(),
    )
    assert f"({run} 000003-000000, {other} 000001-000000)" in repr(model)
    assert score(run=[run, f"{other}@1"], dataset=digits).already_done
    with pytest.raises(ValueError, match="too many values"):
        model.network  # noqa: B018 - a property that raises


def test_one_run_is_recorded_as_before(run: Path, digits: Path) -> None:
    """A run that is named for each of its checkpoints is an average of that run."""
    result = score(run=[f"{run}@1", f"{run}@3"], dataset=digits)
    assert score(run=run, checkpoint="1,3", dataset=digits).already_done
    assert "runs" not in result.metrics
    assert "runs" not in ledger(run)[0]


def test_a_name_with_an_at_sign(run: Path, digits: Path, tmp_path: Path) -> None:
    """A run whose own name has an @ is found, and a checkpoint can follow another one."""
    place = shutil.copytree(run, tmp_path / "a@1")
    assert Model.load(place).digest == Model.load(run).digest
    assert Model.load(f"{place}@2").digest == Model.load(run, 2).digest
    with pytest.raises(UsageError, match="--checkpoint is 'bset'; expected best"):
        Model.load(f"{run}@bset")


def test_drift_of_rows_that_no_member_trained_on(run: Path, other: Path, digits: Path) -> None:
    """The reference has rows that all runs held out: here those of the test split."""
    edit_record(run, "configuration", holdout=50)
    score(run=[other, run], dataset=digits)
    (path,) = (other / REFERENCES).glob(f"{Model.load([other, run]).digest[:12]}.json")
    reference = json.loads(path.read_text())
    assert ("validation", 50, 5) == (
        reference["split"],
        reference["rows"],
        len(reference["hidden_mean"]),
    )
    edit_record(run, "configuration", holdout=0)
    path.unlink()
    score(run=[other, run], dataset=digits, split="train")
    assert "test" == json.loads(path.read_text())["split"]


KILLED = """
import os, signal, sys
from jobs.scoring.job import score

def progress(stage, done, total, note=""):
    if done > 300:
        os.kill(os.getpid(), signal.SIGKILL)

*runs, dataset = sys.argv[1:]
score(run=runs, dataset=dataset, split="train", progress=progress)
"""


@pytest.mark.slow
def test_killed(run: Path, other: Path, digits: Path) -> None:
    """After SIGKILL a scoring continues; its finished chunks are not computed again."""
    whole = score(run=[run, other], dataset=digits, split="train", threads=1)
    shutil.rmtree(run / "scores")
    arguments = [sys.executable, "-c", KILLED, str(run), str(other), str(digits)]
    assert -signal.SIGKILL == subprocess.run(arguments, check=False).returncode
    (home,) = (run / "scores").glob("train-average2-*")
    kept = finished_files(home)
    assert 4 <= len(kept)
    result = score(run=[run, other], dataset=digits, split="train")
    assert whole.scores.digest == result.scores.digest
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_promoted(run: Path, other: Path, digits: Path, inbox: Path, tmp_path: Path) -> None:
    """A promoted ensemble keeps its members in every run, and is found after a move."""
    models = tmp_path / "models"
    where: dict[str, Any] = {"models": models, "dataset": digits}
    promote(PromoteConfig([run], "champion", **where))
    config = PromoteConfig(
        [f"{run}@1", f"{other}@1"], "champion", not_worse_than="champion", **where
    )
    result = promote(replace(config, min_accuracy=0.0, not_worse_than=None))
    assert result.holder is not None
    names = "000001-000000,000001-000000"
    assert (names, 2) == (result.holder.checkpoint, len(result.holder.runs))
    assert promote(config).already_done
    for place, kept in ((run, (1, 3)), (other, (1, 2))):
        opened = open_run(open_location(place))
        prune_checkpoints(opened, CheckpointName(kept[1], 0), 1, set())
        assert [CheckpointName(epoch, 0) for epoch in kept] == list_checkpoints(opened)
    shutil.move(run, tmp_path / "moved" / "run")
    shutil.move(other, tmp_path / "moved" / "other")
    shutil.move(models, tmp_path / "moved" / "models")
    named: dict[str, Any] = {"model": "champion", "models": tmp_path / "moved" / "models"}
    scored = score(dataset=digits, **named)
    assert (result.holder.model_digest, True) == (
        scored.metrics["model_digest"],
        scored.already_done,
    )
    put_images(inbox / "images-idx3-ubyte", 1)
    for before in (False, True):
        config = ScoreConfig(inbox=inbox, settle=0, **named)
        (of_file,) = run_batch(config).results
        assert before == of_file.already_done
    assert "../other" in ledger(tmp_path / "moved" / "run")[-1]["runs"]
    assert result.holder.model_digest == Model.load(**named).digest
    undone = undo(tmp_path / "moved" / "models", "champion")
    assert Model.load(tmp_path / "moved" / "run").digest == undone.holder.model_digest


def test_a_promoted_run_that_was_replaced(run: Path, other: Path, tmp_path: Path) -> None:
    """A name whose runs are no longer the ones that were promoted is refused."""
    promote(PromoteConfig([run, other], "champion", models=tmp_path / "models"))
    document = json.loads((other / RECORD).read_text())
    holder = open_name(open_location(tmp_path / "models"), "champion").holder
    for path in [other / RECORD, *other.glob("checkpoints/*/manifest.json")]:
        document = json.loads(path.read_text()) | {"run_id": "0" * 32}
        path.write_bytes(documents.sealed_bytes(document))
    with pytest.raises(BadDataError, match=f"champion is model {holder.model_digest}; .* replaced"):
        Model.load(model="champion", models=tmp_path / "models")


@pytest.mark.parametrize(
    ("field", "changes", "message"),
    [
        (
            "dataset",
            {"class_names": list("1023456789")},
            r"different classes \(0, 1, .* and 1, 0, ",
        ),
        ("dataset", {"labels": list(range(1, 11))}, r"different labels \(0, 1, .* and 1, 2, "),
        ("dataset", {"image_shape": [784]}, r"different image shapes \(28 x 28 and 784\)"),
        ("dataset", {"element_type": "int8"}, r"different element types \(uint8 and int8\)"),
        (
            "dataset",
            {"transforms": ["bias-column", "transpose", "scale[0.0,1.0]", "one-hot"]},
            r"ranges of values \(0 to 255 and 0 to 1\); different orientations \(not transposed",
        ),
        ("configuration", {"average_shifts": 1}, r"different shifts: 0 in .*run, 1 in .*other\."),
    ],
)
def test_runs_that_do_not_fit(
    field: str, changes: dict[str, Any], message: str, run: Path, other: Path, tmp_path: Path
) -> None:
    """Runs whose images or classes differ are refused, and what differs is named."""
    edit_record(other, field, **changes)
    with pytest.raises(UsageError, match=message):
        score(run=[run, other])
    with pytest.raises(UsageError, match=message):
        promote(PromoteConfig([run, other], "champion", models=tmp_path / "models"))
    assert not (run / "scores").exists()
    assert not (tmp_path / "models").exists()


def test_shifts_are_those_of_the_call(run: Path, other: Path) -> None:
    """Given shifts apply to all runs, whatever they were evaluated with."""
    edit_record(other, "configuration", average_shifts=1)
    assert 2 == Model.load([run, other], average_shifts=2).average_shifts


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (
            ["run@3", "other", "run"],
            "is named twice: checkpoint 000003-000000 of .*run and checkpoint ",
        ),
        (["run", "copy"], "twice: checkpoint 000003-000000 of .*run and .*copy"),
        ([], "No run is given"),
        (["@1", "run"], "A location is empty"),
    ],
)
def test_invalid_choices(
    places: list[str],
    message: str,
    run: Path,
    other: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that is named twice, or no run at all, is refused."""
    shutil.copytree(run, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        Model.load(places)
    with pytest.raises(UsageError, match=message):
        score(run=places)
