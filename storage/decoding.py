"""Read the decompressed bytes of a raw, gzip or xz file in order, and hash them.

One loop decodes both formats: `lzma.LZMAFile` has no memory limit, and ignores everything after the
first stream.
"""

import hashlib
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from storage.errors import BadDataError, translate_os_errors
from storage.location import Closing

BLOCK_BYTES = 256 * 1024
"""Bytes that are read, decoded and hashed at a time."""
START_BYTES = 64 * 1024
"""Stored bytes at the start of a file that suffice to read an IDX header."""
XZ_MEMORY_LIMIT = 128 * 1024**2
"""The most memory in bytes that an xz header may request; `xz -9` requests 65 MiB."""
BARREN_LIMIT = 16 * 1024**2
"""Consecutive stored bytes that may decode to nothing: a sparse file may pad with terabytes."""

GZIP_MAGIC = b"\x1f\x8b"
XZ_MAGIC = b"\xfd7zXZ\x00"


@dataclass(frozen=True)
class FileDigests:
    """Sizes and SHA-256 (hex) of a file and of its decompressed content."""

    stored_bytes: int
    stored_sha256: str
    decoded_bytes: int
    decoded_sha256: str


class DecodedFile(Closing):
    """A regular file's bytes, decompressed if its first bytes (not its name) are gzip's or xz's.

    A gzip or xz file may have several members, with zero padding between and after them, as its own
    tool allows. A context manager.

    Raises `BadDataError` if the file is missing or its compressed data is damaged;
    `UnreachableError` if the operating system refuses to open or read it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with translate_os_errors("read", path):
            self._file = _open_regular(path)
            self.stored_size = os.fstat(self._file.fileno()).st_size
            """The file's size on disk in bytes, when it was opened."""
        self.compression: str | None = None
        """`gzip`, `xz`, or None for a raw file; set by the first read."""
        self.cut_off = False
        """Whether the file ended in the middle of its compressed data."""
        self._stored_bytes = self.decoded_bytes = 0
        self._stored_sha256, self._decoded_sha256 = hashlib.sha256(), hashlib.sha256()
        self._barren = 0
        self._blocks = self._decode()
        self._rest = memoryview(b"")

    def digests(self) -> FileDigests:
        """Return the sizes and digests of the bytes read so far."""
        stored = self._stored_sha256.hexdigest()
        decoded = self._decoded_sha256.hexdigest() if self.compression else stored
        return FileDigests(self._stored_bytes, stored, self.decoded_bytes, decoded)

    def readinto(self, view: memoryview) -> int:
        """Read the next bytes into `view`; return fewer than its length only at the end.

        If the file ends in the middle of its compressed data, everything before is decoded, and
        `cut_off` is set.
        """
        filled = 0
        while filled < len(view) and (self._rest or self._next_block()):
            piece = self._rest[: len(view) - filled]
            view[filled : filled + len(piece)] = piece
            self._rest = self._rest[len(piece) :]
            filled += len(piece)
        return filled

    def peek(self, count: int) -> bytes:
        """Return the next `count` bytes, or fewer at the end, without consuming them."""
        start = bytearray(count)
        start = start[: self.readinto(memoryview(start))]
        self._rest = memoryview(bytes(start) + self._rest)
        return bytes(start)

    def _next_block(self) -> bool:
        try:
            with translate_os_errors("read", self.path):
                block = next(self._blocks, b"")
        except (zlib.error, lzma.LZMAError) as error:
            raise BadDataError(
                f"{self.path}: its {self.compression} data is damaged after "
                f"{self.decoded_bytes:,} decoded bytes ({error}). "
                "Copy or download the file again."
            ) from error
        self._barren = 0
        self.decoded_bytes += len(block)
        if self.compression:
            self._decoded_sha256.update(block)
        self._rest = memoryview(block)
        return bool(block)

    def _read_stored(self) -> bytes:
        block = self._file.read(BLOCK_BYTES)
        self._stored_sha256.update(block)
        self._stored_bytes += len(block)
        self._barren += len(block)
        if self._barren > BARREN_LIMIT:
            raise BadDataError(
                f"{self.path}: more than {BARREN_LIMIT:,} bytes of its {self.compression} data "
                "decode to nothing. Copy or download the file again."
            )
        return block

    def _decode(self) -> Iterator[bytes]:
        """Yield the decoded bytes of all members or streams, at most `BLOCK_BYTES` at a time.

        Raises `zlib.error` or `lzma.LZMAError` for damage, including a wrong checksum.
        """
        stored = self._read_stored()
        if stored.startswith(GZIP_MAGIC):
            self.compression = "gzip"
        elif stored.startswith(XZ_MAGIC):
            self.compression = "xz"
        else:
            yield stored
            yield from iter(self._read_stored, b"")
            return
        while stored:
            decoder = _new_decoder(self.compression)
            while not decoder.eof:
                block = decoder.decompress(stored, BLOCK_BYTES)
                stored = getattr(
                    decoder, "unconsumed_tail", b""
                )  # lzma's decoder buffers its input
                if block:
                    yield block
                elif not (stored or decoder.eof or (stored := self._read_stored())):
                    self.cut_off = True
                    return
            stored = decoder.unused_data.lstrip(b"\0")
            while not stored and (padding := self._read_stored()):
                stored = padding.lstrip(b"\0")

    def close(self) -> None:
        self._file.close()


def hash_stored(path: Path, check: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Return the size and the SHA-256 in hex of a stored file.

    `check` is called before each block, and may raise to stop. Raises as `DecodedFile` does.
    """
    sha256, block = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    with translate_os_errors("read", path), _open_regular(path) as file:
        while count := file.readinto(block):
            check()
            sha256.update(block[:count])
        return file.tell(), sha256.hexdigest()


def _new_decoder(compression: str | None) -> Any:
    """Return a decoder of one gzip member (RFC 1952) or one xz stream."""
    if compression == "gzip":
        return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_LIMIT)


def _open_regular(path: Path) -> FileIO:
    if not path.is_file():  # opening a named pipe would block
        raise BadDataError(f"{path}: no such file, or not a regular file. Check the name.")
    return FileIO(path, "rb")
