"""The format of `mnist.pkl.gz`: a pickle of (images, labels) pairs of NumPy arrays.

A pickle is a program for a small machine, so it is checked before it runs: only the operations that
arrays need are allowed, with sizes that the file really has. The unpickler then knows no names but
those of the stand-ins below, which keep their arguments and call nothing.
"""

import math
import pickle
import pickletools
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.array_split import AT_ONCE_BYTES, ArraySplit, Read, source_of_values
from pipeline.sources.formats import Format, Source, SourceOptions
from pipeline.sources.splits import SPLITS, split_named
from storage.decoding import GZIP_MAGIC, DecodedFile
from storage.errors import BadDataError
from storage.events import Progress
from storage.preparation import BYTES, ValueRange

MOST_BYTES = 2**30
"""The largest pickle when decoded: its arrays are held in memory."""
MOST_OPERATIONS = 2000
"""A pickle of six arrays has about a hundred."""
LONGEST_LINE = 200
"""The most bytes of a name or a number that is written as text."""
PIECE_BYTES = 2**20
DIVISORS = {255: BYTES, 256: ValueRange(0, 256)}
"""What bytes may have been divided by, and the range that maps them to the same fractions."""
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
ENDINGS = (".pkl", ".pickle", ".pkl.gz", ".pickle.gz", ".pkl.xz", ".pickle.xz")
_START = re.compile(rb"\x80[\x02-\x05]|\(+cnumpy\.")
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


def open_pickle(path: Path, options: SourceOptions, progress: Progress) -> Source:
    """Open a pickle; see the errors of `Format.open`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in damaged strings
            with DecodedFile(path) as file:
                _check_operations(_Stream(file, progress))
            with DecodedFile(path) as file:
                pairs = _pairs(_Unpickler(_Stream(file, progress)).load())
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
    images, scaling = _as_bytes([images for images, _ in pairs])
    names = {1: (split_named(path.name) or "train",), 2: ("train", "test"), 3: SPLITS}[len(pairs)]
    splits = [
        ArraySplit(
            name,
            HeldArray(f"{path}: {name} images", values),
            HeldArray(f"{path}: {name} labels", labels),
            [path],
            path,
            options.shape,
        )
        for name, values, (_, labels) in zip(names, images, pairs, strict=True)
    ]
    held = sum(values.nbytes for values in (*images, *(pickled for pickled, _ in pairs)))
    for split in splits:
        split.reader_memory = held
    name = path.name.partition(".")[0] or "dataset"
    source = source_of_values(name, splits, f"pickled arrays in {path}", progress)
    return source if scaling is None else replace(source, scaling=scaling)


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
        raise _UnsafeError("of other objects")
    return [(images.array(), labels.array()) for images, labels in content]


def _is_pair(pair: Any) -> bool:
    is_sequence = isinstance(pair, tuple | list) and len(pair) == 2
    return is_sequence and all(isinstance(item, _Array) for item in pair)


@dataclass(frozen=True)
class HeldArray:
    """An array in memory, as a `RowArray`."""

    place: str
    values: NDArray[Any]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @contextmanager
    def open(self) -> Iterator[Read]:
        position = 0

        def read(count: int) -> NDArray[Any]:
            nonlocal position
            position += count
            return self.values[position - count : position]

        yield read


def _as_bytes(images: Sequence[NDArray[Any]]) -> tuple[list[NDArray[Any]], ValueRange | None]:
    """Return fractions of bytes as bytes, with the range that is mapped to the same fractions.

    All images must be exactly such fractions, otherwise they are returned unchanged.
    """
    for divisor, scaling in DIVISORS.items():
        converted = []
        for values in images:
            numerators = _numerators(values, divisor)
            if numerators is None:
                break
            converted.append(numerators)
        if len(converted) == len(images):
            return converted, scaling
    return list(images), None


def _numerators(values: NDArray[Any], divisor: int) -> NDArray[np.uint8] | None:
    """Return bytes that, divided by `divisor`, are exactly `values`; None if there are none."""
    if values.dtype.kind != "f":
        return None
    whole = np.arange(256)
    dtype = values.dtype.newbyteorder("=").type
    fractions = (  # the roundings of a division, and of a product with the reciprocal
        (whole / divisor).astype(dtype),
        whole.astype(dtype) / dtype(divisor),
        whole.astype(dtype) * dtype(1 / divisor),
    )
    rows, numerators = values.reshape(-1), np.empty(values.size, np.uint8)
    for start in range(0, rows.size, AT_ONCE_BYTES):
        block = rows[start : start + AT_ONCE_BYTES]
        nearest = np.nan_to_num(np.clip(np.rint(block * dtype(divisor)), 0, 255)).astype(np.uint8)
        if not np.logical_or.reduce([table[nearest] == block for table in fractions]).all():
            return None
        numerators[start : start + AT_ONCE_BYTES] = nearest
    return numerators.reshape(values.shape)


def _recognises(path: Path, start: bytes) -> bool:
    """Recognise a pickle by its first bytes, compressed or not, then by its name."""
    if start.startswith(GZIP_MAGIC):
        with suppress(zlib.error):
            start = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS).decompress(start, 64)
    is_named = path.is_file() and path.name.lower().endswith(ENDINGS)
    return _START.match(start) is not None or is_named


FORMAT = Format(
    name="a pickle",
    recognises=_recognises,
    open=open_pickle,
    options=frozenset({"shape"}),
)
