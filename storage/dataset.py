"""Open a published dataset and read its chunks, each checked against its digest."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from storage import documents
from storage.chunks import ChunkedArray, Identity, values_digest
from storage.errors import BadDataError, ConflictError, did_you_mean, nearest_place
from storage.location import REPLACED, Location
from storage.preparation import Preparation
from storage.schema import (
    COMPRESSIONS,
    FORMAT,
    METADATA_NAME,
    READ_VERSIONS,
    ZSTD,
    SplitRecord,
    SplitSchema,
    dataset_digest,
)
from storage.trees import LABELS, NOTES, TreeFormat, read_root

if TYPE_CHECKING:
    import zarr

MAKE_AGAIN = "Restore it from a copy, or create it again with `pipeline ingest --overwrite`."


@dataclass(frozen=True, repr=False)
class Block:
    """Consecutive rows of a split, decoded but not scaled."""

    inputs: NDArray[Any]
    """`(rows, 1 + features)` in the stored element type, bias first."""
    targets: NDArray[np.uint8] | None
    """`(rows, classes)` one-hot, or None if the split has no labels."""

    def __repr__(self) -> str:
        targets = "none" if self.targets is None else self.targets.shape
        return f"<Block> {self.inputs.dtype} inputs {self.inputs.shape}, targets {targets}"

    def part(self, rows: slice) -> "Block":
        """Return a view of some of the rows."""
        return Block(self.inputs[rows], None if self.targets is None else self.targets[rows])

    def digest(self) -> bytes:
        """Return the SHA-256 of the inputs followed by the targets: 32 bytes."""
        return values_digest(self.inputs, *([] if self.targets is None else [self.targets]))


def split_arrays(
    location: Location, schema: SplitSchema, compression: str = ZSTD
) -> dict[str, ChunkedArray]:
    """Return the arrays of the split at a location, by name; new rows get `compression`.

    All chunk digests are stored in one chunk, and all class counts in another. A split without
    labels has neither `targets` nor `chunk_class_counts`.
    """
    rows, chunks, classes = schema.rows, schema.chunks, schema.classes
    images = (rows, schema.columns, schema.dtype, schema.chunk_rows, ("sample", "feature"))
    labels = (rows, classes, "uint8", schema.chunk_rows, ("sample", "class"))
    stored = (schema.chunks_per_shard, compression)
    shapes: dict[str, tuple[Any, ...]] = {
        "inputs": (*images, *stored),
        "chunk_digests": (chunks, 32, "uint8", chunks, ("chunk", "byte")),
    }
    if classes:
        shapes["targets"] = (*labels, *stored)
        shapes["chunk_class_counts"] = (chunks, classes, "int64", chunks, ("chunk", "class"))
    return {name: ChunkedArray(location.child(name), *shape) for name, shape in shapes.items()}


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """A split of an open dataset. Each chunk is checked when it is read.

    The stored bytes are compared with their CRC-32C. The rows are compared with their recorded
    digest when a chunk is first read, and when it may have changed since: a file if its inode, size
    or times have, an object in a store if its SHA-256 has.
    """

    location: Location
    """The dataset's Zarr group."""
    name: str
    """Name of the split."""
    record: SplitRecord
    """Its schema and digests, as the dataset records them."""
    dataset_digest: str
    """Digest of the dataset."""
    place: Location
    """The dataset's own location."""
    _sound: dict[int, list[Identity]] = field(default_factory=dict)
    """By chunk, the identities of stored bytes that decoded to the right rows."""

    def __repr__(self) -> str:
        schema = self.schema
        inputs = f"{schema.rows:,} x {schema.columns:,} {schema.dtype}"
        return (
            f"<Split {self.name} of {self.place}>\n"
            f"  inputs: {inputs}, {schema.classes} classes\n"
            f"  chunks: {schema.chunks:,} of {schema.chunk_rows:,} rows\n"
            f"  digest: {self.record.digest[:12]}"
        )

    @property
    def schema(self) -> SplitSchema:
        """Return the numbers of rows, columns, classes and chunks, and the element type."""
        return self.record.schema

    @cached_property
    def arrays(self) -> dict[str, ChunkedArray]:
        return split_arrays(self.location.child(self.name), self.schema)

    @cached_property
    def inputs(self) -> "zarr.Array[Any]":
        """Return the read-only Zarr array `(rows, 1 + features)`, bias first."""
        return self._as_zarr("inputs")

    @cached_property
    def targets(self) -> "zarr.Array[Any] | None":
        """Return the read-only Zarr array `(rows, classes)`, one-hot uint8; None without labels."""
        return self._as_zarr("targets") if self.schema.classes else None

    def _as_zarr(self, name: str) -> "zarr.Array[Any]":
        import zarr  # slow to import

        store = zarr.storage.MemoryStore(cast(Any, _ZarrObjects(self.location)), read_only=True)
        return zarr.open_array(store, path=f"{self.name}/{name}", mode="r", zarr_format=3)

    @cached_property
    def chunk_digests(self) -> NDArray[np.uint8]:
        """Return the recorded SHA-256 of each chunk, `(chunks, 32)` uint8."""
        return self._small_array("chunk_digests", self.record.digest)

    @cached_property
    def chunk_class_counts(self) -> NDArray[np.int64]:
        """Return the number of rows of each class in each chunk, `(chunks, classes)` int64."""
        if not self.schema.classes:
            return np.zeros((self.schema.chunks, 0), dtype=np.int64)
        return self._small_array("chunk_class_counts", self.record.class_counts_digest)

    def _small_array(self, name: str, recorded: str) -> NDArray[Any]:
        reader = self.arrays[name]
        values = reader.read(0)
        DATASET_FORMAT.check_digest(str(reader.location), values_digest(values).hex(), recorded)
        return values

    def empty_chunk(self) -> Block:
        """Return uninitialised arrays for `read_chunk` to decode into."""
        targets = self.arrays.get("targets")
        return Block(
            self.arrays["inputs"].empty_chunk(), None if targets is None else targets.empty_chunk()
        )

    def check_claim(self) -> None:
        """Raise `BadDataError` if most chunks are missing; see `ChunkedArray.check_claim`."""
        with self._unless_replaced():
            for reader in self.arrays.values():
                reader.check_claim()

    def read_chunk(self, number: int, out: Block | None = None) -> Block:
        """Return a chunk, decoded and checked.

        Parameters
        ----------
        number
            Number of the chunk, from 0.
        out
            An `empty_chunk` to decode into; the result's arrays are views of it.

        Raises
        ------
        BadDataError
            If the chunk is missing or damaged; the message names it.
        ConflictError
            If the dataset was replaced by another one after it was opened.
        """
        identities: list[Identity] = []
        targets = None
        with self._unless_replaced():
            if self.schema.classes:
                into = out.targets if out else None
                targets = self.arrays["targets"].read(number, into, identities)
            into = out.inputs if out else None
            block = Block(self.arrays["inputs"].read(number, into, identities), targets)
            if self._sound.get(number) != identities:
                self._check_digest(number, block)
                self._sound[number] = identities
        return block

    def _check_digest(self, number: int, block: Block) -> None:
        start, stop = self.schema.chunk_bounds(number)
        place = f"Chunk {number} (rows {start}..{stop - 1}) of {self.location}/{self.name}"
        recorded = self.chunk_digests[number].tobytes()
        DATASET_FORMAT.check_digest(place, block.digest().hex(), recorded.hex())

    @contextmanager
    def _unless_replaced(self) -> Iterator[None]:
        """Turn `BadDataError` into `ConflictError` if the dataset was replaced."""
        try:
            yield
        except BadDataError:
            tree, root = read_root(self.place)
            if root is None:
                replaced = replaced_sibling(self.place).exists()
            else:
                replaced = tree != self.location or self.dataset_digest.encode() not in root
            if not replaced:
                raise
            raise ConflictError(
                f"{self.place} was replaced by another dataset while it was being read. "
                "Run the same command again."
            ) from None


@dataclass(frozen=True)
class _ZarrObjects:
    """A dataset's objects for Zarr's `MemoryStore`, read on demand.

    Zarr reads a missing chunk as fill value (zarr-python issue 486); here it raises an error.
    """

    location: Location

    def __getitem__(self, key: str) -> Any:
        from zarr.core.buffer import default_buffer_prototype

        try:
            return default_buffer_prototype().buffer.from_bytes(self.location.get(key))
        except FileNotFoundError:
            if key.endswith(METADATA_NAME):
                raise KeyError(key) from None
            raise BadDataError(f"Chunk {key} of {self.location} is missing. {MAKE_AGAIN}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.location.objects())


@dataclass(frozen=True, repr=False)
class Dataset:
    """A published dataset, opened for reading."""

    location: Location
    """The place at which it is published."""
    tree: Location
    """Its Zarr group: `location` itself or, in an object store, a version below it."""
    name: str
    """Name of the source, such as `mnist`."""
    class_names: tuple[str, ...]
    """Names of the classes, in the order of the columns of `targets`."""
    labels: tuple[int, ...]
    """Their labels in the source files; empty if there are none, or an early release made it."""
    image_shape: tuple[int, ...]
    """Shape of an image, such as `(28, 28)`."""
    transforms: tuple[str, ...]
    """Names of the transforms that made the stored rows."""
    preparation: Preparation
    """The parsed transforms: scaling and transposition."""
    compression: str
    """Compression of the rows: `lz4`, `lz4hc` or `zstd`."""
    sources: tuple[dict[str, Any], ...]
    """The source files with their sizes and digests."""
    fingerprint: dict[str, Any]
    """Identifies the source, so that it is recognised when it is ingested again."""
    digest: str
    """SHA-256 that identifies the rows, the class names, the image shape and the transforms."""
    splits: dict[str, Split]
    """The splits by name: `train`, `validation`, `test`."""
    findings: dict[str, Any] | None
    """What ingest noticed about the images; None if an earlier release made the dataset."""
    statistics: dict[str, Any] | None
    """Histograms of statistics of the training images; None if an earlier release made it."""

    def __repr__(self) -> str:
        splits = (f"{name} {split.schema.rows:,} rows" for name, split in self.splits.items())
        shape = " x ".join(map(str, self.image_shape))
        dtypes = ", ".join(sorted({split.schema.dtype for split in self.splits.values()}))
        return (
            f"<Dataset {self.name} at {self.location}>\n"
            f"  splits: {', '.join(splits)}\n"
            f"  images: {shape} {dtypes}, {len(self.class_names)} classes\n"
            f"  digest: {self.digest[:12]}"
        )

    def split(self, name: str) -> Split:
        """Return a split by name; raise `BadDataError` if it or most of its chunks are missing."""
        if name not in self.splits:
            raise BadDataError(
                f"{self.location} has no split '{name}'; it has {', '.join(self.splits)}."
                f"{did_you_mean(name, self.splits)}"
            )
        self.splits[name].check_claim()
        return self.splits[name]


def open_dataset(location: Location) -> Dataset:
    """Open a published dataset; its attributes are checked now, its rows when they are read.

    Parameters
    ----------
    location
        Where it is published, as `storage.places.open_location` returns it.

    Raises
    ------
    BadDataError
        If there is no dataset, or it is incomplete, damaged or of a newer format.
    """
    return DATASET_FORMAT.open(location, partial(_from_attributes, location))


def _nothing_there(location: Location) -> str:
    if replaced_sibling(location).exists():
        return (
            f"{location} is being replaced, or its ingest was interrupted. Run the same `pipeline "
            "ingest` again, which completes the replacement."
        )
    if location.is_free():
        return (
            f"There is no dataset at {location}.{nearest_place(str(location))} Make one with "
            f"`pipeline ingest --out {location}`."
        )
    return (
        f"{location} is not a dataset: it contains no {METADATA_NAME}. Convert image files with "
        "`pipeline ingest` first, and give the directory that it creates."
    )


DATASET_FORMAT = TreeFormat(
    name=FORMAT,
    versions=READ_VERSIONS,
    attributes=frozenset(
        {
            "name",
            "class_names",
            "image_shape",
            "transforms",
            "compression",
            "sources",
            "fingerprint",
            "splits",
            "digest",
        }
    ),
    unfinished="its ingest has not finished. Run `pipeline ingest` again.",
    remedy=MAKE_AGAIN,
    absent=_nothing_there,
)


def replaced_sibling(location: Location) -> Location:
    """Return the location of the old dataset during its replacement."""
    return location.sibling(REPLACED)


def _from_attributes(location: Location, tree: Location, attributes: dict[str, Any]) -> Dataset:
    records = {
        str(name): SplitRecord.from_json(entry) for name, entry in attributes["splits"].items()
    }
    class_names = tuple(str(name) for name in attributes["class_names"])
    image_shape = tuple(int(size) for size in attributes["image_shape"])
    transforms = tuple(str(name) for name in attributes["transforms"])
    expected = dataset_digest(class_names, image_shape, transforms, records)
    DATASET_FORMAT.check_digest(f"The attributes of {location}", expected, attributes["digest"])
    notes = {name: attributes.get(name) for name in NOTES}
    for name, note in notes.items():
        if note is not None:
            notes[name] = documents.check_seal(note, f"The attribute {name} of {location}")
    labels = notes.pop(LABELS)
    first = attributes["format_version"] == READ_VERSIONS[0]
    compression = ZSTD if first else attributes["compression"]
    if compression not in COMPRESSIONS:
        raise ValueError(f"compression {compression!r}")
    for name, record in records.items():
        record.check_names(name, class_names, image_shape)
    for source in attributes["sources"]:
        documents.check_fields(source, {"name": str, "split": str}, f"A source of {location}")
    return Dataset(
        location=location,
        tree=tree,
        name=str(attributes["name"]),
        class_names=class_names,
        labels=tuple(map(int, labels["values"])) if labels else (),
        image_shape=image_shape,
        transforms=transforms,
        preparation=Preparation.from_names(transforms, str(location)),
        compression=compression,
        sources=tuple(attributes["sources"]),
        fingerprint=dict(attributes["fingerprint"]),
        digest=expected,
        splits={
            name: Split(tree, name, record, expected, location) for name, record in records.items()
        },
        **notes,
    )
