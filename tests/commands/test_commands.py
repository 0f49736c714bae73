"""The commands from end to end: their files, their output, and repeated runs."""

import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from jobs.choices import DISTORTION_SETS
from jobs.commands.pictures import distorted_tiles, distortions_of, write_grid
from jobs.training.config import TrainConfig
from pipeline.distortions import DIGITS, SETS, Distorter
from pipeline.sources.formats import Source
from pipeline.sources.source import open_source
from storage.dataset import open_dataset
from storage.errors import UnreachableError
from storage.places import open_location
from tests.commands.conftest import SMALL, Call
from tests.commands.process import Ended, assert_refused, run_pipeline
from tests.commands.sets import TEST_IMAGES, TEST_ROWS, TRAIN_IMAGES, TRAIN_ROWS
from tests.storage.idx_files import write_idx

PNG = b"\x89PNG\r\n\x1a\n"


def document(ended: Ended) -> dict[str, Any]:
    """Return the JSON document that a command printed; it succeeded without a warning."""
    assert (0, "") == (ended.code, ended.err)
    printed = json.loads(ended.out)
    assert isinstance(printed, dict)
    return printed


def succeeded(ended: Ended) -> str:
    """Return the output of a command that succeeded without a warning."""
    assert (0, "") == (ended.code, ended.err)
    return ended.out


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


def test_documents_for_scripts(files: Path) -> None:
    """With --json each command prints one document; those of consecutive commands agree."""
    here = files.parent
    made = document(run_pipeline("ingest", "files", "--json", cwd=here))
    assert [TRAIN_ROWS, 785] == made["splits"]["train"]["inputs_shape"]
    assert TEST_ROWS == sum(made["splits"]["test"]["class_counts"])
    assert not made["already_done"]

    place = ("--dataset", "data/files", "--run", "runs/files")
    trained = document(run_pipeline("train", *place, *SMALL, "--epochs", 2, "--json", cwd=here))
    assert [1, 2] == [line["epoch"] for line in trained["epochs"]]
    assert 50 == trained["configuration"]["batch_size"]
    assert trained["parameters_digest"] == trained["epochs"][-1]["parameters_digest"]

    scored = document(run_pipeline("score", *place, "--json", cwd=here))
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


def test_inspect_dataset(dataset: Path, call: Call) -> None:
    """inspect shows a dataset's splits, chunks, counts, transforms and sources."""
    text = succeeded(call("inspect", "data/mnist"))
    for words in ("300 x 785", "5 of 64 rows", "bias-column", "train-images-idx3-ubyte"):
        assert words in text
    shown = document(call("inspect", "data/mnist", "--json"))
    assert ("dataset", "files") == (shown["kind"], shown["name"])
    stored = sum(path.stat().st_size for path in (dataset / "test").rglob("*") if path.is_file())
    assert stored == shown["splits"]["test"]["stored_bytes"]


def test_inspect_other_formats(here: Path, call: Call) -> None:
    """inspect shows the digest of the file where no decoded content is hashed."""
    np.savez(here / "set.npz", x=np.arange(64, dtype=np.uint8).reshape(4, 4, 4), y=np.arange(4))
    succeeded(call("ingest", "set.npz"))
    digest = hashlib.sha256((here / "set.npz").read_bytes()).hexdigest()
    assert f"  {digest[:12]}" in succeeded(call("inspect", "data/set"))


def test_inspect_run(run: Path, call: Call) -> None:
    """inspect shows a run's settings, epochs and checkpoints, damaged ones too."""
    shown = document(call("inspect", "runs/mnist", "--json"))
    assert ("run", SMALL[1]) == (shown["kind"], shown["configuration"]["network"])
    assert [1, 2] == [line["epoch"] for line in shown["epochs"]]
    assert [True, True] == [checkpoint["sound"] for checkpoint in shown["checkpoints"]]
    (run / "checkpoints" / "000001-000000" / "state.safetensors").write_bytes(b"")
    text = succeeded(call("inspect", "runs/mnist"))
    assert "000001-000000  DAMAGED  " in text
    assert "000002-000000  sound    " in text


def test_inspect_run_with_snapshots(dataset: Path, call: Call) -> None:
    """inspect marks the checkpoints at the ends of cycles."""
    cycles = ("--epochs", 3, "--schedule", "cosine", "--restarts", 1, "--run", "runs/warm")
    document(call("train", *SMALL, *cycles, "--json"))
    shown = document(call("inspect", "runs/warm", "--json"))["checkpoints"]
    assert [False, True, True] == [checkpoint["snapshot"] for checkpoint in shown]
    text = succeeded(call("inspect", "runs/warm"))
    assert "000001-000000  sound            " in text
    assert "000002-000000  sound, snapshot  " in text


@pytest.mark.slow
def test_inspect_images(dataset: Path, fonts: None) -> None:
    """inspect --images writes a picture and names it; --json stays one document."""
    here = dataset.parent.parent
    said = succeeded(run_pipeline("inspect", "data/mnist", "--images", "some.png", cwd=here))
    assert said.endswith("Images in some.png\n")
    assert (here / "some.png").read_bytes().startswith(PNG)
    document(run_pipeline("inspect", "data/mnist", "--images", "a/b.png", "--json", cwd=here))
    assert (here / "a" / "b.png").read_bytes() == (here / "some.png").read_bytes()


def test_inspect_distorted_images(dataset: Path, fonts: None, call: Call) -> None:
    """inspect --images --distort shows rows as training sees them; vectors are refused."""
    here = dataset.parent.parent
    picture = ("--images", "distorted.png", "--distort", "digits")
    assert succeeded(call("inspect", "data/mnist", *picture)).endswith("Images in distorted.png\n")
    tiles = distorted_tiles(open_dataset(open_location(dataset)), DIGITS)
    rows = open_dataset(open_location(dataset)).split("train").read_chunk(0).inputs[:6]
    assert [title for _, title in tiles[:10]] == [
        "as stored",
        *(f"epoch {n}" for n in range(1, 10)),
    ]
    assert tiles[10][0].tolist() == rows[1, 1:].reshape(28, 28).tolist()
    expected = Distorter(DIGITS, (28, 28), seed=0)(rows, 8, np.arange(6))[5, 1:]
    assert tiles[59][0].tolist() == expected.reshape(28, 28).tolist()
    (here / "vectors").mkdir()
    for name in (TRAIN_IMAGES, TEST_IMAGES):
        write_idx(here / "vectors" / name, np.zeros((70, 5), np.uint8))
    assert call("ingest", "vectors").code == 0
    (here / "distorted.png").unlink()
    assert set(DISTORTION_SETS) == set(SETS)
    refused = call("inspect", "data/vectors", *picture)
    assert_refused(refused, 2, "data/vectors has rows of 5 values; only two-dimensional images")
    assert not (here / "distorted.png").exists()


@pytest.mark.slow
def test_distortions_in_pictures(dataset: Path, fonts: None, call: Call) -> None:
    """inspect --distort takes a recipe's distortions, or those of the file that train reads."""
    here = dataset.parent.parent
    (here / "mine.toml").write_text('epochs = 2\n[distort]\nlike = "digits"\nrotate = 3\n')
    picture = ("--images", "mine.png", "--distort", "mine.toml")
    assert succeeded(call("inspect", "data/mnist", *picture)).endswith("Images in mine.png\n")
    assert replace(DIGITS, rotate=3) == distortions_of("mine.toml")
    assert DIGITS == distortions_of("quick")


def test_one_scale_in_a_picture(here: Path, fonts: None) -> None:
    """A value has the same grey in all images: a faint one is not stretched to black."""
    faint, strong = (np.full((4, 4), value) * np.eye(4) for value in (20, 255))
    write_grid([(faint, ""), (strong, "")], here / "two.png", "")
    grey = imread(here / "two.png")[..., 0]
    column = grey.shape[1] // 10
    assert (True, False) == (grey[:, :column].min() > 0.8, grey[:, column : 2 * column].min() > 0.8)


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


def test_verify_damaged(dataset: Path, run: Path) -> None:
    """verify lists every damaged place and exits 3."""
    here = dataset.parent.parent
    chunks = [dataset / "train" / "inputs" / "c.1.0", dataset / "test" / "targets" / "c.0.0"]
    chunks[0].unlink()
    chunks[1].write_bytes(chunks[1].read_bytes()[:-1] + b"\0")
    ended = run_pipeline("verify", "data/mnist", cwd=here)
    assert ended.code == 3
    assert ended.err.startswith("Error: data/mnist is damaged: 2 of ")
    first, second = sorted(ended.out.splitlines())
    assert "test/targets/c.0.0" in first + second
    assert "train/inputs/c.1.0" in first + second
    ended = run_pipeline("verify", "data/mnist", "--json", cwd=here)
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
        micro_batches=2,  # the default for this batch size
        evaluate="test",  # the default for this dataset
    )
    assert expected == replace(config, micro_batches=2, evaluate="test")
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


# ------------------------------------------------------------------ the demo


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


# ------------------------------------------------------------------ resuming


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


# ------------------------------------------------------------------ terminals and pipes


@pytest.mark.parametrize("arguments", [("inspect", "data/mnist"), ("train", *SMALL)], ids=str)
def test_broken_pipe(arguments: tuple[str, ...], dataset: Path) -> None:
    """If the reader of a pipe exits, the command ends with 128 + SIGPIPE and no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    ended = run_pipeline(*arguments, cwd=dataset.parent.parent, stdout=writing)
    os.close(writing)
    assert (128 + signal.SIGPIPE, "Stopped: the reader of the output closed it.\n") == (
        ended.code,
        ended.err,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_for_the_output(dataset: Path) -> None:
    """A full disk behind stdout is an error with a remedy."""
    with open("/dev/full", "w") as full:
        ended = run_pipeline("inspect", "data/mnist", cwd=dataset.parent.parent, stdout=full)
    assert_refused(
        Ended(ended.code, "", ended.err), 6, "No space left on device", "free some space"
    )


def test_progress_on_a_terminal(dataset: Path) -> None:
    """On a terminal one line shows rows and loss, and is removed at the end."""
    controlling, terminal = pty.openpty()
    shown = bytearray()
    reader = threading.Thread(target=_read_all, args=(controlling, shown))
    reader.start()
    ended = run_pipeline(
        "train",
        *SMALL,
        "--epochs",
        2,
        cwd=dataset.parent.parent,
        env={"TERM": "xterm"},
        stderr=terminal,
    )
    os.close(terminal)
    reader.join()
    os.close(controlling)
    assert ended.code == 0
    assert b"epoch 2/2" in shown
    assert b"of 300 rows" in shown
    assert b"loss" in shown
    assert shown.endswith(b" \r")
    assert b"\n" not in shown


def _read_all(descriptor: int, into: bytearray) -> None:
    while True:
        try:
            data = os.read(descriptor, 4096)
        except OSError:  # Linux: the other side has been closed
            return
        if not data:
            return
        into += data


def test_version(here: Path) -> None:
    """--version prints one line; -v, before or after it, adds the versions for a bug report."""
    from importlib.metadata import version

    line = f"pipeline, version {version('mnist-stream')}\n"
    assert line == succeeded(run_pipeline("--version", cwd=here))
    shown = succeeded(run_pipeline("--version", "-v", cwd=here))
    assert shown == succeeded(run_pipeline("-v", "--version", cwd=here))
    assert shown.startswith(line)
    named = dict(line.split(None, 1) for line in shown.splitlines()[1:])
    assert list(named) == ["Python", "NumPy", "BLAS", "Zarr", "Dask", "platform"]
    assert (named["NumPy"], named["Zarr"]) == (np.__version__, version("zarr"))
    assert re.search(r"\d, kernel \w+", named["BLAS"])
    assert_refused(run_pipeline("-v", "train", cwd=here), 2, "pipeline train -v")


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
