"""The format of `mnist.pkl.gz`: a pickle of (images, labels) pairs of NumPy arrays."""

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.array_split import AT_ONCE_BYTES, ArraySplit, Read, source_of_values
from pipeline.sources.formats import Format, Source, SourceOptions
from pipeline.sources.pickled_arrays import read_pairs
from pipeline.sources.splits import SPLITS, split_named
from storage.decoding import GZIP_MAGIC
from storage.events import Progress
from storage.preparation import BYTES, ValueRange

ENDINGS = (".pkl", ".pickle", ".pkl.gz", ".pickle.gz", ".pkl.xz", ".pickle.xz")
DIVISORS = {255: BYTES, 256: ValueRange(0, 256)}
"""What bytes may have been divided by, and the range that maps them to the same fractions."""
_START = re.compile(rb"\x80[\x02-\x05]|\(+cnumpy\.")


def open_pickle(path: Path, options: SourceOptions, progress: Progress) -> Source:
    """Open a pickle; see the errors of `Format.open`."""
    pairs = read_pairs(path, progress)
    images, scaling = _as_bytes([images for images, _ in pairs])
    names = {1: (split_named(path.name) or "train",), 2: ("train", "test"), 3: SPLITS}[len(pairs)]
    splits = [
        ArraySplit(
            name,
            HeldArray(f"{path}: {name} images", values),
            HeldArray(f"{path}: {name} labels", labels),
            [path],
            path,
            options.shape,
        )
        for name, values, (_, labels) in zip(names, images, pairs, strict=True)
    ]
    held = sum(values.nbytes for values in (*images, *(pickled for pickled, _ in pairs)))
    for split in splits:
        split.reader_memory = held
    name = path.name.partition(".")[0] or "dataset"
    source = source_of_values(name, splits, f"pickled arrays in {path}", progress)
    return source if scaling is None else replace(source, scaling=scaling)


@dataclass(frozen=True)
class HeldArray:
    """An array in memory, as a `RowArray`."""

    place: str
    values: NDArray[Any]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @contextmanager
    def open(self) -> Iterator[Read]:
        position = 0

        def read(count: int) -> NDArray[Any]:
            nonlocal position
            position += count
            return self.values[position - count : position]

        yield read


def _as_bytes(images: Sequence[NDArray[Any]]) -> tuple[list[NDArray[Any]], ValueRange | None]:
    """Return fractions of bytes as bytes, with the range that is mapped to the same fractions.

    All images must be exactly such fractions, otherwise they are returned unchanged.
    """
    for divisor, scaling in DIVISORS.items():
        converted = []
        for values in images:
            numerators = _numerators(values, divisor)
            if numerators is None:
                break
            converted.append(numerators)
        if len(converted) == len(images):
            return converted, scaling
    return list(images), None


def _numerators(values: NDArray[Any], divisor: int) -> NDArray[np.uint8] | None:
    """Return bytes that, divided by `divisor`, are exactly `values`; None if there are none."""
    if values.dtype.kind != "f":
        return None
    whole = np.arange(256)
    dtype = values.dtype.newbyteorder("=").type
    fractions = (  # the roundings of a division, and of a product with the reciprocal
        (whole / divisor).astype(dtype),
        whole.astype(dtype) / dtype(divisor),
        whole.astype(dtype) * dtype(1 / divisor),
    )
    rows, numerators = values.reshape(-1), np.empty(values.size, np.uint8)
    for start in range(0, rows.size, AT_ONCE_BYTES):
        block = rows[start : start + AT_ONCE_BYTES]
        nearest = np.nan_to_num(np.clip(np.rint(block * dtype(divisor)), 0, 255)).astype(np.uint8)
        if not np.logical_or.reduce([table[nearest] == block for table in fractions]).all():
            return None
        numerators[start : start + AT_ONCE_BYTES] = nearest
    return numerators.reshape(values.shape)


def _recognises(path: Path, start: bytes) -> bool:
    """Recognise a pickle by its first bytes, compressed or not, then by its name."""
    if start.startswith(GZIP_MAGIC):
        with suppress(zlib.error):
            start = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS).decompress(start, 64)
    is_named = path.is_file() and path.name.lower().endswith(ENDINGS)
    return _START.match(start) is not None or is_named


FORMAT = Format(
    name="a pickle",
    recognises=_recognises,
    open=open_pickle,
    options=frozenset({"shape"}),
)
