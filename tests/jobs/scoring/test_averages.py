"""Averages of checkpoints and shifts: the same probabilities however computed, and their records.

The reference is plain NumPy in float64: padded images, and one forward pass of each network.
"""

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
from numpy.typing import NDArray

from jobs.commands.run_reports import train_report
from jobs.nn.network import Network
from jobs.scoring.job import score
from jobs.scoring.promote import PromoteConfig, promote
from jobs.scoring.result import ScoreResult
from jobs.training.job import train
from jobs.training.model import Model
from storage import documents
from storage.checkpoints import STATE, CheckpointName, list_checkpoints, prune_checkpoints
from storage.dataset import open_dataset
from storage.errors import BadDataError, UsageError
from storage.models import open_name
from storage.places import open_location
from storage.runs import RECORD, open_run
from storage.scores import average_digest, open_scores
from tests.jobs.inboxes import Events, ledger, put_images, score_inbox
from tests.jobs.scoring.test_job import finished_files, predictions
from tests.jobs.trainings import small
from tests.storage.artefacts import stored_rows


def shifted(images: NDArray[Any], down: int, right: int) -> NDArray[Any]:
    """Return images moved by pixels, cut from images with a border of zeros."""
    height, width = images.shape[1:]
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3)))
    return padded[:, 3 - down : 3 - down + height, 3 - right : 3 - right + width]


def direct(
    run: Path, dataset: Path, split: str, checkpoints: str, shifts: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Compute the mean probabilities of all rows in float64; return them and the labels."""
    stored = stored_rows(open_dataset(open_location(dataset)).split(split))
    assert stored.targets is not None
    images = stored.inputs[:, 1:].reshape(-1, 28, 28) / 255
    steps = ((-1, 0), (1, 0), (0, -1), (0, 1))
    moves = [(0, 0)] + [(s * y, s * x) for s in range(1, shifts + 1) for y, x in steps]
    terms = []
    for name in checkpoints.split(","):
        model = Model.load(run, name, average_shifts=0)
        network = Network(model.network.layers, "float64")
        for move in moves:
            rows = shifted(images, *move).reshape(len(images), -1)
            inputs = np.column_stack([np.ones(len(rows)), rows])
            terms.append(network.forward(model.parameters.astype("float64"), inputs))
    return np.mean(terms, axis=0), stored.targets.argmax(axis=1)


def average(run: Path, digits: Path, **options: Any) -> ScoreResult:
    """Score with an average of two checkpoints and shifts, unless options say otherwise."""
    return score(run=run, dataset=digits, **{"checkpoint": "1,3", "average_shifts": 1, **options})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpoint", "shifts", "label"),
    [("1,3", 0, "average2-"), ("2", 1, "shifts1-"), ("3,1,2", 2, "average3-shifts2-")],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_scores(
    checkpoint: str, shifts: int, label: str, split: str, run: Path, digits: Path
) -> None:
    """The scores are mean probabilities, and the metrics follow from them."""
    result = average(run, digits, split=split, checkpoint=checkpoint, average_shifts=shifts)
    probabilities, predicted = predictions(result)
    expected, labels = direct(run, digits, split, checkpoint, shifts)
    np.testing.assert_allclose(probabilities, expected, rtol=2e-4, atol=1e-7)
    assert expected.argmax(axis=1).tolist() == predicted.tolist()
    quality = result.metrics["quality"]
    assert float(np.mean(predicted == labels)) == quality["accuracy"]
    cross_entropy = -np.log(expected[np.arange(len(labels)), labels]).mean()
    assert pytest.approx(cross_entropy, rel=1e-5) == quality["cross_entropy"]
    assert result.scores.schema.home.startswith(f"{split}-{label}")


def test_records(run: Path, digits: Path, events: Events) -> None:
    """Members and shifts are recorded with the scores, in the ledger and in the log."""
    members = [Model.load(run, epoch).digest for epoch in (1, 3)]
    result = average(run, digits)
    digest = average_digest(members, 1)
    facts = {"checkpoint": "000001-000000,000003-000000", "average_shifts": 1}
    assert (facts | {"members": members, "model_digest": digest}).items() <= result.metrics.items()
    (line,) = ledger(run)
    assert (facts | {"model_digest": digest}).items() <= line.items()
    assert (facts | {"model_digest": digest}).items() <= events.named("started")[0].items()
    opened = open_scores(result.scores.location)
    assert (tuple(members), 1) == (opened.schema.members, opened.schema.average_shifts)


def test_a_single_model_is_recorded_as_before(run: Path, digits: Path) -> None:
    """Scores of one checkpoint without shifts have the digest, home and version of old ones."""
    result = score(run=run, dataset=digits)
    model = open_run(open_location(run)).metrics()[-1]["parameters_digest"]
    attributes = json.loads((result.scores.location.path / "zarr.json").read_text())["attributes"]
    assert (1, model) == (attributes["format_version"], attributes["scored"]["model_digest"])
    assert "members" not in attributes["scored"]
    assert "test-" == result.scores.schema.home[:-12]


def test_averages_have_scores_of_their_own(run: Path, digits: Path, events: Events) -> None:
    """Each choice of members, of their order and of shifts is a model that scores once."""
    choices = [("1", 0), ("1", 1), ("1", 2), ("1,3", 0), ("1,3", 1), ("3,1", 0)]
    for _ in range(2):
        results = [
            average(run, digits, checkpoint=checkpoint, average_shifts=shifts)
            for checkpoint, shifts in choices
        ]
    assert all(result.already_done for result in results)
    assert len(choices) == len({result.scores.location for result in results})
    assert len(choices) == len(events.named("memory"))  # existing scores need none


def test_threads(run: Path, digits: Path, tmp_path: Path) -> None:
    """The scores are the same to the bit on any number of threads."""
    digests = set()
    for threads in (1, 2, 3):
        copy = shutil.copytree(run, tmp_path / str(threads))
        digests.add(average(copy, digits, split="train", threads=threads).scores.digest)
    assert 1 == len(digests)


KILLED = """
import os, signal, sys
from jobs.scoring.job import score

def progress(stage, done, total, note=""):
    if done > 300:
        os.kill(os.getpid(), signal.SIGKILL)

run, dataset = sys.argv[1:]
average = {"checkpoint": "1,3", "average_shifts": 1}
score(run=run, dataset=dataset, split="train", progress=progress, **average)
"""


@pytest.mark.slow
def test_killed(run: Path, digits: Path, tmp_path: Path) -> None:
    """After SIGKILL a scoring continues; its finished chunks are not computed again."""
    whole = average(shutil.copytree(run, tmp_path / "whole"), digits, split="train")
    arguments = [sys.executable, "-c", KILLED, str(run), str(digits)]
    assert -signal.SIGKILL == subprocess.run(arguments, check=False).returncode
    (home,) = (run / "scores").glob("train-average2-shifts1-*")
    kept = finished_files(home)
    assert 4 <= len(kept)
    result = average(run, digits, split="train")
    assert (whole.scores.digest, False) == (result.scores.digest, result.already_done)
    assert whole.metrics["quality"] == result.metrics["quality"]
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_model_gives_the_same_bits(run: Path, digits: Path) -> None:
    """`Model.load` predicts what scoring wrote, and says what it averages."""
    result = average(run, digits)
    model = Model.load(run, "1,3", average_shifts=1)
    images = stored_rows(open_dataset(open_location(digits)).split("test")).inputs[:, 1:]
    assert result.metrics["model_digest"] == model.digest
    assert predictions(result)[0].tobytes() == model.predict_proba(images).tobytes()
    first, second, *_ = repr(model).splitlines()
    assert first == f"<Model {model.digest[:12]} of checkpoints 000001-000000, 000003-000000>"
    assert second == "  average over 2 checkpoints and shifts of up to 1 pixel"
    with pytest.raises(ValueError, match="too many values"):
        model.parameters  # noqa: B018 - a property that raises


def test_shifts_of_the_run(digits: Path, tmp_path: Path) -> None:
    """A run's evaluations, and its scores by default, average over the shifts of its setting."""
    config = small(epochs=2, average_shifts=1)
    result = train(config, dataset=digits, run=tmp_path / "run")
    plain = train(replace(config, average_shifts=0), dataset=digits, run=tmp_path / "plain")
    assert plain.parameters_digest == result.parameters_digest
    evaluation = result.metrics[-1]["evaluation"]["test"]
    assert evaluation != plain.metrics[-1]["evaluation"]["test"]
    summary = train_report(result).summary
    assert "after epoch 2, average over shifts of up to 1 pixel; model" in summary
    scored = score(run=tmp_path / "run", dataset=digits)
    assert 1 == scored.metrics["average_shifts"]
    assert evaluation["accuracy"] == scored.metrics["quality"]["accuracy"]
    assert (
        pytest.approx(evaluation["cross_entropy"], rel=1e-12)
        == (scored.metrics["quality"]["cross_entropy"])
    )
    without = score(run=tmp_path / "run", dataset=digits, checkpoint=2, average_shifts=0)
    assert result.parameters_digest == without.metrics["model_digest"]


def test_snapshots(digits: Path, tmp_path: Path) -> None:
    """`average` means the ends of all cycles, each of which must be there."""
    run = tmp_path / "run"
    config = small(epochs=5, schedule="cosine", restarts=2, restart_epochs=1, keep=2)
    train(config, dataset=digits, run=run)
    names = "000003-000000,000004-000000,000005-000000"
    result = average(run, digits, checkpoint="average")
    assert names == result.metrics["checkpoint"]
    assert average(run, digits, checkpoint="3,4,5").already_done
    assert Model.load(run, "average", average_shifts=1).digest == result.metrics["model_digest"]
    shutil.rmtree(run / CheckpointName(4, 0).key)
    with pytest.raises(BadDataError, match=r"lacks 000004-000000 of the snapshots"):
        average(run, digits, checkpoint="average")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(BadDataError, match="has no checkpoint yet"):
        average(run, digits, checkpoint="average")


def test_no_snapshots(run: Path, digits: Path) -> None:
    """A run without restarts has nothing that `average` could mean."""
    with pytest.raises(UsageError, match=r"without --restarts, .* keeps: 000001-000000, "):
        average(run, digits, checkpoint="average")


def test_promoted(run: Path, digits: Path, tmp_path: Path) -> None:
    """A promoted average keeps its members and shifts, and none of them is pruned."""
    where: dict[str, Any] = {"run": run, "models": tmp_path / "models", "dataset": digits}
    choice: dict[str, Any] = {"checkpoint": "1,2", "average_shifts": 2}
    result = promote(PromoteConfig(name="champion", min_accuracy=0.0, **choice, **where))
    digest = Model.load(run, **choice).digest
    holder = open_name(open_location(tmp_path / "models"), "champion").holder
    assert holder is not None
    assert result.holder == holder
    names = "000001-000000,000002-000000"
    assert (digest, names, 2) == (holder.model_digest, holder.checkpoint, holder.average_shifts)
    opened = open_run(open_location(run))
    prune_checkpoints(opened, CheckpointName(3, 0), 1, set())
    assert 3 == len(list_checkpoints(opened))
    scored = score(model="champion", models=tmp_path / "models", dataset=digits)
    assert (digest, True) == (scored.metrics["model_digest"], scored.already_done)
    assert digest == Model.load(model="champion", models=tmp_path / "models").digest
    with pytest.raises(UsageError, match="'champion' determines run, checkpoint and shifts"):
        Model.load(checkpoint=1, model="champion", models=tmp_path / "models")
    assert promote(PromoteConfig(name="champion", **choice, **where)).already_done
    other = choice | {"average_shifts": 1}
    assert not promote(PromoteConfig(name="champion", **other, **where)).already_done


def test_a_promoted_name_with_other_shifts(run: Path, digits: Path, tmp_path: Path) -> None:
    """A name whose members and shifts do not give its model's digest is refused."""
    models = open_location(tmp_path / "models")
    promote(PromoteConfig(run, "champion", "1,2", average_shifts=1, models=models))
    name = open_name(models, "champion")
    assert name.holder is not None
    replace(name, holders=(replace(name.holder, average_shifts=2),)).save()
    with pytest.raises(BadDataError, match=f"champion is model {name.holder.model_digest}; .* now"):
        score(model="champion", models=models, dataset=digits)


def test_inbox(run: Path, inbox: Path) -> None:
    """Each model scores a file once, and an average is a model of its own."""
    put_images(inbox / "images-idx3-ubyte", 1)
    for checkpoint, before in (("1,2", False), ("1,2", True), ("1", False)):
        (result,) = score_inbox(run, inbox, checkpoint=checkpoint).results
        assert before == result.already_done


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "3,latest"}, "names checkpoint 000003-000000 more than once"),
        ({"checkpoint": "1,"}, "--checkpoint is ''; expected best"),
        ({"checkpoint": "1,bset"}, "--checkpoint is 'bset'; expected best"),
        ({"checkpoint": "1,average"}, "average means all snapshots"),
        ({"average_shifts": 4}, "--average-shifts is 4; expected 0 to 3"),
        ({"average_shifts": True}, "average_shifts as True; expected a whole number"),
        ({"average_shifts": "1"}, "average_shifts as '1'; expected a whole number"),
        ({"model": "m", "run": None, "checkpoint": None}, "leave out --average-shifts"),
    ],
)
def test_invalid_choices(options: dict[str, Any], message: str, run: Path, digits: Path) -> None:
    """A choice that names no average is refused."""
    with pytest.raises(UsageError, match=message):
        average(**{"run": run, "digits": digits} | options)


def test_a_damaged_member(run: Path, digits: Path) -> None:
    """A damaged member is named, and nothing is scored without it."""
    name = CheckpointName(1, 0).key
    (run / name / STATE).write_bytes(b"")
    with pytest.raises(BadDataError, match=f"{name}/{STATE} has 0 bytes"):
        average(run, digits)
    assert not (run / "scores").exists()


def edit_record(run: Path, field: str, **changes: Any) -> None:
    """Change the run's record, with a valid seal."""
    document = json.loads((run / RECORD).read_text())
    document[field] |= changes
    (run / RECORD).write_bytes(documents.sealed_bytes(document))


def test_members_of_another_network(run: Path, digits: Path) -> None:
    """Checkpoints that do not have the run's network are refused."""
    edit_record(run, "configuration", network="784-relu-8-softmax-10")
    with pytest.raises(BadDataError, match="does not fit the run: layer_0"):
        average(run, digits)


@pytest.mark.parametrize(
    ("shape", "message"),
    [([784], "has images of 784"), ([28, 14, 2], "of 28 x 14 x 2"), (None, "does not record")],
)
def test_images_that_cannot_be_shifted(
    shape: list[int] | None, message: str, run: Path, digits: Path
) -> None:
    """Shifts need images of height and width alone; the members can be averaged without."""
    edit_record(run, "dataset", image_shape=shape)
    with pytest.raises(UsageError, match=f"The run .* {message}.*height x width"):
        average(run, digits)
    assert 2 == len(Model.load(run, "1,3").members)
