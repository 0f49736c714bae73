"""BatchStream: shuffled mini-batches from a dataset on disk, with a small state in and out."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from pipeline.order import CHAIN_START, ORDER_VERSION, EpochOrder, cut
from pipeline.rows import Batch, IndexOnlyLoader, WindowReader
from pipeline.windows import DEFAULT_THREADS, Loader, WindowLoader
from storage.dataset import Dataset, open_dataset
from storage.errors import BadDataError, ConflictError, UsageError
from storage.location import Closing, Location
from storage.schema import SplitSchema

__all__ = ["Batch", "BatchStream", "StreamState", "chunks_per_window"]

SHUFFLE_MEMORY = 256 * 2**20
"""Default number of bytes for two windows."""
PLAIN_WINDOW_CHUNKS = DEFAULT_THREADS
"""Chunks per window without shuffling: one for each loading thread."""
EPOCH_LIMIT = 2**63
"""A saved epoch number must be below this."""
POSITION = ("epoch", "next_batch", "order_digest")
"""The fields of a state that change from one mini-batch to the next."""


@dataclass(frozen=True)
class StreamState:
    """Position of a stream, and the settings that it belongs to; a few hundred bytes of JSON."""

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
    epoch: int = 0
    """Epoch of the next mini-batch, from 0."""
    next_batch: int = 0
    """Number of the next mini-batch in its epoch, from 0."""
    order_digest: str = CHAIN_START.hex()
    """Digest over all mini-batches so far, in hex (see `pipeline.order.CHAIN_START`)."""

    @property
    def batches(self) -> int:
        """Number of mini-batches per epoch."""
        full, rest = divmod(self.rows, self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def to_json(self) -> dict[str, Any]:
        """Return the state as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Return the state of `to_json`; raise `BadDataError` for anything else."""
        fields = document.items() if isinstance(document, dict) else ()
        if (
            {name: type(value) for name, value in fields} != cls.__annotations__
            or not 0 <= document["epoch"] < EPOCH_LIMIT
            or document["next_batch"] < 0
            or not re.fullmatch("[0-9a-f]{64}", document["order_digest"])
        ):
            raise BadDataError("The saved position of a stream has wrong fields; it is damaged.")
        return cls(**document)

    def continued_at(self, state: "StreamState") -> "StreamState":
        """Return a saved state after checking that it belongs to the same stream as this one.

        Raises `ConflictError` if it does not, and `BadDataError` if it is past the epoch's end.
        """
        differing = [
            f"{name}: {saved!r} saved, {now!r} now"
            for (name, now), saved in zip(asdict(self).items(), asdict(state).values(), strict=True)
            if name not in POSITION and now != saved
        ]
        if differing:
            raise ConflictError(
                f"The saved position belongs to another stream ({'; '.join(differing)})."
            )
        if state.next_batch >= state.batches:
            raise BadDataError(
                f"The saved position is mini-batch {state.next_batch}, but an epoch of this stream "
                f"has {state.batches}, counted from 0. It is damaged."
            )
        return state


class BatchStream(Closing):
    """Shuffled mini-batches of a split, epoch after epoch, read from disk in the background.

    Iterating yields the rest of the current epoch as `Batch` objects, and iterating again the next
    epoch; `len(stream)` is the number of mini-batches of an epoch. A stream is a context manager,
    and belongs to the process that opened it. Pickling it keeps its state only: each unpickled
    stream continues from the same mini-batch.

    Examples
    --------
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
        reads_rows: bool = True,
    ) -> None:
        """Open a stream; loading starts at once.

        Parameters
        ----------
        dataset
            An open dataset.
        split
            Name of the split, such as `train`.
        batch_size
            Rows of a mini-batch; 0 for all rows in one.
        seed
            Seed of the shuffling. Equal seeds, splits and sizes give equal orders.
        shuffle
            Visit the rows in a new random order each epoch; otherwise in their stored order.
        shuffle_memory
            Bytes for the two windows within which rows are shuffled.
        window_chunks
            Chunks of a window; overrides `shuffle_memory`.
        drop_last
            Leave out an epoch's last mini-batch if it is short.
        first_row
            First row of the split to visit.
        rows
            Number of rows to visit from there. None: all that follow.
        epochs
            Number of epochs after which nothing is read ahead. None: no limit.
        threads
            Most threads that load and decode chunks.
        busy_cores
            Cores that the consumer uses; fewer threads load then.
        state
            State of another stream of the same rows, to continue after its last mini-batch.
        reads_rows
            If false, batches have row numbers but no data, and nothing is read.

        Raises
        ------
        UsageError
            If rows or sizes do not fit the split.
        ConflictError
            If the state belongs to a stream of other rows or settings.
        """
        source = dataset.split(split)
        schema = source.schema
        rows = schema.rows - first_row if rows is None else rows
        _check_sizes(schema, split, first_row, rows, batch_size, window_chunks)
        self._began = StreamState(
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
        )
        if state is not None:
            self._began = self._began.continued_at(state)
        self._epoch, self._next_batch = self._began.epoch, self._began.next_batch
        self.rows = rows
        """Number of rows of an epoch, before `drop_last`."""
        self.batch_size = self._began.batch_size
        """Rows of every mini-batch but the last of an epoch."""
        self.batches = self._began.batches
        """Number of mini-batches per epoch."""
        self._location = dataset.location
        self._chain = bytes.fromhex(self._began.order_digest)
        self._process: int | None = os.getpid()
        """The process that has the loader's threads; None after `close`."""
        self._loading = {
            "epochs": epochs,
            "threads": threads,
            "busy_cores": busy_cores,
            "reads_rows": reads_rows,
        }
        self._loader: Loader = IndexOnlyLoader(schema)
        if reads_rows:
            self._loader = WindowLoader(source, threads, busy_cores=busy_cores)
        order = EpochOrder(
            seed=seed,
            epoch=self._epoch,
            rows=rows,
            chunk_rows=schema.chunk_rows,
            window_chunks=self._began.window_chunks,
            shuffle=shuffle,
            first_row=first_row,
        )
        self._reader = WindowReader(schema, self._loader, order, epochs=epochs)
        self._reader.expect(self._epoch, self.place)

    @property
    def state(self) -> StreamState:
        """The position after the last mini-batch that was yielded."""
        return replace(
            self._began,
            epoch=self._epoch,
            next_batch=self._next_batch,
            order_digest=self._chain.hex(),
        )

    @property
    def batches_taken(self) -> int:
        """Number of mini-batches yielded since the beginning of the first epoch."""
        return self._epoch * self.batches + self._next_batch

    @property
    def seconds_waited(self) -> float:
        """Seconds that the consumer has waited for data so far."""
        return self._loader.seconds_waited

    @property
    def place(self) -> int:
        """Position in the epoch of the next mini-batch's first row."""
        return self._next_batch * self.batch_size

    @property
    def next_rows(self) -> int:
        """Number of rows in the next mini-batch; the last one of an epoch may be short."""
        return min(self.batch_size, self.rows - self.place)

    def __len__(self) -> int:
        """Return the number of mini-batches per epoch."""
        return self.batches

    def __repr__(self) -> str:
        state = "closed, " if self._process is None else ""
        noun = "batch" if self.batches == 1 else "batches"
        return (
            f"<BatchStream of {self._location}, split {self._began.split}: {self.batches:,} {noun} "
            f"of {self.batch_size:,} rows, {state}next is {self._next_batch} of epoch "
            f"{self._epoch}>"
        )

    def __iter__(self) -> Iterator[Batch]:
        for micro_batches in self.micro_batches(1):
            yield from micro_batches

    def micro_batches(self, parts: int) -> Iterator[Iterator[Batch]]:
        """Yield each mini-batch of the rest of the epoch as an iterator over contiguous parts.

        A mini-batch may therefore be larger than memory. Parts have the sizes of
        `numpy.array_split`, without empty ones. Take all parts of one mini-batch before the next.
        """
        epoch = self._epoch
        while self._epoch == epoch:
            yield self._cut(parts)

    def _cut(self, parts: int) -> Iterator[Batch]:
        first = self.place
        end = first + self.next_rows
        chain = hashlib.sha256(self._chain)
        for start, stop in cut(first, end, parts):
            yield self._take(start, stop, chain, is_last=stop == end)

    def _take(self, start: int, stop: int, chain: "hashlib._Hash", *, is_last: bool) -> Batch:
        self._check_usable()
        batch = self._reader.take(self._epoch, start, stop)
        chain.update(batch.rows.astype("<i8", copy=False).data)  # as <u8, which would be a copy
        if is_last:
            self._chain = chain.digest()
            self._next_batch += 1
            if self._next_batch == self.batches:
                self._epoch, self._next_batch = self._epoch + 1, 0
        return batch

    def _check_usable(self) -> None:
        """Raise `UsageError` after `close` and in a forked process, where a load would hang."""
        if self._process is None:
            raise UsageError(
                "This BatchStream is closed. Open another one with `state=stream.state` to "
                "continue where it stopped."
            )
        if self._process != os.getpid():
            raise UsageError(
                f"This BatchStream was opened in process {self._process} and cannot be used in its "
                f"fork {os.getpid()}, which lacks the threads that load rows. Open the stream in "
                "the process that uses it, or pickle it. In a PyTorch DataLoader, use "
                "num_workers=0."
            )

    def close(self) -> None:
        """Stop reading ahead and free the windows."""
        if self._process == os.getpid():  # a fork has no threads, and may inherit held locks
            self._reader.close()
        self._process = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._location, self.state, self._loading)


def _reopened(location: Location, state: StreamState, loading: dict[str, Any]) -> BatchStream:
    """Return a stream that continues from `state`."""
    names = ("batch_size", "seed", "shuffle", "window_chunks", "drop_last", "first_row", "rows")
    options = {name: getattr(state, name) for name in names}
    return BatchStream(open_dataset(location), state.split, **options, **loading, state=state)


def _check_sizes(
    schema: SplitSchema,
    split: str,
    first_row: int,
    rows: int,
    batch_size: int,
    window_chunks: int | None,
) -> None:
    if rows < 1 or first_row < 0 or first_row + rows > schema.rows:
        raise UsageError(
            f"Rows {first_row}..{first_row + rows - 1} were requested, but split {split} has rows "
            f"0..{schema.rows - 1}."
        )
    if not 0 <= batch_size <= rows:
        raise UsageError(
            f"The batch size is {batch_size:,}; expected 1 to the {rows:,} rows of the split, "
            "or 0 for all of them."
        )
    if window_chunks is not None and window_chunks < 1:
        raise UsageError(f"The window is {window_chunks:,} chunks; expected at least 1.")


def chunks_per_window(schema: SplitSchema, shuffle_memory: int, shuffle: bool = True) -> int:
    """Return the chunks per window if two windows share `shuffle_memory` bytes.

    Raises `UsageError` if two chunks do not fit.
    """
    chunk_bytes = schema.chunk_rows * schema.row_bytes
    fitting = shuffle_memory // (2 * chunk_bytes)
    if fitting < 1:
        raise UsageError(
            f"The shuffle memory is {shuffle_memory:,} bytes, but two chunks of this dataset need "
            f"{2 * chunk_bytes:,}. Increase it, or ingest with fewer rows per chunk."
        )
    return min(fitting, schema.chunks if shuffle else PLAIN_WINDOW_CHUNKS)
