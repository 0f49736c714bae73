"""Write a dataset chunk by chunk in a staged tree, then publish it."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import documents
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
    """The number, digest and class counts of a written chunk."""

    number: int
    digest: bytes
    """SHA-256 of the decoded inputs followed by the targets."""
    class_counts: tuple[int, ...]


@dataclass(frozen=True)
class SplitWriter:
    """Writes the parts of a split, from any thread or worker; it can be pickled."""

    location: Location
    """The staged dataset."""
    name: str
    schema: SplitSchema
    compression: str

    @property
    def arrays(self) -> dict[str, ChunkedArray]:
        location = self.location.child(self.name)
        return split_arrays(location, self.schema, self.compression)

    @property
    def part_rows(self) -> int:
        """Rows that are written together: a chunk's or, with shards, a shard's."""
        return self.schema.chunk_rows * self.schema.chunks_per_shard

    def write_part(self, number: int, chunks: Iterable[Block]) -> list[ChunkRecord]:
        """Write part `number` chunk by chunk, and return the records of its chunks.

        Each chunk is encoded, decoded again and written before the next is taken. Raises
        `BadDataError` if it does not decode to its rows.
        """
        arrays = {name: self.arrays[name] for name in ("inputs", "targets") if name in self.arrays}
        first = number * self.schema.chunks_per_shard
        records: list[ChunkRecord] = []
        with ExitStack() as stack:
            write = {
                name: stack.enter_context(array.open_for_writing(number))
                for name, array in arrays.items()
            }
            for chunk in chunks:
                for name, array in arrays.items():
                    write[name](_encoded(array, getattr(chunk, name)))
                records.append(_record(first + len(records), chunk))
                del chunk  # frees its memory before the next one is read
        return records


def _encoded(array: ChunkedArray, values: NDArray[Any]) -> bytes:
    """Return the stored bytes of a chunk, after checking that they decode to it."""
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
    """Writes a dataset at `staged`, which is `target.staging()`, and publishes it at `target`."""

    def __init__(self, target: Location, staged: Location, schema: DatasetSchema) -> None:
        self.target = target
        self.schema = schema
        self.publishing = False
        """Whether the staged tree may have been published, so that it must not be removed."""
        self._staged = staged
        begun = group_metadata({"format": FORMAT, "format_version": schema.format_version})
        staged.put(METADATA_NAME, metadata_bytes(begun))

    def split(self, name: str) -> SplitWriter:
        schema = self.schema
        return SplitWriter(self._staged, name, schema.splits[name], schema.compression)

    def publish(
        self,
        records: dict[str, list[ChunkRecord]],
        sources: list[dict[str, Any]],
        fingerprint: dict[str, Any],
        notes: Mapping[str, dict[str, Any]] | None = None,
    ) -> Dataset:
        """Write the metadata of all chunks and publish the dataset.

        `notes` about the images, findings and statistics, are stored with seals of their own.
        Raises `BadDataError` if a chunk has no record, or two; `UnreachableError` if one that a
        worker wrote cannot be seen from here.
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
        attributes |= {name: documents.seal(note) for name, note in (notes or {}).items()}
        write_tree(self._staged, attributes, self._members())
        self.publishing = True
        self.target.publish(self._staged, METADATA_NAME)
        dataset = open_dataset(self.target)
        self.target.check_held()  # otherwise another writer may have replaced the dataset
        return dataset

    def _record_split(self, name: str, records: list[ChunkRecord]) -> SplitRecord:
        """Write the digests and class counts of a split's chunks, all of which must exist."""
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
            array.check_presence()
        return SplitRecord(
            split,
            tuple(counts.sum(axis=0).tolist()) if split.classes else (),
            hashlib.sha256(digests).hexdigest(),
            hashlib.sha256(counts.tobytes()).hexdigest(),
        )

    def _members(self) -> dict[str, Document]:
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
    """Yield a writer of a dataset; the caller holds the lock of `target`.

    Unless it is published, everything that was written is removed. Raises `ConflictError` if
    `target` exists and `overwrite` is false.
    """
    if not overwrite and not target.is_free():
        raise ConflictError(
            f"{target} exists. Pass --overwrite to replace it, or choose another --out."
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
    """Hold the writer's lock beside `target`; yield `target` for the holder.

    Completes or undoes an interrupted replacement. Raises `ConflictError` if another process holds
    the lock, or if something other than a dataset is at `target`.
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
            f"everything that begins with {target.sibling('.ingest-')}, and run again."
        )
    raise ConflictError(
        f"{target} exists and is not a dataset; it is left alone. Choose another --out, or remove "
        "it."
    )
