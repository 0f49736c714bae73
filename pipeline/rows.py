"""Rows by their places in the order: what a worker reads for itself, and keeps between steps."""

import threading
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.order import EpochOrder, RowNumbers, Window
from pipeline.stream import Batch
from pipeline.windows import WindowLoader
from storage.chunks import SHARED_PLACE
from storage.dataset import Block, Split, open_dataset
from storage.errors import ConflictError, UnreachableError
from storage.location import Closing, Location
from storage.schema import METADATA_NAME

READING_THREADS = 2
"""Chunks that a worker decodes at once; there are other workers on its machine."""


@dataclass(frozen=True)
class OrderedRows:
    """Rows of a dataset in the order of a training: all that a worker needs to find any of them."""

    dataset: Location
    """By a name that means the same in any process."""
    dataset_digest: str
    split: str
    seed: int
    rows: int
    """Rows [0, rows) of the split belong to the order."""
    shuffle: bool
    window_chunks: int
    epochs: int
    """After so many nothing is read ahead any more."""

    def order(self, epoch: int, chunk_rows: int) -> EpochOrder:
        """The order of an epoch."""
        return EpochOrder(
            seed=self.seed,
            epoch=epoch,
            rows=self.rows,
            chunk_rows=chunk_rows,
            window_chunks=self.window_chunks,
            shuffle=self.shuffle,
        )


def check_seen(place: Location) -> None:
    """Raise `UnreachableError` where this process cannot see what the job has begun or opened."""
    if not place.exists(METADATA_NAME):
        raise UnreachableError(
            f"{place} cannot be seen from here. Job and workers share nothing but the store: "
            f"{SHARED_PLACE}"
        )


def open_split(dataset: Location, digest: str, split: str) -> Split:
    """A split of the very dataset that is meant; `ConflictError` where another has its place.

    `UnreachableError` where there is none: the job has opened it where it is.
    """
    check_seen(dataset)
    opened = open_dataset(dataset)
    if opened.digest != digest:
        raise ConflictError(
            f"{dataset} has digest {opened.digest}; the job began with {digest}. It was replaced: "
            "start the job anew."
        )
    return opened.split(split)


class RowReader(Closing):
    """Reads rows by their places; holds one window, and the next one on its way.

    Where one window holds the whole order, it is read once for all epochs: the next epoch's has the
    same rows, and reading them again would take longer than a worker's share of an epoch does.
    """

    reads_ahead = True
    """Whether the next window is to be loaded while one is in use."""

    def __init__(self, rows: OrderedRows, part: tuple[int, int] | None = None) -> None:
        """Opens the dataset; nothing of it is read yet.

        `part` is the places [start, stop) of each epoch that will be asked for, by default all.
        """
        self._rows = rows
        self._part = part or (0, rows.rows)
        self._split = open_split(rows.dataset, rows.dataset_digest, rows.split)
        self.schema = self._split.schema
        self._loader = WindowLoader(self._split, READING_THREADS)
        self._expected: tuple[int, int] | None = None
        self._order = rows.order(0, self._split.schema.chunk_rows)
        self._window: tuple[Window, Block] | None = None
        self._all: Block | None = None
        self._row_numbers: RowNumbers | None = None
        """Of the epoch whose order is at hand, where one window holds them all."""
        self._lock = threading.Lock()

    @property
    def holds_all(self) -> bool:
        """Whether all rows of the order are held, whatever part of them is asked for."""
        return self._order.windows == 1

    def take(self, epoch: int, start: int, stop: int) -> Batch:
        """The rows at places [start, stop) of an epoch, not to be written to.

        Raises `BadDataError` where a chunk is missing or damaged.
        """
        with self._lock:
            if self._order_at(epoch).windows == 1:
                return self._of_all(start, stop)
            pieces = []
            while start < stop:
                piece = self._piece(epoch, start, stop)
                start += len(piece.rows)
                # A view would keep its window while the next one and the one after it are held.
                pieces.append(_joined([piece]) if start < stop else piece)
                del piece
        return pieces[0] if len(pieces) == 1 else _joined(pieces)

    def _order_at(self, epoch: int) -> EpochOrder:
        if self._order.epoch != epoch:
            self._order = self._order_of(epoch)
            self._row_numbers = None
        return self._order

    def _of_all(self, start: int, stop: int) -> Batch:
        """The same out of all rows, which are held as they are stored."""
        if self._all is None:
            stored = replace(self._order, shuffle=False)
            _, self._all = self._loader.take(stored, 0)
        if self._row_numbers is None:
            self._row_numbers = self._order.window(0).row_numbers
        rows = self._row_numbers[start:stop]
        block = self._all
        return Batch(
            block.inputs[rows], None if block.targets is None else block.targets[rows], rows
        )

    def _piece(self, epoch: int, start: int, stop: int) -> Batch:
        """The same as far as one window goes."""
        number = self._order_at(epoch).window_at(start)
        window, block = self._window_number(number)
        first = int(self._order.window_starts[number])
        places = slice(start - first, min(stop - first, window.rows))
        targets = None if block.targets is None else block.targets[places]
        return Batch(block.inputs[places], targets, window.row_numbers[places])

    def _window_number(self, number: int) -> tuple[Window, Block]:
        wanted = (self._order.epoch, number)
        if self._window and (self._window[0].epoch, self._window[0].number) == wanted:
            return self._window
        self._window = None  # before the next one is waited for: never hold three
        if self._expected not in (wanted, None):  # the job went back, or another worker died
            self._loader.close()
            self._loader = WindowLoader(self._split, READING_THREADS)
        self._expected = None
        self._window = self._loader.take(self._order, number)
        if self.reads_ahead:
            self._read_on(number)
        return self._window

    def _read_on(self, number: int) -> None:
        """Have the window loaded that comes after window `number` in the reader's part."""
        order = self._order
        start, stop = self._part
        if number < order.window_at(stop - 1):
            number += 1
        else:
            order = self._order_of(order.epoch + 1)
            number = order.window_at(start)
        if order.epoch < self._rows.epochs:
            self._loader.expect(order, number)
            self._expected = (order.epoch, number)

    def _order_of(self, epoch: int) -> EpochOrder:
        return self._rows.order(epoch, self._split.schema.chunk_rows)

    def close(self) -> None:
        """Stop reading ahead and let the windows go."""
        self._window = self._all = None
        self._loader.close()


def _joined(pieces: list[Batch]) -> Batch:
    targets: list[NDArray[np.uint8]] = [
        piece.targets for piece in pieces if piece.targets is not None
    ]
    return Batch(
        np.concatenate([piece.inputs for piece in pieces]),
        np.concatenate(targets) if targets else None,
        np.concatenate([piece.rows for piece in pieces]),
    )


class IndexOnlyLoader(WindowLoader):
    """Gives windows whose rows nobody looks at: for a stream that only says which rows are next."""

    def __init__(self, split: Split) -> None:
        """Nothing is read."""
        super().__init__(split, threads=1)

    def expect(self, order: EpochOrder, number: int) -> None:
        """There is nothing to wait for."""

    def take(self, order: EpochOrder, number: int) -> tuple[Window, Block]:
        """The window, and a block of its shape that takes no memory."""
        window = order.window(number)
        rows, schema = window.rows, self.split.schema
        inputs = np.broadcast_to(np.zeros((), schema.dtype), (rows, schema.columns))
        nothing = np.zeros((), np.uint8)
        targets = np.broadcast_to(nothing, (rows, schema.classes)) if schema.classes else None
        return window, Block(inputs, targets)
