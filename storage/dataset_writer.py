"""The dataset format, written: arrays beside the target, chunk by chunk, then published."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.chunks import ChunkedArray, Document, array_metadata
from storage.dataset import (
    DATASET_FORMAT,
    Block,
    Dataset,
    open_dataset,
    replaced_sibling,
    split_arrays,
)
from storage.errors import BadDataError, ConflictError
from storage.location import Location, TakeOver
from storage.schema import (
    FORMAT,
    METADATA_NAME,
    DatasetSchema,
    SplitRecord,
    SplitSchema,
    dataset_digest,
)
from storage.trees import group_metadata, metadata_bytes, write_tree


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """What is recorded of a chunk that was written."""

    number: int
    digest: bytes
    """SHA-256 of the decoded inputs, then targets."""
    class_counts: tuple[int, ...]


@dataclass(frozen=True)
class SplitWriter:
    """Writes the parts of one split; small, picklable, and usable from any thread or worker."""

    location: Location
    """The staged dataset."""
    name: str
    schema: SplitSchema
    compression: str

    @property
    def arrays(self) -> dict[str, ChunkedArray]:
        """Return the arrays of the split, by name."""
        location = self.location.child(self.name)
        return split_arrays(location, self.schema, self.compression)

    @property
    def part_rows(self) -> int:
        """Return how many rows are written together: a chunk's or, with shards, a shard's."""
        return self.schema.chunk_rows * self.schema.chunks_per_shard

    def write_part(self, number: int, chunks: Iterable[Block]) -> list[ChunkRecord]:
        """Write part `number`, given chunk by chunk, and return the records of its chunks.

        Each is encoded, decoded again and written before the next is taken. Raises `BadDataError`
        where it does not decode to its rows.
        """
        arrays = {name: self.arrays[name] for name in ("inputs", "targets") if name in self.arrays}
        first = number * self.schema.chunks_per_shard
        records: list[ChunkRecord] = []
        with ExitStack() as stack:
            write = {
                name: stack.enter_context(array.writing(number)) for name, array in arrays.items()
            }
            for chunk in chunks:
                for name, array in arrays.items():
                    write[name](_encoded(array, getattr(chunk, name)))
                records.append(_record(first + len(records), chunk))
                del chunk  # before the next one is made
        return records


def _encoded(array: ChunkedArray, values: NDArray[Any]) -> bytes:
    """Return a chunk as it is to be stored, once it has been decoded again."""
    encoded = array.encode(values)
    if not np.array_equal(array.decode(encoded)[: len(values)], values):
        raise BadDataError(
            f"A chunk for {array.location} does not decode to the rows that were written: possible "
            "faulty memory. Test this machine's memory, or ingest on another one."
        )
    return encoded


def _record(number: int, chunk: Block) -> ChunkRecord:
    targets = chunk.targets
    counts = () if targets is None else targets.sum(axis=0, dtype=np.int64).tolist()
    return ChunkRecord(number, chunk.digest(), tuple(counts))


class DatasetWriter:
    """A dataset that is being written beside its place, and takes it when it is published."""

    def __init__(self, target: Location, staged: Location, schema: DatasetSchema) -> None:
        """Begin the dataset at `staged`, which `target.staging()` gave."""
        self.target = target
        self.schema = schema
        self.publishing = False
        """Whether what is staged may be published by now, so that it must stay."""
        self._staged = staged
        begun = group_metadata({"format": FORMAT, "format_version": schema.format_version})
        staged.put(METADATA_NAME, metadata_bytes(begun))

    def split(self, name: str) -> SplitWriter:
        """Return the writer of one split's parts."""
        schema = self.schema
        return SplitWriter(self._staged, name, schema.splits[name], schema.compression)

    def publish(
        self,
        records: dict[str, list[ChunkRecord]],
        sources: list[dict[str, Any]],
        fingerprint: dict[str, Any],
    ) -> Dataset:
        """Record every chunk, say that the dataset is complete, and put it in its place.

        Raises `BadDataError` where a chunk has no record, or two, `UnreachableError` where one
        that was written elsewhere is not here.
        """
        schema = self.schema
        splits = {name: self._record_split(name, records[name]) for name in schema.splits}
        attributes = {
            "format": FORMAT,
            "format_version": schema.format_version,
            "name": schema.name,
            "class_names": list(schema.class_names),
            "image_shape": list(schema.image_shape),
            "transforms": list(schema.transforms),
            "compression": schema.compression,
            "sources": sources,
            "fingerprint": fingerprint,
            "splits": {name: record.to_json() for name, record in splits.items()},
            "digest": dataset_digest(
                schema.class_names, schema.image_shape, schema.transforms, splits
            ),
        }
        write_tree(self._staged, attributes, self._described_splits())
        self.publishing = True
        self.target.publish(self._staged, METADATA_NAME)
        dataset = open_dataset(self.target)
        self.target.check_held()  # or what was opened may be another's
        return dataset

    def _record_split(self, name: str, records: list[ChunkRecord]) -> SplitRecord:
        """Write the digests and class counts of a split's chunks, all of which must be there."""
        split, arrays = self.schema.splits[name], self.split(name).arrays
        records = sorted(records, key=lambda record: record.number)
        if [record.number for record in records] != list(range(split.chunks)):
            raise BadDataError(
                f"{len(records)} chunk records for the {split.chunks} chunks of split {name}."
            )
        digests = b"".join(record.digest for record in records)
        counts = np.array([record.class_counts for record in records], dtype="<i8")
        arrays["chunk_digests"].write(0, np.frombuffer(digests, "u1").reshape(-1, 32))
        if split.classes:
            arrays["chunk_class_counts"].write(0, counts)
        for array in arrays.values():
            array.check_there()
        return SplitRecord(
            split,
            tuple(counts.sum(axis=0).tolist()) if split.classes else (),
            hashlib.sha256(digests).hexdigest(),
            hashlib.sha256(counts.tobytes()).hexdigest(),
        )

    def _described_splits(self) -> dict[str, Document]:
        """Return the `zarr.json` of every group and array below the root, by path."""
        metadata: dict[str, Document] = {}
        for name in self.schema.splits:
            arrays = {key: array_metadata(array) for key, array in self.split(name).arrays.items()}
            arrays["inputs"]["attributes"] = self.schema.preparation.attributes
            metadata |= {f"{name}/{key}": document for key, document in arrays.items()}
            metadata[name] = group_metadata({}, arrays)
        return metadata


@contextmanager
def stage_dataset(
    target: Location, schema: DatasetSchema, *, overwrite: bool = False
) -> Iterator[DatasetWriter]:
    """Write a dataset beside `target`, whose lock is held; nothing stays of it but by `publish`.

    Raises `ConflictError` where a dataset is at `target` and must not be replaced.
    """
    if not overwrite and not target.is_free():
        raise ConflictError(
            f"{target} exists and was made from something else or in another way. "
            "Pass --overwrite to replace it, or choose another --out."
        )
    staged = target.staging()
    writer: DatasetWriter | None = None
    try:
        writer = DatasetWriter(target, staged, schema)
        yield writer
    finally:
        if writer is None or not writer.publishing:
            staged.discard()


@contextmanager
def dataset_lock(target: Location, take_over: TakeOver | None = None) -> Iterator[Location]:
    """Hold the lock of whoever writes at `target`, beside it; yield `target` for its holder.

    A replacement that died half-way is finished, one way or the other. On a disk the lock's file is
    gone when it is free. Raises `ConflictError` where another holds it, or where something is at
    `target` that is no dataset of ours.
    """
    with target.sibling(".lock").writer_lock(str(target), take_over) as lock:
        lock.retire()
        target = target.under(lock)
        target.recover(METADATA_NAME)
        _refuse_foreign(target)
        yield target


def _refuse_foreign(target: Location) -> None:
    if target.is_free() or DATASET_FORMAT.is_claimed_at(target):
        return
    replaced = replaced_sibling(target)
    if replaced.exists():
        raise ConflictError(
            f"{target} was left half replaced by an earlier release. Remove it, {replaced} and "
            f"whatever begins with {target.sibling('.ingest-')}, and run again."
        )
    raise ConflictError(
        f"{target} exists and is not a dataset of this project; it is left alone. "
        "Choose another --out, or remove it yourself."
    )
