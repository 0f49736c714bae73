"""Windows of shuffled rows, loaded through Dask: one in use, the next one on its way."""

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
from dask.delayed import delayed
from numpy.typing import NDArray

from pipeline.order import EpochOrder, RowNumbers, Window
from storage.dataset import Block, Split

DEFAULT_THREADS = min(4, os.cpu_count() or 1)


def load_chunk(split: Split, number: int, start: int, stop: int) -> Block:
    """Rows [start, stop) of the split, which lie in chunk `number`: read, checked, decoded."""
    block = split.read_chunk(number)
    first, _ = split.schema.chunk_bounds(number)
    rows = slice(start - first, stop - first)
    return Block(block.inputs[rows], None if block.targets is None else block.targets[rows])


def gather(blocks: list[Block], destinations: RowNumbers) -> Block:
    """The blocks' rows, listed one after the other, each at its destination."""
    inputs = _scatter([block.inputs for block in blocks], destinations)
    targets = [block.targets for block in blocks if block.targets is not None]
    return Block(inputs, _scatter(targets, destinations) if targets else None)


def _scatter(parts: list[NDArray[Any]], destinations: RowNumbers) -> NDArray[Any]:
    result = np.empty((len(destinations), *parts[0].shape[1:]), dtype=parts[0].dtype)
    start = 0
    for part in parts:
        result[destinations[start : start + len(part)]] = part
        start += len(part)
    return result


def window_graph(split: Split, window: Window) -> Any:
    """A lazy Dask value of one window: a task per chunk, and one that gathers the rows.

    Keys name run-wide unique work: two tasks of one key would be taken for the same.
    """
    name = f"{split.name}-{window.epoch}-{window.number}"
    read = delayed(partial(load_chunk, split), pure=False, traverse=False)
    chunks = zip(window.chunks.tolist(), window.starts.tolist(), window.stops.tolist(), strict=True)
    blocks = [
        read(chunk, start, stop, dask_key_name=f"load-chunk-{name}-{chunk}")
        for chunk, start, stop in chunks
    ]
    join = delayed(gather, pure=False, traverse=False)
    return join(blocks, window.destinations, dask_key_name=f"load-window-{name}")


class WindowLoader:
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
        graph = window_graph(self.split, window)
        return window, graph.compute(scheduler="threads", pool=self._pool)

    def close(self) -> None:
        """Stop the threads; what is on its way is dropped."""
        self._ahead.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)
        self._coming.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
