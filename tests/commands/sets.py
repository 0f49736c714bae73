"""Small sets of IDX files, intact or damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.sources.digits import draw_digits
from tests.storage.idx_files import COMPRESS, MNIST_NAMES, write_files

TRAIN_ROWS = 300
TEST_ROWS = 60
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = MNIST_NAMES
IMAGE_HEADER_BYTES = 16


def write_set(directory: Path, seed: int = 0) -> Path:
    """Write the four raw IDX files of a synthetic set."""
    train = draw_digits(seed, "train", 0, TRAIN_ROWS)
    return write_files(directory, *train, *draw_digits(seed, "test", 0, TEST_ROWS))


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
    new.write_bytes(COMPRESS[form](data))
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
