"""One split of a source: its interface, and the two kinds, IDX files and generated digits."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.digits import CLASSES, DIGITS_VERSION, SIDE, draw_digits
from storage.decoding import hash_stored
from storage.errors import BadDataError
from storage.idx import IdxDigests, IdxHeader, IdxReader

MAX_CLASSES = 1000
"""More distinct labels than this are taken for something other than classes."""

_LABEL_BLOCK_ROWS = 65_536


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
        """`train` or `test`."""
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


class IdxSplit:
    """A split in an images file and perhaps a labels file, read together from start to end."""

    def __init__(self, name: str, images: Path, labels: Path | None) -> None:
        """Read the headers; raises `BadDataError` where they are not of images and labels."""
        self.name = name
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
                "whole numbers of shape (rows,) or (rows, columns) with the class in the first "
                "column. Check which file holds the labels."
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
            for _ in range(0, reader.rows, _LABEL_BLOCK_ROWS):
                values.update(np.unique(_read_labels(reader, _LABEL_BLOCK_ROWS)).tolist())
                self._check_class_count(len(values))
            reader.finish()
        return sorted(values)

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
            labels = self._open_again(stack, self._labels, None) if self._labels else None
            for start in range(0, self.rows, rows_per_part):
                rows = images.read_rows(rows_per_part)
                classes = None if labels is None else _read_labels(labels, rows_per_part)
                yield LoadedPart(start, start + len(rows), rows, classes)
            readers = [images] if labels is None else [images, labels]
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
        hashed = {kind: hash_stored(path) for kind, path in paths.items()}
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


def _read_labels(reader: IdxReader, count: int) -> NDArray[Any]:
    labels = reader.read_rows(count)
    # QMNIST's idx2-int files hold eight columns; the class is the first (its README, "labels").
    return labels if labels.ndim == 1 else np.ascontiguousarray(labels[:, 0])
