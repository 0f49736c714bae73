"""Order version 1: the sequence in which an epoch visits a split's rows, as pure arithmetic.

A published order never changes; test vectors pin it. docs/explanation/order.md defines it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

ORDER_VERSION = 1
CHAIN_START = bytes(32)
"""The order digest before the first mini-batch.

Each mini-batch replaces it by the SHA-256 of the digest and the batch's row numbers, as
little-endian uint64.
"""

RowNumbers = NDArray[np.int64]


def raw_numbers(
    count: int, seed: int, epoch: int, level: str, window: int = 0
) -> NDArray[np.uint64]:
    """Return `(count,)` uint64 from a Philox generator keyed by a hash of the other arguments.

    NumPy keeps this raw stream the same in all versions, which it does not promise for the methods
    of `Generator`. Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    text = f"mnist-stream order 1|{seed}|{epoch}|{level}|{window}"
    key = np.frombuffer(hashlib.sha256(text.encode("ascii")).digest()[:16], dtype="<u8")
    return np.random.Philox(key=key.astype(np.uint64), counter=0).random_raw(count)


def permutation(count: int, seed: int, epoch: int, level: str, window: int = 0) -> RowNumbers:
    """Return `(count,)`, the stable argsort of `count` raw numbers."""
    numbers = raw_numbers(count, seed, epoch, level, window)
    # NumPy has a radix sort for 16 bits, and four of them take half the time of `argsort`. They are
    # also free of its vector instructions, which QEMU 7.2 emulates wrongly.
    places = np.arange(count)
    for digit in numbers.astype("<u8", copy=False).view("<u2").reshape(count, 4).T:
        places = places.take(np.argsort(digit.take(places), kind="stable"))
    return places


def cut(start: int, stop: int, parts: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds of the non-empty parts that `numpy.array_split` would make."""
    smaller, larger = divmod(stop - start, parts)
    for part in range(parts):
        end = start + smaller + (part < larger)
        if end > start:
            yield start, end
        start = end


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch over rows [first_row, first_row + rows) of a split.

    Chunks of rows are permuted, consecutive groups of chunks form windows, and the rows of each
    window are permuted. Without `shuffle`, rows keep their order.
    """

    seed: int
    epoch: int
    """Counted from 0."""
    rows: int
    chunk_rows: int
    window_chunks: int
    """Chunks per window, at least 1; the last window may have fewer."""
    shuffle: bool = True
    first_row: int = 0

    @property
    def first_chunk(self) -> int:
        """Number of the chunk that contains the first row."""
        return self.first_row // self.chunk_rows

    @property
    def chunks(self) -> int:
        """Number of chunks that contain any of the rows."""
        return -(-(self.first_row + self.rows) // self.chunk_rows) - self.first_chunk

    @property
    def windows(self) -> int:
        """Number of windows in an epoch."""
        return -(-self.chunks // self.window_chunks)

    @cached_property
    def chunk_order(self) -> RowNumbers:
        """`(chunks,)`: the chunk numbers in visiting order."""
        if not self.shuffle:
            return np.arange(self.first_chunk, self.first_chunk + self.chunks)
        return self.first_chunk + permutation(self.chunks, self.seed, self.epoch, "chunks")

    @cached_property
    def window_starts(self) -> RowNumbers:
        """`(windows + 1,)`: the position of each window's first row in the epoch, then `rows`."""
        starts, stops = self.chunk_bounds(self.chunk_order)
        visited = np.concatenate([[0], np.cumsum(stops - starts)])
        edges = np.arange(self.windows + 1) * self.window_chunks
        return visited[np.minimum(edges, self.chunks)]

    def chunk_bounds(self, chunks: RowNumbers) -> tuple[RowNumbers, RowNumbers]:
        """Return, for each chunk, the bounds [start, stop) of its rows that belong to the order."""
        starts = np.maximum(chunks * self.chunk_rows, self.first_row)
        stops = np.minimum((chunks + 1) * self.chunk_rows, self.first_row + self.rows)
        return starts, stops

    def window(self, number: int) -> "Window":
        """Return window `number`, from 0; its rows are permuted on first use."""
        first = number * self.window_chunks
        chunks = self.chunk_order[first : first + self.window_chunks]
        starts, stops = self.chunk_bounds(chunks)
        return Window(
            self.epoch, number, chunks, starts, stops, self.seed if self.shuffle else None
        )

    def window_at(self, place: int) -> int:
        """Return the number of the window that contains position `place` of the epoch."""
        return int(np.searchsorted(self.window_starts, place, side="right")) - 1


@dataclass(frozen=True)
class Window:
    """Chunks whose rows are shuffled together."""

    epoch: int
    number: int
    chunks: RowNumbers
    """`(window chunks,)`: the chunk numbers, in the order in which their rows are listed."""
    starts: RowNumbers
    stops: RowNumbers
    """`(window chunks,)` each: the bounds [start, stop) of each chunk's rows."""
    seed: int | None
    """The order's seed; None for an order without shuffling."""

    @cached_property
    def rows(self) -> int:
        """Number of rows in the window."""
        return int((self.stops - self.starts).sum())

    @cached_property
    def places(self) -> RowNumbers:
        """`(rows,)`: a permutation; row i of the window is the listed row `places[i]`."""
        if self.seed is None:
            return np.arange(self.rows)
        return permutation(self.rows, self.seed, self.epoch, "rows", self.number)

    @cached_property
    def row_numbers(self) -> RowNumbers:
        """`(rows,)`: row numbers of the split, in visiting order."""
        listed = np.concatenate(
            [np.arange(start, stop) for start, stop in zip(self.starts, self.stops, strict=True)]
        )
        return listed[self.places]

    @cached_property
    def destinations(self) -> RowNumbers:
        """`(rows,)`: the position of each listed row in the window; the inverse of `places`."""
        inverse = np.empty_like(self.places)
        inverse[self.places] = np.arange(len(self.places))
        return inverse
