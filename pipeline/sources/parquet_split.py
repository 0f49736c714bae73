"""A split from Parquet files: pictures or values in one column, or a column for each value."""

import math
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.array_split import ValueSplit, image_shape
from pipeline.sources.file_split import ARROW_MEMORY, regroup
from pipeline.sources.formats import SourceOptions
from pipeline.sources.parquet_labels import LabelColumn
from pipeline.sources.picture_split import StoredPicture, picture_parts
from pipeline.sources.pictures import decode_picture
from pipeline.sources.splits import Part, Rows
from storage.errors import BadDataError, MissingExtraError, translate_os_errors
from storage.events import Progress
from storage.schema import ROW_LIMIT

BATCH_BYTES = 4 * 2**20
"""Bytes of images to read at once, as far as the metadata states them."""
MOST_AT_ONCE = 1024
"""Rows of images to read at once: a column of repeated images states few bytes."""
LABELS_AT_ONCE = 65_536
BUFFER_BYTES = 2**20
"""Bytes of a column to read from the disk at once, instead of those of a row group."""
THRIFT_LIMIT = 2**26
"""The longest text and list in a file's metadata."""


@dataclass(frozen=True)
class Layout:
    """The columns that are used, and their types. All files of a split have the same."""

    images: tuple[str, ...]
    """The column of the images, or all columns of their values."""
    image_type: str
    """The type of these columns, for messages."""
    dtype: str | None
    """The element type of values as stored; None for encoded pictures."""
    label: str | None
    """The column of the labels."""
    class_names: tuple[str, ...] | None = None
    """The name of each label, from the metadata."""

    @property
    def columns(self) -> list[str]:
        """The columns to read for images: of a struct, only the bytes."""
        is_struct = self.image_type.startswith("struct")
        return [f"{self.images[0]}.bytes"] if is_struct else list(self.images)

    def __str__(self) -> str:
        names = ", ".join(self.images[:2]) + ", ..." * (len(self.images) > 2)
        label = "no labels" if self.label is None else f"labels in {self.label}"
        return f"images in {names} ({self.image_type[:80]}) and {label}"


class Batch(NamedTuple):
    """Successive rows of a file."""

    path: Path
    row: int
    """The first row's number in the file."""
    images: Any
    """Encoded pictures, as a list of bytes, or values `(rows, ...)`."""
    labels: NDArray[np.int64] | None


def import_pyarrow() -> Any:
    """Return pyarrow with its reader of Parquet; raise `MissingExtraError` without it."""
    try:
        import pyarrow.compute
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise MissingExtraError("Reading Parquet", "pyarrow", "parquet") from None
    return pyarrow


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """Open a Parquet file; raise `BadDataError` if it is damaged or encrypted."""
    arrow = import_pyarrow()
    try:
        with arrow.parquet.ParquetFile(
            path,
            pre_buffer=False,
            buffer_size=BUFFER_BYTES,
            thrift_string_size_limit=THRIFT_LIMIT,
            thrift_container_size_limit=THRIFT_LIMIT,
            page_checksum_verification=True,
        ) as file:
            yield file
    except MemoryError:
        raise
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            with translate_os_errors("read", path):
                raise
        reason = re.split(r"\n|\. ", str(error))[0][:200].rstrip(". ")
        if "crypt" in reason:
            raise BadDataError(
                f"{path} is encrypted; expected plain Parquet. Write it again without encryption."
            ) from error
        raise BadDataError(
            f"{path} is damaged, or is not a Parquet file: {reason}. Copy or download it again."
        ) from error


class ParquetSplit(ValueSplit):
    """The rows of one or more files."""

    reader_memory = ARROW_MEMORY

    def __init__(
        self,
        name: str,
        paths: list[Path],
        base: Path,
        layout: Layout,
        options: SourceOptions,
    ) -> None:
        """Read the metadata and the first image; raise `BadDataError` if there is none."""
        super().__init__(name, paths, base)
        self.layout, self.resize = layout, options.resize
        self.choices["label"] = layout.label
        self._arrow = import_pyarrow()
        self.rows, self._at_once = self._counted()
        self._sizes: tuple[int, ...] | None = None
        self.labels = None
        if layout.label is not None:
            self.labels = LabelColumn(self._arrow, layout.label, layout.class_names)
        self.has_labels = False  # until `scan_labels` finds some
        first = next(self._batches(1), None)
        if first is None:
            raise BadDataError(f"{self.origin} has no rows; expected an image in each row.")
        if layout.dtype is None:
            self.set_type(np.dtype(np.uint8))
            place = f"{first.path}: row {first.row}"
            picture = decode_picture(first.images[0], place, options.channels, options.resize)
            self.image_shape = picture.shape
        else:
            self.set_type(np.dtype(layout.dtype))
            self._sizes = first.images.shape[1:]
            self.image_shape = image_shape(
                self.origin,
                (self.rows, *first.images.shape[1:]),
                self.stored_dtype.itemsize,
                options.shape,
            )

    def _counted(self) -> tuple[int, int]:
        """Return the rows of all files by their metadata, and how many to read at once."""
        rows = stored = values = 0
        itemsize = np.dtype(self.layout.dtype or np.uint8).itemsize
        for path in self._paths:
            with open_file(path) as file:
                rows += file.metadata.num_rows
                for chunk in _chunks_of(file.metadata, self.layout.images):
                    stored += chunk.total_uncompressed_size
                    values += chunk.num_values * itemsize  # more than stored if they repeat
        if values > ROW_LIMIT * max(1, rows):
            raise BadDataError(
                f"{self.origin} has images of {values // max(1, rows):,} bytes on average; "
                f"expected at most {ROW_LIMIT:,}. Check that each row is one image."
            )
        at_once = BATCH_BYTES * rows // max(stored, values, 1)
        return rows, max(1, min(MOST_AT_ONCE, at_once))

    # Images.

    def parts(self, rows_per_part: int) -> Generator[Part, None, None]:
        if self.layout.dtype is not None:
            return super().parts(rows_per_part)
        return picture_parts(self, self._stored(), rows_per_part, self.resize)

    def _stored(self) -> Generator[StoredPicture, None, None]:
        rows = 0
        for path, row, pictures, labels in self._batches(self._at_once):
            numbers = repeat(None) if labels is None else labels.tolist()
            for n, (picture, label) in enumerate(zip(pictures, numbers, strict=False), row):
                yield StoredPicture(picture, f"{path}: row {n}", label)
            rows += len(pictures)
        self.check_complete(rows)

    def blocks(self, rows: int) -> Iterator[Rows]:
        batches = ((values, labels) for _, _, values, labels in self._batches(self._at_once))
        for values, labels in regroup(batches, rows):
            yield values.astype(self.dtype, copy=False).reshape(-1, *self.image_shape), labels

    def range(self, progress: Progress) -> tuple[int, int]:
        low, high, done = np.iinfo(np.int64).max, np.iinfo(np.int64).min, 0
        for _, _, values, _ in self._batches(self._at_once):
            low, high = min(low, int(values.min())), max(high, int(values.max()))
            done += len(values)
            progress(f"range of {self.name}", done, self.rows)
        return low, high

    def _batches(self, rows: int) -> Iterator[Batch]:
        """Yield all rows in order, at most `rows` at a time."""
        layout, labels = self.layout, self.labels if self.has_labels else None
        columns = layout.columns + ([labels.name] if labels else [])
        for path, row, table in self._tables(columns, rows):
            if layout.dtype is None:
                images: Any = self._pictures(table, path, row)
            elif len(layout.images) > 1:
                images = self._pixels(table, path, row)
            else:
                images = self._values(table.column(layout.images[0]), path, row)
            classes = None
            if labels is not None:
                classes = labels.read(table.column(labels.name), path, row)
            yield Batch(path, row, images, classes)

    def _tables(self, columns: list[str], rows: int) -> Iterator[tuple[Path, int, Any]]:
        """Yield each file, the number of a row, and the next columns from there."""
        for path in self._paths:
            row = 0
            with open_file(path) as file:
                for table in file.iter_batches(rows, columns=columns, use_threads=False):
                    yield path, row, table
                    row += len(table)

    def _pictures(self, table: Any, path: Path, row: int) -> list[bytes]:
        name = self.layout.images[0]
        column = table.column(name)
        if self._arrow.types.is_struct(column.type):
            column = self._arrow.compute.struct_field(column, "bytes")
            name += ".bytes"
        self._check_present(column, path, row, name)
        pictures: list[bytes] = column.to_pylist()
        return pictures

    def _pixels(self, table: Any, path: Path, row: int) -> NDArray[Any]:
        columns = [table.column(name) for name in self.layout.images]
        for name, column in zip(self.layout.images, columns, strict=True):
            self._check_present(column, path, row, name)
        return np.column_stack([column.to_numpy(zero_copy_only=False) for column in columns])

    def _values(self, column: Any, path: Path, row: int) -> NDArray[Any]:
        """Return the values of nested lists; all must have the sizes of the first."""
        arrow, name = self._arrow, self.layout.images[0]
        count, sizes = len(column), list[int]()
        if isinstance(column, arrow.FixedShapeTensorArray):
            self._check_present(column, path, row, name)
            tensors: NDArray[Any] = column.to_numpy_ndarray()
            return tensors
        while arrow.types.is_nested(column.type):
            self._check_present(column, path, row, name, math.prod(sizes))
            lengths = arrow.compute.list_value_length(column).to_numpy(zero_copy_only=False)
            expected = int(lengths[0]) if self._sizes is None else self._sizes[len(sizes)]
            differ = lengths != expected
            if not expected or differ.any():
                first = int(np.argmax(differ))
                raise BadDataError(
                    f"{path}: row {row + first // math.prod(sizes)}, column {name!r}, has a list "
                    f"of {lengths[first]:,} values; expected {max(expected, 1):,}, as in the first "
                    "row. Correct or remove the row."
                )
            sizes.append(expected)
            column = column.flatten()
        self._check_present(column, path, row, name, math.prod(sizes))
        values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
        return values.reshape(count, *sizes)

    # Labels.

    def scan_labels(self, progress: Progress) -> None:
        """Read all labels; a split in which no row has one is unlabelled afterwards."""
        column = self.labels
        if column is None:
            return
        for path, row, table in self._tables([column.name], LABELS_AT_ONCE):
            progress(f"labels of {self.name}", 0, self.rows)
            column.scan(table.column(column.name), path, row)
        self.has_labels = bool(column.distinct)

    def label_values(self, progress: Progress) -> list[int]:
        return self.labels.values() if self.labels is not None else []

    def _check_present(
        self, column: Any, path: Path, row: int, name: str, values_per_row: int = 1
    ) -> None:
        """Raise `BadDataError` that names the first row with a missing value, if there is one."""
        if column.null_count:
            missing = column.is_null().to_numpy(zero_copy_only=False)
            row += int(np.argmax(missing)) // values_per_row
            raise BadDataError(
                f"{path}: row {row}, column {name!r}, has no value; expected an image in each row. "
                "Add it, or remove the row."
            )


def _chunks_of(metadata: Any, columns: tuple[str, ...]) -> Iterator[Any]:
    """Yield the metadata of the columns' chunks."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema.partition(".")[0] in columns:
                yield chunk
