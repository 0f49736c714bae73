"""The interface of sources: splits whose rows are read in parts.

To add a source, write a subclass of `SplitSource` in a module of this folder and select it in
`source.open_source`. `synthetic` is the smallest example.
"""

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from storage.errors import BadDataError
from storage.events import Progress

SPLITS = ("train", "validation", "test")
"""The splits of a dataset, in order."""
SPLIT_OF = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "t10k": "test",
}
"""The split that a word in the name of a file, folder or array means."""

T = TypeVar("T")
Rows = tuple[NDArray[Any], NDArray[Any] | None]
"""Images `(rows, *image_shape)` and integer labels `(rows,)`, None where unlabelled."""


@dataclass(frozen=True)
class SourceFile:
    """A file that rows were read from, or a generator; then sizes and digests are None."""

    name: str
    content: str
    """`images`, `labels` or `generated`."""
    stored_bytes: int | None = None
    stored_sha256: str | None = None
    decoded_bytes: int | None = None
    decoded_sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the file as a dataset records it."""
        return {"kind" if name == "content" else name: v for name, v in vars(self).items()}


@dataclass(frozen=True)
class Part(ABC):
    """The contiguous rows [start, stop) of a split, which any worker can unpickle and load."""

    start: int
    stop: int
    holds_data: ClassVar[bool] = True
    """Whether the part is pickled with its data, not only with the numbers of its rows."""

    @abstractmethod
    def load(self, start: int, stop: int) -> Rows:
        """Return rows [start, stop) of the split, which must be within this part."""


@dataclass(frozen=True)
class LoadedPart(Part):
    """Rows that were already read; they are pickled with the part."""

    rows: Rows = field(repr=False)

    def load(self, start: int, stop: int) -> Rows:
        images, labels = self.rows
        wanted = slice(start - self.start, stop - self.start)
        return images[wanted], None if labels is None else labels[wanted]


class SplitSource(ABC):
    """One split of a source."""

    name: str
    """`train`, `validation` or `test`."""
    origin: str
    """The file of the images, for messages."""
    rows: int
    image_shape: tuple[int, ...]
    """The shape of one image, such as (28, 28)."""
    dtype: np.dtype[Any]
    """The images' element type, in this machine's byte order."""
    has_labels: bool
    reader_memory: int = 0
    """Bytes that reading needs in addition to the rows, such as those of a library."""
    may_widen: bool = False
    """Whether `dtype` was chosen by the values, so that it can be set to a wider integer type."""

    def __repr__(self) -> str:
        labels = "labelled" if self.has_labels else "unlabelled"
        shape = " x ".join(map(str, self.image_shape))
        return f"<{self.name}: {self.rows:,} {labels} images of {shape} {self.dtype}>"

    @abstractmethod
    def label_values(self, progress: Progress) -> list[int]:
        """Return the distinct labels in ascending order; none for an unlabelled split.

        Uses bounded memory, and calls `progress`, which may raise. Raises `BadDataError` if labels
        are damaged or more than 1000 are distinct.
        """

    @abstractmethod
    def parts(self, rows_per_part: int) -> Generator[Part, None, None]:
        """Yield all rows in order, `rows_per_part` at a time; the last part may be shorter.

        Raises `BadDataError` for damaged data, and after the last part for extra bytes. Only a
        complete pass checks everything. Close a pass that may end early: it holds open files, and
        possibly threads.
        """

    @abstractmethod
    def files(self) -> list[SourceFile]:
        """Return the files that the rows came from; call it after a complete pass over `parts`."""

    @abstractmethod
    def fingerprint(self, progress: Progress) -> dict[str, Any]:
        """Return a JSON object that identifies the content.

        For files, their stored sizes and SHA-256, independent of their location; for generated
        rows, the generator's arguments.
        """


def split_named(name: str) -> str | None:
    """Return the split that one of the words of a name means; None without such a word."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((SPLIT_OF[word] for word in words if word in SPLIT_OF), None)


def in_order(by_split: Mapping[str, T]) -> dict[str, T]:
    """Return what belongs to each split in the order of `SPLITS`."""
    return {split: by_split[split] for split in SPLITS if split in by_split}


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Return names sorted with the numbers in them compared by value: `a2` before `a10`."""
    return sorted(names, key=lambda name: (natural_key(name), name))


def natural_key(name: str) -> str:
    """Return a key that sorts numbers in names by value.

    A number becomes the count of its digits, then the digits: a string takes less memory than a
    tuple for each of many files.
    """
    return re.sub("[0-9]+", _number_key, name)


def _number_key(match: re.Match[str]) -> str:
    digits = match[0].lstrip("0")
    return f"0{chr(min(len(digits), sys.maxunicode))}{digits}"


def check_same_images(splits: Sequence[SplitSource]) -> None:
    """Raise `BadDataError` if splits differ in the shape or the element type of their images."""
    if len({(split.image_shape, split.dtype) for split in splits}) > 1:
        shapes = ", ".join(f"{s.name} has {s.image_shape} of {s.dtype}" for s in splits)
        raise BadDataError(
            f"The splits' images differ: {shapes}; expected the same shape and element type. "
            "Take the files of all splits from the same set."
        )


def changed_error(place: object) -> BadDataError:
    """Return the error for a file that has other content than before."""
    return BadDataError(f"{place} changed while it was being read. Run the same command again.")
