"""Threads that apply a function to items, for work in long NumPy calls."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

from storage.location import Closing

Given = TypeVar("Given")
Result = TypeVar("Result")


class ThreadMap(Closing, Generic[Given, Result]):
    """Applies a function to items on threads, and yields the results in order."""

    def __init__(self, function: Callable[[Given], Result], threads: int) -> None:
        """Use `threads` threads, the calling one included."""
        self._function = function
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, "compute") if threads > 1 else None

    def map(self, items: Iterator[Given]) -> Iterator[Result]:
        """Yield the results in order; at most as many items are taken ahead as there are threads.

        Items are released before the next ones are taken, because they may be views of large
        arrays. The calling thread takes part: passing an item to another thread costs as much as
        a small micro-batch.
        """
        if self._pool is None:
            yield from map(self._function, items)
            return
        while group := list(islice(items, self._threads)):
            others = [self._pool.submit(self._function, item) for item in group[1:]]
            yield self._function(group[0])
            for other in others:
                yield other.result()
            group.clear()

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
