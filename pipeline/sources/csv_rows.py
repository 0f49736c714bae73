"""Read a CSV file in blocks of whole lines: decompressed, parsed and checked in bounded memory.

Each block is parsed with pyarrow. Its errors lack the line, so a block that it refuses is read
again by the module csv, which is slow but shows the line and the column.
"""

import csv
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.file_split import MAX_CLASSES
from pipeline.sources.npy import ZIP_MAGIC
from storage.decoding import DecodedFile
from storage.errors import BadDataError, MissingExtraError, counted, listed, translate_os_errors
from storage.events import Progress
from storage.preparation import LARGEST

BLOCK_BYTES = 4 * 2**20
"""Decoded bytes that are parsed at once; a line must be shorter."""
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
VALUE_TYPES = ("uint8", "int32", "float64")
"""The types as which values are parsed; the first that suits a whole file is used."""

_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*", re.ASCII)
_MOST_LABEL = 2**31
_SHOWN = 40
"""Characters of a field that a message shows."""


class Lines(NamedTuple):
    """Consecutive whole lines of a file."""

    first: int
    """The number of the first one, from 1."""
    text: bytes


@dataclass(frozen=True)
class Layout:
    """The columns of a file, and where its rows begin."""

    delimiter: str
    names: tuple[str, ...]
    """All columns, in order: their names, or their numbers from 0 in a file without a header."""
    first_line: int
    """The number of the first line of data, from 1."""
    label: int | None
    pixels: tuple[int, ...]
    shape: tuple[int, ...]
    """The shape of an image."""


@dataclass
class Scan:
    """What a pass over a whole file shows."""

    rows: int = 0
    low: float = math.inf
    high: float = -math.inf
    is_whole: bool = True
    """Whether all values are whole numbers."""
    value_type: str = VALUE_TYPES[0]
    labels: tuple[str, ...] = ()
    """The distinct labels as they are written, in the order of their first rows."""


def as_number(text: str) -> float | None:
    """Return the number that a field holds; None for any other text."""
    return float(text) if _NUMBER.fullmatch(text) else None


def fields_of(line: str, delimiter: str) -> list[str]:
    """Return the fields of a line; raise `csv.Error` for a line break within it."""
    return next(csv.reader([line], delimiter=delimiter), [])


def line_blocks(path: Path) -> Iterator[Lines]:
    """Yield all lines of a file, at most `BLOCK_BYTES` at a time, from a new pass over it.

    Raises `BadDataError` for damaged compressed data, and for a line that is too long.
    """
    buffer = bytearray(BLOCK_BYTES)
    view = memoryview(buffer)
    kept, number = 0, 1
    with _decoded(path) as file:
        while True:
            count = kept
            while count < len(buffer) and (read := file.readinto(view[count:])):
                count += read
            at_end = count < len(buffer)
            end = count if at_end else buffer.rfind(b"\n") + 1
            if not end and not at_end:
                raise BadDataError(
                    f"{path}: line {number:,} has more than {BLOCK_BYTES:,} bytes; expected one "
                    "image a line, shorter than that. Convert larger images to IDX."
                )
            lines = Lines(number, bytes(view[:end]))
            if at_end:
                break
            yield lines
            number += lines.text.count(b"\n")
            kept = count - end
            view[:kept] = bytes(view[end:count])
    yield lines  # after the check that the file was not cut off


@contextmanager
def _decoded(path: Path) -> Iterator[Any]:
    """Open a file for reading its decompressed bytes; raise `BadDataError` if it is damaged."""
    with DecodedFile(path) as raw:  # refuses anything but a regular file
        try:
            with path.open("rb") as stored:
                start = stored.read(4)
                stored.seek(0)
                if start == ZIP_MAGIC:
                    with zipfile.ZipFile(stored) as archive, _member(path, archive) as file:
                        yield file
                elif start == ZSTD_MAGIC:
                    with import_pyarrow(path).CompressedInputStream(stored, "zstd") as file:
                        yield file
                else:
                    yield raw
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise _damaged(path, str(error)) from error
        except OSError as error:
            if error.errno is None:  # pyarrow's, from the decoder
                raise _damaged(path, str(error)) from error
            with translate_os_errors("read", path):
                raise
        if raw.cut_off:
            raise _damaged(path, f"its {raw.compression} data ends early")


def _member(path: Path, archive: zipfile.ZipFile) -> Any:
    """Open the one file of a ZIP archive, which is read in place."""
    files = data_members(archive)
    if len(files) != 1:
        names = listed([file.filename for file in files]) or "none"
        raise BadDataError(
            f"{path} has {len(files):,} files ({names}); expected one CSV file. Unpack it, "
            "and give the directory."
        )
    if files[0].flag_bits & 1 or files[0].compress_type not in (0, zipfile.ZIP_DEFLATED):
        raise BadDataError(
            f"{path} is encrypted, or compressed by another method than deflate. Unpack it, and "
            "give the CSV file."
        )
    return archive.open(files[0])


def data_members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return an archive's files, without directories and hidden files, such as those of macOS."""
    return [
        member
        for member in archive.infolist()
        if not member.is_dir() and not os.path.basename(member.filename).startswith(".")
    ]


def _damaged(path: Path, reason: str) -> BadDataError:
    return BadDataError(
        f"{path}: its compressed data is damaged or cut off ({reason}). Copy or download the file "
        "again."
    )


def import_pyarrow(path: Path) -> Any:
    """Return pyarrow with its CSV reader; raise `MissingExtraError` if it is not installed."""
    try:
        import pyarrow.compute
        import pyarrow.csv
    except ModuleNotFoundError:
        raise MissingExtraError(f"Reading {path}", "pyarrow", "parquet") from None
    return pyarrow


class CsvRows:
    """The rows of a file with a known layout, read in one pass at a time."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self._arrow = import_pyarrow(path)

    def read(self, value_type: str) -> Iterator[tuple[NDArray[Any], Any]]:
        """Yield the values `(rows, pixels)` of each block, and its labels as an array of pyarrow.

        Raises `BadDataError` for a line that has other columns, or values of another type.
        """
        for lines in self._data():
            block = self._parse(lines, value_type)
            if block is None:
                raise self._wrong(lines)
            yield block

    def scan(self, progress: Progress) -> Scan:
        """Read the whole file; raise `BadDataError` for the first line that cannot be used."""
        scan, seen, size = Scan(), dict[str, None](), self.path.stat().st_size
        decoded = 0
        for lines in self._data():
            values, labels = self._parse_as_needed(lines, scan)
            if labels is not None:
                new = set(self._arrow.compute.unique(labels).to_pylist()) - seen.keys()
                if any(map(label_problem, new)):
                    raise self._wrong(lines)
                seen.update(dict.fromkeys(sorted(new)))
                self._check_number_of(len(seen))
            scan.rows += len(values)
            decoded += len(lines.text)
            estimate = max(scan.rows + 1, scan.rows * size // max(decoded, 1))
            progress(f"scan {self.path.name}", scan.rows, estimate)
        if not scan.rows:
            raise BadDataError(
                f"{self.path} has no rows of data; expected one image a line. Give another file."
            )
        scan.labels = tuple(seen)
        return scan

    def _data(self) -> Iterator[Lines]:
        """Yield the blocks of lines without those before the first one of data."""
        for first, text in line_blocks(self.path):
            lines = Lines(first, text)
            if first < self.layout.first_line:
                before = self.layout.first_line - first
                lines = Lines(self.layout.first_line, text.split(b"\n", before)[-1])
            if lines.text.strip(b"\r\n"):
                yield lines

    def _parse_as_needed(self, lines: Lines, scan: Scan) -> tuple[NDArray[Any], Any]:
        """Parse a block as the first type that suits it and all before; update the scan."""
        for value_type in VALUE_TYPES[VALUE_TYPES.index(scan.value_type) :]:
            block = self._parse(lines, value_type)
            if block is None:
                continue
            scan.value_type = value_type
            values = block[0]
            low, high = float(values.min()), float(values.max())  # NaN if any value is NaN
            if not (low >= -LARGEST and high <= LARGEST):
                break
            scan.low, scan.high = min(scan.low, low), max(scan.high, high)
            if value_type == "float64" and scan.is_whole:
                scan.is_whole = bool((np.rint(values) == values).all())
            return block
        raise self._wrong(lines)

    def _parse(self, lines: Lines, value_type: str) -> tuple[NDArray[Any], Any] | None:
        """Return the values and labels of a block; None if it cannot be parsed as this type."""
        try:
            table = self._arrow.csv.read_csv(
                self._arrow.BufferReader(lines.text),
                *self._options(len(lines.text)),
                self._converted[value_type],
            )
            batch = table.combine_chunks().to_batches()[0]
            labels = None
            if self.layout.label is not None:
                labels = batch.column(len(self.layout.pixels))
                batch = batch.select(range(len(self.layout.pixels)))
            return batch.to_tensor().to_numpy(), labels
        except self._arrow.ArrowException:
            return None

    def _options(self, size: int) -> tuple[Any, Any]:
        numbers = [str(number) for number in range(len(self.layout.names))]
        return (
            # One thread: with several, what the allocator keeps depends on their timing.
            self._arrow.csv.ReadOptions(
                column_names=numbers, block_size=size + 1, use_threads=False
            ),
            self._arrow.csv.ParseOptions(delimiter=self.layout.delimiter),
        )

    @cached_property
    def _converted(self) -> dict[str, Any]:
        """The columns to return, as values of each type; their labels are texts."""
        layout = self.layout
        pixels = [str(number) for number in layout.pixels]
        labels = [] if layout.label is None else [str(layout.label)]
        return {
            value_type: self._arrow.csv.ConvertOptions(
                include_columns=pixels + labels,
                column_types=dict.fromkeys(pixels, value_type)
                | dict.fromkeys(labels, self._arrow.string()),
            )
            for value_type in VALUE_TYPES
        }

    def _check_number_of(self, labels: int) -> None:
        if labels > MAX_CLASSES:
            raise BadDataError(
                f"{self.path}: column {self._name(self.layout.label or 0)} has more than "
                f"{MAX_CLASSES:,} distinct labels; expected classes. Name the column of the labels "
                "by --label."
            )

    def _name(self, column: int) -> str:
        name = self.layout.names[column]
        return name if name == str(column) else repr(name[:_SHOWN])

    def _wrong(self, lines: Lines) -> BadDataError:
        """Return the error for the first line of a block that cannot be used."""
        for number, line in enumerate(lines.text.split(b"\n"), lines.first):
            if problem := self._problem(line.removesuffix(b"\r")):
                return BadDataError(f"{self.path}: line {number:,}{problem}")
        return BadDataError(
            f"{self.path}: a line from {lines.first:,} on cannot be read as numbers, or the file "
            "changed while it was being read. Check its delimiters and quotes, and run the same "
            "command again."
        )

    def _problem(self, line: bytes) -> str | None:
        """Return what is wrong with a line, where, and what was expected; None if nothing is."""
        layout = self.layout
        try:
            text = line.decode()
            fields = fields_of(text, layout.delimiter) if text else []
        except UnicodeDecodeError:
            return " is not UTF-8 text. Save the file as UTF-8."
        except csv.Error:
            text = '"'
        if text.count('"') % 2:
            return " has a line break or an unclosed quote in a field; expected one image a line."
        if fields and len(fields) != len(layout.names):
            return (
                f" has {counted(len(fields), 'field')}; expected {len(layout.names):,}, as in the "
                "first line. Correct the line, or remove it."
            )
        for column in layout.pixels if fields else ():
            value = as_number(fields[column])
            if value is None or abs(value) > LARGEST:
                what = (
                    f"holds {fields[column][:_SHOWN]!r}" if fields[column].strip() else "is empty"
                )
                return (
                    f", column {self._name(column)} {what}; expected a number from -{LARGEST:g} to "
                    f"{LARGEST:g}. Correct the value, or remove the line."
                )
        if fields and layout.label is not None and (wrong := label_problem(fields[layout.label])):
            return f", column {self._name(layout.label)} {wrong}"
        return None


def label_problem(text: str | None) -> str | None:
    """Return why a field cannot be a label, and what was expected; None if it can be one."""
    text = (text or "").strip()
    number = as_number(text)
    if not text or text.lower() == "nan":
        return "is empty; expected the label. Add the label, or remove the line."
    if not text.isprintable() or (number is not None and not _is_class(number)):
        return (
            f"holds {text[:_SHOWN]!r}; expected a label: a whole number from 0, or the name of "
            "a class. Choose the column of the labels by --label, or remove the line."
        )
    return None


def _is_class(number: float) -> bool:
    return number.is_integer() and 0 <= number < _MOST_LABEL
