"""A split from an IDX file of images and an optional one of labels, read together in one pass."""

from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.file_split import (
    MAX_CLASSES,
    DistinctLabels,
    check_labels,
    classes_of_one_hot,
    is_one_hot,
)
from pipeline.sources.splits import LoadedPart, Part, SourceFile, SplitSource
from storage.decoding import FileDigests, hash_stored
from storage.errors import BadDataError, counted
from storage.events import Progress
from storage.idx import IdxHeader, IdxReader

QMNIST_COLUMNS = (8,)
"""The shape of a row of QMNIST's extended labels, of type int."""

_LABEL_BLOCK_ROWS = 65_536
_LABEL_BLOCK_BYTES = 2**20
"""Amount of a labels file to read at once."""


class IdxSplit(SplitSource):
    """The rows of an images file, with the classes of an optional labels file."""

    def __init__(self, name: str, images: Path, labels: Path | None = None) -> None:
        """Read the headers; raise `BadDataError` if they do not describe images and labels."""
        self.name = name
        self.origin = str(images)
        self.has_labels = labels is not None
        self._paths = {"images": images, **({} if labels is None else {"labels": labels})}
        self._headers = {content: _read_header(path) for content, path in self._paths.items()}
        self._digests: dict[str, FileDigests] = {}  # from the last complete pass
        header = self._headers["images"]
        if len(header.shape) < 2:
            raise BadDataError(
                f"{images} has values of shape {header.shape}; expected images of shape (rows, "
                "height, width) or (rows, features). Check which file contains the images."
            )
        self.rows, *shape = header.shape
        self.image_shape = tuple(shape)
        self.dtype = header.dtype
        if labels is not None:
            self._check_labels(labels, self._headers["labels"])

    def _check_labels(self, path: Path, header: IdxHeader) -> None:
        rows, *columns = header.shape
        if len(columns) > 1 or max(columns, default=1) > MAX_CLASSES or header.dtype.kind == "f":
            raise BadDataError(
                f"{path} has {header.dtype} values of shape {header.shape}; expected labels: "
                "integers of shape (rows,), or one-hot of shape (rows, classes) with at most "
                f"{MAX_CLASSES:,} classes. Check which file contains the labels."
            )
        if rows != self.rows:
            raise BadDataError(
                f"{path} has {counted(rows, 'label')}, but {self.origin} has "
                f"{counted(self.rows, 'image')}; expected equal numbers. Take both files from the "
                "same set and split."
            )

    def label_values(self, progress: Progress) -> list[int]:
        if not self.has_labels:
            return []
        distinct = DistinctLabels(str(self._paths["labels"]))
        with self._open("labels") as reader:
            labels = LabelReader(reader)
            for _ in range(0, self.rows, _LABEL_BLOCK_ROWS):
                progress(f"ingest {self.name}", 0, self.rows)
                distinct.add(labels.read(_LABEL_BLOCK_ROWS))
            reader.finish()
        _check_byte_order(reader.path, reader.header.dtype, distinct.values())
        return distinct.values()

    def parts(self, rows_per_part: int) -> Generator[Part, None, None]:
        with ExitStack() as stack:
            readers = {content: stack.enter_context(self._open(content)) for content in self._paths}
            labels = LabelReader(readers["labels"]) if self.has_labels else None
            for start in range(0, self.rows, rows_per_part):
                images = readers["images"].read_rows(rows_per_part)
                classes = None if labels is None else labels.read(len(images))
                yield LoadedPart(start, start + len(images), (images, classes))
            self._digests = {content: reader.finish() for content, reader in readers.items()}

    def _open(self, content: str) -> IdxReader:
        reader = IdxReader(self._paths[content])
        if reader.header != self._headers[content]:
            reader.close()
            raise BadDataError(
                f"{reader.path} changed while it was being read: its shape is "
                f"{reader.header.shape}, expected {self._headers[content].shape}. Run the same "
                "command again."
            )
        return reader

    def files(self) -> list[SourceFile]:
        return [
            SourceFile(self._paths[content].name, content, **vars(digests))
            for content, digests in self._digests.items()
        ]

    def fingerprint(self, progress: Progress) -> dict[str, Any]:
        fingerprint = {}
        for content, path in self._paths.items():
            size, sha256 = hash_stored(path, lambda: progress(f"ingest {self.name}", 0, self.rows))
            fingerprint[content] = {"stored_bytes": size, "stored_sha256": sha256}
        return fingerprint


class LabelReader:
    """Read the class of each row of a labels file, in order.

    A single column has the classes. Several columns are one-hot, or QMNIST's extended labels, whose
    first column is the class (QMNIST's README, section 2.2).
    """

    def __init__(self, reader: IdxReader) -> None:
        self._reader = reader
        self._start = 0
        self._is_qmnist = False

    def read(self, count: int) -> NDArray[Any]:
        """Return the classes of the next `count` rows `(count,)`, or of fewer at the end.

        Raises `BadDataError` that names the first row without a class.
        """
        at_once = max(1, _LABEL_BLOCK_BYTES // self._reader.header.row_bytes)
        blocks = [self._read(min(at_once, count - done)) for done in range(0, count, at_once)]
        return np.concatenate(blocks)

    def _read(self, count: int) -> NDArray[Any]:
        values = self._reader.read_rows(count)
        classes = values if values.ndim == 1 else self._classes_of_columns(values)
        check_labels(classes, str(self._reader.path), self._start)
        self._start += len(classes)
        return classes

    def _classes_of_columns(self, table: NDArray[Any]) -> NDArray[Any]:
        if table.shape[1] == 1:
            return table[:, 0]
        if self._start == 0 and table.shape[1:] == QMNIST_COLUMNS and table.dtype == np.int32:
            self._is_qmnist = not is_one_hot(table[:1]).all()
        if self._is_qmnist:
            return np.ascontiguousarray(table[:, 0])
        return classes_of_one_hot(table, str(self._reader.path), self._start)


def _check_byte_order(path: Path, dtype: np.dtype[Any], values: list[int]) -> None:
    """Raise `BadDataError` for labels that are classes only in the other byte order."""
    if dtype.itemsize == 1 or len(values) == 1 or values[-1] < MAX_CLASSES:
        return
    swapped = np.array(values, dtype).byteswap()
    if swapped.min() >= 0 and swapped.max() < MAX_CLASSES:
        raise BadDataError(
            f"{path} is in the wrong byte order: it has labels such as {values[-1]:,}, which is "
            f"{swapped[-1]} if read as little-endian. Write big-endian values, with "
            f"values.astype('>i{dtype.itemsize}') in NumPy."
        )


def _read_header(path: Path) -> IdxHeader:
    with IdxReader(path) as reader:
        return reader.header
