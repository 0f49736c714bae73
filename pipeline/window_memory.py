"""Memory for windows, used again: to have the system clear it anew takes a while at each window.

It also keeps a job's memory flat. An allocator that is asked for some megabytes again and again,
by several threads, ends up with more than any of them has at a time.
"""

import mmap
import weakref

import numpy as np
from numpy.typing import NDArray

MOST_SPARE = 2
"""Mappings that are kept for later, at most: there are no more windows at a time."""
HUGE_PAGES_FROM = 4 * 2**20
"""Bytes from which it pays to ask for huge pages, as NumPy does for its own arrays."""


class WindowMemory:
    """Gives arrays whose memory comes back when nobody has a view of them any more."""

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self._spare: list[mmap.mmap] = []

    def array(self, size: int) -> NDArray[np.uint8]:
        """`(size,)` bytes of any content."""
        memory = self._mapping(max(1, size))
        array: NDArray[np.uint8] = np.frombuffer(memory, np.uint8, size)
        # Views refer to this very array, so it outlives them all.
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
        """Give back to the system what is kept for later."""
        self._spare.clear()
