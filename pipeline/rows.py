"""Read rows by their positions in the order, from windows, in the job or on a worker."""

import threading
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.order import EpochOrder, RowNumbers, Window
from pipeline.windows import ROW_NUMBERS, Loader, WindowLoader
from storage.chunks import SHARED_PLACE
from storage.dataset import Block, Split, open_dataset
from storage.errors import ConflictError, UnreachableError
from storage.location import Closing, Location
from storage.schema import METADATA_NAME, SplitSchema

READING_THREADS = 2
"""Chunks that a worker decodes at once; its machine may have other workers."""
THREADS_MEMORY = 2**18
"""Bytes of a reader's threads."""


@dataclass(frozen=True)
class Batch:
    """The rows of a mini-batch, in the order of the epoch; the arrays are read-only.

    A batch may be a view of its window, and then keeps the whole window in memory, in addition to
    the two that the stream holds. Drop it before you take the next one, or copy what you keep.
    """

    inputs: NDArray[Any]
    """`(rows, 1 + features)` in the stored element type, not scaled; bias first."""
    targets: NDArray[np.uint8] | None
    """`(rows, classes)` one-hot, or None if the split has no labels."""
    rows: RowNumbers
    """`(rows,)` int64: the row numbers in the split."""
    epoch: int = 0
    """The epoch that the rows are visited in, from 0."""

    def __repr__(self) -> str:
        targets = "none"
        if self.targets is not None:
            targets = f"{self.targets.shape} {self.targets.dtype}"
        return f"<Batch: inputs {self.inputs.shape} {self.inputs.dtype}, targets {targets}>"

    @classmethod
    def empty(cls, schema: SplitSchema, rows: int, epoch: int) -> "Batch":
        """Return an uninitialised batch for a split."""
        return cls(
            np.empty((rows, schema.columns), schema.dtype),
            np.empty((rows, schema.classes), np.uint8) if schema.classes else None,
            np.empty(rows, np.int64),
            epoch,
        )

    def part(self, rows: "slice | RowNumbers") -> "Batch":
        """Return some of the rows: a view for a slice, a copy for an index array."""
        targets = None if self.targets is None else self.targets[rows]
        return Batch(self.inputs[rows], targets, self.rows[rows], self.epoch)

    def put(self, start: int, other: "Batch") -> None:
        """Copy another batch's rows into this batch, from row `start` on."""
        rows = slice(start, start + len(other.rows))
        self.inputs[rows] = other.inputs
        self.rows[rows] = other.rows
        if self.targets is not None and other.targets is not None:
            self.targets[rows] = other.targets


@dataclass(frozen=True)
class _Held:
    """A window in use, with the rows at positions [start, stop) of an epoch."""

    epoch: int
    start: int
    stop: int
    batch: Batch


class WindowReader(Closing):
    """Read rows by their positions; hold one window while the next one loads.

    A window is released before the reader waits for the next one. So there are never more than two,
    unless the caller keeps batches (see `Batch`).
    """

    reads_ahead = True
    """Whether the next window loads while one is in use."""

    def __init__(
        self,
        schema: SplitSchema,
        loader: Loader,
        order: EpochOrder,
        *,
        part: tuple[int, int] | None = None,
        epochs: int | None = None,
    ) -> None:
        """`order` may be any epoch's; `part` is the range of positions that will be read.

        After `epochs` epochs nothing is read ahead.
        """
        self.schema = schema
        self._loader = loader
        self._order = order
        self._part = part or (0, order.rows)
        self._epochs = epochs
        self._held: _Held | None = None

    def take(self, epoch: int, start: int, stop: int) -> Batch:
        """Return the rows at positions [start, stop) of an epoch.

        Raises `BadDataError` if a chunk is missing or damaged.
        """
        if self._reach(epoch, start) >= stop:
            return self._view(start, stop)
        batch = Batch.empty(self.schema, stop - start, epoch)
        place = start
        while place < stop:
            end = min(stop, self._reach(epoch, place))
            batch.put(place - start, self._view(place, end))
            place = end
        return batch

    def expect(self, epoch: int, place: int) -> None:
        """Start loading the window that contains a position."""
        order = self._order_at(epoch)
        self._expect(order, order.window_at(place))

    def _reach(self, epoch: int, place: int) -> int:
        """Hold the window that contains a position; return the position after its end."""
        held = self._held
        if held is None or held.epoch != epoch or not held.start <= place < held.stop:
            self._held = held = None  # released before waiting, so that there are never three
            self._held = held = self._load(self._order_at(epoch), place)
        return held.stop

    def _load(self, order: EpochOrder, place: int) -> _Held:
        number = order.window_at(place)
        window, block = self._loader.take(order, number)
        if self.reads_ahead:
            self._expect_next(order, number)
        batch = Batch(block.inputs, block.targets, window.row_numbers, order.epoch)
        start = int(order.window_starts[number])
        return _Held(order.epoch, start, start + window.rows, batch)

    def _expect_next(self, order: EpochOrder, number: int) -> None:
        start, stop = self._part
        if number < order.window_at(stop - 1):
            self._expect(order, number + 1)
        else:
            order = replace(order, epoch=order.epoch + 1)
            self._expect(order, order.window_at(start))

    def _expect(self, order: EpochOrder, number: int) -> None:
        if self._epochs is None or order.epoch < self._epochs:
            self._loader.expect(order, number)

    def _view(self, start: int, stop: int) -> Batch:
        assert self._held is not None
        return self._held.batch.part(slice(start - self._held.start, stop - self._held.start))

    def _order_at(self, epoch: int) -> EpochOrder:
        if self._order.epoch != epoch:
            self._order = replace(self._order, epoch=epoch)
        return self._order

    def close(self) -> None:
        """Stop reading ahead and release the windows."""
        self._held = None
        self._loader.close()


@dataclass(frozen=True)
class OrderedRows:
    """The training rows and their order: all that a worker needs to read any of them."""

    dataset: Location
    """Its name must mean the same in every process."""
    dataset_digest: str
    split: str
    order: EpochOrder
    """The order of any epoch."""
    epochs: int
    """Number of epochs after which nothing is read ahead."""


def check_seen(place: Location, name: str = METADATA_NAME) -> None:
    """Raise `UnreachableError` if this process does not see an object of a place of the job's."""
    if not place.exists(name):
        raise UnreachableError(
            f"{place} cannot be seen from here. The job and its workers share only the storage: "
            f"{SHARED_PLACE}"
        )


def open_split(dataset: Location, digest: str, split: str) -> Split:
    """Return a split of the dataset that the job opened.

    Raises `ConflictError` if another dataset has replaced it, and `UnreachableError` if there is
    none.
    """
    check_seen(dataset)
    opened = open_dataset(dataset)
    if opened.digest != digest:
        raise ConflictError(
            f"{dataset} has digest {opened.digest}; the job began with {digest}. It was replaced "
            "in the meantime. Start the job again."
        )
    return opened.split(split)


class RowReader(WindowReader):
    """A worker's reader, which opens the dataset itself.

    If one window holds all rows, it is read once for all epochs. Reading it again would take longer
    than a worker's share of an epoch.
    """

    def __init__(self, rows: OrderedRows, part: tuple[int, int] | None = None) -> None:
        """`part` is the range [start, stop) of positions that will be read, by default all."""
        split = open_split(rows.dataset, rows.dataset_digest, rows.split)
        super().__init__(
            split.schema,
            WindowLoader(split, READING_THREADS),
            rows.order,
            part=part,
            epochs=rows.epochs,
        )
        self._all: Batch | None = None
        """All rows in stored order, if one window holds them."""
        self._visited: tuple[int, RowNumbers] | None = None
        """An epoch and its row numbers in visiting order, if one window holds them."""
        self._lock = threading.Lock()

    @property
    def holds_all(self) -> bool:
        """Whether all rows of the order are held, whatever part is read."""
        return self._order.windows == 1

    def take(self, epoch: int, start: int, stop: int) -> Batch:
        with self._lock:
            if not self.holds_all:
                return super().take(epoch, start, stop)
            if self._all is None:
                window, block = self._loader.take(replace(self._order, shuffle=False), 0)
                self._all = Batch(block.inputs, block.targets, window.row_numbers)
            if self._visited is None or self._visited[0] != epoch:
                self._visited = epoch, self._order_at(epoch).window(0).row_numbers
            return replace(self._all.part(self._visited[1][start:stop]), epoch=epoch)

    def close(self) -> None:
        self._all = None
        super().close()


def reader_memory(schema: SplitSchema, window_chunks: int) -> int:
    """Return the bytes of a reader's window and of the chunks that it decodes."""
    chunk = schema.chunk_rows * schema.row_bytes
    window = window_chunks * schema.chunk_rows * (schema.row_bytes + ROW_NUMBERS)
    return window + (1 + READING_THREADS) * chunk + THREADS_MEMORY


class IndexOnlyLoader:
    """Provide windows without data, for a stream that yields row numbers only."""

    seconds_waited = 0.0

    def __init__(self, schema: SplitSchema) -> None:
        self._schema = schema

    def expect(self, order: EpochOrder, number: int) -> None:
        """Do nothing: no data is loaded."""

    def take(self, order: EpochOrder, number: int) -> tuple[Window, Block]:
        """Return the window, and a block of zeros of its shape that takes no memory."""
        window, schema = order.window(number), self._schema
        inputs = np.broadcast_to(np.zeros((), schema.dtype), (window.rows, schema.columns))
        none = np.zeros((), np.uint8)
        targets = np.broadcast_to(none, (window.rows, schema.classes)) if schema.classes else None
        return window, Block(inputs, targets)

    def close(self) -> None:
        """Do nothing: no data is held."""
