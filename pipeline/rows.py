"""Rows by their places in the order: what a stream cuts its batches from, here or on a worker."""

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
"""Chunks that a worker decodes at once; there are other workers on its machine."""
THREADS_MEMORY = 2**18
"""The threads of a reader, in bytes."""


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

    def __repr__(self) -> str:
        targets = "none"
        if self.targets is not None:
            targets = f"{self.targets.shape} {self.targets.dtype}"
        return f"<Batch: inputs {self.inputs.shape} {self.inputs.dtype}, targets {targets}>"

    @classmethod
    def empty(cls, schema: SplitSchema, rows: int) -> "Batch":
        """Return a batch of a split, of any content."""
        return cls(
            np.empty((rows, schema.columns), schema.dtype),
            np.empty((rows, schema.classes), np.uint8) if schema.classes else None,
            np.empty(rows, np.int64),
        )

    def part(self, rows: "slice | RowNumbers") -> "Batch":
        """Return some of the rows: a view for a slice, a copy for places in the batch."""
        targets = None if self.targets is None else self.targets[rows]
        return Batch(self.inputs[rows], targets, self.rows[rows])

    def put(self, start: int, other: "Batch") -> None:
        """Copy another batch's rows into this one's, from row `start` on."""
        rows = slice(start, start + len(other.rows))
        self.inputs[rows] = other.inputs
        self.rows[rows] = other.rows
        if self.targets is not None and other.targets is not None:
            self.targets[rows] = other.targets


@dataclass(frozen=True)
class _Held:
    """A window in use: its rows are those at places [start, stop) of an epoch."""

    epoch: int
    start: int
    batch: Batch

    @property
    def stop(self) -> int:
        return self.start + len(self.batch.rows)


class WindowReader(Closing):
    """Reads rows by their places; holds one window, and the next one on its way.

    A window is let go before the next one is waited for: there are never more than two, where
    batches are not kept (see `Batch`).
    """

    reads_ahead = True
    """Whether the next window is loaded while one is in use."""

    def __init__(
        self,
        schema: SplitSchema,
        loader: Loader,
        order: EpochOrder,
        *,
        part: tuple[int, int] | None = None,
        epochs: int | None = None,
    ) -> None:
        """`order` is any epoch's; `part` the places [start, stop) wanted, by default all.

        After `epochs` epochs nothing is read ahead any more.
        """
        self.schema = schema
        self._loader = loader
        self._order = order
        self._part = part or (0, order.rows)
        self._epochs = epochs
        self._held: _Held | None = None

    def take(self, epoch: int, start: int, stop: int) -> Batch:
        """Return the rows at places [start, stop) of an epoch.

        Raises `BadDataError` where a chunk is missing or damaged.
        """
        if self._reach(epoch, start) >= stop:
            return self._view(start, stop)
        batch = Batch.empty(self.schema, stop - start)
        place = start
        while place < stop:
            end = min(stop, self._reach(epoch, place))
            batch.put(place - start, self._view(place, end))
            place = end
        return batch

    def expect(self, epoch: int, place: int) -> None:
        """Begin to load the window that holds a place."""
        order = self._order_at(epoch)
        self._expect(order, order.window_at(place))

    def _reach(self, epoch: int, place: int) -> int:
        """Have the window at hand that holds a place; return the place where it ends."""
        held = self._held
        if held is None or held.epoch != epoch or not held.start <= place < held.stop:
            self._held = held = None  # before the next one is waited for: never hold three
            self._held = held = self._load(self._order_at(epoch), place)
        return held.stop

    def _load(self, order: EpochOrder, place: int) -> _Held:
        number = order.window_at(place)
        window, block = self._loader.take(order, number)
        if self.reads_ahead:
            self._expect_next(order, number)
        batch = Batch(block.inputs, block.targets, window.row_numbers)
        return _Held(order.epoch, int(order.window_starts[number]), batch)

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
        """Stop reading ahead and let the windows go."""
        self._held = None
        self._loader.close()


@dataclass(frozen=True)
class OrderedRows:
    """Rows of a dataset in the order of a training: all that a worker needs to find any of them."""

    dataset: Location
    """By a name that means the same in any process."""
    dataset_digest: str
    split: str
    order: EpochOrder
    """The order of any epoch."""
    epochs: int
    """After so many nothing is read ahead any more."""


def check_seen(place: Location) -> None:
    """Raise `UnreachableError` where this process cannot see what the job has begun or opened."""
    if not place.exists(METADATA_NAME):
        raise UnreachableError(
            f"{place} cannot be seen from here. Job and workers share nothing but the store: "
            f"{SHARED_PLACE}"
        )


def open_split(dataset: Location, digest: str, split: str) -> Split:
    """Return a split of the very dataset that is meant.

    Raises `ConflictError` where another has its place, `UnreachableError` where there is none: the
    job has opened it where it is.
    """
    check_seen(dataset)
    opened = open_dataset(dataset)
    if opened.digest != digest:
        raise ConflictError(
            f"{dataset} has digest {opened.digest}; the job began with {digest}. It was replaced: "
            "start the job anew."
        )
    return opened.split(split)


class RowReader(WindowReader):
    """A worker's reader, which opens the dataset itself.

    Where one window holds the whole order, it is read once for all epochs: the next epoch's has the
    same rows, and reading them again would take longer than a worker's share of an epoch does.
    """

    def __init__(self, rows: OrderedRows, part: tuple[int, int] | None = None) -> None:
        """`part` is the places [start, stop) of each epoch that are asked for, by default all."""
        split = open_split(rows.dataset, rows.dataset_digest, rows.split)
        super().__init__(
            split.schema,
            WindowLoader(split, READING_THREADS),
            rows.order,
            part=part,
            epochs=rows.epochs,
        )
        self._all: Batch | None = None
        """All rows as they are stored, where one window holds them."""
        self._visited: tuple[int, RowNumbers] | None = None
        """An epoch and its rows in their order, where one window holds them."""
        self._lock = threading.Lock()

    @property
    def holds_all(self) -> bool:
        """Whether all rows of the order are held, whatever part of them is asked for."""
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
            return self._all.part(self._visited[1][start:stop])

    def close(self) -> None:
        self._all = None
        super().close()


def reader_memory(schema: SplitSchema, window_chunks: int) -> int:
    """Return the bytes of a reader's own window, and of the chunks that it decodes."""
    chunk = schema.chunk_rows * schema.row_bytes
    window = window_chunks * schema.chunk_rows * (schema.row_bytes + ROW_NUMBERS)
    return window + (1 + READING_THREADS) * chunk + THREADS_MEMORY


class IndexOnlyLoader:
    """Gives windows without rows: for a stream that only says which rows are next."""

    seconds_waited = 0.0

    def __init__(self, schema: SplitSchema) -> None:
        self._schema = schema

    def expect(self, order: EpochOrder, number: int) -> None:
        """Do nothing: there is nothing to wait for."""

    def take(self, order: EpochOrder, number: int) -> tuple[Window, Block]:
        """Return the window, and a block of its shape that takes no memory."""
        window, schema = order.window(number), self._schema
        inputs = np.broadcast_to(np.zeros((), schema.dtype), (window.rows, schema.columns))
        none = np.zeros((), np.uint8)
        targets = np.broadcast_to(none, (window.rows, schema.classes)) if schema.classes else None
        return window, Block(inputs, targets)

    def close(self) -> None:
        """Do nothing: nothing is held."""
