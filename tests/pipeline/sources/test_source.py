"""Sources: the format and the set that a name or a path stands for."""

import gzip
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.sources.source import open_source
from storage.errors import UsageError
from tests.pipeline.sources.small_sets import (
    images,
    labels,
    refusal,
    write_set,
)
from tests.storage.idx_files import MNIST_NAMES


@pytest.mark.parametrize(
    ("spec", "nearest"),
    [
        ("mnst", "mnist"),
        ("fashion_mnist", "fashion-mnist"),
        ("MNIST", "mnist"),
        ("FashionMNIST", "fashion-mnist"),
        ("sythetic:60", "synthetic"),
        ("", None),
        ("/nowhere/at/all", None),
    ],
)
def test_unknown_name(spec: str, nearest: str | None) -> None:
    """An unknown name is refused, with the nearest one and the alternatives."""
    message = refusal(spec, UsageError)
    assert "one of mnist, fashion-mnist, kmnist, synthetic" in message
    assert (nearest is not None) == ("Did you mean" in message)
    assert nearest is None or f"Did you mean {nearest!r}?" in message


def test_misspelt_directory(tmp_path: Path) -> None:
    """The nearest file or directory is suggested if the source is not like a known name."""
    (tmp_path / "my-files").mkdir()
    (tmp_path / "digits.npz").touch()
    for name, misspelt in (("my-files", "my-fils"), ("digits.npz", "digit.npz")):
        expected = f"Did you mean {str(tmp_path / name)!r}?"
        assert expected in refusal(tmp_path / misspelt, UsageError)


def test_file_in_place_of_its_directory(tmp_path: Path) -> None:
    """A single file is refused, and its directory is suggested."""
    write_set(tmp_path)
    assert f"Give {str(tmp_path)!r}" in refusal(tmp_path / MNIST_NAMES[0], UsageError)


def test_unknown_format(tmp_path: Path) -> None:
    """All formats are named for a file of none; broken links and pipes are refused at once."""
    (tmp_path / "notes.txt").write_text("none")
    formats = "IDX, NumPy, mnist.pkl.gz, CSV, Parquet, pictures"
    assert f"known formats: {formats}" in refusal(tmp_path / "notes.txt", UsageError)
    assert formats in refusal("/nowhere/at/all.npz", UsageError)
    (tmp_path / "link.npz").symlink_to("missing")
    assert "is a link to a missing file" in refusal(tmp_path / "link.npz", UsageError)
    os.mkfifo(tmp_path / "pipe.npz")
    assert "neither a regular file nor a directory" in refusal(tmp_path / "pipe.npz", UsageError)


def test_archive_in_a_directory(tmp_path: Path) -> None:
    """A directory with one archive or pickle is that set; IDX files or folders come first."""
    (tmp_path / "README.md").write_text("about")
    Image.new("L", (3, 4)).save(tmp_path / "preview.png")
    pair = images(12), labels(12)
    (tmp_path / "b.pkl.gz").write_bytes(gzip.compress(pickle.dumps(pair)))
    assert "b" == open_source(str(tmp_path)).name
    np.savez(tmp_path / "a.npz", x=pair[0], y=pair[1])
    assert "has several sets: a.npz, b.pkl.gz. Give the path of one" in refusal(tmp_path)
    (tmp_path / "b.pkl.gz").unlink()
    assert "a" == open_source(str(tmp_path)).name
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "preview.png", tmp_path / name)
    (tmp_path / "preview.png").unlink()
    assert "pictures in" in open_source(str(tmp_path)).description
    write_set(tmp_path)
    assert "IDX" in open_source(str(tmp_path)).description


def test_mnist_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST_DIR replaces the download of `mnist`, and the description says so."""
    write_set(tmp_path)
    monkeypatch.setenv("MNIST_DIR", str(tmp_path))
    source = open_source("mnist")
    assert ("mnist", True) == (source.name, "MNIST_DIR" in source.description)
    assert "<train: 12 labelled images of 4 x 3 uint8>" in repr(source)
    monkeypatch.setenv("MNIST_DIR", str(tmp_path / "missing"))
    assert "MNIST_DIR names" in refusal("mnist", UsageError)
