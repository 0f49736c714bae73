"""The staged conversion: read -> check -> transform -> write -> verify -> publish."""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from pipeline.convert import Conversion, convert_part
from pipeline.sources.source import Source, SplitSource, open_source
from pipeline.values import Report, range_of
from storage.dataset import Dataset, open_dataset
from storage.dataset_writer import (
    ChunkRecord,
    DatasetWriter,
    SplitWriter,
    dataset_lock,
    recover,
    refuse_foreign,
    stage_dataset,
)
from storage.errors import ConflictError, UnreachableError, UsageError
from storage.location import Location, TakeOver
from storage.places import Place, open_location
from storage.preparation import BYTES, Preparation, ValueRange
from storage.schema import COMPRESSIONS, LZ4, METADATA_NAME, DatasetSchema, SplitSchema

if TYPE_CHECKING:
    from pipeline.cluster.client import Cluster

T = TypeVar("T")

DEFAULT_THREADS = min(4, os.cpu_count() or 1)

BYTES_IN_FLIGHT = 8 * 2**20
"""Decoded bytes that are on their way at once, or a part for each thread where that is more."""

BEST_COMPRESSION = 1000
"""No images worth learning from shrink more than this."""
EMNIST_HINT = (
    "These look like EMNIST's files, whose images are published with height and width "
    "swapped. Pass --transpose to have them upright."
)
BASE_MEMORY = 130_000_000
"""Bytes of the interpreter with its libraries, their threads and what they keep for themselves."""
FORMS_OF_A_CHUNK = 5
"""A chunk as it is read or drawn, transformed, filled up, encoded, and decoded again."""

Converted = tuple[int, list[ChunkRecord]]
"""What `convert_part` gives: the rows of a part, and its chunks' records."""
Convert = Callable[[SplitSource, SplitWriter, Conversion], Generator[Converted, None, None]]
"""Converts each part of a split, in order."""
Scaling = ValueRange | Literal["none"] | None
"""The range that is mapped to [0, 1]; None is 0 to 255 for bytes, and for other types the range of
the training split."""


@dataclass(frozen=True)
class IngestResult:
    """What an ingest did."""

    dataset: Dataset
    already_done: bool
    """True where the dataset was there already, from the same source in the same way."""
    source: str
    """Where the rows came from, for people."""
    seconds: float


def ingest(
    source: str | Source = "mnist",
    out: Place = "data/mnist",
    *,
    rows_per_chunk: int | None = None,
    compression: str | None = None,
    overwrite: bool = False,
    seed: int = 0,
    scale: Scaling = None,
    transpose: bool | None = None,
    take_over: TakeOver | None = None,
    threads: int = DEFAULT_THREADS,
    report: Report = lambda stage, done, total: None,
    announce: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] | None = None,
    cluster: "Cluster | None" = None,
) -> IngestResult:
    """Turn a source into a published dataset at `out`; the workers of a `cluster` write its parts.

    `source` is a directory, a known name, or `synthetic[:TRAIN[,TEST]]` (see
    `pipeline.sources.source.open_source`); `seed` is for generated digits; `take_over` is leave
    to take the lock of a dead writer in a store. `compression` is one of `COMPRESSIONS` in
    `storage.schema`; without, a new dataset has LZ4, and one that is there may have any, as it may
    have any number of rows per chunk unless `rows_per_chunk` is given. `scale` is the range of
    values that stands for 0 to 1 (see `Scaling`); `transpose` swaps the images' height and width,
    and where nothing is said of it `warn` tells of images that look transposed. `announce` is told
    what `warn` is not there to take.

    Raises `UsageError`, `BadDataError`, `ConflictError` or `UnreachableError`; whatever happens,
    nothing half-made is left at `out`, and an old dataset there stays until the new one is
    complete.
    """
    began = time.perf_counter()
    if rows_per_chunk is not None and rows_per_chunk < 1:
        raise UsageError(f"The rows per chunk are {rows_per_chunk}; expected at least 1.")
    if compression not in (None, *COMPRESSIONS):
        raise UsageError(
            f"The compression is {compression!r}; expected one of {', '.join(COMPRESSIONS)}."
        )
    if isinstance(source, str):
        source = open_source(source, seed=seed, announce=announce, warn=warn or announce)
    target = open_location(out)
    preparation = _preparation(source, scale, bool(transpose), report)
    schema = plan_dataset(source, preparation, rows_per_chunk, compression or LZ4)
    fingerprint = source.fingerprint()
    # The lock throughout, so that nobody comes between the look and the work.
    with dataset_lock(target, take_over) as target:
        recover(target)
        refuse_foreign(target)
        dataset = None
        if not overwrite:
            dataset = _same_dataset(target, schema, fingerprint, rows_per_chunk)
        if dataset is not None and compression not in (None, dataset.compression):
            raise ConflictError(
                f"{target} is there already, compressed by {dataset.compression} and not by "
                f"{compression}. Pass --overwrite to replace it, or choose another --out."
            )
        already_done = dataset is not None
        if dataset is None:
            _check_room(target, schema)
            announce(f"memory at most {memory_needed(schema, threads) / 1e6:,.0f} MB")
            if scale is None and preparation.scaling != BYTES:
                announce(f"{source.splits[0].dtype} images: {preparation}")
            if transpose is None and _is_emnist(source):
                (warn or announce)(EMNIST_HINT)
            with stage_dataset(target, schema, overwrite=overwrite) as writer:
                dataset = _convert(source, writer, fingerprint, threads, report, cluster)
    return IngestResult(dataset, already_done, source.description, time.perf_counter() - began)


def _same_dataset(
    target: Location,
    schema: DatasetSchema,
    fingerprint: dict[str, Any],
    rows_per_chunk: int | None,
) -> Dataset | None:
    """Return the dataset that is there if it was made from the same source in the same way.

    Its chunks may have any size unless `rows_per_chunk` gives one. Raises `ConflictError` where
    its values or its images were prepared in another way.
    """
    if not target.exists(METADATA_NAME):
        return None
    existing = open_dataset(target)
    splits = {name: split.schema for name, split in existing.splits.items()}
    if rows_per_chunk is None and splits.keys() == schema.splits.keys():
        splits = {
            name: replace(
                split,
                chunk_rows=schema.splits[name].chunk_rows,
                chunks_per_shard=schema.splits[name].chunks_per_shard,
            )
            for name, split in splits.items()
        }
    if existing.fingerprint != fingerprint or splits != schema.splits:
        return None
    if existing.preparation != schema.preparation:
        raise ConflictError(
            f"{target} is there already, made of the same files with {existing.preparation}; "
            f"these options mean {schema.preparation}. Pass --overwrite to replace it, or "
            f"{_options(existing.preparation)} to leave it as it is."
        )
    return existing


def _options(preparation: Preparation) -> str:
    """Return the options that prepare a source in this way."""
    scaling = preparation.scaling
    chosen = "none" if scaling is None else f"{scaling.low!r},{scaling.high!r}"
    return f"--scale {chosen}{' --transpose' if preparation.transposed else ''}"


def _preparation(source: Source, scale: Scaling, transpose: bool, report: Report) -> Preparation:
    """Return a source's transforms; raise `UsageError` for one that cannot be applied to it."""
    split = next((split for split in source.splits if split.name == "train"), source.splits[0])
    if transpose and len(split.image_shape) < 2:
        raise UsageError(
            f"--transpose swaps height and width, but the images of {source.name} are rows of "
            f"{split.image_shape[0]:,} values without either. Leave it out."
        )
    if isinstance(scale, ValueRange):
        _check_type_reaches(split.dtype, scale)
        scaling: ValueRange | None = scale
    elif scale == "none":
        scaling = None
    else:
        scaling = BYTES if split.dtype == np.uint8 else range_of(split, report)
    return Preparation(scaling, transpose, any(split.has_labels for split in source.splits))


def _check_type_reaches(dtype: np.dtype[Any], scale: ValueRange) -> None:
    """Refuse a range that no value of an integer type lies in."""
    if dtype.kind == "f":
        return
    limits = np.iinfo(dtype)
    if scale.high < limits.min or scale.low > limits.max:
        raise UsageError(
            f"--scale {scale.low:g},{scale.high:g} holds none of the values that {dtype} images "
            f"can have, {limits.min:,} to {limits.max:,}. Give the smallest and the largest value "
            "of the images."
        )


def _is_emnist(source: Source) -> bool:
    """Whether its name, or a file's, is one of EMNIST's."""
    names = (source.name, *(os.path.basename(split.origin) for split in source.splits))
    return any("emnist" in name.lower() for name in names)


def _convert(
    source: Source,
    writer: DatasetWriter,
    fingerprint: dict[str, Any],
    threads: int,
    report: Report,
    cluster: "Cluster | None",
) -> Dataset:
    """Convert every split and publish them."""
    schema = writer.schema
    classes = np.array([int(name) for name in schema.class_names], dtype=np.int64)
    with ThreadPoolExecutor(threads, thread_name_prefix="ingest") as pool:
        convert: Convert = partial(_convert_here, pool, threads)
        if cluster is not None:
            from pipeline.cluster.tasks import convert_parts  # and with it Dask's cluster

            convert = partial(convert_parts, cluster)
        records = {
            split.name: _convert_split(
                split,
                writer.split(split.name),
                Conversion(schema.preparation, classes, split.origin),
                convert,
                report,
            )
            for split in source.splits
        }
        files = [
            {"split": split.name, **vars(file)} for split in source.splits for file in split.files()
        ]
        return writer.publish(records, files, fingerprint)


def plan_dataset(
    source: Source,
    preparation: Preparation,
    rows_per_chunk: int | None = None,
    compression: str = LZ4,
) -> DatasetSchema:
    """The schema of the dataset that a source becomes; reads headers and labels only."""
    labels = sorted({label for split in source.splits for label in split.label_values()})
    first = source.splits[0]
    features = int(np.prod(first.image_shape))
    splits = {
        split.name: SplitSchema.plan(
            rows=split.rows,
            features=features,
            dtype=str(split.dtype),
            classes=len(labels) if split.has_labels else 0,
            chunk_rows=rows_per_chunk,
        )
        for split in source.splits
    }
    return DatasetSchema(
        name=source.name,
        class_names=tuple(str(label) for label in labels),
        image_shape=preparation.image_shape(tuple(first.image_shape)),
        transforms=preparation.names,
        splits=splits,
        compression=compression,
    )


def memory_needed(schema: DatasetSchema, threads: int = DEFAULT_THREADS) -> int:
    """Bytes that an ingest needs at most; they do not grow with the rows."""
    chunk = max(split.chunk_rows * split.row_bytes for split in schema.splits.values())
    part = max(
        split.chunk_rows * split.chunks_per_shard * split.row_bytes
        for split in schema.splits.values()
    )
    read = max(BYTES_IN_FLIGHT, threads * part) + part
    return BASE_MEMORY + read + threads * FORMS_OF_A_CHUNK * chunk


def _check_room(target: Location, schema: DatasetSchema) -> None:
    """Refuse what cannot fit on the disk, rather than fill it first."""
    least, free = schema.decoded_bytes // BEST_COMPRESSION, target.free_bytes()
    if least > free:
        raise UnreachableError(
            f"The dataset has {schema.decoded_bytes:,} bytes before compression; there are "
            f"{free:,} free for {target}. Free some space, or choose another --out."
        )


def _convert_split(
    split: SplitSource,
    writer: SplitWriter,
    conversion: Conversion,
    convert: Convert,
    report: Report,
) -> list[ChunkRecord]:
    """Convert a split, some parts at a time, and return its chunk records."""
    stage = f"ingest {split.name}"
    report(stage, 0, split.rows)
    records: list[ChunkRecord] = []
    done = 0
    # What runs ends before its output is removed.
    with closing(convert(split, writer, conversion)) as parts:
        for rows, chunk_records in parts:
            records += chunk_records
            done += rows
            report(stage, done, split.rows)
    return records


def _convert_here(
    pool: Executor,
    threads: int,
    split: SplitSource,
    writer: SplitWriter,
    conversion: Conversion,
) -> Generator[Converted, None, None]:
    """Each part converted, in order, by the threads of a pool."""
    part_bytes = writer.part_rows * writer.schema.row_bytes
    return _bounded(
        (
            pool.submit(convert_part, part, writer, conversion)
            for part in split.parts(writer.part_rows)
        ),
        max(threads, BYTES_IN_FLIGHT // part_bytes),
    )


def _bounded(submitted: "Iterator[Future[T]]", limit: int) -> Generator[T, None, None]:
    """The futures' results in order, with at most `limit` of them under way."""
    waiting: deque[Future[T]] = deque()
    for future in submitted:
        waiting.append(future)
        if len(waiting) >= limit:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
