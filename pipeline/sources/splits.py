"""What every kind of source gives: splits, whose rows come in parts.

A new kind is a module beside this one with a subclass of `SplitSource`; `source.open_source` says
which kind a name or a path is. `synthetic` is the smallest example.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.events import Progress

Rows = tuple[NDArray[Any], NDArray[Any] | None]
"""Images `(rows, *image_shape)` and integer labels `(rows,)`, None where unlabelled."""


@dataclass(frozen=True)
class SourceFile:
    """One file that rows came from, or a generator: then sizes and digests are None."""

    name: str
    kind: str
    """`images`, `labels` or `generated`."""
    stored_bytes: int | None = None
    stored_sha256: str | None = None
    decoded_bytes: int | None = None
    decoded_sha256: str | None = None


@dataclass(frozen=True)
class Part(ABC):
    """The contiguous rows [start, stop) of a split. It can be pickled and loaded on any worker."""

    start: int
    stop: int

    @abstractmethod
    def load(self, start: int, stop: int) -> Rows:
        """Return rows [start, stop) of the split, all of them this part's."""


@dataclass(frozen=True)
class LoadedPart(Part):
    """Rows that were read already; they travel with the part."""

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
    """Where the images come from, for messages."""
    rows: int
    image_shape: tuple[int, ...]
    """The shape of one image, such as (28, 28)."""
    dtype: np.dtype[Any]
    """The images' element type, in this machine's byte order."""
    has_labels: bool

    def __repr__(self) -> str:
        labels = "labelled" if self.has_labels else "unlabelled"
        shape = " x ".join(map(str, self.image_shape))
        return f"<{self.name}: {self.rows:,} {labels} images of {shape} {self.dtype}>"

    @abstractmethod
    def label_values(self, progress: Progress) -> list[int]:
        """Return the distinct labels in ascending order; none for an unlabelled split.

        Takes bounded memory, and calls `progress` often enough to be stopped by it. Raises
        `BadDataError` where the labels are damaged, or more than 1000 of them are distinct.
        """

    @abstractmethod
    def parts(self, rows_per_part: int) -> Iterator[Part]:
        """Yield all rows in order, `rows_per_part` at a time, the last part perhaps shorter.

        Raises `BadDataError` where the data is damaged, and after the last part where something
        follows it: only a whole pass has checked everything.
        """

    @abstractmethod
    def files(self) -> list[SourceFile]:
        """Return what the rows came from, after a whole pass over `parts`."""

    @abstractmethod
    def fingerprint(self, progress: Progress) -> dict[str, Any]:
        """Return what tells this content from any other, as a JSON object.

        For files their stored size and SHA-256, wherever they lie; for generated rows what they
        follow from.
        """
