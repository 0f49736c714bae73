"""BatchStream: shuffled mini-batches from a dataset on disk, with a small state in and out."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.order import CHAIN_START, ORDER_VERSION, EpochOrder, RowNumbers, Window
from pipeline.windows import DEFAULT_THREADS, WindowLoader
from storage.dataset import Block, Dataset, Split, open_dataset
from storage.errors import BadDataError, ConflictError, UsageError
from storage.location import Closing, Location
from storage.schema import SplitSchema

SHUFFLE_MEMORY = 256 * 2**20
"""Bytes for two windows, by default."""
PLAIN_WINDOW_CHUNKS = DEFAULT_THREADS
"""Chunks of a window where nothing is shuffled: one for each thread that loads."""
EPOCH_LIMIT = 2**63
"""Epochs of a state are below this; whoever counts further did not get there by training."""


@dataclass(frozen=True)
class Batch:
    """Some rows, in the order in which they are to be visited."""

    inputs: NDArray[Any]
    """`(rows, 1 + features)`, bias first, in the stored element type."""
    targets: NDArray[np.uint8] | None
    """`(rows, classes)` one-hot, or None where the split has no labels."""
    rows: RowNumbers
    """`(rows,)`: their numbers in the split."""


@dataclass(frozen=True)
class StreamState:
    """Where a stream stands, and what it must be a stream of; a few hundred bytes of JSON."""

    order_version: int
    dataset_digest: str
    split: str
    first_row: int
    rows: int
    seed: int
    shuffle: bool
    batch_size: int
    window_chunks: int
    drop_last: bool
    epoch: int
    """The epoch of the next mini-batch, from 0."""
    next_batch: int
    """The next mini-batch's number in its epoch, from 0."""
    order_digest: str
    """The chain over all mini-batches so far, in hex (see `pipeline.order.link`)."""

    @property
    def batches(self) -> int:
        """Mini-batches of an epoch."""
        full, rest = divmod(self.rows, self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def to_json(self) -> dict[str, Any]:
        """The state as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """The inverse; raises `BadDataError` for anything else."""
        found = document.items() if isinstance(document, dict) else ()
        if {name: type(value) for name, value in found} != cls.__annotations__:
            raise BadDataError("A stream state does not have the fields of one; it is damaged.")
        if not 0 <= document["epoch"] < EPOCH_LIMIT or document["next_batch"] < 0:
            raise BadDataError("A stream state's epoch or batch is out of range; it is damaged.")
        if not re.fullmatch("[0-9a-f]{64}", document["order_digest"]):
            raise BadDataError("A stream state's order digest is not one; it is damaged.")
        return cls(**document)


@dataclass(frozen=True)
class _WindowInUse:
    """A window, its rows, and where it lies in the epoch."""

    window: Window
    block: Block
    start: int
    """The place in the epoch of its first row."""

    def holds(self, epoch: int, place: int) -> bool:
        """Whether the row visited as number `place` of an epoch is one of its own."""
        return self.window.epoch == epoch and 0 <= place - self.start < self.window.rows


POSITION = ("epoch", "next_batch", "order_digest")
"""The fields of a state that change from one mini-batch to the next."""


class BatchStream(Closing):
    """An endless sequence of epochs over a split, cut into mini-batches.

    Iterating gives the rest of the current epoch; iterating again, the next one. The windows load
    in the background through Dask while the ones before are in use.

    A stream is used in the process that opened it. Its pickle, and its copy, hold its state alone:
    unpickled, in any process, it is another open stream that continues from the same mini-batch,
    whether the original is open, closed or lives on. So several copies visit the same rows.

    >>> with BatchStream(dataset, "train", batch_size=128, seed=0) as stream:
    ...     for batch in stream:
    ...         step(batch.inputs, batch.targets)
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        shuffle_memory: int = SHUFFLE_MEMORY,
        window_chunks: int | None = None,
        drop_last: bool = False,
        first_row: int = 0,
        rows: int | None = None,
        epochs: int | None = None,
        threads: int = DEFAULT_THREADS,
        busy_cores: int = 0,
        state: StreamState | None = None,
        loader: Callable[[Split], WindowLoader] | None = None,
    ) -> None:
        """A stream over rows [first_row, first_row + rows) of `split`, by default all.

        `batch_size` 0 means one mini-batch of all rows. `window_chunks` overrides what
        `shuffle_memory` (bytes) gives. After `epochs` epochs nothing is read ahead any more.
        `threads` load; of those, the ones stand back that would take a core of the consumer's,
        which keeps `busy_cores` at work.
        `state` goes on where another stream stood; `loader` makes another loader of windows than
        the one on this process's threads. Raises `ConflictError` where that one was over
        something else, `UsageError` for rows or sizes out of range.
        """
        self._location = dataset.location
        self._split = dataset.split(split)
        schema = self._split.schema
        rows = schema.rows - first_row if rows is None else rows
        if rows < 1 or first_row < 0 or first_row + rows > schema.rows:
            raise UsageError(
                f"Rows {first_row}..{first_row + rows - 1} were asked for; split {split} has rows "
                f"0..{schema.rows - 1}."
            )
        if not 0 <= batch_size <= rows:
            raise UsageError(
                f"The batch size is {batch_size:,}; expected 1 to the {rows:,} rows of the split, "
                "or 0 for all of them."
            )
        if window_chunks is not None and window_chunks < 1:
            raise UsageError(f"The window is {window_chunks:,} chunks; expected at least 1.")
        fresh = StreamState(
            order_version=ORDER_VERSION,
            dataset_digest=dataset.digest,
            split=split,
            first_row=first_row,
            rows=rows,
            seed=seed,
            shuffle=shuffle,
            batch_size=batch_size or rows,
            window_chunks=window_chunks or chunks_per_window(schema, shuffle_memory, shuffle),
            drop_last=drop_last,
            epoch=0,
            next_batch=0,
            order_digest=CHAIN_START.hex(),
        )
        self._began = fresh if state is None else _continued(fresh, state)
        self._epoch, self._next_batch = self._began.epoch, self._began.next_batch
        self._chain = bytes.fromhex(self._began.order_digest)
        self._epochs = epochs
        self._order = self._epoch_order(self._epoch)
        self._in_use: _WindowInUse | None = None
        self._loading = (epochs, threads, busy_cores)
        self._loads_here = loader is None
        self._loader = (
            loader(self._split)
            if loader
            else WindowLoader(self._split, threads, busy_cores=busy_cores)
        )
        self._read_ahead(self._epoch, self._order.window_at(self.place))

    @property
    def state(self) -> StreamState:
        """Where the stream stands: right after the mini-batch that was handed out last."""
        return replace(
            self._began,
            epoch=self._epoch,
            next_batch=self._next_batch,
            order_digest=self._chain.hex(),
        )

    @property
    def rows(self) -> int:
        """Rows that an epoch visits, those of a short last mini-batch among them."""
        return self._began.rows

    @property
    def batch_size(self) -> int:
        """Rows of a mini-batch, but for an epoch's last one."""
        return self._began.batch_size

    @property
    def batches(self) -> int:
        """Mini-batches of an epoch."""
        return self._began.batches

    @property
    def batches_taken(self) -> int:
        """Mini-batches handed out since the first epoch began."""
        return self._epoch * self.batches + self._next_batch

    @property
    def seconds_waited(self) -> float:
        """How long, so far, the consumer has waited for windows."""
        return self._loader.seconds_waited

    def __iter__(self) -> Iterator[Batch]:
        for micro_batches in self.micro_batches(1):
            yield from micro_batches

    def micro_batches(self, parts: int) -> Iterator[Iterator[Batch]]:
        """For each mini-batch of the rest of the epoch, its contiguous parts.

        Sizes are those of `numpy.array_split`; empty parts are left out. The parts of one
        mini-batch are to be taken before the next is asked for, and its state counts when the last
        of them is. So a mini-batch may be larger than memory.
        """
        epoch = self._epoch
        while self._epoch == epoch:
            yield self._cut(parts)

    def _cut(self, parts: int) -> Iterator[Batch]:
        self._loader.check_usable()
        place, size = self.place, self.next_rows
        chain = hashlib.sha256(self._chain)
        smaller, larger = divmod(size, parts)
        counts = [smaller + 1] * larger + [smaller] * (parts - larger)
        end = place + size
        for count in filter(None, counts):
            batch = self._take(place, count)
            place += count
            chain.update(batch.rows.astype("<u8", copy=False).data)
            if place == end:
                self._advance(chain.digest())
            yield batch
            del batch  # it may be a view, and would keep its window in memory

    @property
    def place(self) -> int:
        """The place in the epoch of the next mini-batch's first row."""
        return self._next_batch * self.batch_size

    @property
    def next_rows(self) -> int:
        """Rows of the next mini-batch: fewer than the others have, where it is an epoch's last."""
        return min(self.batch_size, self.rows - self.place)

    def _advance(self, chain: bytes) -> None:
        self._chain = chain
        self._next_batch += 1
        if self._next_batch == self.batches:
            self._epoch, self._next_batch = self._epoch + 1, 0

    def _take(self, place: int, count: int) -> Batch:
        """Rows [place, place + count) of the epoch; a view where one window holds them all."""
        window, block, start = self._window_at(place)
        if start + count <= window.rows:
            return _slice(window, block, start, start + count)
        del window, block  # the copies below need no more than one window at a time
        batch = _empty_batch(self._split.schema, count)
        copied = 0
        while copied < count:
            copied += self._copy(place + copied, batch, copied)
        return batch

    def _copy(self, place: int, batch: Batch, first: int) -> int:
        """Fill the batch from its row `first` on, as far as one window goes; rows copied."""
        window, block, start = self._window_at(place)
        rows = min(len(batch.rows) - first, window.rows - start)
        piece = _slice(window, block, start, start + rows)
        batch.inputs[first : first + rows] = piece.inputs
        batch.rows[first : first + rows] = piece.rows
        if batch.targets is not None and piece.targets is not None:
            batch.targets[first : first + rows] = piece.targets
        return rows

    def _window_at(self, place: int) -> tuple[Window, Block, int]:
        """The window with a row of the current epoch, and the row's number in it."""
        if self._in_use is None or not self._in_use.holds(self._epoch, place):
            self._in_use = None  # before the next one is waited for: never hold three
            self._in_use = self._next_window(place)
        return self._in_use.window, self._in_use.block, place - self._in_use.start

    def _next_window(self, place: int) -> "_WindowInUse":
        """Wait for the window with a row of the current epoch, and have the next one loaded."""
        if self._order.epoch != self._epoch:
            self._order = self._epoch_order(self._epoch)
        number = self._order.window_at(place)
        window, block = self._loader.take(self._order, number)
        self._read_ahead(self._order.epoch, number + 1)
        return _WindowInUse(window, block, int(self._order.window_starts[number]))

    def _read_ahead(self, epoch: int, number: int) -> None:
        order = self._order if epoch == self._order.epoch else self._epoch_order(epoch)
        if number == order.windows:
            order, number = self._epoch_order(epoch + 1), 0
        if self._epochs is None or order.epoch < self._epochs:
            self._loader.expect(order, number)

    def _epoch_order(self, epoch: int) -> EpochOrder:
        began = self._began
        return EpochOrder(
            seed=began.seed,
            epoch=epoch,
            rows=began.rows,
            chunk_rows=self._split.schema.chunk_rows,
            window_chunks=began.window_chunks,
            shuffle=began.shuffle,
            first_row=began.first_row,
        )

    def close(self) -> None:
        """Stop reading ahead and let the windows go."""
        self._in_use = None
        self._loader.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._loads_here:
            raise TypeError("A BatchStream whose rows a cluster loads cannot be pickled.")
        return _reopened, (self._location.absolute(), self.state, *self._loading)


def _reopened(
    location: Location, state: StreamState, epochs: int | None, threads: int, busy_cores: int
) -> BatchStream:
    """Return a stream that continues from `state`."""
    return BatchStream(
        open_dataset(location),
        state.split,
        batch_size=state.batch_size,
        seed=state.seed,
        shuffle=state.shuffle,
        window_chunks=state.window_chunks,
        drop_last=state.drop_last,
        first_row=state.first_row,
        rows=state.rows,
        epochs=epochs,
        threads=threads,
        busy_cores=busy_cores,
        state=state,
    )


def chunks_per_window(schema: SplitSchema, shuffle_memory: int, shuffle: bool = True) -> int:
    """W: as many chunks as fit the shuffle memory (bytes), two windows counted; at least 1.

    Raises `UsageError` where not even two chunks fit.
    """
    chunk_bytes = schema.chunk_rows * schema.row_bytes
    fitting = shuffle_memory // (2 * chunk_bytes)
    if fitting < 1:
        raise UsageError(
            f"The shuffle memory is {shuffle_memory:,} bytes; two chunks of this dataset need "
            f"{2 * chunk_bytes:,}. Give more, or ingest with fewer rows per chunk."
        )
    return min(fitting, schema.chunks if shuffle else PLAIN_WINDOW_CHUNKS)


def _continued(fresh: StreamState, state: StreamState) -> StreamState:
    """`state`, where it is a state of the very stream that `fresh` begins."""
    here, there = asdict(fresh), asdict(state)
    differing = [name for name in here if name not in POSITION and here[name] != there[name]]
    if differing:
        sides = "; ".join(
            f"{name}: {there[name]!r} saved, {here[name]!r} now" for name in differing
        )
        raise ConflictError(f"The saved state is of another stream ({sides}).")
    if state.next_batch >= state.batches:
        raise BadDataError(
            f"The saved state goes on at mini-batch {state.next_batch}; an epoch of this stream "
            f"has {state.batches}, from 0. It is damaged."
        )
    return state


def _slice(window: Window, block: Block, start: int, stop: int) -> Batch:
    targets = None if block.targets is None else block.targets[start:stop]
    return Batch(block.inputs[start:stop], targets, window.row_numbers[start:stop])


def _empty_batch(schema: SplitSchema, rows: int) -> Batch:
    return Batch(
        np.empty((rows, schema.columns), schema.dtype),
        np.empty((rows, schema.classes), np.uint8) if schema.classes else None,
        np.empty(rows, np.int64),
    )
