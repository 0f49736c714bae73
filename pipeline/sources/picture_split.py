"""Splits of one picture per file: read in order, decoded wherever a part is loaded."""

import hashlib
import logging
import math
import os
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.file_split import MAX_CLASSES
from pipeline.sources.formats import Source, SourceOptions, directory_name
from pipeline.sources.pictures import MOST_STORED_BYTES, decode_picture, decode_with_shape
from pipeline.sources.splits import (
    Part,
    Rows,
    SourceFile,
    SplitSource,
    changed_error,
    in_order,
)
from storage.errors import BadDataError, UsageError, counted, translate_os_errors
from storage.events import Progress

LEAST_BYTES_HELD = 4 * 2**20
"""Stored bytes of a part's pictures that are held, if its pixels are not more."""
DECODING_THREADS = min(4, os.cpu_count() or 1)
"""Threads that decode the pictures of a part whose stored bytes are too many to hold."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureFiles:
    """The files of a split, in the order of its rows."""

    names: list[str]
    """Paths relative to the source's folder."""
    labels: NDArray[np.int32] | None
    """The label of each file; None for an unlabelled split."""

    def take(self, rows: list[int]) -> "PictureFiles":
        """Return the files of these rows."""
        labels = None if self.labels is None else self.labels[rows]
        return PictureFiles([self.names[row] for row in rows], labels)


@dataclass(frozen=True)
class PicturePart(Part):
    """Pictures as stored, or already decoded; they are pickled with the part."""

    pictures: list[bytes | NDArray[np.uint8]] = field(repr=False)
    places: list[str] = field(repr=False)
    labels: NDArray[Any] | None = field(repr=False)
    image_shape: tuple[int, ...]
    resize: tuple[int, int] | None

    def load(self, start: int, stop: int) -> Rows:
        wanted = slice(start - self.start, stop - self.start)
        images = np.empty((stop - start, *self.image_shape), np.uint8)
        rows = zip(images, self.pictures[wanted], self.places[wanted], strict=True)
        for image, picture, place in rows:
            if isinstance(picture, bytes):
                image[...] = decode_with_shape(picture, place, self.image_shape, self.resize)
            else:
                image[...] = picture
        return images, None if self.labels is None else self.labels[wanted]


class StoredPicture(NamedTuple):
    """A picture before it is decoded."""

    data: bytes
    place: str
    """Its file, and its row if the file has several, for messages."""
    label: int | None


def picture_parts(
    split: SplitSource,
    stored: Generator[StoredPicture, None, None],
    rows_per_part: int,
    resize: tuple[int, int] | None,
) -> Generator[Part, None, None]:
    """Yield the pictures of a split in parts; close `stored` at the end.

    They are decoded where a part is loaded, or here if their stored bytes are too many to hold.
    """
    shape = split.image_shape
    most = max(LEAST_BYTES_HELD, rows_per_part * math.prod(shape))
    decode = partial(decode_with_shape, shape=shape, resize=resize)
    with closing(stored), ThreadPoolExecutor(DECODING_THREADS, "pictures") as pool:
        for start in count(0, rows_per_part):
            pictures: list[bytes | NDArray[np.uint8]] = []
            places: list[str] = []
            labels: list[int | None] = []
            decoded = held = 0
            for data, place, label in islice(stored, rows_per_part):
                pictures.append(data)
                places.append(place)
                labels.append(label)
                held += len(data)
                if held > most:
                    pictures[decoded:] = pool.map(decode, pictures[decoded:], places[decoded:])
                    decoded, held = len(pictures), 0
            if not pictures:
                return
            classes = np.array(labels, np.int64) if split.has_labels else None
            stop = start + len(pictures)
            yield PicturePart(start, stop, pictures, places, classes, shape, resize)


class PictureSplit(SplitSource):
    """A split with a file for each row. The files must not change after `fingerprint`."""

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        name: str,
        base: Path,
        files: PictureFiles,
        image_shape: tuple[int, ...],
        resize: tuple[int, int] | None,
    ) -> None:
        """Keep the names of the files, which are relative to `base`."""
        self.name, self.origin = name, str(base)
        self.rows, self.image_shape = len(files.names), image_shape
        self.has_labels = files.labels is not None
        self._files, self._base, self._resize = files, str(base), resize
        self._prefixes: NDArray[np.uint64] | None = None
        self._stored_bytes, self._digest = 0, ""

    def label_values(self, progress: Progress) -> list[int]:
        labels = self._files.labels
        return [] if labels is None else [int(label) for label in np.unique(labels)]

    def fingerprint(self, progress: Progress) -> dict[str, Any]:
        prefixes = np.empty(self.rows, np.uint64)
        content = hashlib.sha256()
        self._stored_bytes = 0
        for row in range(self.rows):
            progress(f"ingest {self.name}", 0, self.rows)
            data = self._read(row)
            prefixes[row] = self._add(content, row, data)
        self._prefixes, self._digest = prefixes, content.hexdigest()
        resize = None if self._resize is None else "{}x{}".format(*self._resize)
        return {
            "files": {"stored_bytes": self._stored_bytes, "stored_sha256": self._digest},
            "channels": "rgb" if len(self.image_shape) == 3 else "grey",
            "resize": resize,
        }

    def parts(self, rows_per_part: int) -> Generator[Part, None, None]:
        return picture_parts(self, self._stored(), rows_per_part, self._resize)

    def _stored(self) -> Generator[StoredPicture, None, None]:
        """Read the files in order; raise `BadDataError` for one that has changed."""
        content, self._stored_bytes = hashlib.sha256(), 0
        for row in range(self.rows):
            data, place = self._read(row), self._place(row)
            prefix = self._add(content, row, data)
            if self._prefixes is not None and self._prefixes[row] != prefix:
                raise changed_error(place)
            label = None if self._files.labels is None else int(self._files.labels[row])
            yield StoredPicture(data, place, label)
        self._digest = content.hexdigest()

    def _add(self, content: Any, row: int, data: bytes) -> int:
        """Add a file to the digest of all of them; return the start of its own SHA-256."""
        sha256 = hashlib.sha256(data)
        label = "" if self._files.labels is None else self._files.labels[row]
        line = f"{sha256.hexdigest()} {label} {self._files.names[row]}\n"
        content.update(line.encode(errors="surrogateescape"))
        self._stored_bytes += len(data)
        return int.from_bytes(sha256.digest()[:8])

    def _place(self, row: int) -> str:
        return os.path.join(self._base, self._files.names[row])

    def _read(self, row: int) -> bytes:
        return read_picture(Path(self._place(row)))

    def files(self) -> list[SourceFile]:
        name = self._files.names[0] if self.rows == 1 else counted(self.rows, "picture")
        return [SourceFile(name, "images", self._stored_bytes, self._digest)]


def open_pictures(
    base: Path,
    splits: dict[str, PictureFiles],
    class_names: tuple[str, ...],
    options: SourceOptions,
    description: str,
) -> Source:
    """Return a source of the pictures in a folder, whose first one sets the size of all.

    `options.holdout` and `options.shuffle` draw by SHA-256 of the seed and each file's name, so
    the order is the same on every machine. Raises `UsageError` if `holdout` does not fit, and
    `BadDataError` if the first picture cannot be read.
    """
    if len(class_names) > MAX_CLASSES:
        raise BadDataError(
            f"{base} has pictures of {len(class_names):,} classes; expected at most "
            f"{MAX_CLASSES:,}. Check that the folders or labels are classes."
        )
    if options.holdout is not None:
        splits = _hold_out(base, splits, options.holdout, options.seed)
    if options.shuffle:
        splits = {
            name: files.take(_random_order("shuffle", files.names, options.seed))
            for name, files in splits.items()
        }
    elif "train" in splits and _is_sorted_by_class(splits["train"].labels):
        logger.warning(
            "%s: the rows of the train split are sorted by class, and training shuffles within "
            "windows of chunks only. Pass --shuffle to store them in random order.",
            base,
        )
    ordered = in_order(splits)
    place = os.path.join(base, next(iter(ordered.values())).names[0])
    first = decode_picture(read_picture(Path(place)), place, options.channels, options.resize)
    return Source(
        directory_name(base),
        tuple(
            PictureSplit(name, base, files, first.shape, options.resize)
            for name, files in ordered.items()
        ),
        description,
        class_names or None,
    )


def read_picture(path: Path) -> bytes:
    """Return the bytes of a file; raise `BadDataError` if it is missing or too large."""
    try:
        with translate_os_errors("read", path), open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, MOST_STORED_BYTES))
    except FileNotFoundError:
        raise BadDataError(f"{path} is missing. Add it, and run the same command again.") from None
    if size > MOST_STORED_BYTES:
        raise BadDataError(
            f"{path} has {size:,} bytes; expected at most {MOST_STORED_BYTES:,}. Make the picture "
            "smaller, or remove it."
        )
    if len(data) != size:
        raise changed_error(str(path))
    return data


def _hold_out(
    base: Path, splits: dict[str, PictureFiles], count: int, seed: int
) -> dict[str, PictureFiles]:
    """Move `count` pictures, drawn at random, from the train split to a test split."""
    files = splits.get("train")
    if files is None or len(splits) > 1:
        raise UsageError(
            "--holdout makes a test split of pictures without splits, but "
            f"{base} has {' and '.join(in_order(splits))}. Leave it out."
        )
    if count >= len(files.names):
        raise UsageError(
            f"--holdout {count:,} leaves nothing to train on: {base} has "
            f"{counted(len(files.names), 'picture')}. Give a smaller number."
        )
    drawn = _random_order("holdout", files.names, seed)
    return {"train": files.take(sorted(drawn[count:])), "test": files.take(sorted(drawn[:count]))}


def _random_order(purpose: str, names: list[str], seed: int) -> list[int]:
    def key(row: int) -> bytes:
        text = f"{purpose} {seed} {names[row]}"
        return hashlib.sha256(text.encode(errors="surrogateescape")).digest()

    return sorted(range(len(names)), key=key)


def _is_sorted_by_class(labels: NDArray[np.int32] | None) -> bool:
    """Return whether each class is one run of rows, and there are several."""
    if labels is None:
        return False
    classes = len(np.unique(labels))
    runs = 1 + int(np.count_nonzero(np.diff(labels)))
    return 1 < classes == runs < len(labels)
