"""The dataset format as values: schemas of splits and datasets, limits, the dataset's digest."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from storage.documents import digest_of
from storage.errors import BadDataError
from storage.preparation import BYTES, Preparation

FORMAT = "mnist-stream dataset"
FORMAT_VERSION = 3
READ_VERSIONS = (1, 2, FORMAT_VERSION)
"""Version 1 had only Zstandard, and did not record it.

Version 2 scaled bytes by 1/255 and nothing else. Datasets that it would read correctly are still
written as version 2.
"""
METADATA_NAME = "zarr.json"
"""The document of a Zarr v3 group or array."""
LZ4, LZ4HC, ZSTD = COMPRESSIONS = ("lz4", "lz4hc", "zstd")
"""Compressions of chunks; see `storage.chunks`."""
CHUNK_BYTES = 1_570_000
"""Decoded size of a default chunk: 2,000 rows of MNIST with its bias column."""
CHUNK_AND_TARGETS_BYTES = 2 * CHUNK_BYTES
"""The same for inputs and targets together, if the targets are wider than the inputs."""
SHARD_THRESHOLD = 1_000
"""Splits with more chunks than this are stored in shards."""
CHUNKS_PER_SHARD = 8
SHARD_LIMIT = 1024
"""The most chunks of a shard, so that a few objects cannot claim an unbounded number."""
ELEMENT_TYPES = ("uint8", "int8", "int16", "int32", "float32", "float64")
SIZE_LIMIT = 2**48
"""The largest number of rows, and of values in a row."""
CLASS_LIMIT = 2**16
ROW_LIMIT = 64 * 2**20
"""The longest row in bytes, to bound the allocation for a claimed size."""
CHUNK_LIMIT = 2**30
"""The largest chunk in decoded bytes, for the same reason."""


class InChunks:
    """Rows in chunks of `chunk_rows`; the last chunk may be shorter."""

    rows: int
    chunk_rows: int

    @property
    def chunks(self) -> int:
        """The number of chunks, the last short one included."""
        return -(-self.rows // self.chunk_rows)

    def chunk_bounds(self, number: int) -> tuple[int, int]:
        """Return the rows [start, stop) of chunk `number`, in [0, chunks - 1]."""
        start = number * self.chunk_rows
        return start, min(start + self.chunk_rows, self.rows)

    def _check_sizes(self, subject: str, limits: Mapping[str, tuple[int, int]]) -> None:
        """Raise `BadDataError` for the first field that is not an integer in its range."""
        for field, (least, most) in limits.items():
            value = getattr(self, field)
            if type(value) is not int or not least <= value <= most:
                raise BadDataError(
                    f"A {subject}'s {field} is {value!r}; expected an integer from {least} to "
                    f"{most:,}."
                )

    def _check_chunk(self, row_bytes: int) -> None:
        """Raise `BadDataError` if a chunk is larger than `CHUNK_LIMIT`."""
        if row_bytes * self.chunk_rows > CHUNK_LIMIT:
            raise BadDataError(
                f"A chunk of {self.chunk_rows:,} rows has {row_bytes * self.chunk_rows:,} bytes; "
                f"expected at most {CHUNK_LIMIT:,}. Use fewer rows per chunk."
            )


@dataclass(frozen=True)
class SplitSchema(InChunks):
    """The shape of a split, from which all its arrays follow."""

    rows: int
    """Rows of `inputs` and `targets`, at least 1."""
    features: int
    """Values of an image; `inputs` has one more column, the bias, first."""
    dtype: str
    """Element type of `inputs`, one of `ELEMENT_TYPES`."""
    classes: int
    """Columns of `targets`; 0 for a split without labels, which has no `targets`."""
    chunk_rows: int
    """Rows of a chunk; the last one may be shorter."""
    chunks_per_shard: int
    """Chunks of a Zarr shard; 1 for no shards."""

    def __post_init__(self) -> None:
        limits = {
            "rows": (1, SIZE_LIMIT),
            "features": (1, SIZE_LIMIT),
            "classes": (0, CLASS_LIMIT),
            "chunk_rows": (1, SIZE_LIMIT),
            "chunks_per_shard": (1, SHARD_LIMIT),
        }
        self._check_sizes("split", limits)
        if self.dtype not in ELEMENT_TYPES:
            raise BadDataError(f"A split's dtype is {self.dtype!r}; expected {ELEMENT_TYPES}.")
        if self.row_bytes > ROW_LIMIT:
            raise BadDataError(
                f"A row has {self.row_bytes:,} bytes, inputs and targets; expected at most "
                f"{ROW_LIMIT:,}. Make the images smaller."
            )
        self._check_chunk(self.row_bytes)

    @property
    def columns(self) -> int:
        return 1 + self.features

    @property
    def row_bytes(self) -> int:
        """The decoded size of a row in bytes, inputs and targets."""
        return self.columns * np.dtype(self.dtype).itemsize + self.classes

    @classmethod
    def plan(
        cls, *, rows: int, features: int, dtype: str, classes: int, chunk_rows: int | None = None
    ) -> Self:
        """Return a split with chunks of about `CHUNK_BYTES`, in shards if there are many."""
        row_bytes = (1 + features) * np.dtype(dtype).itemsize
        fitting = min(CHUNK_BYTES // row_bytes, CHUNK_AND_TARGETS_BYTES // (row_bytes + classes))
        chunk_rows = min(chunk_rows or max(1, fitting), rows)
        chunks = -(-rows // chunk_rows)
        shard = CHUNKS_PER_SHARD if chunks > SHARD_THRESHOLD else 1
        return cls(rows, features, dtype, classes, chunk_rows, shard)


@dataclass(frozen=True)
class SplitRecord:
    """A finished split: its shape and its digests."""

    schema: SplitSchema
    class_counts: tuple[int, ...]
    """Rows of each class, in the order of the class names."""
    digest: str
    """SHA-256 of the chunk digests in order."""
    class_counts_digest: str
    """SHA-256 of the class counts of each chunk (int64, little-endian)."""

    def check_names(
        self, name: str, class_names: tuple[str, ...], image_shape: tuple[int, ...]
    ) -> None:
        """Raise `ValueError` if the split, its classes and its images are inconsistent."""
        schema = self.schema
        if not name.isidentifier():
            raise ValueError(f"a split named {name!r}")
        if schema.classes not in (0, len(class_names)) or len(self.class_counts) != schema.classes:
            raise ValueError(f"{len(class_names):,} class names for split {name}")
        if min(image_shape, default=0) < 1 or math.prod(image_shape) != schema.features:
            raise ValueError(f"images of shape {image_shape} in split {name}")

    def to_json(self) -> dict[str, Any]:
        """Return the split's entry in the root attributes."""
        record = vars(self) | {"class_counts": list(self.class_counts)}
        return vars(self.schema) | {name: record[name] for name in record if name != "schema"}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Self:
        """Return the inverse of `to_json`; raise `KeyError` or `TypeError` for other shapes."""
        schema = SplitSchema(**{name: entry[name] for name in SplitSchema.__dataclass_fields__})
        counts = tuple(int(count) for count in entry["class_counts"])
        return cls(schema, counts, str(entry["digest"]), str(entry["class_counts_digest"]))


@dataclass(frozen=True)
class DatasetSchema:
    """A dataset before its rows are read: names and shapes."""

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    transforms: tuple[str, ...]
    splits: dict[str, SplitSchema]
    compression: str = LZ4
    """Compression of inputs and targets, one of `COMPRESSIONS`."""

    @property
    def format_version(self) -> int:
        """The oldest version whose readers decode the rows correctly."""
        preparation = self.preparation
        scaled_by_type = all(
            preparation.scaling == (BYTES if split.dtype == "uint8" else None)
            for split in self.splits.values()
        )
        return 2 if scaled_by_type and not preparation.transposed else FORMAT_VERSION

    @property
    def preparation(self) -> Preparation:
        return Preparation.from_names(self.transforms, self.name)

    @property
    def decoded_bytes(self) -> int:
        """The size of all inputs and targets in bytes, uncompressed."""
        return sum(split.row_bytes * split.rows for split in self.splits.values())


def dataset_digest(
    class_names: tuple[str, ...],
    image_shape: tuple[int, ...],
    transforms: tuple[str, ...],
    splits: dict[str, SplitRecord],
) -> str:
    """Return the digest of the splits and of everything that gives the rows their meaning.

    Names, sources, times and compression are not part of it.
    """
    return digest_of(
        {
            "format": FORMAT,
            "format_version": 1,  # later versions did not change the digested fields
            "class_names": class_names,
            "image_shape": image_shape,
            "transforms": transforms,
            "splits": {name: record.to_json() for name, record in splits.items()},
        }
    )
