"""train --from: what the commands print of a run with a parent, and refuse."""

import json
from pathlib import Path

import pytest

from storage.errors import QualityGateError
from storage.places import open_location
from storage.runs import open_run
from tests.commands.conftest import Call
from tests.commands.process import assert_refused, document, succeeded

FROM = ("train", "--run", "runs/tuned", "--batch-size", 50, "--epochs", 1)
PARENT = "runs/mnist@000002-000000"


@pytest.fixture
def tuned(dataset: Path, run: Path, call: Call) -> Path:
    """A run from the last checkpoint of `run` and the state of its optimizer."""
    trained = document(call(*FROM, "--from", "runs/mnist", "--from-optimizer", "--json"))
    assert PARENT == trained["parent"]
    assert "784-relu-8-softmax-10" == trained["configuration"]["network"]
    return run.parent / "tuned"


@pytest.mark.slow
def test_the_parent_is_shown(tuned: Path, call: Call) -> None:
    """inspect, runs and report name the checkpoint, for people and for programs."""
    shown = document(call("inspect", "runs/tuned", "--json"))["parent"]
    digest = document(call("inspect", "runs/mnist", "--json"))["checkpoints"][1]
    assert digest["parameters_digest"] == shown["model_digest"]
    assert ("runs/mnist", True) == (shown["place"], shown["optimizer"])
    assert f"{PARENT} with its optimizer" in succeeded(call("inspect", "runs/tuned"))
    assert f"from={PARENT}" in succeeded(call("runs"))
    parents = [entry["parent"] for entry in document(call("runs", "--json"))["runs"]]
    assert [None, PARENT] == parents
    assert f",{PARENT}," in succeeded(call("runs", "--csv"))
    succeeded(call("report", "runs/tuned", "--out", "report.html"))
    page = Path("report.html").read_text()
    assert f"--run runs/tuned-again --from {PARENT} --from-optimizer" in page
    assert shown["model_digest"] in page


def test_start_and_new_layer_are_printed(dataset: Path, run: Path, call: Call) -> None:
    """The output names the parent; another number of classes is mentioned."""
    succeeded(call("ingest", "synthetic:60,20", "--out", "data/letters", "--class-names", names()))
    ended = call(*FROM, "--dataset", "data/letters", "--from", "runs/mnist@1")
    assert "Started from checkpoint 000001-000000 of runs/mnist; the last layer is new" in ended.out
    assert 0 == ended.code


def names() -> str:
    """A file with names of ten classes."""
    Path("names.txt").write_text("\n".join("abcdefghij"))
    return "names.txt"


@pytest.mark.parametrize(
    ("code", "arguments", "words"),
    [
        (3, ("--from", "runs/none"), ("no run at runs/none",)),
        (3, ("--from", "data/mnist"), ("data/mnist is not a run", "give another place")),
        (3, ("--from", "runs/mnist@99"), ("no checkpoint 000099-000000", "000002-000000")),
        (2, ("--from", ""), ("--from is ''", "RUN@CHECKPOINT")),
        (2, ("--from", "runs/mnist@"), ("--from is 'runs/mnist@'", "expected best, latest")),
        (2, ("--from", "runs/tuned"), ("the run to train", "another --run")),
        (2, ("--from", "runs/mnist", "--dtype", "float64"), ("float64", "float32")),
        (2, ("--from", "runs/mnist", "--network", "relu-9"), ("relu-9", "relu-8")),
        (2, ("--from-optimizer",), ("--from-optimizer needs --from",)),
        (4, ("--from", "runs/mnist", "--run", "runs/mnist", "--resume"), ("not started from",)),
    ],
)
def test_refused(
    code: int,
    arguments: tuple[str, ...],
    words: tuple[str, ...],
    dataset: Path,
    run: Path,
    call: Call,
) -> None:
    """Bad parents have an exit code and a message with both sides; nothing is created."""
    assert_refused(call(*FROM, *arguments), code, *words)
    assert ["mnist"] == [path.name for path in Path("runs").iterdir()]


def test_another_parent_is_a_conflict(tuned: Path, call: Call) -> None:
    """--resume with the same parent does nothing; with another one it exits with 4."""
    assert call(*FROM, "--from", "runs/mnist", "--resume").code == 0
    for other in ("runs/mnist@1", "runs/tuned-too"):
        words = ("was started from checkpoint 000002-000000", other)
        assert_refused(call(*FROM, "--from", other, "--resume"), 4, *words)


def test_inspect_shows_the_failure_of_a_training(run: Path, call: Call) -> None:
    """inspect has the reason why the last training failed."""
    assert document(call("inspect", "runs/mnist", "--json"))["failure"] is None
    reason = "Training diverged: the loss of step 2 is nan."
    open_run(open_location(run)).record_failure(QualityGateError(reason))
    assert f"The last training failed: {reason}" in succeeded(call("inspect", "runs/mnist"))
    assert reason == document(call("inspect", "runs/mnist", "--json"))["failure"]


def test_parent_in_a_store(home: str, call: Call) -> None:
    """Parent, run and dataset may be in a store; the bits are those of local places."""
    dataset = ("--dataset", f"{home}/set")
    settings = ("--epochs", 2, "--batch-size", 50, "--json")
    local = document(call("train", *dataset, "--run", "tuned", "--from", f"{home}/run", *settings))
    remote = ("--run", f"{home}/tuned", "--from", f"{home}/run@latest")
    stored = document(call("train", *dataset, *remote, *settings))
    assert local["parameters_digest"] == stored["parameters_digest"]
    assert f"{home}/run@000001-000000" == stored["parent"] == local["parent"]
    record = json.loads(Path("tuned/run.json").read_text())
    assert f"{home}/run" == record["parent"]["place"]
    again = document(call("train", *dataset, *remote, *settings, "--resume"))
    assert again["already_done"]
