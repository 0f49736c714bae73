"""The staged conversion: read -> check -> transform -> write -> verify -> publish."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.convert import Conversion, Converted, convert_part
from pipeline.findings import Findings, FindingsCollector
from pipeline.plan import (
    BYTES_IN_FLIGHT,
    DEFAULT_THREADS,
    Scaling,
    labels_of,
    memory_needed,
    plan_class_names,
    plan_dataset,
    plan_preparation,
)
from pipeline.sources.formats import Source, SourceOptions
from pipeline.sources.remote import SourcePlace, opened_source
from pipeline.sources.splits import SplitSource
from pipeline.statistics import ImageStatistics
from storage.dataset import Dataset, open_dataset
from storage.dataset_writer import (
    ChunkRecord,
    DatasetWriter,
    SplitWriter,
    dataset_lock,
    stage_dataset,
)
from storage.errors import ConflictError, UsageError, did_you_mean, listed
from storage.events import Progress, event, no_progress
from storage.location import Location, TakeOver
from storage.places import Place, open_location
from storage.preparation import BYTES, Preparation
from storage.schema import COMPRESSIONS, LZ4, METADATA_NAME, DatasetSchema
from storage.trees import FINDINGS, LABELS, STATISTICS

if TYPE_CHECKING:
    from pipeline.cluster.client import Cluster

EMNIST_HINT = (
    "These look like EMNIST files, whose images are published with height and width swapped. "
    "Pass --transpose to store them upright."
)
Convert = Callable[[SplitSource, SplitWriter, Conversion], Generator[Converted, None, None]]
"""Converts each part of a split, in order."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IngestResult:
    """The result of `ingest`."""

    dataset: Dataset
    """The published dataset, open for reading."""
    already_done: bool
    """True if the dataset had been made from the same source in the same way before."""
    source: str
    """Description of the source, for people."""
    seconds: float
    """Duration of the call."""

    def __repr__(self) -> str:
        rows = ", ".join(f"{s.schema.rows:,} {name}" for name, s in self.dataset.splits.items())
        done = "already there" if self.already_done else f"{self.seconds:.1f} s"
        return (
            f"<IngestResult: {rows} rows of {self.dataset.name} in {self.dataset.location}, {done}>"
        )


def ingest(
    source: SourcePlace = "mnist",
    out: Place = "data/mnist",
    *,
    rows_per_chunk: int | None = None,
    compression: str | None = None,
    overwrite: bool = False,
    options: SourceOptions | None = None,
    class_names: Sequence[str] | None = None,
    scale: Scaling = None,
    transpose: bool | None = None,
    take_over: TakeOver | None = None,
    threads: int = DEFAULT_THREADS,
    progress: Progress = no_progress,
    cluster: "Cluster | None" = None,
) -> IngestResult:
    """Convert images and labels to a published dataset.

    A dataset that is already at `out`, made from the same source in the same way, is returned
    unchanged. Otherwise the new one is published only once it is complete.

    Parameters
    ----------
    source
        A file or directory; the `s3://` URL of one, or its location in a store; `mnist`,
        `fashion-mnist` or `kmnist`; `synthetic[:TRAIN[,TEST]]` for generated digits; or a `Source`.
    out
        Where to publish the dataset.
    rows_per_chunk
        Rows that are stored and read together. None: about 1.5 MB of them.
    compression
        `lz4`, `lz4hc` or `zstd`. None: `lz4`, or whatever an existing dataset has.
    overwrite
        Replace another dataset that is at `out`.
    options
        Options for reading the source, such as `SourceOptions(resize=(28, 28))`.
    class_names
        Names of the classes, in the order of their labels. None: those of the source, if it has
        any, otherwise the labels.
    scale
        Range of stored values that is mapped to [0, 1], or `"none"` to keep the values. None: 0 to
        255 for bytes, and the range of the training split for other types.
    transpose
        Swap height and width of each image. None: no, but warn if images look transposed.
    take_over
        Allows taking the lock of a dead writer in an object store; called with its description.
    threads
        Number of threads that convert and write chunks.
    progress
        Called after each part with the rows done; may raise to stop.
    cluster
        Dask cluster whose workers convert the parts.

    Raises
    ------
    UsageError
        If an argument does not fit the source.
    BadDataError
        If a file is damaged, incomplete or of another format.
    ConflictError
        If `out` is locked, or holds another dataset and `overwrite` is false.
    UnreachableError
        If storage, the network or the cluster cannot be used.
    """
    began = time.perf_counter()
    _check_options(rows_per_chunk, compression)
    target = open_location(out)
    with opened_source(source, options, progress) as opened:
        preparation = plan_preparation(opened, scale, bool(transpose), progress)
        labels = labels_of(opened, progress)
        names = plan_class_names(labels, class_names or opened.class_names)
        schema = plan_dataset(opened, preparation, names, rows_per_chunk, compression or LZ4)
        fingerprint = opened.fingerprint(progress)
        # Locked from the first check to the end, so that no other writer interferes.
        with dataset_lock(target, take_over) as target:
            existing = None
            if not overwrite:
                existing = _same_dataset(target, schema, fingerprint, rows_per_chunk, compression)
            dataset = existing
            if dataset is None:
                _announce(opened, schema, preparation, threads, scale, transpose)
                with stage_dataset(target, schema, overwrite=overwrite) as writer:
                    dataset = _convert(
                        opened, writer, labels, fingerprint, threads, progress, cluster
                    )
                _warn(dataset)
        if "train" in schema.splits and not schema.splits["train"].classes:
            logger.warning(
                "The train split has no labels: the dataset can be scored, not trained on."
            )
        seconds = time.perf_counter() - began
        return IngestResult(dataset, existing is not None, opened.description, seconds)


def _check_options(rows_per_chunk: int | None, compression: str | None) -> None:
    if rows_per_chunk is not None and rows_per_chunk < 1:
        raise UsageError(f"The number of rows per chunk is {rows_per_chunk}; expected at least 1.")
    if compression is not None and compression not in COMPRESSIONS:
        raise UsageError(
            f"The compression is {compression!r}; expected one of {', '.join(COMPRESSIONS)}."
            f"{did_you_mean(compression, COMPRESSIONS)}"
        )


def _announce(
    source: Source,
    schema: DatasetSchema,
    preparation: Preparation,
    threads: int,
    scale: Scaling,
    transpose: bool | None,
) -> None:
    """Log the memory bound, a range taken from the data, and a hint for EMNIST."""
    needed = memory_needed(schema, threads)
    needed += max(split.reader_memory for split in source.splits)
    text = f"memory at most {needed / 1e6:,.0f} MB"
    event(logger, "memory", text, logging.DEBUG, bytes=needed)
    if scale is None and preparation.scaling != BYTES:
        logger.info("%s images: %s", source.splits[0].dtype, preparation)
    names = [source.name, *(os.path.basename(split.origin) for split in source.splits)]
    if transpose is None and any("emnist" in name.lower() for name in names):
        logger.warning(EMNIST_HINT)


def _warn(dataset: Dataset) -> None:
    """Log what was noticed about the images that deserves a warning."""
    findings = Findings.of(dataset)
    for text in findings.warnings() if findings else []:
        logger.warning(text)


def _same_dataset(
    target: Location,
    schema: DatasetSchema,
    fingerprint: dict[str, Any],
    rows_per_chunk: int | None,
    compression: str | None,
) -> Dataset | None:
    """Return the existing dataset if it was made from the same source in the same way.

    Its chunk size and compression may differ unless they were requested. Raises `ConflictError`,
    naming the differences, if there is another dataset.
    """
    if not target.exists(METADATA_NAME):
        return None
    existing = open_dataset(target)
    if existing.fingerprint != fingerprint:
        raise ConflictError(
            f"{target} exists and was made from another source; these differ: "
            f"{', '.join(_differences(existing.fingerprint, fingerprint))}. Pass --overwrite to "
            "replace it, or choose another --out."
        )
    chunk_rows = {name: split.schema.chunk_rows for name, split in existing.splits.items()}
    planned = {name: split.chunk_rows for name, split in schema.splits.items()}
    if rows_per_chunk is not None and chunk_rows != planned:
        raise ConflictError(
            f"{target} already exists. It was made from the same files with "
            f"{max(chunk_rows.values()):,} rows per chunk; --rows-per-chunk asks for "
            f"{rows_per_chunk:,}. Pass --overwrite to replace it, choose another --out, or leave "
            "--rows-per-chunk out to keep it."
        )
    if existing.class_names != schema.class_names:
        raise ConflictError(
            f"{target} already exists. It was made from the same files with other class names: "
            f"{listed(existing.class_names)}; these options ask for {listed(schema.class_names)}. "
            "Pass --overwrite to replace it, choose another --out, or pass its own --class-names "
            "to keep it."
        )
    made = existing.preparation, existing.compression
    wanted = schema.preparation, compression or existing.compression
    if made != wanted:
        scaling = existing.preparation.scaling
        scale = "none" if scaling is None else f"{scaling.low!r},{scaling.high!r}"
        transpose = " --transpose" if existing.preparation.transposed else ""
        raise ConflictError(
            f"{target} already exists. It was made from the same files with {made[0]}, {made[1]}; "
            f"these options ask for {wanted[0]}, {wanted[1]}. Pass --overwrite to replace it, "
            f"choose another --out, or pass --scale {scale}{transpose} --compression {made[1]} to "
            "keep it."
        )
    return existing


def _differences(recorded: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Return the parts of two fingerprints that differ, such as `train labels`."""
    old, new = (
        {
            f"{split} {part}": value
            for split, parts in fingerprint.items()
            if isinstance(parts, dict)
            for part, value in parts.items()
        }
        for fingerprint in (recorded, given)
    )
    return [part for part in old | new if old.get(part) != new.get(part)]


def _convert(
    source: Source,
    writer: DatasetWriter,
    labels: list[int],
    fingerprint: dict[str, Any],
    threads: int,
    progress: Progress,
    cluster: "Cluster | None",
) -> Dataset:
    """Convert all splits and publish the dataset."""
    classes = np.array(labels, dtype=np.int64)
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="ingest") as pool,
        FindingsCollector(writer.schema) as findings,
    ):
        convert: Convert = partial(_convert_here, pool, threads)
        if cluster is not None:
            from pipeline.cluster.tasks import convert_parts  # imports Dask's cluster

            convert = partial(convert_parts, cluster)
        records, files, statistics = {}, [], ImageStatistics.empty()
        for split in source.splits:
            counted = split.rows if split.name == "train" else 0
            conversion = Conversion(writer.schema.preparation, classes, split.origin, counted)
            parts = convert(split, writer.split(split.name), conversion)
            records[split.name] = _collect(split, parts, findings, statistics, progress)
            files += [{"split": split.name} | file.to_json() for file in split.files()]
        notes = {FINDINGS: findings.result().to_json(), LABELS: {"values": labels}}
        if "train" in records:
            notes[STATISTICS] = statistics.to_json()
        return writer.publish(records, files, fingerprint, notes)


def _collect(
    split: SplitSource,
    parts: Generator[Converted, None, None],
    findings: FindingsCollector,
    statistics: ImageStatistics,
    progress: Progress,
) -> list[ChunkRecord]:
    """Return the chunk records of all parts of a split; collect findings and statistics."""
    stage = f"ingest {split.name}"
    progress(stage, 0, split.rows)
    records: list[ChunkRecord] = []
    done = 0
    with closing(parts):  # running conversions end before their output is removed
        for part in parts:
            records += part.records
            findings.add(split.name, part.examinations)
            statistics.add(part.statistics)
            done += part.rows
            progress(stage, done, split.rows)
    return records


def _convert_here(
    pool: Executor,
    threads: int,
    split: SplitSource,
    writer: SplitWriter,
    conversion: Conversion,
) -> Generator[Converted, None, None]:
    """Convert the parts on a pool's threads; yield the results in order."""
    most = max(threads, BYTES_IN_FLIGHT // (writer.part_rows * writer.schema.row_bytes))
    waiting: deque[Future[Converted]] = deque()
    with closing(split.parts(writer.part_rows)) as parts:
        for part in parts:
            waiting.append(pool.submit(convert_part, part, writer, conversion))
            if len(waiting) >= most:
                yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
