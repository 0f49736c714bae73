"""The IDX format: header, bounded streaming reads, strict checks.

An IDX file is two zero bytes, a type code, the number of dimensions, each dimension as a
big-endian uint32, then the values, big-endian, the last dimension fastest
("The IDX file format", http://yann.lecun.com/exdb/mnist/). The first dimension counts the rows.
"""

import math
import os
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.decoding import BLOCK_BYTES, GZIP_MAGIC, XZ_MAGIC, DecodedFile, FileDigests
from storage.errors import BadDataError, counted
from storage.location import Closing

ELEMENT_TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype("u1"),
    0x09: np.dtype("i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
"""Element types by IDX type code, as stored."""

MAX_ROW_BYTES = 64 * 1024**2
"""The largest row that is read, which bounds the memory for n rows."""

MAX_DIMENSIONS = 64
"""NumPy's limit (`NPY_MAXDIMS`, since NumPy 2)."""

_MAGIC_BYTES = 4
_START_BYTES = 512
"""Bytes that suffice for the longest header, and to recognise other formats."""
_GET_IT_AGAIN = "Copy or download the file again."
_UNPACK = "Unpack it, and give the IDX files in it."
_CONVERT = "Give the IDX file, or convert its values to IDX."
# Checked in this order: offset, bytes, format, what to do.
_OTHER_FORMATS = (
    (0, b"version https://git-lfs", "a Git LFS pointer", "Run `git lfs pull` to get the file."),
    (0, b"/annex/objects/", "a git-annex pointer", "Run `git annex get` to get the file."),
    (0, b"\x89PNG", "a PNG picture", _CONVERT),
    (0, b"\xff\xd8\xff", "a JPEG picture", _CONVERT),
    (0, b"PK\x03\x04", "a ZIP archive (an .npz file is one, too)", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"BZh", "a bzip2 file", "Unpack it with bunzip2."),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file", "Unpack it with unzstd."),
    (0, GZIP_MAGIC, "a gzip file inside another", "Unpack it once with gunzip."),
    (0, XZ_MAGIC, "an xz file inside another", "Unpack it once with unxz."),
    (0, b"\x93NUMPY", "a NumPy array (.npy)", _CONVERT),
    (0, b"\x89HDF", "an HDF5 file", _CONVERT),
    (0, b"PAR1", "a Parquet file", _CONVERT),
)
_PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_SHOWN_TEXT = 40
"""Characters of a text that a message shows."""


@dataclass(frozen=True)
class IdxHeader:
    """The header of an IDX file: claims, until the data are read."""

    dtype: np.dtype[Any]
    """The element type in this machine's byte order."""
    shape: tuple[int, ...]
    """(rows, ...)."""
    header_bytes: int
    """The size of the header in bytes; the values follow it."""

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def file_bytes(self) -> int:
        """The decoded size of the whole file in bytes."""
        return self.header_bytes + self.shape[0] * self.row_bytes


class IdxReader(Closing):
    """Reads a raw, gzip or xz IDX file from its first row to its last, in bounded memory.

    Opening it checks the header, and a raw file's size. A context manager.

    Raises `BadDataError` if the file is missing, not IDX, cut off, damaged or empty, or has bytes
    after its end or rows above 64 MiB. Raises `UnreachableError` if it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._rows_read = 0
        with ExitStack() as on_error:
            self._file = on_error.enter_context(DecodedFile(self.path))
            self.header = _read_header(self._file)
            _check_raw_size(self._file, self.header, self._file.stored_size)
            on_error.pop_all()

    @property
    def rows(self) -> int:
        return self.header.shape[0]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row; () if a row is one value."""
        return self.header.shape[1:]

    def read_rows(self, count: int) -> NDArray[Any]:
        """Return the next `(count, *row_shape)` values in native byte order; fewer at the end.

        Raises `BadDataError` if the data end before the last row in the header.
        """
        count = min(count, self.rows - self._rows_read)
        stored_type = self.header.dtype.newbyteorder(">")
        values = np.empty((count, *self.row_shape), stored_type)
        view = values.reshape(-1).view(np.uint8).data
        if self._file.readinto(view) < len(view):
            raise _cut_off_error(self._file, self.header, self._file.decoded_bytes)
        self._rows_read += count
        if not stored_type.isnative:
            values.byteswap(inplace=True)
        return values.view(self.header.dtype)

    def finish(self) -> FileDigests:
        """Check that the file ends after its last row; return its digests."""
        extra = self._file.readinto(memoryview(bytearray(BLOCK_BYTES)))
        if extra:
            raise _trailing_error(self._file, self.header, extra)
        if self._file.cut_off:
            raise BadDataError(
                f"{self.path}: its {self._file.compression} data is cut off before the checksum "
                f"of its {self.rows:,} rows, or followed by other bytes. {_GET_IT_AGAIN}"
            )
        return self._file.digests()

    def close(self) -> None:
        self._file.close()


def read_header(path: Path, stored_size: int | None = None) -> tuple[IdxHeader, str]:
    """Return a file's header and its compression: `.gz`, `.xz` or an empty string.

    Reads one block. With `stored_size`, the size of the whole file, a raw file's size is checked
    against its header; `path` may then contain only its first `START_BYTES`. Raises as `IdxReader`
    does.
    """
    with DecodedFile(path) as file:
        header = _read_header(file)
        if stored_size is not None:
            _check_raw_size(file, header, stored_size)
        return header, {None: "", "gzip": ".gz", "xz": ".xz"}[file.compression]


def _check_raw_size(file: DecodedFile, header: IdxHeader, stored_size: int) -> None:
    if file.compression is not None:
        return  # the decoded size of a compressed file is not known yet
    excess = stored_size - header.file_bytes
    if excess < 0:
        raise _cut_off_error(file, header, stored_size)
    if excess > 0:
        raise _trailing_error(file, header, excess)


def _cut_off_error(file: DecodedFile, header: IdxHeader, available: int) -> BadDataError:
    whole_rows = (available - header.header_bytes) // header.row_bytes
    return BadDataError(
        f"{file.path}: the data is cut off after {counted(whole_rows, 'whole row')} "
        f"({counted(available, 'byte')}{' decoded' if file.compression else ''}); expected "
        f"{counted(header.shape[0], 'row')} ({header.file_bytes:,} bytes) by its header. "
        f"{_byte_order_hint(header) or _GET_IT_AGAIN}"
    )


def _trailing_error(file: DecodedFile, header: IdxHeader, extra: int) -> BadDataError:
    """Return the error for bytes after the last row: `extra` of them, or more if it is a block."""
    amount = "1 byte follows" if extra == 1 else f"{extra:,} bytes follow"
    if extra == BLOCK_BYTES:
        amount = f"{extra:,} or more bytes follow"
    return BadDataError(
        f"{file.path}: {amount} the end of its {counted(header.shape[0], 'row')}; expected the "
        f"end of the file, by its header {header.shape}. {_GET_IT_AGAIN}"
    )


def _byte_order_hint(header: IdxHeader) -> str:
    """Return advice if every size looks like a small one in the wrong byte order, else ''."""
    if any(size % 2**16 for size in header.shape):
        return ""
    code = f"{len(header.shape)}I"
    swapped = struct.unpack(f"<{code}", struct.pack(f">{code}", *header.shape))
    return (
        f"Its sizes may be in the wrong byte order: they are {swapped} if read as little-endian. "
        "If so, write them as big-endian, and values of more than one byte likewise."
    )


def _read_header(file: DecodedFile) -> IdxHeader:
    start = file.peek(_START_BYTES)
    magic = start[:_MAGIC_BYTES]
    if magic[:2].strip(b"\0"):
        name, advice = _recognise(start)
        raise BadDataError(f"{file.path}: this is not an IDX file but {name}. {advice}")
    code, dimensions = magic[2:3], magic[3] if len(magic) == _MAGIC_BYTES else 1
    if code and code[0] not in ELEMENT_TYPES:
        known = ", ".join(f"0x{code:02x}" for code in ELEMENT_TYPES)
        raise BadDataError(
            f"{file.path}: its element type code is 0x{code.hex()}; expected one of {known}. "
            "Check that this is an IDX file."
        )
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise BadDataError(
            f"{file.path}: its header gives {dimensions} dimensions; expected 1 to "
            f"{MAX_DIMENSIONS}. Check that this is an IDX file."
        )
    header_bytes = _MAGIC_BYTES + 4 * dimensions
    if len(start) < header_bytes:
        raise BadDataError(
            f"{file.path}: the IDX header is cut off; found {len(start)} "
            f"{'decoded ' if file.compression else ''}bytes, expected {header_bytes}. "
            f"{_GET_IT_AGAIN}"
        )
    file.readinto(memoryview(bytearray(header_bytes)))
    shape = struct.unpack_from(f">{dimensions}I", start, _MAGIC_BYTES)
    header = IdxHeader(ELEMENT_TYPES[code[0]].newbyteorder("="), shape, header_bytes)
    _check_shape(file, header)
    return header


def _check_shape(file: DecodedFile, header: IdxHeader) -> None:
    if 0 in header.shape:
        raise BadDataError(
            f"{file.path}: the set is empty, its header gives the shape {header.shape}; expected "
            "at least one row and one value in each. Use a file that contains data."
        )
    if header.row_bytes > MAX_ROW_BYTES:
        hint = _byte_order_hint(header) or "Check that this is an IDX file; make its rows shorter."
        raise BadDataError(
            f"{file.path}: its header {header.shape} claims rows of {header.row_bytes:,} bytes; "
            f"expected at most {MAX_ROW_BYTES:,} bytes (64 MiB). {hint}"
        )


def _recognise(start: bytes) -> tuple[str, str]:
    """Return the format of a file by its first bytes, and what to do with it."""
    for offset, first_bytes, name, advice in _OTHER_FORMATS:
        if start.startswith(first_bytes, offset):
            return name, advice
    if start.startswith(_PICKLES):
        return "a Python pickle", _CONVERT
    if start[2:4] == bytes(2) and start[1] in ELEMENT_TYPES:
        advice = "Write its header as big-endian, and values of more than one byte likewise."
        return "one with a header in the wrong byte order", advice
    if start.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith((b"<!doctype", b"<html")):
        return (
            "an HTML page, which servers may send instead of a file",
            "Download the file itself: open the link in a browser to see what the page says.",
        )
    text = start.decode(errors="ignore")
    if len(text.encode()) >= len(start) - 3 and all(c.isprintable() or c.isspace() for c in text):
        return f"a text that starts with {text[:_SHOWN_TEXT]!r}", _CONVERT
    return (
        f"one that starts with the bytes {start[:_MAGIC_BYTES].hex(' ')}",
        "Give an IDX file, raw or as .gz or .xz; it starts with 00 00 and a type code.",
    )
