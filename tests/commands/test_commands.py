"""The commands from end to end: their files, their output, and repeated runs."""

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.training.config import TrainConfig
from pipeline.sources.formats import Source
from pipeline.sources.source import open_source
from storage.errors import UnreachableError
from tests.commands.conftest import SMALL, Call
from tests.commands.process import assert_refused, document, run_pipeline, succeeded
from tests.commands.sets import TEST_ROWS, TRAIN_ROWS

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_three_bare_commands(files: Path) -> None:
    """ingest, train --resume and score need no options; repeated, they have nothing to do."""
    here, env = files.parent, {"MNIST_DIR": str(files)}
    made = succeeded(run_pipeline("ingest", cwd=here, env=env))
    assert f"mnist: {TRAIN_ROWS} train, {TEST_ROWS} test rows of 28 x 28 in data/mnist" in made
    trained = succeeded(run_pipeline("train", "--resume", cwd=here, env=env))
    assert re.search(r"^epoch +loss +train +test \(loss\) +time$", trained, re.MULTILINE)
    assert re.search(r"\n10/10 +\d\.\d{4} +\d+\.\d\d % +\d+\.\d\d % \(\d\.\d{4}\) ", trained)
    scored = succeeded(run_pipeline("score", cwd=here, env=env))
    assert "true \\ predicted" in scored
    assert re.search(
        r"\nTest accuracy \d+\.\d\d %; scores in runs/mnist/scores/test-\w+\n$", scored
    )

    again = succeeded(run_pipeline("ingest", cwd=here, env=env))
    assert again == "data/mnist is already ingested from the same source.\n"
    again = succeeded(run_pipeline("train", "--resume", cwd=here, env=env))
    assert "runs/mnist is already trained.\n" in again
    assert trained.splitlines()[-1] == again.splitlines()[-1]
    again = succeeded(run_pipeline("score", cwd=here, env=env))
    assert "test is already scored with this model.\n\n" + scored == again


def test_documents_for_scripts(files: Path, call: Call) -> None:
    """With --json each command prints one document; those of consecutive commands agree."""
    here = files.parent
    made = document(call("ingest", "files", "--json"))
    assert [TRAIN_ROWS, 785] == made["splits"]["train"]["inputs_shape"]
    assert TEST_ROWS == sum(made["splits"]["test"]["class_counts"])
    assert not made["already_done"]

    place = ("--dataset", "data/files", "--run", "runs/files")
    trained = document(call("train", *place, *SMALL, "--epochs", 2, "--json"))
    assert [1, 2] == [line["epoch"] for line in trained["epochs"]]
    assert 50 == trained["configuration"]["batch_size"]
    assert trained["parameters_digest"] == trained["epochs"][-1]["parameters_digest"]

    scored = document(call("score", *place, "--json"))
    assert made["digest"] == scored["dataset_digest"]
    assert trained["parameters_digest"] == scored["model_digest"]
    evaluated = trained["epochs"][-1]["evaluation"]["test"]
    assert evaluated["accuracy"] == scored["quality"]["accuracy"]
    assert (
        scored["quality"]
        == json.loads((here / scored["location"] / "metrics.json").read_text())["quality"]
    )


def test_quiet(files: Path, call: Call) -> None:
    """With --quiet each command prints one line."""
    made = succeeded(call("ingest", "files", "--out", "data/mnist", "--quiet"))
    assert re.fullmatch(r"files: 300 train, 60 test rows of 28 x 28 in data/mnist, .* s\n", made)
    trained = succeeded(call("train", *SMALL, "--epochs", 3, "--quiet"))
    pattern = r"Test accuracy \d+\.\d\d % after epoch 3; model \w{12} in runs/mnist\n"
    assert re.fullmatch(pattern, trained)
    assert 1 == len(succeeded(call("score", "--quiet")).splitlines())
    for command in ("inspect", "verify", "scores"):
        assert 1 == len(succeeded(call(command, "runs/mnist", "--quiet")).splitlines())


def test_best_model(dataset: Path, call: Call) -> None:
    """With validation rows, train's last line is about the model that score takes, not the last."""
    overfitting = ("--optimizer", "sgd", "--schedule", "constant", "--learning-rate", "3")
    arguments = ("--holdout", 50, "--epochs", 6, *overfitting)
    shown = succeeded(call("train", *SMALL, *arguments)).splitlines()[-2:]
    trained = document(call("train", "--resume", "--json"))
    best = int(trained["best"].partition("-")[0])
    figures = trained["epochs"][best - 1]
    assert best < 6
    assert figures["parameters_digest"] == trained["best_parameters_digest"]
    assert trained["epochs"][-1]["parameters_digest"] == trained["parameters_digest"]
    accuracies = [100 * figures["evaluation"][name]["accuracy"] for name in ("test", "validation")]
    assert [
        "Accuracy {:.2f} % (test), {:.2f} % (validation)".format(*accuracies)
        + f" after epoch {best}, the best of 6",
        f"model {trained['best_parameters_digest'][:12]} in runs/mnist",
    ] == shown
    assert "; ".join(shown) + "\n" == succeeded(call("train", "--resume", "--quiet"))
    assert document(call("score", "--json"))["model_digest"] == trained["best_parameters_digest"]


@pytest.mark.parametrize("form", ["csv", "npz"])
def test_plain_file(form: str, dataset: Path, run: Path, call: Call) -> None:
    """score --out writes a row per image, even if the split is already scored."""
    here = dataset.parent.parent
    for name in ("first", "again"):
        text = succeeded(call("score", "--probabilities", "--out", f"{name}.{form}"))
        assert text.endswith(f"Predictions in {name}.{form}\n")
    assert (here / f"first.{form}").read_bytes() == (here / f"again.{form}").read_bytes()
    if form == "csv":
        lines = (here / "first.csv").read_text().splitlines()
        assert 1 + TEST_ROWS == len(lines)
        assert lines[0].startswith("row,predicted,probability,true,correct,p_0,")
    else:
        with np.load(here / "first.npz") as arrays:
            assert (TEST_ROWS, 10) == arrays["probabilities"].shape
            assert np.array_equal(arrays["probabilities"].argmax(1), arrays["predicted"])


def test_verify_sound(dataset: Path, run: Path, call: Call) -> None:
    """verify accepts a sound dataset, run and scores."""
    succeeded(call("score"))
    for place in ("data/mnist", "runs/mnist"):
        assert succeeded(call("verify", place)).startswith(f"{place} is sound: ")
        assert f"checked {place}" in succeeded(call("verify", place, "--verbose"))
        assert [] == document(call("verify", place, "--json"))["wrong"]


def test_verify_damaged(dataset: Path, call: Call) -> None:
    """verify lists every damaged place and exits 3."""
    chunks = [dataset / "train" / "inputs" / "c.1.0", dataset / "test" / "targets" / "c.0.0"]
    chunks[0].unlink()
    chunks[1].write_bytes(chunks[1].read_bytes()[:-1] + b"\0")
    ended = call("verify", "data/mnist")
    assert ended.code == 3
    assert ended.err.startswith("Error: data/mnist is damaged: 2 of ")
    first, second = sorted(ended.out.splitlines())
    assert "test/targets/c.0.0" in first + second
    assert "train/inputs/c.1.0" in first + second
    ended = call("verify", "data/mnist", "--json")
    assert (3, 2) == (ended.code, len(json.loads(ended.out)["wrong"]))


def test_settings_from_a_file(dataset: Path, call: Call) -> None:
    """Options override --config, which overrides defaults; the printed settings are valid TOML."""
    here = dataset.parent.parent
    (here / "settings.toml").write_text(
        'network = "784-tanh-6-softmax-10"\nepochs = 1\nlearning-rate = 1\nseed = 3\nl2 = 1e-5\n'
    )
    said = succeeded(call("train", "--config", "settings.toml", "--seed", 4, "--batch-size", 100))
    changed = [line for line in said.splitlines() if " = " in line]
    config = TrainConfig(**tomllib.loads("\n".join(changed)))
    assert 6 == len(changed)
    expected = TrainConfig(
        network="784-tanh-6-softmax-10",
        epochs=1,
        learning_rate=1.0,
        seed=4,
        l2=1e-5,
        batch_size=100,
        micro_batches=1,  # the default for this batch size
        evaluate="test",  # the default for this dataset
    )
    assert expected == replace(config, micro_batches=1, evaluate="test")
    recorded = document(call("inspect", "runs/mnist", "--json"))["configuration"]
    assert expected == TrainConfig.from_json(recorded, "run.json")


def test_no_shuffle(dataset: Path, call: Call) -> None:
    """--no-shuffle visits the rows in stored order for any seed."""
    orders = [
        document(
            call("train", *SMALL, "--epochs", 1, "--json", "--run", f"runs/{number}", *options)
        )["order_digest"]
        for number, options in enumerate(
            [("--no-shuffle",), ("--no-shuffle", "--seed", 1), ("--seed", 0), ("--seed", 1)]
        )
    ]
    assert 3 == len(set(orders))
    assert orders[0] == orders[1]


@pytest.mark.slow
def test_demo(files: Path, fonts: None) -> None:
    """The demo names its source, ingests, trains, scores, and lists the paths of the results."""
    here, env = files.parent, {"MNIST_DIR": str(files)}
    said = succeeded(run_pipeline("demo", cwd=here, env=env))
    assert said.startswith(f"Source: mnist, IDX files in {files}, named by MNIST_DIR.\n")
    *_, result, _, dataset, run, scores, picture, page, _, closer = said.splitlines()
    assert f" % of {TEST_ROWS} test images are classified correctly, after " in result
    places = [here / line.split()[-1] for line in (dataset, run, scores, picture, page)]
    assert [True] * 5 == [place.exists() for place in places]
    assert places[3].read_bytes().startswith(PNG)
    assert places[4].name == "report.html"
    assert closer == "Next: pipeline inspect mnist-demo/runs/mnist"
    again = document(run_pipeline("demo", "--json", cwd=here, env=env))
    assert f"{100 * again['accuracy']:.2f} % of" in result


@pytest.mark.slow
def test_demo_without_mnist(call: Call, fonts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """If MNIST cannot be downloaded, the demo says why and uses synthetic digits."""

    def no_network(spec: str, **options: Any) -> Source:
        if spec == "mnist":
            raise UnreachableError("mnist could not be downloaded.")
        return open_source(f"{spec}:300,60", **options)

    monkeypatch.setattr("pipeline.sources.source.open_source", no_network)
    said = succeeded(call("demo", "place"))
    assert said.startswith(
        "mnist could not be downloaded.\nThe demo uses synthetic digits instead.\n"
        "Source: synthetic, digits generated by mnist-stream with seed 0.\n"
    )
    assert "picture  place/worst-mistakes.png" in said


def test_bare_resume(dataset: Path, run: Path, call: Call) -> None:
    """`train --resume` uses the run's settings and compares those of the file and the options."""
    assert "runs/mnist is already trained" in succeeded(call("train", "--resume"))
    (dataset.parent.parent / "same.toml").write_text("batch-size = 50\n")
    same = call("train", "--resume", "--config", "same.toml", "--epochs", 2)
    assert "runs/mnist is already trained" in succeeded(same)
    (dataset.parent.parent / "other.toml").write_text("batch-size = 51\n")
    other = call("train", "--resume", "--config", "other.toml")
    assert_refused(other, 4, "(batch_size: 50 recorded, 51 given)", "Leave these settings out")
    more = call("train", "--resume", "--epochs", 20)
    assert_refused(more, 4, "(epochs: 2 recorded, 20 given)", "--epochs 20 --run OTHER")


def test_version(call: Call) -> None:
    """--version prints one line; -v, before or after it, adds the versions for a bug report."""
    from importlib.metadata import version

    line = f"pipeline, version {version('mnist-stream')}\n"
    assert line == succeeded(call("--version"))
    shown = succeeded(call("--version", "-v"))
    assert shown == succeeded(call("-v", "--version"))
    assert shown.startswith(line)
    named = dict(line.split(None, 1) for line in shown.splitlines()[1:])
    assert list(named) == ["Python", "NumPy", "BLAS", "Zarr", "Dask", "platform"]
    assert (named["NumPy"], named["Zarr"]) == (np.__version__, version("zarr"))
    assert re.search(r"\d, kernel \w+", named["BLAS"])
    assert_refused(call("-v", "train"), 2, "pipeline train -v")


def test_short_names(dataset: Path, call: Call) -> None:
    """-q, -v, -o and --lr are aliases of the long options."""
    place = ("--run", "runs/short")
    assert 1 == len(succeeded(call("train", *SMALL, *place, "--lr", "0.01", "-q")).splitlines())
    recorded = document(call("inspect", "runs/short", "--json"))["configuration"]
    assert 0.01 == recorded["learning_rate"]
    said = succeeded(call("score", *place, "-v", "-o", "rows.csv"))
    assert re.search(r"^scores +[0-9a-f]{64}$", said, re.MULTILINE), said
    assert (dataset.parent.parent / "rows.csv").exists()
    assert 0 == call("ingest", "synthetic:20,10", "-o", "data/few").code


def test_log_of_a_training(dataset: Path, call: Call) -> None:
    """train --log-json prints events alone: the epochs' figures, and a summary at the end."""
    ended = call("train", *SMALL, "--epochs", 2, "--log-json")
    assert (0, "") == (ended.code, ended.err)
    events = [json.loads(line) for line in ended.out.splitlines()]
    assert ("summary", 0) == (events[-1]["event"], events[-1]["exit"])
    epochs = [event for event in events if event["event"] == "epoch"]
    assert [1, 2] == [event["epoch"] for event in epochs]
    for event in epochs:  # what a plot that is drawn during training needs
        figures = [event[name] for name in ("loss", "accuracy", "learning_rate")]
        figures += [*event["evaluation"]["test"].values(), event["timing"]["seconds"]]
        assert [float] * 6 == [*map(type, figures)]
    names = {"memory", "training", "run", "progress", "epoch", "summary"}
    assert names == {event["event"] for event in events}  # no header, no line of rates


@pytest.mark.skipif(
    not (Path(sys.executable).parent / "pipeline").exists(), reason="pipeline is not installed"
)
def test_installed_script(here: Path) -> None:
    """The installed script `pipeline` is the same command."""
    script = Path(sys.executable).parent / "pipeline"
    ended = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert succeeded(run_pipeline("--help", cwd=here)) == ended.stdout
