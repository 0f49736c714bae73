"""One split of a source: its interface, and the two kinds, IDX files and generated digits."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.digits import CLASSES, DIGITS_VERSION, SIDE, draw_digits
from storage.decoding import hash_stored
from storage.errors import BadDataError
from storage.idx import IdxDigests, IdxHeader, IdxReader

MAX_CLASSES = 1000
"""More distinct labels than this are taken for something other than classes."""

QMNIST_COLUMNS = (8,)
"""The columns of QMNIST's extended labels, which are of type int."""
_SHOWN_COLUMNS = 12
_LABEL_BLOCK_ROWS = 65_536
_LABEL_BLOCK_BYTES = 2**20
"""The part of a labels file that is read at once."""


@dataclass(frozen=True)
class SourceFile:
    """One file that rows came from, or a generator: then sizes and digests are None."""

    name: str
    kind: str
    """`images`, `labels` or `generated`."""
    stored_bytes: int | None
    stored_sha256: str | None
    decoded_bytes: int | None
    decoded_sha256: str | None


class Part(Protocol):
    """The contiguous rows [start, stop) of a split; it can be pickled."""

    @property
    def start(self) -> int:
        """The first of its rows."""
        ...

    @property
    def stop(self) -> int:
        """The first row that is no longer its own."""
        ...

    def load(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Rows [start, stop) of the split, which are the part's own.

        Images `(rows, *image_shape)` and integer labels `(rows,)`, None where unlabelled.
        """
        ...


class SplitSource(Protocol):
    """One split of a source."""

    @property
    def name(self) -> str:
        """`train`, `validation` or `test`."""
        ...

    @property
    def origin(self) -> str:
        """Where the images come from, for messages."""
        ...

    @property
    def rows(self) -> int:
        """How many there are."""
        ...

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one row, such as (28, 28)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """The images' element type, in this machine's byte order."""
        ...

    @property
    def has_labels(self) -> bool:
        """Whether each row has a class."""
        ...

    def label_values(self) -> list[int]:
        """The distinct class labels in ascending order; empty for an unlabelled split.

        Reads the labels file once, in bounded memory. Raises `BadDataError` where the file is
        damaged or holds more than 1000 distinct labels.
        """
        ...

    def parts(self, rows_per_part: int) -> Iterator[Part]:
        """All rows in order, `rows_per_part` at a time, the last part perhaps shorter.

        Raises `BadDataError` where the data is damaged, and after the last part where something
        follows it: only a whole pass has checked everything.
        """
        ...

    def files(self) -> list[SourceFile]:
        """What the rows came from. Call it after a whole pass over `parts`."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """See `Source.fingerprint`."""
        ...


@dataclass(frozen=True)
class LoadedPart:
    """Rows that were read already; they travel with the part."""

    start: int
    stop: int
    images: NDArray[Any]
    """(rows, *image_shape)"""
    labels: NDArray[Any] | None
    """(rows,)"""

    def load(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """See `Part.load`; views."""
        rows = slice(start - self.start, stop - self.start)
        return self.images[rows], None if self.labels is None else self.labels[rows]


class LabelReader:
    """The class of each row of a labels file, in order.

    A file with one value for each row holds the classes. Of several columns, rows of 0 and a single
    1 are one-hot; in QMNIST's extended labels (its README, section 2.2) the first is the class.
    """

    def __init__(self, reader: IdxReader) -> None:
        """Begin at the file's first row."""
        self._reader = reader
        self._start = 0
        self._is_qmnist = False

    def read(self, count: int) -> NDArray[Any]:
        """Return the classes of the next `count` rows `(count,)`, fewer at the end.

        Raises `BadDataError` that names the first row that has no class.
        """
        stop = min(self._start + count, self._reader.rows)
        at_once = max(1, _LABEL_BLOCK_BYTES // self._reader.header.row_bytes)
        blocks = []
        while self._start < stop:
            blocks.append(self._classes(self._reader.read_rows(min(at_once, stop - self._start))))
            self._start += len(blocks[-1])
        return np.concatenate(blocks)

    def _classes(self, values: NDArray[Any]) -> NDArray[Any]:
        classes = values if values.ndim == 1 else self._classes_of_columns(values)
        if classes.dtype.kind == "i" and (negative := classes < 0).any():
            row = int(np.argmax(negative))
            raise BadDataError(
                f"{self._reader.path}: row {self._start + row} has label {classes[row]}; expected "
                "0 or more. Remove the rows without a class, or the labels file."
            )
        return classes

    def _classes_of_columns(self, table: NDArray[Any]) -> NDArray[Any]:
        if table.shape[1] == 1:
            return table[:, 0]
        is_one_hot = ((table == 0) | (table == 1)).all(axis=1) & (table.sum(axis=1) == 1)
        if self._start == 0 and table.shape[1:] == QMNIST_COLUMNS and table.dtype == np.int32:
            self._is_qmnist = not is_one_hot[0]
        if self._is_qmnist:
            return np.ascontiguousarray(table[:, 0])
        if not is_one_hot.all():
            row = int(np.argmin(is_one_hot))
            raise BadDataError(
                f"{self._reader.path}: row {self._start + row} holds {_shown(table[row])}; "
                f"expected a single 1 and otherwise 0 in its {table.shape[1]:,} columns (one-hot "
                "labels). Write the class alone, one whole number for each row."
            )
        classes: NDArray[np.int64] = np.argmax(table, axis=1)
        return classes


def _shown(row: NDArray[Any]) -> str:
    values = row[:_SHOWN_COLUMNS].tolist()
    return f"{', '.join(map(str, values))}{', ...' if len(row) > len(values) else ''}"


class IdxSplit:
    """A split in an images file and perhaps a labels file, read together from start to end."""

    def __init__(
        self,
        name: str,
        images: Path,
        labels: Path | None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Read the headers; raises `BadDataError` where they are not of images and labels.

        `check` is called again and again while files are hashed or labels read, and may raise.
        """
        self.name = name
        self._check = check
        self.origin = str(images)
        self._images = images
        self._labels = labels
        self._digests: dict[Path, IdxDigests] = {}  # of the last whole pass
        header = _read_header(images)
        if len(header.shape) < 2:
            raise BadDataError(
                f"{images}: found values of shape {header.shape}; expected images, (rows, height, "
                "width) or (rows, features). Check which file holds the images."
            )
        self.rows: int = header.shape[0]
        self.image_shape = header.shape[1:]
        self.dtype = header.dtype
        if labels is not None:
            self._check_labels(labels)

    def _check_labels(self, labels: Path) -> None:
        header = _read_header(labels)
        if len(header.shape) > 2 or header.dtype.kind == "f":
            raise BadDataError(
                f"{labels}: found {header.dtype} values of shape {header.shape}; expected labels, "
                "whole numbers of shape (rows,), or one-hot of shape (rows, classes). Check which "
                "file holds the labels."
            )
        if header.shape[1:] > (MAX_CLASSES,):
            raise BadDataError(
                f"{labels}: found {header.shape[1]:,} columns; expected labels, at most "
                f"{MAX_CLASSES:,} columns of one-hot. Check which file holds the labels."
            )
        if header.shape[0] != self.rows:
            raise BadDataError(
                f"{labels} holds {header.shape[0]:,} labels, but {self._images} holds "
                f"{self.rows:,} images; expected as many of both. Take both files from the same "
                "set and split."
            )

    @property
    def has_labels(self) -> bool:
        """Whether there is a file of labels."""
        return self._labels is not None

    def label_values(self) -> list[int]:
        """Their distinct values, in ascending order, from one pass over the labels."""
        if self._labels is None:
            return []
        values: set[int] = set()
        with IdxReader(self._labels) as reader:
            labels = LabelReader(reader)
            for _ in range(0, reader.rows, _LABEL_BLOCK_ROWS):
                self._check()
                values.update(np.unique(labels.read(_LABEL_BLOCK_ROWS)).tolist())
                self._check_class_count(len(values))
            reader.finish()
            self._check_byte_order(np.array(sorted(values)), reader.header.dtype)
        return sorted(values)

    def _check_byte_order(self, values: NDArray[np.int64], dtype: np.dtype[Any]) -> None:
        """Refuse labels that are classes only when read in the other byte order."""
        if dtype.itemsize == 1 or len(values) == 1 or values[-1] < MAX_CLASSES:
            return
        swapped = values.astype(dtype).byteswap()
        if swapped.min() >= 0 and swapped.max() < MAX_CLASSES:
            raise BadDataError(
                f"{self._labels}: its values are in the wrong byte order; found labels such as "
                f"{values[-1]:,}, which is {swapped[-1]} if read as little-endian. Write them "
                f"again as big-endian, with values.astype('>i{dtype.itemsize}') in NumPy."
            )

    def _check_class_count(self, count: int) -> None:
        if count > MAX_CLASSES:
            raise BadDataError(
                f"{self._labels}: found more than {MAX_CLASSES:,} distinct labels; expected at "
                f"most {MAX_CLASSES:,} classes. Check that the file's first column is the class."
            )

    def parts(self, rows_per_part: int) -> Iterator[LoadedPart]:
        """All rows in order; the files are read as the parts are taken."""
        _check_rows_per_part(rows_per_part)
        return self._read_parts(rows_per_part)

    def _read_parts(self, rows_per_part: int) -> Iterator[LoadedPart]:
        with ExitStack() as stack:
            images = self._open_again(stack, self._images, self.image_shape)
            readers, labels = [images], None
            if self._labels is not None:
                readers.append(self._open_again(stack, self._labels, None))
                labels = LabelReader(readers[-1])
            for start in range(0, self.rows, rows_per_part):
                rows = images.read_rows(rows_per_part)
                classes = None if labels is None else labels.read(rows_per_part)
                yield LoadedPart(start, start + len(rows), rows, classes)
            self._digests = {reader.path: reader.finish() for reader in readers}

    def _open_again(
        self, stack: ExitStack, path: Path, row_shape: tuple[int, ...] | None
    ) -> IdxReader:
        reader = stack.enter_context(IdxReader(path))
        if reader.rows != self.rows or row_shape not in (None, reader.row_shape):
            raise BadDataError(
                f"{path}: the file changed while it was in use; found the shape "
                f"{reader.header.shape}, expected {self.rows:,} rows as before. Start again."
            )
        return reader

    def files(self) -> list[SourceFile]:
        """The files, with the digests of the last whole pass."""
        if not self._digests:
            raise RuntimeError("files() before a whole pass over parts()")
        return [
            SourceFile(
                path.name,
                "images" if path == self._images else "labels",
                digests.stored_bytes,
                digests.stored_sha256,
                digests.decoded_bytes,
                digests.decoded_sha256,
            )
            for path, digests in self._digests.items()
        ]

    def fingerprint(self) -> dict[str, Any]:
        """Size and digest of each file as it is stored now."""
        paths = {"images": self._images} | ({"labels": self._labels} if self._labels else {})
        hashed = {kind: hash_stored(path, self._check) for kind, path in paths.items()}
        return {
            kind: {"stored_bytes": size, "stored_sha256": sha256}
            for kind, (size, sha256) in hashed.items()
        }


@dataclass(frozen=True)
class SyntheticPart:
    """Rows that are drawn where they are loaded; only their numbers travel."""

    seed: int
    split: str
    start: int
    stop: int

    def load(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Draw the images `(rows, 28, 28)` uint8 and their labels `(rows,)` uint8."""
        return draw_digits(self.seed, self.split, start, stop)


@dataclass(frozen=True)
class SyntheticSplit:
    """A split of digits that the project draws itself."""

    name: str
    rows: int
    seed: int

    @property
    def origin(self) -> str:
        """No file has them."""
        return f"generated digits of {self.name}"

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one digit, (28, 28)."""
        return (SIDE, SIDE)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Bytes, as MNIST has."""
        return np.dtype(np.uint8)

    @property
    def has_labels(self) -> bool:
        """It is known what was drawn."""
        return True

    def label_values(self) -> list[int]:
        """All ten digits, also where a small split happens to lack one."""
        return list(range(CLASSES))

    def parts(self, rows_per_part: int) -> Iterator[SyntheticPart]:
        """All rows in order, drawn where a part is loaded."""
        _check_rows_per_part(rows_per_part)
        return (
            SyntheticPart(self.seed, self.name, start, min(start + rows_per_part, self.rows))
            for start in range(0, self.rows, rows_per_part)
        )

    def files(self) -> list[SourceFile]:
        """No file: what was drawn, in words."""
        drawn = f"{self.rows} digits of {self.name}, version {DIGITS_VERSION}, seed {self.seed}"
        return [SourceFile(drawn, "generated", None, None, None, None)]

    def fingerprint(self) -> dict[str, Any]:
        """All that the digits follow from."""
        return {"digits_version": DIGITS_VERSION, "seed": self.seed, "rows": self.rows}


def _check_rows_per_part(rows_per_part: int) -> None:
    if rows_per_part < 1:
        raise ValueError(f"rows_per_part must be 1 or more, not {rows_per_part}")


def _read_header(path: Path) -> IdxHeader:
    with IdxReader(path) as reader:
        return reader.header
