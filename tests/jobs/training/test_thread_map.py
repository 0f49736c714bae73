"""ThreadMap: results in order, bounded look-ahead, errors."""

import threading
from collections.abc import Iterator

import pytest

from jobs.training.thread_map import ThreadMap


class Backwards:
    """Computes squares; in each group of consecutive items the later ones finish first."""

    def __init__(self, threads: int, items: int) -> None:
        self._group, self._items = threads, items
        self._finished = [threading.Event() for _ in range(items)]
        self.order: list[int] = []

    def __call__(self, item: int) -> int:
        following = item + 1
        if following % self._group and following < self._items:
            assert self._finished[following].wait(60)
        self.order.append(item)
        self._finished[item].set()
        return item * item


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("items", [0, 1, 2, 3, 4, 5, 11, 12])
def test_threads_keep_the_order(threads: int, items: int) -> None:
    """Results have the order of the items, even if later items finish first."""
    function = Backwards(threads, items)
    threaded = ThreadMap(function, threads)
    results = list(threaded.map(iter(range(items))))
    threaded.close()
    assert [item * item for item in range(items)] == results
    groups = [range(items)[start : start + threads] for start in range(0, items, threads)]
    assert [item for group in groups for item in reversed(group)] == function.order


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_threads_look_ahead(threads: int) -> None:
    """At most as many items are taken ahead of the results as there are threads."""
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(50):
            taken += 1
            yield item

    threaded = ThreadMap[int, int](lambda item: item, threads)
    ahead = [taken - given for given, _ in enumerate(threaded.map(items()))]
    threaded.close()
    assert threads == max(ahead)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("bad", [0, 1, 5])
def test_threads_pass_errors_on(threads: int, bad: int) -> None:
    """An error in a thread is raised in the caller."""
    threaded = ThreadMap[int, int](lambda item: 1 // (item - bad), threads)
    with pytest.raises(ZeroDivisionError):
        list(threaded.map(iter(range(9))))
    threaded.close()
