"""Scratch arrays, used again: fresh memory for each step costs as much as small products."""

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Workspace:
    """Arrays by name, for one thread. What `array` gave is overwritten when it gives it again."""

    def __init__(self) -> None:
        """Without arrays; each is made when it is first asked for."""
        self._buffers: dict[tuple[str, np.dtype[Any]], NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array of any content, contiguous; of one name no more memory than its largest."""
        size = math.prod(shape)
        key = (name, np.dtype(dtype))
        buffer = self._buffers.get(key)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[key] = np.empty(size, key[1])
        return buffer[:size].reshape(shape)
