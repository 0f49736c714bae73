"""The arithmetic of a step: the fixed tree, and bits that no number of threads changes."""

import functools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from jobs.nn.architecture import parse_network
from jobs.nn.initialise import initialise
from jobs.nn.network import GradientSum, Network
from jobs.nn.parameters import Floats
from jobs.step import (
    StepArithmetic,
    TreeSum,
    Workers,
    default_micro_batches,
    one_blas_thread,
    thread_count,
)
from jobs.train import train
from jobs.trainer import parameters_digest
from pipeline.order import EpochOrder
from pipeline.stream import Batch, chunks_per_window
from storage.dataset import open_dataset
from storage.errors import BadDataError
from storage.location import open_location
from tests.jobs.trainings import small

LAYERS = parse_network("12-tanh-7-softmax-3")


def gradient_sum(vector: Floats, rows: int) -> GradientSum:
    """A sum whose parts are all told by the vector and the rows."""
    return GradientSum(vector, float(vector[0]) / 3, rows // 2, rows)


def by_definition(items: list[Any]) -> Any:
    """The fixed tree: the largest power of two below the number of items goes to the left."""
    if len(items) == 1:
        return items[0]
    left = 1 << (len(items) - 1).bit_length() - 1
    return by_definition(items[:left]) + by_definition(items[left:])


def wide(generator: np.random.Generator, count: int, size: int) -> NDArray[np.float32]:
    """`(count, size)` numbers of such different sizes that each order of adding them tells."""
    exponents = generator.uniform(-6, 6, (count, size))
    return (generator.standard_normal((count, size)) * 10**exponents).astype(np.float32)


@given(count=st.integers(1, 70), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_tree(count: int, seed: int) -> None:
    """For any number of items the sum is that of the tree's definition, to the bit."""
    vectors = wide(np.random.default_rng(seed), count, 5)
    expected = by_definition(list(vectors))
    expected_loss = by_definition([float(vector[0]) / 3 for vector in vectors])
    tree = TreeSum()
    for number, vector in enumerate(vectors):
        tree.add(gradient_sum(vector.copy(), number))
    total = tree.result()
    assert expected.tobytes() == total.gradient.tobytes()
    assert expected_loss == total.loss_sum
    assert sum(number // 2 for number in range(count)) == total.correct
    assert sum(range(count)) == total.rows


def test_tree_is_not_a_chain() -> None:
    """The numbers of the test above are such that another order of adding shows."""
    vectors = list(wide(np.random.default_rng(1), 7, 50))
    chain = functools.reduce(np.add, vectors)
    assert by_definition(vectors).tobytes() != chain.tobytes()


def test_tree_memory() -> None:
    """A sum of many items holds no more vectors than their number has binary digits."""
    tree = TreeSum()
    most = 0
    for _ in range(1000):
        tree.add(gradient_sum(np.ones(1, np.float32), 1))
        most = max(most, len(tree._subtrees))
    assert most <= 10
    assert 1000 == tree.result().rows


@pytest.mark.parametrize(
    ("batch_size", "micro_batches"),
    [
        (1, 1),
        (63, 1),
        (64, 2),
        (100, 2),
        (159, 2),
        (160, 4),
        (200, 4),
        (1000, 4),
        (1024, 4),
        (1025, 5),
        (60_000, 235),
    ],
)
def test_default_micro_batches(batch_size: int, micro_batches: int) -> None:
    """How many parts a mini-batch has is pinned: other parts are other bits."""
    assert micro_batches == default_micro_batches(batch_size)


def test_default_micro_batches_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of parts does not depend on the machine's cores; that of the threads does."""
    here = [default_micro_batches(size) for size in range(1, 5000, 7)]
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert here == [default_micro_batches(size) for size in range(1, 5000, 7)]
    assert (64, 3) == (thread_count(0), thread_count(3))


class Backwards:
    """Computes squares; of each so many consecutive items the later ones are finished first."""

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
def test_workers_keep_the_order(threads: int, items: int) -> None:
    """Results come in the order of the items, also where later ones are finished before."""
    function = Backwards(threads, items)
    workers = Workers(function, threads)
    found = list(workers.map(iter(range(items))))
    workers.close()
    assert [item * item for item in range(items)] == found
    groups = [range(items)[start : start + threads] for start in range(0, items, threads)]
    assert [item for group in groups for item in reversed(group)] == function.order


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_workers_look_ahead(threads: int) -> None:
    """No more items are taken ahead of the results than there are threads."""
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(50):
            taken += 1
            yield item

    workers = Workers[int, int](lambda item: item, threads)
    ahead = [taken - given for given, _ in enumerate(workers.map(items()))]
    workers.close()
    assert threads == max(ahead)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("bad", [0, 1, 5])
def test_workers_pass_errors_on(threads: int, bad: int) -> None:
    """What goes wrong in a thread goes wrong in the caller."""
    workers = Workers[int, int](lambda item: 1 // (item - bad), threads)
    with pytest.raises(ZeroDivisionError):
        list(workers.map(iter(range(9))))
    workers.close()


def batch(generator: np.random.Generator, rows: int) -> Batch:
    """Random rows for `LAYERS`."""
    inputs = generator.integers(0, 256, (rows, 13), dtype=np.uint8)
    inputs[:, 0] = 255
    targets = np.eye(3, dtype=np.uint8)[generator.integers(0, 3, rows)]
    return Batch(inputs, targets, np.arange(rows))


def parts(whole: Batch, count: int) -> list[Batch]:
    """A mini-batch's contiguous micro-batches, the empty ones left out."""
    assert whole.targets is not None
    cut = zip(
        np.array_split(whole.inputs, count),
        np.array_split(whole.targets, count),
        np.array_split(whole.rows, count),
        strict=True,
    )
    return [Batch(*arrays) for arrays in cut if len(arrays[0])]


def summed(network: Network, parameters: Floats, batches: list[Batch], threads: int) -> GradientSum:
    """What `StepArithmetic` gives for these micro-batches."""
    arithmetic = StepArithmetic(network, threads)
    with one_blas_thread():
        total = arithmetic.gradient_sum(parameters, iter(batches))
    arithmetic.close()
    return total


@given(
    rows=st.integers(1, 90),
    micro_batches=st.integers(1, 13),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(["float32", "float64"]),
)
@settings(deadline=None, max_examples=60)
def test_any_number_of_threads(rows: int, micro_batches: int, seed: int, dtype: str) -> None:
    """One to four threads give the same bits: those of the parts alone, added in the tree."""
    network = Network(LAYERS, dtype)
    parameters = initialise("scaled", LAYERS, seed, dtype)
    batches = parts(batch(np.random.default_rng(seed), rows), micro_batches)
    alone = [summed(network, parameters, [part], 1) for part in batches]
    expected = by_definition([part.gradient for part in alone])
    for threads in (1, 2, 3, 4):
        total = summed(network, parameters, batches, threads)
        assert expected.tobytes() == total.gradient.tobytes()
        assert by_definition([part.loss_sum for part in alone]) == total.loss_sum
        assert (sum(part.correct for part in alone), rows) == (total.correct, total.rows)


class BackwardsNetwork(Network):
    """A network that finishes the later ones of simultaneous micro-batches first."""

    def __init__(self, threads: int, row_counts: list[int]) -> None:
        super().__init__(LAYERS)
        self._backwards = Backwards(threads, len(row_counts))
        self._numbers = {rows: number for number, rows in enumerate(row_counts)}

    def gradient_sum(
        self, parameters: Floats, inputs: Floats, targets: NDArray[np.uint8], *more: Any
    ) -> GradientSum:
        self._backwards(self._numbers[len(inputs)])
        return super().gradient_sum(parameters, inputs, targets, *more)


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_any_order_of_completion(threads: int) -> None:
    """The bits do not depend on which of the threads is finished first."""
    parameters = initialise("scaled", LAYERS, 0)
    generator = np.random.default_rng(5)
    row_counts = list(range(20, 31))  # by which the network tells the parts apart
    batches = [batch(generator, rows) for rows in row_counts]
    expected = summed(Network(LAYERS), parameters, batches, 1)
    total = summed(BackwardsNetwork(threads, row_counts), parameters, batches, threads)
    assert expected.gradient.tobytes() == total.gradient.tobytes()
    assert expected.loss_sum == total.loss_sum


def test_unlabelled() -> None:
    """Rows without labels are refused: there is nothing to learn from them."""
    rows = batch(np.random.default_rng(0), 4)
    arithmetic = StepArithmetic(Network(LAYERS), 1)
    with pytest.raises(BadDataError, match="no labels"):
        arithmetic.gradient_sum(
            initialise("scaled", LAYERS, 0), iter([Batch(rows.inputs, None, rows.rows)])
        )


@pytest.mark.parametrize("shuffle", [True, False])
def test_full_batch(shuffle: bool, digits: Path, tmp_path: Path) -> None:
    """A mini-batch of all rows, streamed window by window, equals one that is held in memory."""
    config = small(
        batch_size=0, epochs=1, optimizer="sgd", schedule="constant", l2=0.0, shuffle=shuffle
    )
    result = train(config, dataset=digits, run=tmp_path / "run")

    split = open_dataset(open_location(digits)).split("train")
    order = EpochOrder(
        seed=config.seed,
        epoch=0,
        rows=split.schema.rows,
        chunk_rows=split.schema.chunk_rows,
        window_chunks=chunks_per_window(split.schema, config.shuffle_memory, shuffle),
        shuffle=shuffle,
    )
    assert 1 < order.windows
    rows = np.concatenate([order.window(number).row_numbers for number in range(order.windows)])
    assert split.targets is not None
    inputs, targets = np.asarray(split.inputs[:])[rows], np.asarray(split.targets[:])[rows]
    layers = parse_network(config.network)
    network = Network(layers)
    parameters = initialise(config.init, layers, config.seed)
    batches = parts(Batch(inputs, targets, rows), 5)
    assert 5 == default_micro_batches(len(rows))
    gradient = by_definition([summed(network, parameters, [part], 1).gradient for part in batches])
    gradient /= np.float32(len(rows))
    stepped = gradient * np.float32(-config.learning_rate) + parameters
    assert parameters_digest(layers, stepped) == result.parameters_digest
