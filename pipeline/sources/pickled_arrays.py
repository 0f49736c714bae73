"""Read pairs of NumPy arrays from a pickle, without executing anything.

A pickle is a program for a small machine, so it is checked before it runs: only the operations that
arrays need are allowed, with sizes that the file really has. The unpickler then knows no names but
those of the stand-ins below, which keep their arguments and call nothing.
"""

import math
import pickle
import pickletools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.splits import SPLITS
from storage.decoding import DecodedFile
from storage.errors import BadDataError
from storage.events import Progress

MOST_BYTES = 2**30
"""The largest pickle when decoded: its arrays are held in memory."""
MOST_OPERATIONS = 2000
"""A pickle of six arrays has about a hundred."""
LONGEST_LINE = 200
"""The most bytes of a name or a number that is written as text."""
PIECE_BYTES = 2**20
OPERATIONS = frozenset(
    [
        *("PROTO", "FRAME", "STOP", "MARK", "POP", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"),
        *("GET", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "INT", "LONG"),
        *("BININT", "BININT1", "BININT2", "LONG1", "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2"),
        *("TUPLE3", "LIST", "EMPTY_LIST", "APPEND", "APPENDS", "STRING", "BINSTRING"),
        *("SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
    ]
)
"""Those that make tuples, lists, integers, texts and bytes, and that call a name."""
KNOWN = {operation.code: operation for operation in pickletools.opcodes}
SIZE_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
"""Bytes of the size that precedes data, by the length of an argument in `pickletools`."""
_TYPE = re.compile(r"[biuf][1248]|\?")
_ERRORS = (
    pickle.UnpicklingError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    EOFError,
)
"""What the unpickler raises for arbitrary bytes."""

Pair = tuple[NDArray[Any], NDArray[Any]]


class _UnsafeError(Exception):
    """A pickle has something other than arrays; the text says what."""


def read_pairs(path: Path, progress: Progress) -> list[Pair]:
    """Return one to three pairs of images and labels.

    Raises `BadDataError` for a pickle that is damaged, too large, or has anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in damaged strings
            with DecodedFile(path) as file:
                _check_operations(_Stream(file, progress))
            with DecodedFile(path) as file:
                return _pairs(_Unpickler(_Stream(file, progress)).load())
    except _UnsafeError as error:
        raise BadDataError(
            f"{path} was not loaded: it is a pickle {error}. Expected (images, labels) pairs of "
            "NumPy arrays for train, validation and test, as in mnist.pkl.gz. If you trust the "
            "file, load it in Python and save its arrays with numpy.savez."
        ) from None
    except _ERRORS as error:
        reason = str(error).partition("\n")[0][:100]
        raise BadDataError(
            f"{path} is not a complete pickle ({reason}). Copy or download the file again."
        ) from error


class _Stream:
    """The decoded bytes of a file, at most `MOST_BYTES`, as the unpickler reads them."""

    longest_line = MOST_BYTES
    """The most bytes that `readline` returns."""

    def __init__(self, file: DecodedFile, progress: Progress) -> None:
        self._file, self._progress, self._bytes = file, progress, 0

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view):
            self._progress(f"read {self._file.path.name}", 0, 1, f"{self._bytes / 1e6:,.0f} MB")
            count = self._file.readinto(view[filled : filled + PIECE_BYTES])
            filled += count
            self._bytes += count
            if self._bytes > MOST_BYTES:
                raise BadDataError(
                    f"{self._file.path} has more than {MOST_BYTES:,} bytes; a pickle is held in "
                    "memory. Save its arrays with numpy.savez: archives are streamed."
                )
            if not count:
                break
        return filled

    def read(self, count: int) -> bytes:
        pieces = []
        while count > 0:  # the claimed count is not allocated before the bytes are there
            piece = bytearray(min(count, PIECE_BYTES))
            filled = self.readinto(piece)
            pieces.append(piece[:filled])
            count = count - filled if filled == len(piece) else 0
        return b"".join(pieces)

    def readline(self) -> bytes:
        pieces, room = [], self.longest_line
        for piece in self._pieces_of_line():
            pieces.append(piece)
            room -= len(piece)
            if room < 0:
                raise ValueError(f"a line has more than {self.longest_line:,} bytes")
        return b"".join(pieces)

    def _pieces_of_line(self) -> Iterator[bytes]:
        piece = b""
        while not piece.endswith(b"\n") and (start := self._file.peek(PIECE_BYTES)):
            piece = self.read(start.find(b"\n") + 1 or len(start))
            yield piece

    def skip_line(self) -> None:
        for _ in self._pieces_of_line():
            pass

    def skip(self, count: int) -> None:
        """Pass over bytes; raise `ValueError` if there are fewer."""
        while count:
            piece = self.read(min(count, PIECE_BYTES))
            if not piece:
                raise ValueError(f"{count:,} bytes are missing")
            count -= len(piece)

    def check_end(self) -> None:
        """Raise `ValueError` unless everything was read and the compressed data are complete."""
        if self._file.peek(1):
            raise ValueError("bytes follow its end")
        if self._file.cut_off:
            raise ValueError("its compressed data are cut off")


def _check_operations(stream: _Stream) -> None:
    """Raise `_UnsafeError` for whatever arrays do not need, `ValueError` for damage.

    `pickletools.genops` would hold the data, and rejects byte strings of Python 2's protocol 0.
    """
    stream.longest_line = LONGEST_LINE
    for _ in range(MOST_OPERATIONS):
        code = stream.read(1).decode("latin1")
        operation = KNOWN.get(code)
        if operation is None:
            raise ValueError(f"{code!r} is not an operation" if code else "it is cut off")
        if operation.name not in OPERATIONS:
            what = "a dictionary" if "DICT" in operation.name else f"{operation.name} operations"
            raise _UnsafeError("with " + what)
        argument = _read_argument(stream, operation)
        if operation.name == "GLOBAL":
            _check_name(*str(argument).split(" ", 1))
        if operation.name.endswith("PUT") and int(argument) > MOST_OPERATIONS:
            break  # the unpickler's memory grows with the largest number
        if operation.name == "STOP":
            return stream.check_end()
    raise _UnsafeError(f"with more than {MOST_OPERATIONS:,} operations")


def _read_argument(stream: _Stream, operation: pickletools.OpcodeInfo) -> Any:
    """Return the argument of an operation; None for data, which are passed over."""
    if operation.arg is None:
        return None
    if operation.name in ("STRING", "UNICODE"):
        return stream.skip_line()
    if size_bytes := SIZE_BYTES.get(operation.arg.n):
        return stream.skip(int.from_bytes(stream.read(size_bytes), "little"))
    return operation.arg.reader(stream)  # type: ignore[arg-type]


def _check_name(module: str, name: str) -> None:
    if (module, name) not in STAND_INS:
        raise _UnsafeError(f"that refers to {module[:60]}.{name[:60]}, which could run a program")


class _Unpickler(pickle.Unpickler):
    """Calls stand-ins only."""

    def __init__(self, stream: _Stream) -> None:
        super().__init__(stream, encoding="bytes")  # texts of Python 2 may be data
        self._encoded = 0

    def find_class(self, module: str, name: str, /) -> Any:
        _check_name(module, name)
        return STAND_INS[module, name] or self._encode

    def _encode(self, text: str, encoding: str) -> bytes:
        """Return the bytes that Python 3 writes as text into pickles for Python 2."""
        self._encoded += len(text)
        if encoding != "latin1" or self._encoded > MOST_BYTES:
            raise _UnsafeError("with encoded text")
        return text.encode("latin1")


class _Type:
    """Stands for `numpy.dtype`."""

    def __init__(self, code: Any, *flags: Any) -> None:
        self._code, self._order = code, "="

    def __setstate__(self, state: Any) -> None:
        self._order = _text(state[1])

    def dtype(self) -> np.dtype[Any]:
        code = _text(self._code)
        if not _TYPE.fullmatch(code) or self._order not in ("<", ">", "|", "="):
            raise _UnsafeError(f"with an array of type {code[:20]!r}")
        return np.dtype(self._order + code)


class _Array:
    """Stands for a NumPy array until its parts are checked."""

    def __init__(self, *arguments: Any) -> None:
        self._state: Any = ()

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def array(self) -> NDArray[Any]:
        """Return the array, on the bytes that were unpickled."""
        _, shape, stand_in, in_fortran_order, data = self._state
        if not isinstance(stand_in, _Type) or not isinstance(data, bytes | bytearray):
            raise _UnsafeError("with an array of Python objects")
        dtype = stand_in.dtype()
        if not 0 < len(shape) <= 8 or any(type(size) is not int or size < 0 for size in shape):
            raise ValueError("the shape of an array is not a tuple of sizes")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"{len(data):,} bytes for an array of {shape} {dtype}")
        order = "F" if in_fortran_order is True else "C"
        values: NDArray[Any] = np.frombuffer(data, dtype)
        return values.reshape(tuple(shape), order=order)  # type: ignore[call-overload,no-any-return]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, _text(order) == "F", data))
    return array


def _text(value: Any) -> str:
    """Return a text of Python 3, or one of Python 2, which is unpickled as bytes."""
    if isinstance(value, bytes):
        return value.decode("latin1")
    if not isinstance(value, str):
        raise TypeError("expected a text")
    return value


STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): object(),
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): None,  # a method of the unpickler, which limits it
}
"""The names with which arrays are pickled, and what is called in their place."""


def _pairs(content: Any) -> list[Pair]:
    """Return one to three pairs of arrays; raise `_UnsafeError` for other content."""
    if isinstance(content, tuple | list) and any(isinstance(item, _Array) for item in content):
        content = [content]
    is_sequence = isinstance(content, tuple | list) and 1 <= len(content) <= len(SPLITS)
    if not is_sequence or not all(_is_pair(pair) for pair in content):
        raise _UnsafeError("with objects other than pairs of arrays")
    return [(images.array(), labels.array()) for images, labels in content]


def _is_pair(pair: Any) -> bool:
    is_sequence = isinstance(pair, tuple | list) and len(pair) == 2
    return is_sequence and all(isinstance(item, _Array) for item in pair)
