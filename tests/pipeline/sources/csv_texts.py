"""CSV files of one small set, as texts and compressed."""

import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray

from pipeline.sources.splits import SplitSource
from storage.events import no_progress
from tests.pipeline.sources.small_sets import read, splits_of

ROWS, SIDE = 23, 4
IMAGES = np.random.default_rng(0).integers(0, 256, (ROWS, SIDE, SIDE), np.uint8)


LABELS = np.arange(ROWS) % 7


HEADER = ",".join(["label", *(f"pixel{number}" for number in range(SIDE * SIDE))])


SMALL = "label,a,b,c,d\n3,1,2,3,4\n5,6,7,8,9\n"
"""Two rows of 2 x 2 pixels."""


def lines_of(images: NDArray[Any] = IMAGES, labels: Any = LABELS) -> list[str]:
    """The rows without a header, the label first."""
    values = images.reshape(len(images), -1).tolist()
    return [",".join(map(str, [label, *row])) for label, row in zip(labels, values, strict=True)]


def text_of(header: str = HEADER, lines: list[str] | None = None) -> str:
    return "\n".join([*([header] if header else []), *(lines or lines_of())]) + "\n"


def zipped(content: bytes, *names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names or ("../train.csv",):
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda content: gzip.compress(content, 1, mtime=0),
    ".xz": lzma.compress,
    ".zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True),
    ".zip": zipped,
}


def put(directory: Path, text: str | bytes, name: str = "train.csv") -> Path:
    path = directory / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def opened(directory: Path, text: str | bytes, **options: Any) -> SplitSource:
    (split,) = splits_of(put(directory, text), **options)
    return split


def assert_rows(split: SplitSource, rows_per_part: int = 5) -> None:
    """Assert that a split has the images and the labels of this module."""
    images, labels = read(split, rows_per_part)
    assert (np.uint8, (SIDE, SIDE)) == (images.dtype, split.image_shape)
    np.testing.assert_array_equal(IMAGES, images)
    np.testing.assert_array_equal(LABELS, labels)
    assert sorted(set(LABELS.tolist())) == split.label_values(no_progress)
