"""Write IDX files, for tests only."""

import gzip
import lzma
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.idx import ELEMENT_TYPES

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".xz": lzma.compress,
}

MNIST_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""The four files of MNIST."""


def idx_bytes(shape: tuple[int, ...], data: bytes = b"", code: int = 0x08) -> bytes:
    """Return an IDX file: a header that claims `shape`, followed by any `data`."""
    return struct.pack(f">HBB{len(shape)}I", 0, code, len(shape), *shape) + data


def write_idx(path: str | os.PathLike[str], values: NDArray[Any]) -> None:
    """Write `values` (rows, ...) as an IDX file, compressed if the name ends in .gz or .xz."""
    path = Path(path)
    stored = np.ascontiguousarray(values, values.dtype.newbyteorder(">"))
    code = {dtype: code for code, dtype in ELEMENT_TYPES.items()}[stored.dtype]
    content = idx_bytes(values.shape, stored.tobytes(), code)
    partial = path.with_name(path.name + ".partial")  # jobs never see a partial file
    partial.write_bytes(COMPRESS.get(path.suffix, bytes)(content))
    partial.replace(path)


def write_set(directory: Path, images: NDArray[Any], labels: NDArray[np.uint8]) -> Path:
    """Write these rows as IDX files, the last 50 of them as the test split."""
    return write_files(directory, images[:-50], labels[:-50], images[-50:], labels[-50:])


def write_files(
    directory: Path,
    *values: NDArray[Any],
    names: tuple[str, ...] = MNIST_NAMES,
    ending: str = "",
) -> Path:
    """Write images and labels of the training split and of the test split under these names."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, array in zip(names, values, strict=True):
        write_idx(directory / (name + ending), array)
    return directory
