"""The decoded bytes of a raw, gzip or xz file, read in order and hashed on the way.

One loop decodes the members of both formats: `lzma.LZMAFile` takes no limit of memory, and ignores
whatever follows the first stream.
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
"""What is read, decoded and hashed at a time."""
START_BYTES = 64 * 1024
"""The first bytes of a file, as it is stored, that are enough for an IDX header."""
XZ_MEMORY_LIMIT = 128 * 1024**2
"""An upper bound of the memory that an xz header may ask for, in bytes; `xz -9` asks for 65 MiB."""
BARREN_LIMIT = 16 * 1024**2
"""Stored bytes in a row that may decode to nothing: a sparse file may pad with terabytes."""

GZIP_MAGIC = b"\x1f\x8b"
XZ_MAGIC = b"\xfd7zXZ\x00"


@dataclass(frozen=True)
class FileDigests:
    """Sizes and SHA-256 (hex) of a file as it is stored, and of its bytes once decompressed."""

    stored_bytes: int
    stored_sha256: str
    decoded_bytes: int
    decoded_sha256: str


class DecodedFile(Closing):
    """A regular file's bytes, decompressed if its first bytes (not its name) are gzip's or xz's.

    A gzip or xz file may have several members and zero padding between and after them, as their
    own tools allow. Holds a file: a context manager.

    Raises `BadDataError` where there is no such file, or its compressed data is damaged;
    `UnreachableError` where the operating system refuses to open or read it.
    """

    def __init__(self, path: Path) -> None:
        """Open the file; nothing is read yet."""
        self.path = path
        with translate_os_errors("read", path):
            self._file = _open_regular(path)
            self.stored_size = os.fstat(self._file.fileno()).st_size
            """The file's size on disk in bytes, when it was opened."""
        self.compression: str | None = None
        """`gzip`, `xz`, or None for a raw file; known once something was read."""
        self.cut_off = False
        """Whether the file was found to end in the middle of its compressed data."""
        self._stored_bytes = self.decoded_bytes = 0
        self._stored_sha256, self._decoded_sha256 = hashlib.sha256(), hashlib.sha256()
        self._barren = 0
        self._blocks = self._decode()
        self._rest = memoryview(b"")

    def digests(self) -> FileDigests:
        """Return the sizes and digests of what was read so far."""
        stored = self._stored_sha256.hexdigest()
        decoded = self._decoded_sha256.hexdigest() if self.compression else stored
        return FileDigests(self._stored_bytes, stored, self.decoded_bytes, decoded)

    def readinto(self, view: memoryview) -> int:
        """Fill `view` (bytes) with what comes next; return less than its length only at the end.

        A file that ends in the middle of its compressed data gives what can be decoded, and sets
        `cut_off`.
        """
        filled = 0
        while filled < len(view) and (self._rest or self._next_block()):
            piece = self._rest[: len(view) - filled]
            view[filled : filled + len(piece)] = piece
            self._rest = self._rest[len(piece) :]
            filled += len(piece)
        return filled

    def peek(self, count: int) -> bytes:
        """Return what comes next, `count` bytes or to the end, and leave it to be read."""
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
        """Yield the decoded bytes, at most `BLOCK_BYTES` at a time, of all members or streams.

        Raises zlib.error or lzma.LZMAError on damage, a wrong checksum included.
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
                stored = getattr(decoder, "unconsumed_tail", b"")  # lzma's keeps all of its input
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
    """Return the length and the SHA-256 in hex of a file as it lies on disk, in one pass.

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
    if not path.is_file():  # to open a named pipe would wait for its writer
        raise BadDataError(f"{path}: there is no such file, or not a regular one. Check the name.")
    return FileIO(path, "rb")
