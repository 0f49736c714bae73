"""Small sets of IDX files, intact or damaged."""

import gzip
import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.sources.digits import draw_digits
from tests.storage.idx_files import write_idx

TRAIN_ROWS = 300
TEST_ROWS = 60
TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
IMAGE_HEADER_BYTES = 16

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".xz": lzma.compress,
}
"""Compression by file suffix."""


def write_set(directory: Path, seed: int = 0) -> Path:
    """Write the four raw IDX files of a synthetic set."""
    directory.mkdir(parents=True)
    for split, rows, images_name, labels_name in (
        ("train", TRAIN_ROWS, TRAIN_IMAGES, TRAIN_LABELS),
        ("test", TEST_ROWS, TEST_IMAGES, TEST_LABELS),
    ):
        images, labels = draw_digits(seed, split, 0, rows)
        write_idx(directory / images_name, images)
        write_idx(directory / labels_name, labels)
    return directory


def write_kaggle(directory: Path, train_rows: int = 3000, test_rows: int = 200) -> Path:
    """Write generated digits as Kaggle's Digit Recognizer has them: the test set has no labels."""
    directory.mkdir(parents=True)
    pixels = ",".join(f"pixel{number}" for number in range(784))
    for split, rows, header in (
        ("train", train_rows, f"label,{pixels}"),
        ("test", test_rows, pixels),
    ):
        images, labels = draw_digits(0, split, 0, rows)
        columns = [labels[:, None]] if split == "train" else []
        table = np.concatenate([*columns, images.reshape(rows, -1)], axis=1)
        lines = [",".join(map(str, row)) for row in table.tolist()]
        (directory / f"{split}.csv").write_text("\n".join([header, *lines, ""]))
    (directory / "sample_submission.csv").write_text("ImageId,Label\n1,0\n")
    return directory


def replace_file(directory: Path, name: str, data: bytes, form: str = "") -> Path:
    """Replace a raw file by `data`, compressed; return the new file."""
    (directory / name).unlink()
    new = directory / (name + form)
    new.write_bytes(PACK[form](data))
    return new


def images_header(*shape: int) -> bytes:
    """Return the header of an IDX file of bytes with a given shape."""
    return bytes((0, 0, 8, len(shape))) + np.array(shape, ">u4").tobytes()


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON document in place."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def copy(tree: Path, new: Path) -> Path:
    """Copy a directory, creating parents; return the copy."""
    shutil.copytree(tree, new)
    return new


def tree(directory: Path) -> dict[str, bytes | None]:
    """Return the content of every file below a directory; None for directories."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }
