"""One NumPy array in a file, or in a member of an archive, read row by row in bounded memory.

Nothing is unpickled, and nothing is extracted. The format of headers is that of `numpy.lib.format`.
"""

import io
import math
import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from pipeline.sources.array_split import Read
from pipeline.sources.splits import changed_error
from storage.errors import BadDataError, counted, translate_os_errors

NPY_MAGIC, ZIP_MAGIC = b"\x93NUMPY", b"PK\x03\x04"
MAX_HEADER_BYTES = 10_000
"""The longest header, as for `numpy.load`."""
MAX_DIMENSIONS = 64
PIECE_BYTES = 256 * 1024
"""Bytes to read at a time."""
MAX_DIRECTORY_BYTES = 2**20
"""The largest directory of an archive, which `zipfile` holds in memory."""
AGAIN = "Copy or download the file again."
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""Those that NumPy writes; decoders of others need unbounded memory."""
_ENCRYPTED = 1
_HEADER_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    SyntaxError,
    RecursionError,
    MemoryError,
    OverflowError,
    struct.error,
    tokenize.TokenError,
)
"""What parsing a header of arbitrary bytes raises: it is a Python literal."""

_ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    ValueError,  # offsets before the start, names that are not UTF-8
    OverflowError,
    FileNotFoundError,
)
"""What `zipfile` raises for a damaged or changed archive."""


@dataclass(frozen=True)
class Npy:
    """An array in a file: claims of its header, until it is read. It is a `RowArray`."""

    path: Path
    member: str | None
    """The name in the archive; None for a file of its own."""
    place: str
    """The file and the array, for messages."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    header_bytes: int
    size: int
    """Bytes of the file, or of the decoded member as the archive's directory declares."""

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Start a pass over the rows; raise `BadDataError` if the file has changed."""
        self.check()
        rows_read = 0
        with _open(self.path, self.member, self.place) as stream:

            def read(count: int) -> NDArray[Any]:
                nonlocal rows_read
                block: NDArray[Any] = np.empty((count, *self.shape[1:]), self.dtype)
                with _translate_errors(self.path, self.place):
                    size = _fill(stream, block.reshape(-1).view(np.uint8).data)
                    if size < block.nbytes:
                        raise self._cut_off_error(rows_read + size // self.row_bytes)
                    rows_read += count
                    if rows_read == self.shape[0] and stream.read(1):  # checks a member's CRC, too
                        raise self._trailing_error()
                if self.dtype == np.bool_:
                    block = block.view(np.uint8) != 0  # a byte may be neither 0 nor 1
                return block

            with _translate_errors(self.path, self.place):
                if read_header(stream, self.path, self.member, self.place, self.size) != self:
                    raise changed_error(self.path)
            yield read

    def check(self) -> None:
        """Raise `BadDataError` if rows cannot be read, or the size is not that of the shape."""
        if self.dtype.hasobject:
            raise BadDataError(
                f"{self.place} has Python objects, which are pickled and could run a program; it "
                "was not loaded. Convert the array to numbers with astype, and save it again."
            )
        if self.fortran_order and sum(size > 1 for size in self.shape) > 1:
            raise BadDataError(
                f"{self.place} is in Fortran order: its rows are not contiguous, so they cannot be "
                "streamed. Save numpy.ascontiguousarray(ARRAY) instead."
            )
        excess = self.size - self.header_bytes - math.prod(self.shape) * self.dtype.itemsize
        if excess < 0:
            available = max(0, self.size - self.header_bytes)
            raise self._cut_off_error(available // max(1, self.row_bytes))
        if excess > 0:
            raise self._trailing_error()

    def _cut_off_error(self, whole_rows: int) -> BadDataError:
        return BadDataError(
            f"{self.place} is cut off after {counted(whole_rows, 'whole row')}; its header "
            f"promises the shape {self.shape}. {AGAIN}"
        )

    def _trailing_error(self) -> BadDataError:
        return BadDataError(
            f"{self.place} has bytes after its last value; its header promises the shape "
            f"{self.shape} of {self.dtype}. {AGAIN}"
        )


def read_npy(path: Path) -> Npy:
    """Return the array in a file; raise `BadDataError` if its header is damaged."""
    with _open(path, None, str(path)) as stream, _translate_errors(path, str(path)):
        return read_header(stream, path, None, str(path), os.fstat(stream.fileno()).st_size)


def read_npz(path: Path) -> dict[str, Npy]:
    """Return the arrays of an archive by name; other members are ignored.

    Raises `BadDataError` for a damaged archive, two arrays of one name,
    and members that are encrypted or compressed by other methods than NumPy's.
    """
    arrays: dict[str, Npy] = {}
    with _translate_errors(path, str(path)), _open_archive(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename:
                continue
            place = f"{path}: array {name}"
            if name in arrays:
                raise BadDataError(
                    f"{path} has two arrays named {name}; expected one. Save the file again."
                )
            if info.flag_bits & _ENCRYPTED or info.compress_type not in _METHODS:
                how = "encrypted" if info.flag_bits & _ENCRYPTED else "compressed by another method"
                raise BadDataError(
                    f"{place} is {how}; expected an archive as numpy.savez or "
                    "numpy.savez_compressed writes it. Save the arrays again with one of them."
                )
            with _translate_errors(path, place), archive.open(info) as stream:
                arrays[name] = read_header(stream, path, info.filename, place, info.file_size)
    return arrays


def read_header(stream: Any, path: Path, member: str | None, place: str, size: int) -> Npy:
    """Return the array whose header a stream starts with."""
    magic = stream.read(npy_format.MAGIC_LEN)
    if not magic.startswith(NPY_MAGIC) or len(magic) < npy_format.MAGIC_LEN:
        raise BadDataError(
            f"{place} is not a NumPy array: it starts with {magic!r}, expected {NPY_MAGIC!r}. "
            "Check how it was made, or download it again."
        )
    version = tuple(magic[len(NPY_MAGIC) :])
    length_bytes = stream.read(2 if version == (1, 0) else 4)
    length = int.from_bytes(length_bytes, "little")
    try:
        if version not in ((1, 0), (2, 0)) or length > MAX_HEADER_BYTES:
            raise ValueError(f"version {version[0]}.{version[1]}, {length:,} bytes")
        header = io.BytesIO(length_bytes + stream.read(length))
        parse = npy_format.read_array_header_1_0
        if version == (2, 0):
            parse = npy_format.read_array_header_2_0
        with warnings.catch_warnings():  # about headers that Python 2 wrote
            warnings.simplefilter("ignore")
            shape, fortran_order, dtype = parse(header, max_header_size=MAX_HEADER_BYTES)
        if len(shape) > MAX_DIMENSIONS or any(
            type(size) is not int or not 0 <= size < 2**48 for size in shape
        ):
            raise ValueError(f"the shape {shape}")
    except _HEADER_ERRORS as error:
        reason = str(error).partition("\n")[0].partition(" on line 1: <ast")[0][:100]
        raise BadDataError(
            f"{place} has a NumPy header that cannot be used ({reason or 'too deep'}); expected a "
            f"plain array of numbers. {AGAIN}"
        ) from error
    header_bytes = len(magic) + len(length_bytes) + length
    return Npy(path, member, place, dtype, shape, bool(fortran_order), header_bytes, size)


def _fill(stream: BinaryIO, view: memoryview) -> int:
    """Read the next bytes into `view`; return fewer than its length only at the end."""
    filled = 0
    while piece := stream.read(min(len(view) - filled, PIECE_BYTES)):
        view[filled : filled + len(piece)] = piece
        filled += len(piece)
    return filled


@contextmanager
def _open(path: Path, member: str | None, place: str) -> Iterator[Any]:
    """Open a file, or a member of an archive."""
    with ExitStack() as stack:
        with _translate_errors(path, place):
            if member is None:
                stream: Any = stack.enter_context(path.open("rb"))
            else:
                archive = stack.enter_context(_open_archive(path))
                stream = stack.enter_context(archive.open(member))
        yield stream


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
        yield archive


class _BoundedFile(io.FileIO):
    """A file for `zipfile`, which trusts the sizes and places that an archive claims."""

    def read(self, size: int | None = -1, /) -> Any:
        if size is None or size < 0:
            size = MAX_DIRECTORY_BYTES
        if size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory has {size:,} bytes")
        return super().read(size)

    def seek(self, position: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET and position < 0:  # the operating system's error would mislead
            raise zipfile.BadZipFile(f"a member begins at byte {position:,}")
        return super().seek(position, whence)


@contextmanager
def _translate_errors(path: Path, place: str) -> Iterator[None]:
    """Raise `BadDataError` for what reading a damaged archive raises."""
    try:
        with translate_os_errors("read", path):
            yield
    except _ARCHIVE_ERRORS as error:
        reason = str(error).replace("File is not a zip file", "no ZIP directory at its end")
        raise BadDataError(f"{place} is damaged ({reason}). {AGAIN}") from error
