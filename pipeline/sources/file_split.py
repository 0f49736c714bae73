"""A split whose rows are read in order from files: what most formats share."""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.splits import (
    LoadedPart,
    Part,
    Rows,
    SourceFile,
    SplitSource,
    changed_error,
)
from storage.decoding import hash_stored
from storage.errors import BadDataError
from storage.events import Progress

MAX_CLASSES = 1000
"""With more distinct labels than this, a file is assumed not to contain classes."""
LABEL_NAMES = ("label", "labels", "class", "target", "y", "digit")
"""Usual names of the column with the labels, in lower case, in order of preference."""
ARROW_MEMORY = 80_000_000
"""Bytes of pyarrow and of the blocks that it parses."""
_LABEL_BLOCK_ROWS = 65_536
_SHOWN_COLUMNS = 12
_SHOWN_FILES = 20
"""A dataset records more files than this together."""


class FileSplit(SplitSource):
    """Rows from files, read in one pass. A subclass sets the attributes and yields blocks of rows.

    The files must not change from `fingerprint` to the end of a pass over `parts`.
    """

    def __init__(self, name: str, paths: list[Path], base: Path) -> None:
        """Keep the paths of all files; `base` is what their names in a dataset are relative to."""
        self.name = name
        self.origin = str(paths[0] if len(paths) == 1 else base)
        self._paths, self._base = paths, base
        self.choices: dict[str, Any] = {}
        """The arrays or columns that were chosen in the files, as parts of the fingerprint."""
        self._hashed: dict[Path, tuple[int, str]] = {}
        self._status: dict[Path, tuple[int, ...]] = {}

    @abstractmethod
    def blocks(self, rows: int) -> Iterator[Rows]:
        """Yield all rows in order, `rows` at a time, from a new pass over the files.

        Raises `BadDataError` for damaged data, and for labels without `check_labels`' approval.
        """

    def label_values(self, progress: Progress) -> list[int]:
        if not self.has_labels:
            return []
        distinct = DistinctLabels(self.origin)
        for _, labels in self.blocks(_LABEL_BLOCK_ROWS):
            progress(f"ingest {self.name}", 0, self.rows)
            distinct.add(labels)
        return distinct.values()

    def parts(self, rows_per_part: int) -> Generator[Part, None, None]:
        start = 0
        for images, labels in self.blocks(rows_per_part):
            yield LoadedPart(start, start + len(images), (images, labels))
            start += len(images)
        self.check_complete(start)

    def check_complete(self, rows: int) -> None:
        """Raise `BadDataError` at the end of a pass if files changed, or had other rows."""
        changed = [path for path, status in self._status.items() if _status(path) != status]
        if changed or rows != self.rows:
            raise changed_error(changed[0] if changed else self.origin)

    def files(self) -> list[SourceFile]:
        entries = [
            SourceFile(_relative(path, self._base), "images", *hashed)
            for path, hashed in self._hashed.items()
        ]
        if len(entries) <= _SHOWN_FILES:
            return entries
        total = sum(size for size, _ in self._hashed.values())
        return [SourceFile(f"{len(entries):,} files", "images", total, self._digest())]

    def fingerprint(self, progress: Progress) -> dict[str, Any]:
        for path in self._paths:
            self._status[path] = _status(path)
            self._hashed[path] = hash_stored(
                path, lambda: progress(f"ingest {self.name}", 0, self.rows)
            )
        total = sum(size for size, _ in self._hashed.values())
        stored = {"stored_bytes": total, "stored_sha256": self._digest()}
        return {"files": stored, "shape": list(self.image_shape), **self.choices}

    def _digest(self) -> str:
        """Return the file's SHA-256, or that of a list of all files' names and SHA-256."""
        if len(self._hashed) == 1:
            return next(iter(self._hashed.values()))[1]
        lines = (
            f"{sha256}  {_relative(path, self._base)}\n"
            for path, (_, sha256) in self._hashed.items()
        )
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def regroup(blocks: Iterator[Rows], rows: int) -> Iterator[Rows]:
    """Yield the rows of blocks of any sizes in blocks of `rows`; the last one may be shorter."""
    waiting: list[Rows] = []
    count = 0
    for images, labels in blocks:
        start = 0
        while start < len(images):
            part = slice(start, start + rows - count)
            waiting.append((images[part], None if labels is None else labels[part]))
            start += len(waiting[-1][0])
            count += len(waiting[-1][0])
            if count == rows:
                yield _joined(waiting)
                waiting, count = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(blocks: list[Rows]) -> Rows:
    images = np.concatenate([block for block, _ in blocks])
    labels = [block for _, block in blocks if block is not None]
    return images, np.concatenate(labels) if labels else None


class DistinctLabels:
    """Collects the distinct labels of a split, and refuses those that cannot be classes."""

    def __init__(self, place: str) -> None:
        self._place, self._values = place, set[int]()

    def add(self, labels: NDArray[Any] | None) -> None:
        """Add a block of labels; raise `BadDataError` if too many are distinct."""
        self._values.update(np.unique([] if labels is None else labels).tolist())
        if len(self._values) > MAX_CLASSES:
            raise BadDataError(
                f"{self._place} has more than {MAX_CLASSES:,} distinct labels; expected "
                "classes. Check that the file's first column is the class."
            )

    def values(self) -> list[int]:
        """Return the distinct labels in ascending order."""
        return sorted(self._values)


def check_labels(labels: NDArray[Any], place: str, first_row: int) -> NDArray[Any]:
    """Return a block of labels; raise `BadDataError` naming the first negative one and its row."""
    if labels.dtype.kind == "i" and (negative := labels < 0).any():
        row = int(np.argmax(negative))
        raise BadDataError(
            f"{place}: row {first_row + row} has label {labels[row]}; expected "
            "0 or more. Remove the rows without a class, or the labels file."
        )
    return labels


def is_one_hot(table: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether each row has a single 1 and otherwise 0."""
    rows: NDArray[np.bool_] = ((table == 0) | (table == 1)).all(axis=1) & (table.sum(axis=1) == 1)
    return rows


def classes_of_one_hot(table: NDArray[Any], place: str, first_row: int) -> NDArray[Any]:
    """Return the class of each row; raise `BadDataError` for one that is not one-hot."""
    whole = is_one_hot(table)
    if not whole.all():
        row = int(np.argmin(whole))
        shown = np.array2string(table[row], separator=", ", threshold=_SHOWN_COLUMNS)
        raise BadDataError(
            f"{place}: row {first_row + row} holds {shown}; expected one-hot labels, a single 1 "
            f"and otherwise 0 in {table.shape[1]:,} columns. Store one integer per row, the class, "
            "instead."
        )
    classes: NDArray[Any] = np.argmax(table, axis=1)
    return classes


def _relative(path: Path, base: Path) -> str:
    return path.name if path == base else os.path.relpath(path, base)


def _status(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is written to; zeros if it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return status.st_ino, status.st_size, status.st_mtime_ns
