"""The decoded bytes of a raw, gzip or xz file, read in order and hashed on the way.

Both digests, of the bytes as stored and of the bytes as decoded, come from the one pass: a second
thread hashes a block while this one decodes the next (zlib, lzma and hashlib release the GIL).
"""

import errno
import hashlib
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Protocol

from storage.errors import BadDataError, UnreachableError
from storage.location import Closing

BLOCK_BYTES = 256 * 1024
"""What is read, decoded and hashed at a time."""

START_BYTES = 64 * 1024
"""The first bytes of a file, as it is stored, that are enough for an IDX header."""

XZ_MEMORY_LIMIT = 128 * 1024**2
"""An upper bound of the memory that an xz header may ask for, in bytes; `xz -9` asks for 65 MiB."""

PADDING_LIMIT = 16 * 1024**2
"""More zeros than this after compressed data are no padding: a sparse file may hold terabytes."""

GZIP_MAGIC = b"\x1f\x8b"
XZ_MAGIC = b"\xfd7zXZ\x00"


class RunningDigest:
    """Length in bytes and SHA-256 of a stream of blocks, hashed in order on `thread`."""

    def __init__(self, thread: Executor) -> None:
        """No blocks yet; a `thread` is an executor with one, so that they keep their order."""
        self.length = 0
        self._sha256 = hashlib.sha256()
        self._thread = thread
        self._pending: list[Future[None]] = []

    def update(self, block: bytes | memoryview) -> None:
        """Start hashing `block`, which must not change before `settle` returns."""
        self.length += len(block)
        self._pending.append(self._thread.submit(self._sha256.update, block))

    def settle(self) -> None:
        """Wait until every block is hashed."""
        for block in self._pending:
            block.result()
        self._pending.clear()

    def hexdigest(self) -> str:
        """The SHA-256 of all blocks so far, in hex."""
        self.settle()
        return self._sha256.hexdigest()


class DecodedFile(Closing):
    """A regular file's bytes, decompressed if its first bytes (not its name) are gzip's or xz's.

    A gzip or xz file may have several members and zero padding between and after them, as their
    own tools allow. Holds a file and a thread: a context manager.

    Raises `BadDataError` where there is no such file, or its compressed data is damaged;
    `UnreachableError` where the operating system refuses to open or read it.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, and see how it is packed."""
        self.path = path
        with _translated_errors(path):
            self._file = _open_regular(path)
            self.stored_size = os.fstat(self._file.fileno()).st_size
            """The file's size on disk in bytes, when it was opened."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="digest")
        self.stored = RunningDigest(self._thread)
        self.decoded = RunningDigest(self._thread)
        try:
            self._choose_decoder()
        except BaseException:
            self.close()
            raise

    def _choose_decoder(self) -> None:
        with _translated_errors(self.path):
            magic = os.pread(self._file.fileno(), len(XZ_MAGIC), 0)
        self._members: _Members | None = None
        if magic.startswith(GZIP_MAGIC):
            self._members = _Members(self, "gzip")
        elif magic == XZ_MAGIC:
            self._members = _Members(self, "xz")
        else:
            self.stored = self.decoded  # the same bytes: hashed once

    @property
    def compression(self) -> str | None:
        """`gzip`, `xz`, or None for a raw file."""
        return self._members.compression if self._members else None

    @property
    def cut_off(self) -> bool:
        """Whether the file was found to end in the middle of its compressed data."""
        return self._members is not None and self._members.cut_off

    def readinto(self, view: memoryview) -> int:
        """Fill `view` (bytes) with what comes next; returns less than its length only at the end.

        A file that ends in the middle of its compressed data gives what can be decoded, and sets
        `cut_off`.
        """
        filled = 0
        while filled < len(view):
            block = view[filled : filled + BLOCK_BYTES]
            count = self._decode_into(block)
            if count == 0:
                break
            self.decoded.update(block[:count])
            filled += count
        # `view` is the caller's again, who may change it: nothing may still be hashing it.
        self.decoded.settle()
        self.stored.settle()
        return filled

    def _decode_into(self, block: memoryview) -> int:
        with _translated_errors(self.path):
            if self._members is None:
                return self._file.readinto(block) or 0
            try:
                return self._members.readinto(block)
            except (zlib.error, lzma.LZMAError) as error:
                raise BadDataError(
                    f"{self.path}: its {self.compression} data is damaged after "
                    f"{self.decoded.length:,} decoded bytes ({error}). "
                    "Copy or download the file again."
                ) from error

    def read_stored(self) -> bytes:
        """The next block as it lies on disk, hashed; empty at the end."""
        block = self._file.read(BLOCK_BYTES)
        if block:
            self.stored.update(block)
        return block

    def close(self) -> None:
        """Give back the file and the thread; closing again does nothing."""
        self._thread.shutdown()
        self._file.close()


def hash_stored(path: Path, check: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Return the length and the SHA-256 in hex of a file as it lies on disk, in one pass.

    `check` is called before each block, and may raise to stop. Raises as `DecodedFile` does.
    """
    sha256, block = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    with _translated_errors(path), _open_regular(path) as file:
        while count := file.readinto(block):
            check()
            sha256.update(block[:count])
        return file.tell(), sha256.hexdigest()


def read_start(path: Path, count: int) -> bytes:
    """Return the first bytes of a file as it lies on disk. Raises as `DecodedFile` does."""
    with _translated_errors(path), _open_regular(path) as file:
        return file.read(count)


class _Decoder(Protocol):
    """What `lzma.LZMADecompressor` offers for one member."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipDecoder:
    """zlib's decoder of one gzip member (RFC 1952), with the interface of lzma's."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail or data, max_length)


class _Members:
    """The members of a gzip file, or the streams of an xz file, decoded one after the other."""

    def __init__(self, file: DecodedFile, compression: str) -> None:
        self.compression = compression
        self.cut_off = False
        self._file = file
        self._magic = GZIP_MAGIC if compression == "gzip" else XZ_MAGIC
        self._decoder = self._new_decoder()
        self._waiting = b""  # read from the file, not yet given to the decoder

    def _new_decoder(self) -> _Decoder:
        if self.compression == "gzip":
            return _GzipDecoder()
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_LIMIT)

    def readinto(self, block: memoryview) -> int:
        """Decode at most `len(block)` bytes (1 or more), 0 at the end; never holds more than that.

        Raises zlib.error or lzma.LZMAError on damage, a wrong checksum included.
        """
        while True:
            if self._decoder.eof and not self._next_member():
                return 0
            stored = b""
            if wanted := self._decoder.needs_input:
                stored = self._waiting or self._file.read_stored()
                self._waiting = b""
            decoded = self._decoder.decompress(stored, len(block))
            if decoded:
                block[: len(decoded)] = decoded
                return len(decoded)
            if wanted and not stored and not self._decoder.eof:
                self.cut_off = True
                return 0

    def _next_member(self) -> bool:
        rest = self._decoder.unused_data.lstrip(b"\0")
        padding = 0
        while not rest:
            block = self._file.read_stored()
            if not block:
                return False
            rest = block.lstrip(b"\0")
            padding += len(block)
            if padding > PADDING_LIMIT:
                raise BadDataError(
                    f"{self._file.path}: after the end of its {self.compression} data follow more "
                    f"than {PADDING_LIMIT:,} zeros; expected the end of the file. Copy or download "
                    "the file again."
                )
        if rest[0] != self._magic[0]:
            raise BadDataError(
                f"{self._file.path}: after the end of its {self.compression} data follow bytes "
                f"that are not {self.compression} ({rest[:4].hex(' ')}); expected the end of the "
                "file. Copy or download the file again."
            )
        self._waiting = rest
        self._decoder = self._new_decoder()
        return True


def _open_regular(path: Path) -> FileIO:
    # Looked at before it is opened: opening a named pipe would wait for its writer.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise BadDataError(f"{path}: this is not a regular file; expected an IDX file.")
    return FileIO(path, "rb")


@contextmanager
def _translated_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadDataError(f"{path}: there is no such file. Check the name.") from error
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "unknown error")
        raise UnreachableError(
            f"{path}: the file cannot be read ({error.strerror}, {code}). "
            "Check its permissions and the disk or mount it is on, then try again."
        ) from error
