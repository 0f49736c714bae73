"""Load windows of shuffled rows through Dask, into memory that is reused.

Reuse keeps a job's memory flat. An allocator that serves several megabytes to several threads over
and over ends up holding more than they use at any time.
"""

import mmap
import os
import threading
import time
import weakref
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.cluster.options import translate_configuration_errors
from pipeline.order import EpochOrder, Window
from storage.dataset import Block, Split
from storage.location import Closing
from storage.schema import SplitSchema

MOST_SPARE = 2
"""Most unused mappings to keep; there are never more windows at a time."""
HUGE_PAGES_FROM = 4 * 2**20
"""Bytes from which huge pages pay off; NumPy uses the same limit for its arrays."""
DEFAULT_THREADS = min(4, os.cpu_count() or 1)
"""Chunks that are read and decoded at once; more would only compete for the interpreter's lock."""
WAITING_THREADS = 16
"""The same for a slow store, whose threads wait most of the time."""
LATE_SECONDS = 0.01
"""A window is late if the consumer waits longer for it; more threads load the next one."""
SLOW = 3.0
"""A store is slow if a chunk's elapsed time exceeds its processor time by this factor."""
SLOW_SECONDS = 0.01
"""A slow store's chunks take at least this long; small chunks wait for one another instead."""
ROW_NUMBERS = 48
"""Bytes per row of a window for its permutation, the inverse and the row numbers."""


def windows_memory(schema: SplitSchema, window_chunks: int, windows: int = 2) -> int:
    """Return the bytes of `windows` windows, their row numbers, and the chunks being decoded."""
    window_rows = min(window_chunks, schema.chunks) * schema.chunk_rows
    chunk = schema.chunk_rows * schema.row_bytes
    decoding = min(WAITING_THREADS, schema.chunks) * 2 * chunk  # as stored and decoded
    return windows * window_rows * (schema.row_bytes + ROW_NUMBERS) + decoding


class WindowMemory:
    """Allocate arrays whose memory is reused once their last view is gone."""

    def __init__(self) -> None:
        self._spare: list[mmap.mmap] = []

    def array(self, size: int) -> NDArray[np.uint8]:
        """Return an uninitialised array of `(size,)` bytes."""
        memory = self._mapping(max(1, size))
        array: NDArray[np.uint8] = np.frombuffer(memory, np.uint8, size)
        # Every view refers to this array, so it outlives them.
        weakref.finalize(array, self._take_back, memory).atexit = False
        return array

    def _mapping(self, size: int) -> mmap.mmap:
        while self._spare:
            spare = self._spare.pop()
            if len(spare) >= size:
                return spare
        # Private: shared mappings get no huge pages.
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size >= HUGE_PAGES_FROM and hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memory

    def _take_back(self, memory: mmap.mmap) -> None:
        if len(self._spare) < MOST_SPARE:
            self._spare.append(memory)

    def clear(self) -> None:
        """Return unused memory to the system."""
        self._spare.clear()


class Scratch(threading.local):
    """Arrays that a chunk is decoded into, one set per thread."""

    def __init__(self, split: Split) -> None:
        self.chunk = split.empty_chunk()


Timing = tuple[float, float]
"""Elapsed seconds and processor seconds of loading chunks."""


def load_window(
    split: Split, window: Window, block: Block, pool: Executor | None, scratch: Scratch
) -> Timing:
    """Fill `block` with a window's rows in shuffled order, by a Dask graph on the pool's threads.

    Without a pool the graph is computed here, which saves the changes between threads.

    One task per chunk reads, verifies and decodes it, and copies its rows to their positions, so
    memory holds the window and one chunk per thread. Keys are unique: Dask would take two tasks
    with the same key for one.
    """
    name = f"{split.name}-{window.epoch}-{window.number}"
    place = partial(place_chunk, split, window, block, scratch)
    graph: dict[str, Any] = {
        f"load-chunk-{name}-{chunk}": (place, position)
        for position, chunk in enumerate(window.chunks.tolist())
    }
    key = f"load-window-{name}"
    graph[key] = (total, list(graph))
    # Imported by the loading thread, as late as possible: a training forks before that.
    with translate_configuration_errors():
        # Not `from dask.local`: beside another loader that would not wait for all of Dask.
        from dask import local, threaded
    # Called directly: `dask.compute` would import all of `distributed` to look for a client.
    timing: Timing = threaded.get(graph, key, pool=pool) if pool else local.get_sync(graph, key)
    return timing


def place_chunk(
    split: Split, window: Window, block: Block, scratch: Scratch, position: int
) -> Timing:
    """Put the rows of the window's chunk number `position` at their positions in the block."""
    began, processor_began = time.perf_counter(), time.thread_time()
    number, start, stop = (
        int(values[position]) for values in (window.chunks, window.starts, window.stops)
    )
    first, _ = split.schema.chunk_bounds(number)
    listed = int((window.stops - window.starts)[:position].sum())
    rows = slice(listed, listed + stop - start)
    if window.seed is None and stop - start == split.schema.chunk_rows:
        split.read_chunk(number, block.part(rows))
    else:
        chunk, places = split.read_chunk(number, scratch.chunk), window.destinations[rows]
        for whole, part in ((block.inputs, chunk.inputs), (block.targets, chunk.targets)):
            if whole is not None and part is not None:
                as_items(whole)[places] = as_items(part)[start - first : stop - first]
    return time.perf_counter() - began, time.thread_time() - processor_began


def total(parts: list[Timing]) -> Timing:
    """Return the sums of the elapsed and processor seconds."""
    return sum(seconds for seconds, _ in parts), sum(seconds for _, seconds in parts)


def _empty_block(split: Split, window: Window, memory: WindowMemory) -> Block:
    """Return a block for a window, in memory that fits any window of as many chunks."""
    schema, rows = split.schema, window.rows
    whole = memory.array(len(window.chunks) * schema.chunk_rows * schema.row_bytes)
    targets_at, end = rows * (schema.row_bytes - schema.classes), rows * schema.row_bytes
    return Block(
        whole[:targets_at].view(schema.dtype).reshape(rows, schema.columns),
        whole[targets_at:end].reshape(rows, schema.classes) if schema.classes else None,
    )


def as_items(rows: NDArray[Any]) -> NDArray[np.void]:
    """Return each row as one opaque item, which NumPy copies as a whole, 1.5 times as fast."""
    return rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).reshape(-1)


class Loader(Protocol):
    """Provides windows, at most one ahead of the window in use."""

    seconds_waited: float
    """Total seconds that callers of `take` have waited."""

    def expect(self, order: EpochOrder, number: int) -> None:
        """Start loading a window, unless it is loading already."""

    def take(self, order: EpochOrder, number: int) -> tuple[Window, Block]:
        """Wait for a window; return it and its rows in shuffled order.

        Other expected windows are dropped. Raises `BadDataError` if a chunk is missing or damaged.
        """

    def close(self) -> None:
        """Drop expected windows."""


class WindowLoader(Closing):
    """Load windows on threads of this process; a fork does not have them."""

    def __init__(
        self, split: Split, threads: int = DEFAULT_THREADS, *, busy_cores: int = 0
    ) -> None:
        """Use at most `threads` threads; fewer if the consumer already uses `busy_cores` cores.

        All are used for the window after a late one, and `WAITING_THREADS` if that is slow too.
        """
        self.split = split
        self.seconds_waited = 0.0
        self._scratch = Scratch(split)
        self._memory = WindowMemory()
        self._most = self._threads = threads
        self._fewer = threads_beside(busy_cores, threads)
        self._late = True  # no window is in use yet, so no consumer is at work
        self._pool = _pool(threads)
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="load-window")
        self._coming: dict[tuple[int, int], Future[tuple[Window, Block]]] = {}

    def expect(self, order: EpochOrder, number: int) -> None:
        key = (order.epoch, number)
        if key not in self._coming:
            self._coming[key] = self._ahead.submit(self._load, order, number, late=self._late)

    def take(self, order: EpochOrder, number: int) -> tuple[Window, Block]:
        self.expect(order, number)
        began = time.perf_counter()
        future = self._coming.pop((order.epoch, number))
        self._coming.clear()  # one thread loads, so an earlier window is finished and dropped
        try:
            return future.result()
        finally:
            waited = time.perf_counter() - began
            self.seconds_waited += waited
            self._late = waited > LATE_SECONDS

    def _load(self, order: EpochOrder, number: int, *, late: bool) -> tuple[Window, Block]:
        self._use_threads(self._most if late else self._fewer)
        window = order.window(number)
        block = _empty_block(self.split, window, self._memory)
        seconds, processor_seconds = load_window(
            self.split, window, block, self._pool, self._scratch
        )
        _ = window.row_numbers  # computed here, not while the caller waits
        least = SLOW_SECONDS * len(window.chunks)
        # On a busy machine chunks wait for a core. More threads would only make the wait longer.
        if late and seconds > max(least, SLOW * processor_seconds):
            self._most = self._fewer = max(self._most, WAITING_THREADS)
        return window, block

    def _use_threads(self, threads: int) -> None:
        if threads != self._threads:
            if self._pool:
                self._pool.shutdown()
            self._threads = threads
            self._pool = _pool(threads)

    def close(self) -> None:
        self._ahead.shutdown(cancel_futures=True)
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._coming.clear()
        self._memory.clear()


def usable_cores() -> int:
    """Return the number of cores that this process may use; all cores on macOS."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_beside(busy_cores: int, most: int) -> int:
    """Return `most` threads, or fewer to leave `busy_cores` cores free, but at least one."""
    return max(1, min(usable_cores() - busy_cores, most))


def _pool(threads: int) -> Executor | None:
    """Return threads for `load_window`; None for a single one, which is its own."""
    return ThreadPoolExecutor(threads, "load-chunk") if threads > 1 else None
