"""The order, version 1: in which sequence an epoch visits a split's rows; pure arithmetic.

A published order never changes: what it gives for the same arguments is pinned by test vectors.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

ORDER_VERSION = 1
CHAIN_START = bytes(32)
"""Where the order digest begins.

A mini-batch's link is the SHA-256 of the link before and the batch's row numbers as little-endian
uint64.
"""

RowNumbers = NDArray[np.int64]


def raw_numbers(
    count: int, seed: int, epoch: int, level: str, window: int = 0
) -> NDArray[np.uint64]:
    """Return `(count,)` uint64 of the Philox counter generator, its key hashed from all the rest.

    NumPy promises this raw stream across versions; it promises no such thing for the methods of
    `Generator`. Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    text = f"mnist-stream order 1|{seed}|{epoch}|{level}|{window}"
    key = np.frombuffer(hashlib.sha256(text.encode("ascii")).digest()[:16], dtype="<u8")
    return np.random.Philox(key=key.astype(np.uint64), counter=0).random_raw(count)


def permutation(count: int, seed: int, epoch: int, level: str, window: int = 0) -> RowNumbers:
    """Return `(count,)`, the stable argsort of `count` raw numbers."""
    numbers = raw_numbers(count, seed, epoch, level, window)
    places = np.argsort(numbers)  # five times as fast, and the same where no two are equal
    ordered = numbers[places]
    if (ordered[1:] == ordered[:-1]).any():
        return np.argsort(numbers, kind="stable")
    return places


def cut(start: int, stop: int, parts: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds of contiguous parts, sized as by `numpy.array_split`, but for empty ones."""
    smaller, larger = divmod(stop - start, parts)
    for part in range(parts):
        end = start + smaller + (part < larger)
        if end > start:
            yield start, end
        start = end


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch over rows [first_row, first_row + rows) of a split.

    The rows lie in chunks; chunks are permuted, consecutive groups of them form windows, and the
    rows of a window are permuted. Unshuffled, everything keeps its place.
    """

    seed: int
    epoch: int
    """Counted from 0."""
    rows: int
    chunk_rows: int
    window_chunks: int
    """Chunks of a window, at least 1; the last window may have fewer."""
    shuffle: bool = True
    first_row: int = 0

    @property
    def first_chunk(self) -> int:
        """The chunk that holds the first row."""
        return self.first_row // self.chunk_rows

    @property
    def chunks(self) -> int:
        """Chunks that hold any of the rows."""
        return -(-(self.first_row + self.rows) // self.chunk_rows) - self.first_chunk

    @property
    def windows(self) -> int:
        """Windows of the epoch."""
        return -(-self.chunks // self.window_chunks)

    @cached_property
    def chunk_order(self) -> RowNumbers:
        """`(chunks,)`: the chunks' numbers, in the order of their visit."""
        if not self.shuffle:
            return np.arange(self.first_chunk, self.first_chunk + self.chunks)
        return self.first_chunk + permutation(self.chunks, self.seed, self.epoch, "chunks")

    @cached_property
    def window_starts(self) -> RowNumbers:
        """`(windows + 1,)`: the place in the epoch of each window's first row, then `rows`."""
        starts, stops = self.chunk_bounds(self.chunk_order)
        visited = np.concatenate([[0], np.cumsum(stops - starts)])
        edges = np.arange(self.windows + 1) * self.window_chunks
        return visited[np.minimum(edges, self.chunks)]

    def chunk_bounds(self, chunks: RowNumbers) -> tuple[RowNumbers, RowNumbers]:
        """Return the rows [start, stop) of each of the chunks that belong to the order."""
        starts = np.maximum(chunks * self.chunk_rows, self.first_row)
        stops = np.minimum((chunks + 1) * self.chunk_rows, self.first_row + self.rows)
        return starts, stops

    def window(self, number: int) -> "Window":
        """Return window `number`, in [0, windows - 1]; its rows are permuted when asked for."""
        first = number * self.window_chunks
        chunks = self.chunk_order[first : first + self.window_chunks]
        starts, stops = self.chunk_bounds(chunks)
        return Window(
            self.epoch, number, chunks, starts, stops, self.seed if self.shuffle else None
        )

    def window_at(self, place: int) -> int:
        """Return the window that holds the row visited as number `place` of the epoch."""
        return int(np.searchsorted(self.window_starts, place, side="right")) - 1


@dataclass(frozen=True)
class Window:
    """The chunks that are shuffled together, and how."""

    epoch: int
    number: int
    chunks: RowNumbers
    """`(window chunks,)`: the chunks, in the order in which their rows are listed."""
    starts: RowNumbers
    stops: RowNumbers
    """The rows [start, stop) of the split that belong to the order, for each chunk."""
    seed: int | None
    """The order's seed, or None where nothing is shuffled."""

    @cached_property
    def rows(self) -> int:
        """How many rows the window has."""
        return int((self.stops - self.starts).sum())

    @cached_property
    def places(self) -> RowNumbers:
        """`(rows,)`: a permutation; the window's row i is the listed row `places[i]`."""
        if self.seed is None:
            return np.arange(self.rows)
        return permutation(self.rows, self.seed, self.epoch, "rows", self.number)

    @cached_property
    def row_numbers(self) -> RowNumbers:
        """`(rows,)`: the rows of the split, in the order of their visit."""
        listed = np.concatenate(
            [np.arange(start, stop) for start, stop in zip(self.starts, self.stops, strict=True)]
        )
        return listed[self.places]

    @cached_property
    def destinations(self) -> RowNumbers:
        """`(rows,)`: where each listed row goes; the inverse of `places`."""
        inverse = np.empty_like(self.places)
        inverse[self.places] = np.arange(len(self.places))
        return inverse
