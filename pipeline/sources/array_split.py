"""A split from an array of images and an optional one of labels, whatever file contains them."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.file_split import (
    MAX_CLASSES,
    DistinctLabels,
    FileSplit,
    check_labels,
    classes_of_one_hot,
)
from pipeline.sources.formats import Source
from pipeline.sources.splits import Rows, check_same_images
from storage.errors import BadDataError, UsageError, counted
from storage.events import Progress
from storage.preparation import ValueRange
from storage.schema import ELEMENT_TYPES, ROW_LIMIT

AT_ONCE_BYTES = 2**20
"""Bytes of an array to read at once, before their element type is converted."""
WIDENED = {"bool": "uint8", "float16": "float32", "uint16": "int32"}
"""Element types that are stored as another one, which holds all their values."""
SCANNED = ("int64", "uint32", "uint64")
"""Element types that are stored as the first of `NARROWER` that holds the values of all splits."""
NARROWER = ("uint8", "int8", "int16", "int32")
LABEL_KINDS = "iufb"
LARGEST_WHOLE = 2**53
"""Floats below this represent whole numbers exactly."""
BOOL_RANGE = ValueRange(0, 1)

Read = Callable[[int], NDArray[Any]]
"""Returns the given number of next rows, in the array's element type."""


class RowArray(Protocol):
    """An array that is read row by row."""

    @property
    def place(self) -> str:
        """The file and the array, for messages."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type as stored, in any byte order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape; the first dimension counts the rows."""

    def open(self) -> AbstractContextManager[Read]:
        """Start a pass over the rows.

        Reading the last one raises `BadDataError` for whatever is wrong with the file as a whole.
        """


class ValueSplit(FileSplit):
    """A split of values of any element type, which `source_of_values` may replace."""

    stored_dtype: np.dtype[Any]
    """The element type as stored, in this machine's byte order."""

    def set_type(self, stored: np.dtype[Any]) -> None:
        """Set the element types; raise `BadDataError` for values that are no numbers."""
        self.stored_dtype = stored.newbyteorder("=")
        dtype = WIDENED.get(self.stored_dtype.name, self.stored_dtype.name)
        if dtype not in (*ELEMENT_TYPES, *SCANNED):
            raise BadDataError(
                f"{self.origin} has values of type {stored}; expected integers, floats of at most "
                "64 bits, or bool. Convert them to one of these, and save them again."
            )
        self.dtype = np.dtype(dtype)  # of `SCANNED` until `source_of_values` replaces it

    @abstractmethod
    def range(self, progress: Progress) -> tuple[int, int]:
        """Return the smallest and the largest value of integer images, by reading all of them."""


class ArraySplit(ValueSplit):
    """The rows of an array of images, with the classes of an optional array of labels."""

    def __init__(
        self,
        name: str,
        images: RowArray,
        labels: RowArray | None,
        paths: list[Path],
        base: Path,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Check shapes and types; raise `BadDataError`, or `UsageError` if `shape` does not fit.

        `shape` is that of an image, if images are rows of values.
        """
        super().__init__(name, paths, base)
        self.origin = images.place
        self._images, self._labels = images, labels
        self.rows = images.shape[0] if images.shape else 0
        self.has_labels = labels is not None
        self.image_shape = image_shape(images.place, images.shape, images.dtype.itemsize, shape)
        self.set_type(images.dtype)
        if labels is not None:
            self._check_labels(labels)

    def _check_labels(self, labels: RowArray) -> None:
        rows, *columns = labels.shape or (0,)
        if (
            labels.dtype.kind not in LABEL_KINDS
            or labels.dtype.itemsize > 8
            or len(columns) > 1
            or not 1 <= math.prod(columns) <= MAX_CLASSES
        ):
            raise BadDataError(
                f"{labels.place} has {labels.dtype} values of shape {labels.shape}; expected "
                "labels: integers of shape (rows,) or (rows, 1), or one-hot of shape (rows, "
                f"classes) with at most {MAX_CLASSES:,} classes."
            )
        if rows != self.rows:
            raise BadDataError(
                f"{labels.place} has {counted(rows, 'label')}, but {self.origin} has "
                f"{counted(self.rows, 'image')}; expected equal numbers."
            )

    def blocks(self, rows: int) -> Iterator[Rows]:
        with ExitStack() as stack:
            images = stack.enter_context(self._images.open())
            labels = None
            if self._labels is not None:
                labels = stack.enter_context(self._labels.open())
            for start in range(0, self.rows, rows):
                count = min(rows, self.rows - start)
                classes = None if labels is None else self._classes(labels, start, count)
                yield self._image_block(images, count), classes

    def _image_block(self, read: Read, count: int) -> NDArray[Any]:
        """Return the next images in their element type; few at a time are read as stored."""
        block = np.empty((count, *self.image_shape), self.dtype)
        for start, stop in _steps(self._images, count):
            block[start:stop] = read(stop - start).reshape(-1, *self.image_shape)
        return block

    def _classes(self, read: Read, first_row: int, count: int) -> NDArray[Any]:
        """Return the classes of the next rows; raise `BadDataError` for a row without one."""
        assert self._labels is not None
        classes = np.empty(count, np.int64)
        for start, stop in _steps(self._labels, count):
            values, place = read(stop - start), self._labels.place
            values = _whole_numbers(values, place, first_row + start)
            if values.ndim == 2 and values.shape[1] > 1:
                classes[start:stop] = classes_of_one_hot(values, place, first_row + start)
            else:
                classes[start:stop] = check_labels(values.ravel(), place, first_row + start)
        return classes

    def label_values(self, progress: Progress) -> list[int]:
        if self._labels is None:
            return []
        distinct = DistinctLabels(self._labels.place)
        with self._labels.open() as read:
            for start, stop in _steps(self._labels, self.rows):
                progress(f"ingest {self.name}", 0, self.rows)
                distinct.add(self._classes(read, start, stop - start))
        return distinct.values()

    def range(self, progress: Progress) -> tuple[int, int]:
        low, high = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        with self._images.open() as read:
            for start, stop in _steps(self._images, self.rows):
                values = read(stop - start)
                low, high = min(low, int(values.min())), max(high, int(values.max()))
                progress(f"range of {self.name}", stop, self.rows)
        return low, high


def source_of_values(
    name: str, splits: Sequence[ValueSplit], description: str, progress: Progress
) -> Source:
    """Return the source of splits, in order; choose the element type of wide integers.

    Raises `BadDataError` if the splits differ, or if integers do not fit 32 bits.
    """
    _choose_types(splits, progress)
    check_same_images(splits)
    are_bool = {split.stored_dtype == np.bool_ for split in splits}
    if len(are_bool) > 1:
        raise BadDataError(
            f"The images of {splits[0].origin} and {splits[-1].origin} differ: some are bool, "
            "others bytes; expected the same element type. Convert both to one type with astype."
        )
    return Source(
        name, tuple(splits), description, scaling=BOOL_RANGE if True in are_bool else None
    )


def _choose_types(splits: Sequence[ValueSplit], progress: Progress) -> None:
    wide = [split for split in splits if split.dtype.name in SCANNED]
    if not wide:
        return
    ranges = [split.range(progress) for split in wide]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    dtype = narrowest(low, high)
    if dtype is None:
        raise BadDataError(
            f"{wide[0].origin} has {wide[0].stored_dtype} values from {low:,} to {high:,}; "
            "expected integers of at most 32 bits. Convert them to float32 with astype, and save "
            "them again."
        )
    for split in wide:
        split.dtype, split.may_widen = dtype, True


def narrowest(low: float, high: float) -> np.dtype[Any] | None:
    """Return the first type of `NARROWER` that holds a range of integers; None if none does."""
    for dtype in map(np.dtype, NARROWER):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dtype
    return None


def image_shape(
    place: str, stored: tuple[int, ...], itemsize: int, asked: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Return the shape of an image: as asked, a square for a row of values, or as stored.

    The first of the `stored` sizes counts the rows. Raises `BadDataError` if these are no images,
    `UsageError` if `asked` does not fit.
    """
    shape, features = stored[1:], math.prod(stored[1:])
    if not shape or not features or not stored[0]:
        raise BadDataError(
            f"{place} has values of shape {stored}; expected images of shape (rows, height, "
            "width), (rows, height, width, channels) or (rows, features)."
        )
    if features * itemsize > ROW_LIMIT:
        raise BadDataError(
            f"{place} has images of {features * itemsize:,} bytes; expected at most "
            f"{ROW_LIMIT:,}. The first dimension of its shape {stored} must be the rows."
        )
    if len(shape) == 3 and 1 in (shape[0], shape[2]):  # one channel, last or first
        shape = shape[:2] if shape[2] == 1 else shape[1:]
    if asked is not None and asked != shape:
        if len(shape) > 1 or math.prod(asked) != features:
            raise UsageError(
                f"--shape {'x'.join(map(str, asked))} does not fit the images of {place}, "
                f"which have {' x '.join(map(str, shape))} values. Correct it, or leave it out."
            )
        return asked
    side = math.isqrt(features)
    is_square = asked is None and len(shape) == 1 and side > 1 and side**2 == features
    return (side, side) if is_square else shape


def _steps(array: RowArray, count: int) -> Iterator[tuple[int, int]]:
    """Yield ranges that divide `count` rows of an array into steps of about `AT_ONCE_BYTES`."""
    at_once = max(1, AT_ONCE_BYTES // (math.prod(array.shape[1:]) * array.dtype.itemsize))
    for start in range(0, count, at_once):
        yield start, min(start + at_once, count)


def _whole_numbers(values: NDArray[Any], place: str, first_row: int) -> NDArray[Any]:
    """Return labels as integers; raise `BadDataError` for one that is not a whole number."""
    if values.dtype.kind == "f" or values.dtype == np.uint64:
        whole = (np.abs(values) < LARGEST_WHOLE) & (np.trunc(values) == values)  # false for NaN
        if not whole.all():
            row, *_ = np.argwhere(~whole)[0]
            raise BadDataError(
                f"{place}: row {first_row + row} has label {values[~whole][0]}; expected whole "
                "numbers, the classes. Check which array contains the labels."
            )
    return values.astype(np.int64)
