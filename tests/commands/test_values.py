"""Values of any type and range and images of any orientation, from files to scores."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.sources.digits import draw_digits
from tests.commands.conftest import Call
from tests.commands.process import assert_refused
from tests.commands.sets import edit_json
from tests.jobs.inboxes import settle
from tests.storage.idx_files import write_idx

USAGE, BAD_DATA, CONFLICT = 2, 3, 4
NETWORK = ("--network", "784-relu-32-softmax-10", "--epochs", "4", "--batch-size", "50")

Change = Callable[[NDArray[np.uint8]], NDArray[Any]]

CHANGES: dict[str, Change] = {
    "bytes": lambda images: images,
    "i16": lambda images: images.astype(np.int16) * 12 - 1024,  # -1024 to 2036
    "f32": lambda images: images.astype(np.float32),  # 0 to 255
    "f64": lambda images: 1e9 + images.astype(np.float64) / 2**20,  # all equal in float32
}


def write(directory: Path, change: Change) -> Path:
    """Write a set of drawn digits after a change of their values."""
    directory.mkdir()
    for split, name, rows in (("train", "train", 1000), ("test", "t10k", 300)):
        images, labels = draw_digits(0, split, 0, rows)
        write_idx(directory / f"{name}-images-idx3", change(images))
        write_idx(directory / f"{name}-labels-idx1", labels)
    return directory


def learn(call: Call, here: Path, name: str, change: Change, *options: str) -> float:
    """Ingest, train and score a changed set; return the accuracy on its test split."""
    write(here / name, change)
    places = ("--dataset", f"data/{name}", "--run", f"runs/{name}")
    assert 0 == call("ingest", name, *options).code
    assert 0 == call("train", *places, *NETWORK).code
    accuracy: float = json.loads(call("score", *places, "--json").out)["quality"]["accuracy"]
    return accuracy


def fill_inbox(here: Path, name: str) -> Path:
    """Move a set's test files to an inbox."""
    inbox = here / "inbox"
    inbox.mkdir(exist_ok=True)
    for path in (here / name).glob("t10k-*"):
        settle(path.rename(inbox / path.name))
    return inbox


@pytest.fixture
def of_bytes(call: Call, here: Path) -> float:
    """The accuracy of the unchanged set, in `data/bytes` and `runs/bytes`."""
    return learn(call, here, "bytes", CHANGES["bytes"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["i16", "f64"])
def test_any_range_learns_like_bytes(name: str, of_bytes: float, call: Call, here: Path) -> None:
    """The training split's range is mapped to [0, 1], for files of an inbox too."""
    accuracy = learn(call, here, name, CHANGES[name])
    assert of_bytes > 0.7
    assert abs(of_bytes - accuracy) <= 0.04
    inbox = fill_inbox(here, name)
    ended = call("score", "--run", f"runs/{name}", "--inbox", inbox, "--json")
    assert [accuracy] == [
        result["quality"]["accuracy"] for result in json.loads(ended.out)["results"]
    ]
    other = call("score", "--run", f"runs/{name}", "--dataset", "data/bytes")
    assert_refused(other, BAD_DATA, "data/bytes holds values of type uint8; the run was trained on")


def test_a_range_of_the_run(of_bytes: float, call: Call, here: Path) -> None:
    """The run's own range is applied to a dataset that was ingested with another range."""
    call("ingest", "bytes", "--out", "data/raw", "--scale", "none")
    ended = call("score", "--dataset", "data/raw", "--run", "runs/bytes", "--json")
    assert of_bytes == json.loads(ended.out)["quality"]["accuracy"]
    shown = call("inspect", "data/raw").out
    assert "28 x 28, values not scaled" in shown


@pytest.mark.slow
def test_transposed_images(call: Call, here: Path) -> None:
    """--transpose stores images upright, in an inbox too."""
    upright = learn(call, here, "bytes", CHANGES["bytes"])
    upside = learn(call, here, "again", lambda images: images.swapaxes(1, 2), "--transpose")
    assert upright == upside
    assert 0 == call("ingest", "again", "--out", "data/as-published").code
    inbox = fill_inbox(here, "again")
    ended = call("score", "--run", "runs/again", "--inbox", inbox, "--json")
    (result,) = json.loads(ended.out)["results"]
    assert upright == result["quality"]["accuracy"]
    ended = call("score", "--run", "runs/again", "--dataset", "data/as-published")
    assert_refused(ended, BAD_DATA, "was ingested without --transpose", "again with --transpose.")
    ended = call("score", "--run", "runs/bytes", "--dataset", "data/again")
    assert_refused(ended, BAD_DATA, "was ingested with --transpose", "again without --transpose.")


def test_emnist_hint_is_a_warning(call: Call, here: Path) -> None:
    """Images that look like EMNIST's cause a warning, even with --quiet."""
    write(here / "emnist", CHANGES["bytes"])
    ended = call("ingest", "emnist", "--quiet")
    assert "Warning: These look like EMNIST files" in ended.err
    assert "EMNIST" not in ended.out


def test_missing_data_is_not_scored(call: Call, here: Path) -> None:
    """A file with an enormous value is reported and not scored; the others are scored."""
    learn(call, here, "f", CHANGES["f32"])
    inbox = fill_inbox(here, "f")
    images = draw_digits(1, "test", 0, 9)[0].astype(np.float32)
    images[3, 5, 5] = -3.4028235e38
    write_idx(inbox / "a-images-idx3", images)
    settle(inbox / "a-images-idx3")
    out = here / "{home}.csv"
    ended = call("score", "--run", "runs/f", "--inbox", inbox, "--out", out, "--quiet")
    assert BAD_DATA == ended.code
    assert "a-images-idx3: not scored: row 3 holds the value -3.4028235e+38" in ended.err
    assert "learned" not in ended.err
    (written,) = here.glob("*.csv")
    assert 301 == len(written.read_text().splitlines())
    assert "nan" not in written.read_text()


def test_a_divergence_that_the_data_causes(call: Call, here: Path) -> None:
    """The error blames the data, with the row and the value, not the learning rate."""
    write(here / "big", lambda images: images * 1e15)
    assert 0 == call("ingest", "big", "--scale", "none").code
    ended = call(
        *("train", "--dataset", "data/big", *NETWORK),
        *("--optimizer", "sgd", "--learning-rate", "0.006"),
    )
    assert 5 == ended.code
    assert "The network will learn badly: row 0 of the training split holds 2.55e+17" in ended.err
    assert "The data is the likely cause: row 0 of the train split holds 2.55e+17" in ended.err
    assert "--learning-rate" not in ended.err


def test_a_run_of_an_older_release(of_bytes: float, call: Call, here: Path) -> None:
    """A run that does not record the images' shape and type can be resumed, and can score."""
    from storage import documents

    path = here / "runs" / "bytes" / "run.json"

    def forget(document: dict[str, Any]) -> None:
        for name in ("image_shape", "element_type"):
            del document["dataset"][name]

    edit_json(path, forget)
    document = documents.parse(path.read_bytes(), str(path))
    document.pop("seal", None)
    path.write_bytes(documents.sealed_bytes(document))
    places = ("--dataset", "data/bytes", "--run", "runs/bytes")
    assert 0 == call("train", *places, *NETWORK, "--resume").code
    assert of_bytes == json.loads(call("score", *places, "--json").out)["quality"]["accuracy"]
    write(here / "f32", CHANGES["f32"])
    call("ingest", "f32")
    ended = call("score", "--run", "runs/bytes", "--dataset", "data/f32")
    assert_refused(
        ended, BAD_DATA, "holds values of type float32; the run was trained on values of type uint8"
    )
