"""A location as a Zarr store: durable writes, and a missing chunk is an error, never zeros."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import zarr
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from storage import documents
from storage.chunks import ChunkedArray
from storage.errors import BadDataError, PipelineError, shortage
from storage.files import check_room
from storage.location import Location
from storage.schema import METADATA_NAME


class LocationStore(Store):
    """Zarr's view of a `Location`.

    Zarr itself reads a missing chunk as fill value (zarr-python issue 486); a read-only store
    raises `BadDataError` instead. The ends of shards (their indexes) are read once and kept.
    """

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, location: Location, *, read_only: bool = False) -> None:
        """For reading and writing, or for reading alone."""
        super().__init__(read_only=read_only)
        self.location = location
        self._shard_indexes: dict[tuple[str, int], bytes] = {}

    def with_read_only(self, read_only: bool = False) -> "LocationStore":
        """The same place, with or without leave to write."""
        return type(self)(self.location, read_only=read_only)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocationStore) and self.location == other.location

    def __hash__(self) -> int:
        return hash(self.location)

    def __str__(self) -> str:
        return str(self.location)

    def _read(self, key: str, byte_range: ByteRequest | None) -> bytes | None:
        try:
            match byte_range:
                case None:
                    return self.location.get(key)
                case RangeByteRequest(start=start, end=end):
                    return self.location.get(key, start, end)
                case OffsetByteRequest(offset=offset):
                    return self.location.get(key, offset)
                case SuffixByteRequest(suffix=suffix):
                    return self._read_end(key, suffix)
        except FileNotFoundError:
            if self.read_only and not key.endswith(METADATA_NAME):
                raise BadDataError(
                    f"Chunk {key} of {self.location} is missing. Restore it from a copy, or make "
                    "this anew."
                ) from None
        return None

    def _read_end(self, key: str, count: int) -> bytes:
        if not self.read_only:
            return self.location.get(key, -count)
        if (key, count) not in self._shard_indexes:
            self._shard_indexes[key, count] = self.location.get(key, -count)
        return self._shard_indexes[key, count]

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """An object's bytes, or None where metadata is absent."""
        prototype = prototype or default_buffer_prototype()
        data = await asyncio.to_thread(self._read, key, byte_range)
        return None if data is None else prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Several parts of objects, read side by side."""
        return list(
            await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))
        )

    async def exists(self, key: str) -> bool:
        """Whether there is an object at `key`."""
        return await asyncio.to_thread(self.location.exists, key)

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object, whole and durable."""
        self._check_writable()
        await asyncio.to_thread(self.location.put, key, value.to_bytes())

    async def delete(self, key: str) -> None:
        """Remove an object."""
        self._check_writable()
        await asyncio.to_thread(self.location.delete, key)

    async def list(self) -> AsyncIterator[str]:
        """Every key."""
        for key in self.location.objects():
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every key that begins with `prefix`."""
        for key in self.location.objects():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The names directly below `prefix`."""
        for name in self.location.names(prefix.strip("/")):
            yield name


def check_group(store: LocationStore, path: str, members: Iterable[str]) -> None:
    """Raise `BadDataError` where Zarr cannot open a group, or reads other members than are stored.

    Zarr and xarray read the members' metadata from the group's consolidated metadata, if any.
    """
    location = store.location.child(path) if path else store.location
    place = f"{location}/{METADATA_NAME}"
    with _opening(f"{location} cannot be opened as a Zarr group"):
        group = zarr.open_group(store, path=path, mode="r", zarr_format=3)
    if group.metadata.consolidated_metadata is None:
        return
    consolidated = documents.read_document(location, METADATA_NAME)["consolidated_metadata"]
    for member in members:
        stored = _own_metadata(documents.read_document(location, f"{member}/{METADATA_NAME}"))
        if _own_metadata(consolidated["metadata"].get(member, {})) != stored:
            raise BadDataError(
                f"{place} describes {member} differently from {location}/{member}/{METADATA_NAME}. "
                "Recreate it with zarr.consolidate_metadata, or restore it from a copy."
            )


@cache
def _check_zarr_can_start() -> None:
    """Look for Zarr's two threads and its event loop's files: it hangs or complains without."""
    check_room(threads=2, open_files=4)


@contextmanager
def _opening(trouble: str) -> Iterator[None]:
    """Turn whatever a strange `zarr.json` leads Zarr to into `BadDataError`."""
    try:
        _check_zarr_can_start()
        yield
    except PipelineError:
        raise
    except Exception as error:
        if shortage(error) is not None:
            raise
        raise BadDataError(
            f"{trouble} ({error}). Restore it from a copy, or make it again."
        ) from error


def _own_metadata(document: dict[str, Any]) -> dict[str, Any]:
    return documents.own_metadata(document, documents.ARRAY_ATTRIBUTES)


def open_array(store: LocationStore, reader: ChunkedArray) -> "zarr.Array[Any]":
    """The array that `reader` reads, as Zarr itself opens it, its shape and type compared.

    Raises `BadDataError` where Zarr cannot open it, or finds something else.
    """
    place = str(reader.location)
    path = reader.location.below(store.location)
    with _opening(f"{place} cannot be opened as a Zarr array"):
        array = zarr.open_array(store, path=path, mode="r", zarr_format=3)
    if (array.shape, str(array.dtype)) != (reader.shape, reader.dtype):
        raise BadDataError(
            f"{place} has shape {array.shape} of {array.dtype}; the attributes say "
            f"{reader.shape} of {reader.dtype}. Restore it from a copy, or make it again."
        )
    return array
