"""The dataset format, read: open a published dataset, read its chunks, verify all of it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from storage import sealed
from storage.chunks import ChunkReader
from storage.errors import BadDataError, PipelineError
from storage.location import Location
from storage.schema import (
    FORMAT,
    FORMAT_VERSION,
    SplitRecord,
    SplitSchema,
    dataset_digest,
)
from storage.store import METADATA_NAME, LocationStore

MAKE_AGAIN = "Restore it from a copy, or make it again with `pipeline ingest --overwrite`."


@dataclass(frozen=True)
class Block:
    """Some rows of a split, decoded, as they are stored."""

    inputs: NDArray[Any]
    """`(rows, 1 + features)` in the stored element type, bias first."""
    targets: NDArray[np.uint8] | None
    """`(rows, classes)` one-hot, or None where the split has no labels."""

    def digest(self) -> bytes:
        """SHA-256 of the decoded inputs, followed by the targets: 32 bytes."""
        content = hashlib.sha256(np.ascontiguousarray(self.inputs))
        if self.targets is not None:
            content.update(np.ascontiguousarray(self.targets))
        return content.digest()


class Split:
    """One split of an open dataset. Chunks are checked against their digests as they are read."""

    def __init__(self, store: LocationStore, name: str, record: SplitRecord) -> None:
        """Nothing is read yet but by the properties below."""
        self.name = name
        self.record = record
        self.schema: SplitSchema = record.schema
        self._store = store

    def _array(self, name: str, shape: tuple[int, ...], dtype: str) -> zarr.Array[Any]:
        path = f"{self.name}/{name}"
        place = f"{self._store.location}/{path}"
        try:
            array = zarr.open_array(self._store, path=path, mode="r", zarr_format=3)
        except PipelineError:
            raise
        except Exception as error:  # zarr raises whatever a strange zarr.json leads it to
            raise BadDataError(
                f"{place} cannot be opened as a Zarr array ({error}). {MAKE_AGAIN}"
            ) from error
        if (array.shape, str(array.dtype)) != (shape, dtype):
            raise BadDataError(
                f"{place} has shape {array.shape} of {array.dtype}; the dataset's attributes say "
                f"{shape} of {dtype}. {MAKE_AGAIN}"
            )
        return array

    @cached_property
    def inputs(self) -> "zarr.Array[Any]":
        """The Zarr array `(rows, 1 + features)`."""
        schema = self.schema
        return self._array("inputs", (schema.rows, schema.columns), schema.dtype)

    @cached_property
    def targets(self) -> "zarr.Array[Any] | None":
        """The Zarr array `(rows, classes)`, or None where the split has no labels."""
        if not self.schema.classes:
            return None
        return self._array("targets", (self.schema.rows, self.schema.classes), "uint8")

    def _chunks(self, name: str, columns: int, dtype: str) -> ChunkReader:
        schema = self.schema
        location = self._store.location.child(f"{self.name}/{name}")
        return ChunkReader(
            location, schema.rows, columns, dtype, schema.chunk_rows, schema.chunks_per_shard
        )

    @cached_property
    def _input_chunks(self) -> ChunkReader:
        return self._chunks("inputs", self.schema.columns, self.schema.dtype)

    @cached_property
    def _target_chunks(self) -> ChunkReader:
        return self._chunks("targets", self.schema.classes, "uint8")

    @cached_property
    def chunk_digests(self) -> NDArray[np.uint8]:
        """`(chunks, 32)`: each chunk's recorded digest, checked against the split's own."""
        array = self._array("chunk_digests", (self.schema.chunks, 32), "uint8")
        digests = np.asarray(_read(array, 0, self.schema.chunks), dtype=np.uint8)
        if hashlib.sha256(digests.tobytes()).hexdigest() != self.record.digest:
            raise BadDataError(
                f"{self._store.location}/{self.name}/chunk_digests does not have the digest that "
                f"the dataset records for the split. {MAKE_AGAIN}"
            )
        return digests

    @cached_property
    def chunk_class_counts(self) -> NDArray[np.int64]:
        """`(chunks, classes)`: the rows of each class in each chunk, checked."""
        shape = (self.schema.chunks, self.schema.classes)
        array = self._array("chunk_class_counts", shape, "int64")
        counts = np.asarray(_read(array, 0, self.schema.chunks), dtype="<i8")
        if hashlib.sha256(counts.tobytes()).hexdigest() != self.record.class_counts_digest:
            raise BadDataError(
                f"{self._store.location}/{self.name}/chunk_class_counts does not have the digest "
                f"that the dataset records for it. {MAKE_AGAIN}"
            )
        return counts

    def read_chunk(self, number: int) -> Block:
        """Chunk `number`, in [0, chunks - 1], whole, decoded and checked.

        Raises `BadDataError` that names the chunk where it is missing, damaged or another's.
        """
        block = Block(
            self._input_chunks.read(number),
            self._target_chunks.read(number) if self.schema.classes else None,
        )
        if block.digest() != self.chunk_digests[number].tobytes():
            start, stop = self.schema.chunk_bounds(number)
            raise BadDataError(
                f"Chunk {number} (rows {start}..{stop - 1}) of {self._store.location}/{self.name} "
                f"does not have its recorded digest: it is damaged or another's. {MAKE_AGAIN}"
            )
        return block


@dataclass(frozen=True)
class Dataset:
    """A published dataset, opened for reading."""

    location: Location
    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    transforms: tuple[str, ...]
    sources: tuple[dict[str, Any], ...]
    """The files it was made from, with sizes and digests."""
    fingerprint: dict[str, Any]
    """What tells whether a source has been ingested before."""
    metadata_digests: dict[str, str]
    """SHA-256 of every other `zarr.json`, by key."""
    digest: str
    splits: dict[str, Split] = field(repr=False)

    def split(self, name: str) -> Split:
        """The split of that name; `BadDataError` that lists the others where there is none."""
        if name not in self.splits:
            raise BadDataError(
                f"{self.location} has no split '{name}'; it has {', '.join(self.splits)}."
            )
        return self.splits[name]


def open_dataset(location: Location) -> Dataset:
    """Open a published dataset: its attributes are checked, its rows when they are read.

    Raises `BadDataError` where there is none, or it is incomplete, damaged, of a newer format,
    or not a dataset.
    """
    attributes = root_attributes(location)
    if attributes.get("complete") is not True:
        raise BadDataError(
            f"{location} is incomplete: its ingest has not finished. Run `pipeline ingest` again."
        )
    document = sealed.parse(sealed.read(location, METADATA_NAME), f"{location}/{METADATA_NAME}")
    _check_root_seal(document, location)
    try:
        dataset = _from_attributes(location, attributes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadDataError(
            f"The attributes of {location} are not those of a dataset ({error!r}). {MAKE_AGAIN}"
        ) from error
    for key, expected in dataset.metadata_digests.items():
        _check_metadata(location, key, expected)
    return dataset


def root_attributes(location: Location) -> dict[str, Any]:
    """The attributes of what claims to be a dataset, its format and version checked."""
    place = f"{location}/{METADATA_NAME}"
    try:
        document = sealed.parse(sealed.read(location, METADATA_NAME), place)
    except FileNotFoundError:
        raise BadDataError(_nothing_there(location)) from None
    attributes = document.get("attributes")
    if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
        raise BadDataError(
            f"{location} is not a dataset of this project: its {METADATA_NAME} does not say "
            f"'{FORMAT}'. Make one with `pipeline ingest`."
        )
    version = attributes.get("format_version")
    if version != FORMAT_VERSION:
        raise BadDataError(
            f"{location} has format version {version!r}; this release reads {FORMAT_VERSION}. "
            "Install a newer mnist-stream, or ingest again with this one."
        )
    return attributes


def _nothing_there(location: Location) -> str:
    if replaced_sibling(location).exists():
        return (
            f"{location} was being replaced when the ingest ended. Run the same `pipeline ingest` "
            "again: it puts the old dataset back and goes on."
        )
    if not location.exists():
        return f"There is no dataset at {location}. Make one with `pipeline ingest --out`."
    return f"{location} is not a dataset: it holds no {METADATA_NAME}. Make one with `ingest`."


def replaced_sibling(location: Location) -> Location:
    """Where an old dataset waits while the new one takes its name."""
    return location.sibling("", ".replaced")


def root_document_digest(document: dict[str, Any]) -> str:
    """SHA-256 of the root `zarr.json` but for the seal in its attributes."""
    attributes = {key: value for key, value in document["attributes"].items() if key != sealed.SEAL}
    return sealed.digest_of(document | {"attributes": attributes})


def _check_root_seal(document: dict[str, Any], location: Location) -> None:
    found, expected = document["attributes"].get(sealed.SEAL), root_document_digest(document)
    if found != expected:
        raise BadDataError(
            f"{location}/{METADATA_NAME} is damaged: its seal is {found!r}, its content has digest "
            f"{expected}. {MAKE_AGAIN}"
        )


def _from_attributes(location: Location, attributes: dict[str, Any]) -> Dataset:
    records = {
        str(name): SplitRecord.from_json(entry) for name, entry in attributes["splits"].items()
    }
    class_names = tuple(str(name) for name in attributes["class_names"])
    image_shape = tuple(int(size) for size in attributes["image_shape"])
    transforms = tuple(str(name) for name in attributes["transforms"])
    expected = dataset_digest(class_names, image_shape, transforms, records)
    if attributes["digest"] != expected:
        raise BadDataError(
            f"The digest of {location} is {attributes['digest']!r}; its attributes give "
            f"{expected}. {MAKE_AGAIN}"
        )
    store = LocationStore(location, read_only=True)
    return Dataset(
        location=location,
        name=str(attributes["name"]),
        class_names=class_names,
        image_shape=image_shape,
        transforms=transforms,
        sources=tuple(attributes["sources"]),
        fingerprint=dict(attributes["fingerprint"]),
        metadata_digests=dict(attributes["metadata_digests"]),
        digest=expected,
        splits={name: Split(store, name, record) for name, record in records.items()},
    )


def _check_metadata(location: Location, key: str, expected: str) -> None:
    place = f"{location}/{key}"
    try:
        found = hashlib.sha256(sealed.read(location, key)).hexdigest()
    except FileNotFoundError:
        raise BadDataError(f"{place} is missing. {MAKE_AGAIN}") from None
    if found != expected:
        raise BadDataError(
            f"{place} has digest {found}; the dataset records {expected}. {MAKE_AGAIN}"
        )


def _read(array: "zarr.Array[Any]", start: int, stop: int) -> Any:
    """Rows [start, stop) of an array; whatever a damaged chunk makes the codecs raise is ours."""
    try:
        return array[start:stop]
    except PipelineError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise BadDataError(
            f"Rows {start}..{stop - 1} of {array.store}/{array.path} cannot be decoded ({error}). "
            f"{MAKE_AGAIN}"
        ) from error


def verify_dataset(location: Location) -> Iterator[BadDataError | None]:
    """Read all of a dataset and check every digest and count.

    Yields once for each thing that was checked: None, or what is wrong with it.
    """
    try:
        dataset = open_dataset(location)
    except BadDataError as error:
        yield error
        return
    for split in dataset.splits.values():
        for number in range(split.schema.chunks):
            yield _trouble(split, number)
        yield _class_count_trouble(split)


def _trouble(split: Split, number: int) -> BadDataError | None:
    try:
        block = split.read_chunk(number)
        if block.targets is not None:
            found = block.targets.sum(axis=0, dtype=np.int64)
            recorded = split.chunk_class_counts[number]
            if found.tolist() != recorded.tolist():
                raise BadDataError(
                    f"Chunk {number} of split {split.name} has class counts {found.tolist()}; "
                    f"recorded are {recorded.tolist()}. {MAKE_AGAIN}"
                )
    except BadDataError as error:
        return error
    return None


def _class_count_trouble(split: Split) -> BadDataError | None:
    if not split.schema.classes:
        return None
    try:
        found = split.chunk_class_counts.sum(axis=0).tolist()
    except BadDataError as error:
        return error
    if found != list(split.record.class_counts):
        return BadDataError(
            f"Split {split.name} counts {found} rows per class; recorded are "
            f"{list(split.record.class_counts)}. {MAKE_AGAIN}"
        )
    return None
