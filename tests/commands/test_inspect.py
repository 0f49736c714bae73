"""inspect: datasets and runs as text and JSON, and pictures of images."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from jobs.choices import DISTORTION_SETS
from jobs.commands.pictures import distorted_tiles, distortions_of, write_grid
from pipeline.distortions import DIGITS, SETS, Distorter
from storage.dataset import open_dataset
from storage.places import open_location
from tests.commands.conftest import SMALL, Call
from tests.commands.process import assert_refused, document, run_pipeline, succeeded
from tests.commands.sets import TEST_IMAGES, TRAIN_IMAGES
from tests.storage.idx_files import write_idx

PNG = b"\x89PNG\r\n\x1a\n"


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


@pytest.mark.slow
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
