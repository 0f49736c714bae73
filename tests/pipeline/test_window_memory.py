"""Memory for windows is reused once no array uses it, and never before."""

import gc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.windows import MOST_SPARE, WindowMemory


def address(array: NDArray[np.uint8]) -> int:
    """The address of the array's memory."""
    return int(array.__array_interface__["data"][0])


def test_used_again() -> None:
    """Released memory is reused if it is large enough."""
    memory = WindowMemory()
    first = memory.array(1000)
    place = address(first)
    del first
    assert place == address(memory.array(900))
    longer = memory.array(2**20)
    assert (2**20,) == longer.shape
    longer[:] = 7


def test_a_view_keeps_it() -> None:
    """Memory is not reused while there is a view, even a view of a view with another type."""
    memory = WindowMemory()
    first = memory.array(8000)
    view = first[80:].view(np.float64).reshape(9, 110)[3:5, ::2]
    place = address(first)
    del first
    other = memory.array(8000)
    assert place != address(other)
    other[:] = 1
    view[:] = 2
    assert np.all(other == 1)
    del view
    assert place == address(memory.array(8000))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
@settings(deadline=None)
def test_no_two_share(sizes: list[int]) -> None:
    """Arrays that exist at the same time never share memory."""
    memory = WindowMemory()
    arrays: list[NDArray[np.uint8]] = []
    for number, size in enumerate(sizes):
        if size < 3:
            del arrays[size : size + 1]
            continue
        array = memory.array(size * 100)
        array[:] = number
        arrays.append(array)
        assert len({address(array) for array in arrays}) == len(arrays)
        assert all(len(set(array.tolist())) == 1 for array in arrays)


def test_little_is_kept() -> None:
    """Memory for at most two windows is kept for reuse."""
    memory = WindowMemory()
    arrays = [memory.array(1000) for _ in range(5)]
    arrays.clear()
    gc.collect()
    assert MOST_SPARE == len(memory._spare)
    memory.clear()
    assert 0 == len(memory._spare)
