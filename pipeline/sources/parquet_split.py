"""A split from Parquet files: pictures or values in one column, or a column for each value."""

import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.array_split import ValueSplit, image_shape
from pipeline.sources.file_split import ARROW_MEMORY
from pipeline.sources.formats import SourceOptions
from pipeline.sources.parquet_labels import LabelColumn
from pipeline.sources.picture_split import DECODING_THREADS, LEAST_BYTES_HELD, PicturePart
from pipeline.sources.pictures import decode_picture, decode_with_shape
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


@dataclass(frozen=True)
class Batch:
    """Successive rows of a file."""

    path: Path
    row: int
    """The first row's number in the file."""
    images: Any
    """Encoded pictures, as a list of bytes, or values `(rows, ...)`."""
    labels: NDArray[np.int64] | None

    def take(self, start: int, stop: int) -> "Batch":
        """Return rows [start, stop) of the batch."""
        labels = None if self.labels is None else self.labels[start:stop]
        return replace(self, row=self.row + start, images=self.images[start:stop], labels=labels)

    @property
    def places(self) -> list[str]:
        """The file and the row of each image, for messages."""
        return [f"{self.path}: row {self.row + n}" for n in range(len(self.images))]


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
        self.rows, stored, values = 0, 0, 0
        itemsize = np.dtype(layout.dtype or np.uint8).itemsize
        for path in paths:
            with open_file(path) as file:
                self.rows += file.metadata.num_rows
                for chunk in _chunks_of(file.metadata, layout.images):
                    stored += chunk.total_uncompressed_size
                    values += chunk.num_values * itemsize  # more than stored if they repeat
        if values > ROW_LIMIT * max(1, self.rows):
            raise BadDataError(
                f"{self.origin} has images of {values // max(1, self.rows):,} bytes on average; "
                f"expected at most {ROW_LIMIT:,}. Check that each row is one image."
            )
        at_once = BATCH_BYTES * self.rows // max(stored, values, 1)
        self._at_once = max(1, min(MOST_AT_ONCE, at_once))
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
            picture = decode_picture(
                first.images[0], first.places[0], options.channels, options.resize
            )
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

    # Images.

    def parts(self, rows_per_part: int) -> Iterator[Part]:
        if self.layout.dtype is not None:
            yield from super().parts(rows_per_part)
            return
        most = max(LEAST_BYTES_HELD, rows_per_part * math.prod(self.image_shape))
        decode = partial(decode_with_shape, shape=self.image_shape, resize=self.resize)
        start, stop, held, encoded = 0, 0, 0, 0
        pictures: list[Any] = []
        places: list[str] = []
        labels: list[NDArray[np.int64]] = []
        with ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="pictures") as pool:
            for batch in self._within_parts(rows_per_part):
                pictures += batch.images
                places += batch.places
                labels += [] if batch.labels is None else [batch.labels]
                stop += len(batch.images)
                held += sum(map(len, batch.images))
                if held > most:
                    pictures[encoded:] = pool.map(decode, pictures[encoded:], places[encoded:])
                    held, encoded = 0, len(pictures)
                if stop - start == rows_per_part or stop == self.rows:
                    yield PicturePart(
                        start,
                        stop,
                        pictures,
                        places,
                        _joined(labels),
                        self.image_shape,
                        self.resize,
                    )
                    start, held, encoded, pictures, places, labels = stop, 0, 0, [], [], []
        self.check_complete(stop)

    def blocks(self, rows: int) -> Iterator[Rows]:
        waiting: list[Batch] = []
        count = 0
        for batch in self._within_parts(rows):
            waiting.append(batch)
            count += len(batch.images)
            if count % rows == 0 or count == self.rows:
                images = np.concatenate([batch.images for batch in waiting])
                images = images.astype(self.dtype, copy=False).reshape(-1, *self.image_shape)
                labels = [batch.labels for batch in waiting if batch.labels is not None]
                yield images, _joined(labels)
                waiting = []

    def range(self, progress: Progress) -> tuple[int, int]:
        low, high, done = np.iinfo(np.int64).max, np.iinfo(np.int64).min, 0
        for batch in self._batches(self._at_once):
            low, high = min(low, int(batch.images.min())), max(high, int(batch.images.max()))
            done += len(batch.images)
            progress(f"range of {self.name}", done, self.rows)
        return low, high

    def _within_parts(self, rows: int) -> Iterator[Batch]:
        """Yield all rows in batches that end at each multiple of `rows`, or before."""
        count = 0
        for batch in self._batches(self._at_once):
            start = 0
            while start < len(batch.images):
                stop = min(len(batch.images), start + rows - count % rows)
                yield batch.take(start, stop)
                count += stop - start
                start = stop

    def _batches(self, rows: int) -> Iterator[Batch]:
        layout = self.layout
        columns = layout.columns + ([str(layout.label)] if self.has_labels else [])
        for path, row, table in self._tables(columns, rows):
            if layout.dtype is None:
                images: Any = self._pictures(table, path, row)
            elif len(layout.images) > 1:
                images = self._pixels(table, path, row)
            else:
                images = self._values(table.column(layout.images[0]), path, row)
            classes = None
            if self.has_labels and self.labels is not None:
                classes = self.labels.read(table.column(self.labels.name), path, row)
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


def _joined(labels: list[NDArray[np.int64]]) -> NDArray[np.int64] | None:
    return np.concatenate(labels) if labels else None


def _chunks_of(metadata: Any, columns: tuple[str, ...]) -> Iterator[Any]:
    """Yield the metadata of the columns' chunks."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema.partition(".")[0] in columns:
                yield chunk
