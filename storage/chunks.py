"""Read and write whole chunks of a Zarr v3 array.

Zarr's own reads and writes go through one event loop that all threads of a process share: 0.4 to
0.8 ms a chunk, and no faster on four threads than on one. This module follows the Zarr v3
specification and its `sharding_indexed` codec, uses the codecs that Zarr uses, and writes the bytes
that Zarr would write, while other threads run.

A compressed chunk begins with what tells its codec. MNIST, 47 MB on one core: `lz4` makes 14 MB and
decodes in 14 ms; `lz4hc` 11 MB in 9 ms, but takes six times as long to encode; `zstd` 10 MB in
34 ms.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numcodecs.blosc import NOSHUFFLE, SHUFFLE, Blosc
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from storage.errors import BadDataError, UnreachableError, shortage
from storage.location import Location, Write
from storage.schema import CHUNK_LIMIT, LZ4, LZ4HC, ZSTD

blosc.use_threads = False  # as Zarr has it: chunks are what is done side by side

LEVELS = {LZ4: 9, LZ4HC: 5, ZSTD: 1}
"""The level of each: what comes next costs far more time than it saves bytes."""

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""How a Zstandard frame begins (RFC 8878)."""
BLOSC_HEADER_BYTES = 16
"""Version, version of the format within, flags and element size; then decoded, block and stored
bytes, little-endian uint32."""
BLOSC_VERSIONS = (2, 1)
"""Of Blosc 1 and of LZ4 in it."""
BLOSC_SHUFFLED, BLOSC_LZ4 = 0x01, 0x20
"""Flags that are set, or not, by the element size alone."""
BLOSC_FREE = 0x02 | 0x10
"""Flags that Blosc sets as it likes: stored as it is, and blocks that are not split."""


def encode(values: NDArray[np.generic], compression: str) -> bytes:
    """The values of a contiguous array, compressed.

    Blosc has the first bytes of all elements beside one another, then the second ones, and so on.
    """
    level, size = LEVELS[compression], values.itemsize
    codec = (
        Zstd(level, checksum=True)
        if compression == ZSTD
        else Blosc(compression, level, SHUFFLE if size > 1 else NOSHUFFLE, typesize=size)
    )
    encoded: bytes = codec.encode(values)
    return encoded


def decode(stored: memoryview, out: NDArray[np.generic]) -> None:
    """Fill all of `out`, which is contiguous, with what `encode` was given.

    Raises RuntimeError or ValueError where the bytes are damaged or of another length, or where
    anything but `encode` made them: what is accepted decodes to the same values each time.
    """
    raw = out.reshape(-1).view(np.uint8)
    if stored[:4] == ZSTD_MAGIC:
        _check_zstd(stored, len(raw))
        Zstd().decode(stored, out=raw)
    else:
        _check_blosc(stored, len(raw), out.itemsize)
        Blosc().decode(stored, out=raw)


def _check_zstd(stored: memoryview, size: int) -> None:
    """Raise ValueError for a frame of another size: a shorter one leaves the rest as it was.

    The header is that of RFC 8878, section 3.1.1.1.
    """
    descriptor = stored[4] if len(stored) > 4 else 0
    single_segment = descriptor >> 5 & 1
    length = (single_segment, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    found = int.from_bytes(stored[start : start + length], "little") + 256 * (length == 2)
    if not length or found != size:
        raise ValueError(f"it says to be {found} bytes, and is to be {size}")


def _check_blosc(stored: memoryview, size: int, itemsize: int) -> None:
    """Raise ValueError for a header that `encode` does not write for elements of this size.

    Blosc believes it: other lengths would have it read or write elsewhere, and a block that does
    not divide by the element size leaves bytes as they were.
    """
    header = bytes(stored[:BLOSC_HEADER_BYTES])
    flags = BLOSC_LZ4 | (BLOSC_SHUFFLED if itemsize > 1 else 0)
    layout = (*BLOSC_VERSIONS, flags, itemsize)
    if len(header) < BLOSC_HEADER_BYTES or layout != (
        *header[:2],
        header[2] & ~BLOSC_FREE,
        header[3],
    ):
        raise ValueError("it is neither Zstandard nor LZ4 in Blosc's container, as we write them")
    decoded, block, there = np.frombuffer(header[4:], "<u4").tolist()
    if (decoded, there) != (size, len(stored)) or not block or block % itemsize:
        raise ValueError(
            f"it says to be {decoded} bytes in {there}, by blocks of {block}, and is to be {size} "
            f"in {len(stored)}"
        )


def zarr_codec(compression: str, dtype: str) -> dict[str, Any]:
    """What `zarr.json` says of it, for elements of this type: Zarr reads and writes the same."""
    level, size = LEVELS[compression], np.dtype(dtype).itemsize
    if compression == ZSTD:
        return {"name": "zstd", "configuration": {"level": level, "checksum": True}}
    configuration = {
        "typesize": size,
        "cname": compression,
        "clevel": level,
        "shuffle": "shuffle" if size > 1 else "noshuffle",
        "blocksize": 0,
    }
    return {"name": "blosc", "configuration": configuration}


CHECKSUM_BYTES = 4
CHECKED = 0x48674BC7
"""The CRC-32C of anything that is followed by its own CRC-32C, little-endian."""
INDEX_ENTRY_BYTES = 16
"""A shard's index has offset and length, little-endian uint64, of each of its chunks."""
NO_CHUNK = 2**64 - 1
"""Both of a chunk that lies beyond the array's end."""
READ_BACK_BYTES = 2**20
"""What is read at a time of an object that has just been written."""
SHARED_PLACE = "give one on a disk that all see by the same absolute path, or in an S3 store."
"""What to do where processes on several machines do not see the same."""


@dataclass(frozen=True)
class ChunkedArray:
    """The chunks of one two-dimensional array, chunked by whole rows."""

    location: Location
    """The array's own directory."""
    rows: int
    columns: int
    dtype: str
    chunk_rows: int
    chunks_per_shard: int = 1
    two_dimensional: bool = True
    """False for an array of shape `(rows,)`, which reads as one column."""
    compression: str = ZSTD
    """How chunks are written; those that were written otherwise are read as well."""
    _indexes: "dict[str, ShardIndex]" = field(default_factory=dict, repr=False, compare=False)
    """Those of the shards so far, each read once: 16 bytes a chunk."""
    _reading: dict[str, Lock] = field(default_factory=dict, repr=False, compare=False)
    """Held while a shard's index is read, so that two threads do not both read it."""

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: all but the indexes, which are read again where they are needed."""
        return vars(self) | {"_indexes": {}, "_reading": {}}

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape as Zarr has it."""
        return (self.rows, self.columns) if self.two_dimensional else (self.rows,)

    @property
    def keys(self) -> list[str]:
        """The names of the array's chunk objects, or of its shards, all of which must exist."""
        return [self._key(number) for number in range(-(-self.rows // self.rows_per_object))]

    def check_claim(self) -> None:
        """Raise `BadDataError` where most of the chunk objects, or shards, are not there.

        How many there are is but a claim until then; from here on, work for each is bounded.
        """
        claimed = -(-self.rows // self.rows_per_object)
        there = len(self.location.names())
        if claimed > 2 * there:
            raise BadDataError(
                f"{self.location} holds {there:,} files; its {self.rows:,} rows should fill "
                f"{claimed:,} chunks or shards. Restore it from a copy, or make this anew."
            )

    def check_there(self) -> None:
        """Raise `UnreachableError` where a chunk object, or a shard, cannot be seen from here."""
        there = set(self.location.names())
        missing = [key for key in self.keys if key not in there]
        if missing:
            raise UnreachableError(
                f"{len(missing):,} of {len(self.keys):,} chunks or shards that were written are "
                f"not in {self.location}; the first is {missing[0]}. Workers on other machines "
                f"must see this place as the job does: {SHARED_PLACE}"
            )

    def _key(self, number: int) -> str:
        return f"c.{number}" + (".0" if self.two_dimensional else "")

    def empty_chunk(self) -> NDArray[Any]:
        """An array of any content for `read` to decode chunks into, one after the other."""
        shape = (self.chunk_rows, self.columns)
        try:
            return np.empty(shape, np.dtype(self.dtype).newbyteorder("<"))
        except MemoryError:
            if self._decoded_bytes <= CHUNK_LIMIT:
                raise
            raise ValueError(f"chunks of shape {shape} do not fit in memory") from None

    def read(
        self,
        number: int,
        out: NDArray[Any] | None = None,
        stored_digest: "hashlib._Hash | None" = None,
    ) -> NDArray[Any]:
        """Chunk `number` as `(rows, columns)`; the last one has the rows that are left.

        It is a view of `out`, an `empty_chunk`, where that is given: fresh memory for each chunk
        takes half as long as decoding it. `stored_digest` takes in the bytes that were decoded, and
        their number. Raises `BadDataError` that names the object where it is missing or cannot be
        decoded.
        """
        key = self._key(number // self.chunks_per_shard)
        place = f"{self.location}/{key}"
        try:
            stored = self._stored(key, number % self.chunks_per_shard)
            if stored_digest is not None:
                stored_digest.update(len(stored).to_bytes(8, "little"))
                stored_digest.update(stored)
            values = self.decode(stored, out)
        except FileNotFoundError:
            raise BadDataError(
                f"Chunk {number} is missing: there is no {place}. Restore it from a copy, or make "
                "this anew."
            ) from None
        except (RuntimeError, ValueError) as error:
            if shortage(error) is not None:
                raise
            raise BadDataError(
                f"Chunk {number} in {place} is damaged ({error}). Restore it from a copy, or make "
                "this anew."
            ) from error
        return values[: min(self.chunk_rows, self.rows - number * self.chunk_rows)]

    @property
    def rows_per_object(self) -> int:
        """Those of a chunk or, where there are shards, of a shard."""
        return self.chunk_rows * self.chunks_per_shard

    def write(self, number: int, values: NDArray[Any]) -> None:
        """Write object `number`, a chunk or a shard of chunks: all its rows, `(rows, columns)`.

        Raises ValueError for an array of another shape.
        """
        rows = min(self.rows_per_object, self.rows - number * self.rows_per_object)
        if values.shape != (rows, self.columns):
            raise ValueError(f"{values.shape} values for {rows} rows of {self.columns} columns")
        with self._writing(number) as write:
            for start in range(0, rows, self.chunk_rows):
                write(self.encode(values[start : start + self.chunk_rows]))

    @contextmanager
    def writing_checked(self, number: int) -> Iterator[Write]:
        """Write object `number`; gives the function that takes what `encode` gave, chunk by chunk.

        At the end it is read back, `BadDataError` where that is not what was written. ValueError
        for another number of chunks.
        """
        digest = hashlib.sha256()
        with self._writing(number, digest) as write:
            yield write
        key = self._key(number)
        size = self.location.size(key)
        found = hashlib.sha256()
        for start in range(0, size, READ_BACK_BYTES):
            found.update(self.location.get(key, start, min(start + READ_BACK_BYTES, size)))
        if found.digest() != digest.digest():
            raise BadDataError(
                f"{self.location}/{key} reads back other than it was written. The disk or the "
                "memory of this machine is not to be trusted."
            )

    @contextmanager
    def _writing(self, number: int, digest: "hashlib._Hash | None" = None) -> Iterator[Write]:
        """Write object `number`, chunk by chunk; `digest` takes in what is written."""
        rows = min(self.rows_per_object, self.rows - number * self.rows_per_object)
        lengths: list[int] = []
        with self.location.open_for_writing(self._key(number)) as write:

            def take(piece: bytes | memoryview) -> None:
                write(piece)
                if digest is not None:
                    digest.update(piece)

            def take_chunk(chunk: bytes | memoryview) -> None:
                lengths.append(len(chunk))
                take(chunk)

            yield take_chunk
            if len(lengths) != -(-rows // self.chunk_rows):
                raise ValueError(f"{len(lengths)} chunks for {rows} rows")
            if self.chunks_per_shard > 1:
                take(self._index(lengths))

    def encode(self, values: NDArray[Any]) -> bytes:
        """A chunk's rows as they are stored; those of the last one may be fewer.

        Compressed, then CRC-32C, of a chunk filled up with zeros.
        """
        values = np.ascontiguousarray(values, np.dtype(self.dtype).newbyteorder("<"))
        if len(values) < self.chunk_rows:
            values = np.concatenate(
                [values, np.zeros((self.chunk_rows - len(values), self.columns), values.dtype)]
            )
        return _with_checksum(encode(values, self.compression))

    def _index(self, lengths: list[int]) -> bytes:
        """The end of a shard whose chunks have these lengths, in bytes."""
        entries = np.full((self.chunks_per_shard, 2), NO_CHUNK, "<u8")
        entries[: len(lengths), 0] = np.cumsum([0, *lengths[:-1]])
        entries[: len(lengths), 1] = lengths
        return _with_checksum(entries.tobytes())

    def _stored(self, key: str, place_in_shard: int) -> bytes:
        start, length = 0, self._stored_limit
        if self.chunks_per_shard > 1:
            start, length = self._shard_entry(key, place_in_shard)
        return self.location.get(key, start, start + min(length, self._stored_limit))

    @property
    def _stored_limit(self) -> int:
        """Bytes that a chunk may take: those that are made longer are cut off, and told.

        `ZSTD_compressBound` adds 1/256 and at most 64 KiB, Blosc less; headers and checksums are
        short.
        """
        return self._decoded_bytes + self._decoded_bytes // 256 + 2**17

    @property
    def _decoded_bytes(self) -> int:
        return self.chunk_rows * self.columns * np.dtype(self.dtype).itemsize

    def _shard_entry(self, key: str, place_in_shard: int) -> tuple[int, int]:
        """Offset and length, in bytes, of a chunk inside its shard."""
        with self._reading.setdefault(key, Lock()):
            if key not in self._indexes:
                self._indexes[key] = self._read_index(key)
        index = self._indexes[key]
        start, length = index.entries[place_in_shard].tolist()
        if start + length > index.shard_bytes:
            raise ValueError("its shard index points past the end of the shard")
        return start, length

    def _read_index(self, key: str) -> "ShardIndex":
        index_bytes = self.chunks_per_shard * INDEX_ENTRY_BYTES
        index = _checked(self.location.get(key, -(index_bytes + CHECKSUM_BYTES)))
        if len(index) != index_bytes:
            raise ValueError(f"its shard index has {len(index)} bytes, not {index_bytes}")
        return ShardIndex(np.frombuffer(index, "<u8").reshape(-1, 2), self.location.size(key))

    def decode(self, stored: bytes, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Undo CRC-32C and compression, into an array of just the size that the schema gives.

        It is `out` where that is given, an `empty_chunk`. Raises RuntimeError or ValueError where
        the bytes are damaged.
        """
        values = self.empty_chunk() if out is None else out
        decode(_checked(stored), values)
        return values


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where the chunks of a shard lie in it."""

    entries: NDArray[np.uint64]
    """`(chunks, 2)`: each one's offset and length, in bytes."""
    shard_bytes: int


def _with_checksum(data: bytes) -> bytes:
    checksum: int = google_crc32c.value(data)
    return data + checksum.to_bytes(CHECKSUM_BYTES, "little")


def _checked(data: bytes) -> memoryview:
    """The bytes before a CRC-32C (little-endian, at the end), which must agree."""
    if len(data) <= CHECKSUM_BYTES:
        raise ValueError(f"it has {len(data)} bytes")
    if google_crc32c.value(data) != CHECKED:
        raise ValueError("its CRC-32C does not match")
    return memoryview(data)[:-CHECKSUM_BYTES]
