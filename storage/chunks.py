"""Read and write whole chunks of a Zarr v3 array, and describe the array in `zarr.json`.

Zarr's own reads and writes share one event loop per process. They take 0.4 to 0.8 ms per chunk, on
four threads as on one. Importing Zarr takes longer than ingesting or scoring a small dataset. This
module follows the Zarr v3 specification and its `sharding_indexed` codec, and writes what Zarr
would write, with the same codecs.

A chunk's first bytes identify its compression. MNIST, 47 MB on one core: `lz4` gives 14 MB and
decodes in 14 ms; `lz4hc` gives 11 MB and decodes in 9 ms, but takes six times as long to encode;
`zstd` gives 10 MB and decodes in 34 ms.
"""

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
from numcodecs import blosc
from numcodecs.blosc import NOSHUFFLE, SHUFFLE, Blosc
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from storage.errors import BadDataError, UnreachableError, shortage
from storage.location import Location, Version, Write
from storage.schema import LZ4, LZ4HC, ZSTD, InChunks

blosc.use_threads = False  # as in Zarr: chunks are decoded in parallel instead

LEVELS = {LZ4: 9, LZ4HC: 5, ZSTD: 1}
"""Compression levels: the next level costs much more time and saves few bytes."""

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""The first bytes of a Zstandard frame (RFC 8878)."""
BLOSC_HEADER = struct.Struct("<4B3I")
"""Version, codec version, flags, element size; decoded, block and stored size in bytes."""
BLOSC_VERSIONS = (2, 1)
"""The versions of Blosc 1 and of its LZ4 format."""
BLOSC_SHUFFLED, BLOSC_LZ4 = 0x01, 0x20
"""Flags that follow from the element size."""
BLOSC_FREE = 0x02 | 0x10
"""Flags that Blosc chooses: stored uncompressed, blocks not split."""

CHECKSUM_BYTES = 4
CHECKED = 0x48674BC7
"""The CRC-32C of any bytes followed by their own CRC-32C, little-endian."""
INDEX_ENTRY_BYTES = 16
"""A shard's index holds each chunk's offset and length as little-endian uint64."""
NO_CHUNK = 2**64 - 1
"""Offset and length of a chunk beyond the array's end."""
SHARED_PLACE = "use a disk that all mount at the same absolute path, or an S3 store."
"""Advice for places that must be visible from several machines."""
CRC32C = {"name": "crc32c"}

Identity: TypeAlias = Version | bytes
"""Equal for equal stored bytes: the version of the object that holds them, or their SHA-256."""
Document: TypeAlias = dict[str, Any]
"""A `zarr.json`, parsed."""


def encode(values: NDArray[np.generic], compression: str) -> bytes:
    """Return the values of a contiguous array, compressed; Blosc shuffles their bytes."""
    level, size = LEVELS[compression], values.itemsize
    codec = (
        Zstd(level, checksum=True)
        if compression == ZSTD
        else Blosc(compression, level, SHUFFLE if size > 1 else NOSHUFFLE, typesize=size)
    )
    encoded: bytes = codec.encode(values)
    return encoded


def decode(stored: memoryview, out: NDArray[np.generic]) -> None:
    """Decode what `encode` returned into `out`, which is contiguous, and fill all of it.

    Raises `RuntimeError` or `ValueError` for damaged bytes, another length, or an encoding that
    `encode` does not produce.
    """
    raw = out.reshape(-1).view(np.uint8)
    if stored[:4] == ZSTD_MAGIC:
        _check_zstd(stored, len(raw))
        Zstd().decode(stored, out=raw)
    else:
        _check_blosc(stored, len(raw), out.itemsize)
        Blosc().decode(stored, out=raw)


def _check_zstd(stored: memoryview, size: int) -> None:
    """Raise `ValueError` if the frame header (RFC 8878, section 3.1.1.1) claims another size."""
    descriptor = stored[4] if len(stored) > 4 else 0
    single_segment = descriptor >> 5 & 1
    length = (single_segment, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    claimed = int.from_bytes(stored[start : start + length], "little") + 256 * (length == 2)
    if not length or claimed != size:
        raise ValueError(f"its header claims {claimed} bytes; expected {size}")


def _check_blosc(stored: memoryview, size: int, itemsize: int) -> None:
    """Raise `ValueError` for a header that `encode` does not write for elements of this size.

    Blosc trusts the header. A wrong length makes it read or write out of bounds. A block size that
    the element size does not divide leaves bytes of the output unset.
    """
    if len(stored) < BLOSC_HEADER.size:
        raise ValueError("its header is cut off")
    *versions, flags, element, decoded, block, length = BLOSC_HEADER.unpack_from(stored)
    expected = BLOSC_LZ4 | (BLOSC_SHUFFLED if itemsize > 1 else 0)
    if (*versions, flags & ~BLOSC_FREE, element) != (*BLOSC_VERSIONS, expected, itemsize):
        raise ValueError("it is neither a Zstandard frame nor LZ4 in a Blosc container")
    if (decoded, length) != (size, len(stored)) or not block or block % itemsize:
        raise ValueError(
            f"its header claims {decoded} bytes in {length}, by blocks of {block}; expected {size} "
            f"in {len(stored)}"
        )


@dataclass(frozen=True)
class ChunkedArray(InChunks):
    """The chunks of a one- or two-dimensional array, chunked by whole rows."""

    location: Location
    """The array's directory."""
    rows: int
    columns: int
    dtype: str
    chunk_rows: int
    dimensions: tuple[str, ...]
    """Names of the dimensions; a one-dimensional array is read as one column."""
    chunks_per_shard: int = 1
    compression: str = ZSTD
    """Compression of new chunks; chunks with any other compression can be read too."""
    _indexes: dict[str, NDArray[np.uint64]] = field(default_factory=dict, repr=False, compare=False)
    """Cached shard indexes: `(chunks, 2)`, offset and length in bytes."""

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_indexes": {}}

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, self.columns)[: len(self.dimensions)]

    @property
    def rows_per_object(self) -> int:
        """Rows of a chunk or, with shards, of a shard."""
        return self.chunk_rows * self.chunks_per_shard

    @property
    def objects(self) -> int:
        return -(-self.chunks // self.chunks_per_shard)

    @property
    def keys(self) -> list[str]:
        return [self._key(number) for number in range(self.objects)]

    def check_claim(self) -> None:
        """Raise `BadDataError` if most of the chunks that the metadata claim are missing."""
        files = len(self.location.names())
        if self.objects > 2 * files:
            raise BadDataError(
                f"{self.location} holds {files:,} files; its {self.rows:,} rows should fill "
                f"{self.objects:,} chunks or shards. Restore it from a copy, or create it again."
            )

    def check_presence(self) -> None:
        """Raise `UnreachableError` if a chunk or shard object cannot be seen from here."""
        present = set(self.location.names())
        missing = [key for key in self.keys if key not in present]
        if missing:
            raise UnreachableError(
                f"{len(missing):,} of {len(self.keys):,} chunks or shards that were written are "
                f"not in {self.location}; the first is {missing[0]}. Workers on other machines "
                f"must see this place as the job does: {SHARED_PLACE}"
            )

    def _key(self, number: int) -> str:
        return f"c.{number}" + ".0" * (len(self.dimensions) - 1)

    def empty_chunk(self) -> NDArray[Any]:
        """Return an uninitialised array for `read` to decode into."""
        return np.empty((self.chunk_rows, self.columns), np.dtype(self.dtype).newbyteorder("<"))

    def read(
        self,
        number: int,
        out: NDArray[Any] | None = None,
        identities: "list[Identity] | None" = None,
    ) -> NDArray[Any]:
        """Return chunk `number` as `(rows, columns)`; the last chunk may have fewer rows.

        It is a view of `out`, an `empty_chunk`, if given: allocating new memory takes half as long
        as decoding. The identity of the stored bytes is appended to `identities`. Raises
        `BadDataError` that names a missing or damaged object.
        """
        key = self._key(number // self.chunks_per_shard)
        place = f"{self.location}/{key}"
        try:
            stored, version = self._stored(key, number % self.chunks_per_shard)
            values = self.decode(stored, out)
            if identities is not None:
                identities.append(version or hashlib.sha256(stored).digest())
        except FileNotFoundError:
            raise BadDataError(
                f"Chunk {number} is missing: there is no {place}. Restore it from a copy, or "
                "create it again."
            ) from None
        except (RuntimeError, ValueError) as error:
            if shortage(error) is not None:
                raise
            raise BadDataError(
                f"Chunk {number} in {place} is damaged ({error}). Restore it from a copy, or "
                "create it again."
            ) from error
        start, stop = self.chunk_bounds(number)
        return values[: stop - start]

    def decode(self, stored: bytes, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Decode a stored chunk into `out` or an `empty_chunk`; see the function `decode`."""
        values = self.empty_chunk() if out is None else out
        decode(_checked(stored), values)
        return values

    def encode(self, values: NDArray[Any]) -> bytes:
        """Return a chunk's rows compressed, with their CRC-32C; a short chunk is zero-padded."""
        values = np.ascontiguousarray(values, np.dtype(self.dtype).newbyteorder("<"))
        if len(values) < self.chunk_rows:
            values = np.concatenate(
                [values, np.zeros((self.chunk_rows - len(values), self.columns), values.dtype)]
            )
        return _with_checksum(encode(values, self.compression))

    def write(self, number: int, values: NDArray[Any]) -> None:
        """Write object `number`, a chunk or a shard, from all its rows `(rows, columns)`.

        Raises `ValueError` for an array of another shape.
        """
        rows = min(self.rows_per_object, self.rows - number * self.rows_per_object)
        if values.shape != (rows, self.columns):
            raise ValueError(f"{values.shape} values for {rows} rows of {self.columns} columns")
        with self.open_for_writing(number) as write:
            for start in range(0, rows, self.chunk_rows):
                write(self.encode(values[start : start + self.chunk_rows]))

    @contextmanager
    def open_for_writing(self, number: int) -> Iterator[Write]:
        """Write object `number`: yield a function that takes its encoded chunks in order.

        Raises `ValueError` at the end for a wrong number of chunks.
        """
        rows = min(self.rows_per_object, self.rows - number * self.rows_per_object)
        lengths: list[int] = []
        with self.location.open_for_writing(self._key(number)) as write:

            def write_chunk(chunk: bytes | memoryview) -> None:
                lengths.append(len(chunk))
                write(chunk)

            yield write_chunk
            if len(lengths) != -(-rows // self.chunk_rows):
                raise ValueError(f"{len(lengths)} chunks for {rows} rows")
            if self.chunks_per_shard > 1:
                write(self._encode_index(lengths))

    def _encode_index(self, lengths: list[int]) -> bytes:
        entries = np.full((self.chunks_per_shard, 2), NO_CHUNK, "<u8")
        entries[: len(lengths), 0] = np.cumsum([0, *lengths[:-1]])
        entries[: len(lengths), 1] = lengths
        return _with_checksum(entries.tobytes())

    def _stored(self, key: str, place_in_shard: int) -> tuple[bytes, Version | None]:
        start, length = 0, self._stored_limit
        if self.chunks_per_shard > 1:
            if key not in self._indexes:
                self._indexes[key] = self._read_index(key)
            start, length = self._indexes[key][place_in_shard].tolist()
            if start + length > self.chunks_per_shard * self._stored_limit:
                raise ValueError("its shard index points past the end of the shard")
        return self.location.get_with_version(key, start, start + min(length, self._stored_limit))

    @property
    def _stored_limit(self) -> int:
        """Upper bound of a stored chunk's size in bytes, and of the bytes read.

        `ZSTD_compressBound` adds 1/256 and at most 64 KiB, Blosc less.
        """
        decoded = self.chunk_rows * self.columns * np.dtype(self.dtype).itemsize
        return decoded + decoded // 256 + 2**17

    def _read_index(self, key: str) -> NDArray[np.uint64]:
        index_bytes = self.chunks_per_shard * INDEX_ENTRY_BYTES
        index = _checked(self.location.get(key, -(index_bytes + CHECKSUM_BYTES)))
        if len(index) != index_bytes:
            raise ValueError(f"its shard index has {len(index)} bytes, not {index_bytes}")
        return np.frombuffer(index, "<u8").reshape(-1, 2)


def values_digest(*arrays: NDArray[Any]) -> bytes:
    """Return the SHA-256 of the arrays' values, little-endian, one array after the other."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return content.digest()


def _with_checksum(data: bytes) -> bytes:
    checksum: int = google_crc32c.value(data)
    return data + checksum.to_bytes(CHECKSUM_BYTES, "little")


def _checked(data: bytes) -> memoryview:
    """Return the bytes before the CRC-32C at the end; raise `ValueError` if it does not match."""
    if len(data) <= CHECKSUM_BYTES:
        raise ValueError(f"it has {len(data)} bytes")
    if google_crc32c.value(data) != CHECKED:
        raise ValueError("its CRC-32C does not match")
    return memoryview(data)[:-CHECKSUM_BYTES]


def array_metadata(array: ChunkedArray) -> Document:
    """Return the `zarr.json` of an array, whose chunks are in one directory (`c.0.0`)."""
    columns = array.shape[1:]
    codecs = [_bytes_codec(array.dtype), _compressor(array.compression, array.dtype), CRC32C]
    if array.chunks_per_shard > 1:
        configuration = {
            "chunk_shape": (array.chunk_rows, *columns),
            "codecs": codecs,
            "index_codecs": [_bytes_codec("uint64"), CRC32C],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": configuration}]
    object_shape = (array.rows_per_object, *columns)
    return {
        "shape": array.shape,
        "data_type": array.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": object_shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": np.zeros((), array.dtype).item(),
        "codecs": codecs,
        "attributes": {},
        "dimension_names": array.dimensions,
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _bytes_codec(dtype: str) -> dict[str, Any]:
    if np.dtype(dtype).itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def _compressor(compression: str, dtype: str) -> dict[str, Any]:
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
