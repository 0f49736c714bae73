"""Windows of shuffled rows, loaded through Dask: one in use, the next one on its way."""

import os
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from dask.threaded import get
from numpy.typing import NDArray

from pipeline.order import EpochOrder, Window
from storage.closing import Closing
from storage.dataset import Block, Split

DEFAULT_THREADS = min(4, os.cpu_count() or 1)


def load_window(split: Split, window: Window, pool: Executor) -> Block:
    """A window's rows in their shuffled order, through a Dask graph on the pool's threads.

    A task per chunk reads, checks and decodes it, and lays its rows in their places; one more
    gathers the whole. So there is never more in memory than the window and a chunk per thread.
    Keys name the work once for all: two tasks of one key would be taken for the same.
    """
    name = f"{split.name}-{window.epoch}-{window.number}"
    block = _empty_block(split, window)
    place = partial(place_chunk, split, window, block)
    graph: dict[str, Any] = {
        f"load-chunk-{name}-{chunk}": (place, position)
        for position, chunk in enumerate(window.chunks.tolist())
    }
    key = f"load-window-{name}"
    graph[key] = (partial(gathered, block), list(graph))
    # The scheduler itself: `dask.compute` would import all of `distributed` to look for a client.
    result: Block = get(graph, key, pool=pool)
    return result


def place_chunk(split: Split, window: Window, block: Block, position: int) -> int:
    """Lay the rows of the window's chunk number `position` in the block; how many they are."""
    number, start, stop = (
        int(values[position]) for values in (window.chunks, window.starts, window.stops)
    )
    chunk = split.read_chunk(number)
    first, _ = split.schema.chunk_bounds(number)
    listed = int((window.stops - window.starts)[:position].sum())
    places = window.destinations[listed : listed + stop - start]
    for whole, part in ((block.inputs, chunk.inputs), (block.targets, chunk.targets)):
        if whole is not None and part is not None:
            _as_items(whole)[places] = _as_items(part)[start - first : stop - first]
    return stop - start


def gathered(block: Block, placed: list[int]) -> Block:
    """The block, once all its rows are in their places."""
    assert sum(placed) == len(block.inputs)
    return block


def _empty_block(split: Split, window: Window) -> Block:
    rows, schema = len(window.places), split.schema
    inputs = np.empty((rows, schema.columns), dtype=schema.dtype)
    targets = np.empty((rows, schema.classes), dtype=np.uint8) if schema.classes else None
    return Block(inputs, targets)


def _as_items(rows: NDArray[Any]) -> NDArray[np.void]:
    """Each row as one opaque item, which NumPy moves in one piece and half as fast again."""
    return rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).reshape(-1)


class WindowLoader(Closing):
    """Loads windows in the background, at most one ahead of the one that is in use."""

    def __init__(self, split: Split, threads: int = DEFAULT_THREADS) -> None:
        """`threads` is how many chunks are read and decoded at once."""
        self.split = split
        self.seconds_waited = 0.0
        """How long `take` has kept its caller waiting, in all."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="load-chunk")
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="load-window")
        self._coming: dict[tuple[int, int], Future[tuple[Window, Block]]] = {}

    def expect(self, order: EpochOrder, number: int) -> None:
        """Begin to load a window, unless it is on its way already."""
        key = (order.epoch, number)
        if key not in self._coming:
            self._coming[key] = self._ahead.submit(self._load, order, number)

    def take(self, order: EpochOrder, number: int) -> tuple[Window, Block]:
        """A window and its rows in shuffled order; waits for it where need be.

        Raises `BadDataError` where one of its chunks is missing or damaged.
        """
        self.expect(order, number)
        began = time.perf_counter()
        try:
            return self._coming.pop((order.epoch, number)).result()
        finally:
            self.seconds_waited += time.perf_counter() - began

    def _load(self, order: EpochOrder, number: int) -> tuple[Window, Block]:
        window = order.window(number)
        return window, load_window(self.split, window, self._pool)

    def close(self) -> None:
        """Stop the threads; what is on its way is dropped."""
        self._ahead.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)
        self._coming.clear()
