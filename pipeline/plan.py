"""Plan a dataset: its transforms, classes, chunks and memory, before its rows are converted."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pipeline.findings import findings_memory
from pipeline.sources.formats import Source
from pipeline.values import range_of
from storage.errors import UsageError, counted
from storage.events import Progress
from storage.preparation import BYTES, Preparation, ValueRange
from storage.schema import DatasetSchema, SplitSchema

DEFAULT_THREADS = min(4, os.cpu_count() or 1)

BYTES_IN_FLIGHT = 8 * 2**20
"""Decoded bytes that are processed at once, or one part per thread if that is more."""

BASE_MEMORY = 130_000_000
"""Bytes of the interpreter, its libraries and their threads."""
COPIES_OF_A_CHUNK = 5
"""Copies of a chunk: as read or drawn, transformed, padded, encoded, and decoded again."""

Scaling = ValueRange | Literal["none"] | None
"""The range that is mapped to [0, 1]. None: 0 to 255 for bytes, and the training split's range for
other types."""


def plan_preparation(
    source: Source, scale: Scaling, transpose: bool, progress: Progress
) -> Preparation:
    """Return the transforms for a source; raise `UsageError` if one does not fit it."""
    split = next((split for split in source.splits if split.name == "train"), source.splits[0])
    if transpose and len(split.image_shape) < 2:
        raise UsageError(
            f"--transpose needs images with height and width, but those of {source.name} are rows "
            f"of {split.image_shape[0]:,} values. Leave it out."
        )
    if isinstance(scale, ValueRange):
        _check_range(split.dtype, scale)
        scaling: ValueRange | None = scale
    elif scale == "none":
        scaling = None
    else:
        default = BYTES if split.dtype == np.uint8 else None
        scaling = source.scaling or default or range_of(split, progress)
    return Preparation(scaling, transpose, any(split.has_labels for split in source.splits))


def _check_range(dtype: np.dtype[Any], scale: ValueRange) -> None:
    """Raise `UsageError` for a range that contains no value of an integer type."""
    if dtype.kind == "f":
        return
    limits = np.iinfo(dtype)
    if scale.high < limits.min or scale.low > limits.max:
        raise UsageError(
            f"--scale {scale.low:g},{scale.high:g} contains none of the values of {dtype} images, "
            f"{limits.min:,} to {limits.max:,}. Give the smallest and the largest value of the "
            "images."
        )


def labels_of(source: Source, progress: Progress) -> list[int]:
    """Return the distinct labels of all splits in ascending order."""
    return sorted({label for split in source.splits for label in split.label_values(progress)})


def plan_class_names(labels: list[int], names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the name of each label: its own, by its value, or by its rank if it is too large.

    Raises `UsageError` if there are too few names, or if two are equal or one is empty.
    """
    if names is None or not labels:
        return tuple(map(str, labels))
    if len(names) <= labels[-1] and len(names) != len(labels):
        raise UsageError(
            f"There are {counted(len(names), 'class name')} for labels from {labels[0]} to "
            f"{labels[-1]}; expected one for each label, in ascending order."
        )
    if not all(map(str.strip, names)):
        raise UsageError("A class name is empty; expected a name for each class.")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError(
            f"The class name {twice[0]!r} is given twice; expected a different name for each class."
        )
    by_value = labels[-1] < len(names)
    return tuple(names[label if by_value else rank] for rank, label in enumerate(labels))


def plan_dataset(
    source: Source,
    preparation: Preparation,
    class_names: tuple[str, ...],
    rows_per_chunk: int | None,
    compression: str,
) -> DatasetSchema:
    """Return the schema of a source's dataset."""
    first = source.splits[0]
    features = int(np.prod(first.image_shape))
    splits = {
        split.name: SplitSchema.plan(
            rows=split.rows,
            features=features,
            dtype=str(split.dtype),
            classes=len(class_names) if split.has_labels else 0,
            chunk_rows=rows_per_chunk,
        )
        for split in source.splits
    }
    return DatasetSchema(
        name=source.name,
        class_names=class_names,
        image_shape=preparation.image_shape(tuple(first.image_shape)),
        transforms=preparation.names,
        splits=splits,
        compression=compression,
    )


def memory_needed(schema: DatasetSchema, threads: int = DEFAULT_THREADS) -> int:
    """Return the most bytes that an ingest needs; they do not grow with more rows than a limit."""
    splits = schema.splits.values()
    chunk = max(split.chunk_rows * split.row_bytes for split in splits)
    part = max(split.chunk_rows * split.chunks_per_shard * split.row_bytes for split in splits)
    read = max(BYTES_IN_FLIGHT, threads * part) + part
    findings = findings_memory(schema, max(threads, BYTES_IN_FLIGHT // chunk))
    return BASE_MEMORY + read + threads * COPIES_OF_A_CHUNK * chunk + findings
