"""The arithmetic of a step: the fixed tree, micro-batches, L2, narrowed inputs."""

import functools
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from jobs.nn.architecture import parse_network
from jobs.nn.network import Network, Workspace
from jobs.nn.optimizers import make_optimizer
from jobs.training.gradients import network_inputs
from jobs.training.step import (
    TreeSum,
    UpdateRule,
    default_micro_batches,
    thread_count,
)
from storage.preparation import BYTES


def by_definition(items: list[Any]) -> Any:
    """The fixed tree: the largest power of two below the number of items goes to the left."""
    if len(items) == 1:
        return items[0]
    left = 1 << (len(items) - 1).bit_length() - 1
    return by_definition(items[:left]) + by_definition(items[left:])


def wide(generator: np.random.Generator, count: int, size: int) -> NDArray[np.float32]:
    """`(count, size)` numbers of such different sizes that their sum depends on the order."""
    exponents = generator.uniform(-6, 6, (count, size))
    return (generator.standard_normal((count, size)) * 10**exponents).astype(np.float32)


@given(count=st.integers(1, 70), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_tree(count: int, seed: int) -> None:
    """For any number of items the sum equals the tree's definition, to the bit."""
    vectors = wide(np.random.default_rng(seed), count, 5)
    tree = TreeSum[NDArray[np.float32]](lambda left, right, _: left + right)
    for vector in vectors:
        tree.add(vector)
    assert by_definition(list(vectors)).tobytes() == tree.result().tobytes()


def test_tree_is_not_a_chain() -> None:
    """Adding the same numbers in another order gives other bits."""
    vectors = list(wide(np.random.default_rng(1), 7, 50))
    chain = functools.reduce(np.add, vectors)
    assert by_definition(vectors).tobytes() != chain.tobytes()


@given(count=st.integers(1, 300))
@settings(deadline=None)
def test_tree_memory(count: int) -> None:
    """A sum holds at most one item per binary digit of the number of items."""
    places: dict[int, int] = {}

    def add(left: int, right: int, depth: int) -> int:
        places[depth] = left + right
        return places[depth]

    tree = TreeSum[int](add)
    for item in range(count):
        tree.add(item)
    assert sum(range(count)) == tree.result()
    assert len(places) <= count.bit_length()


@pytest.mark.parametrize(
    ("batch_size", "micro_batches"),
    [
        (1, 1),
        (319, 1),
        (320, 4),
        (1000, 4),
        (1024, 4),
        (1025, 5),
        (60_000, 235),
    ],
)
def test_default_micro_batches(batch_size: int, micro_batches: int) -> None:
    """The number of micro-batches is fixed: other parts have other bits."""
    assert micro_batches == default_micro_batches(batch_size)


def test_default_micro_batches_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches do not depend on the machine's cores; threads do."""
    here = [default_micro_batches(size) for size in range(1, 5000, 7)]
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert here == [default_micro_batches(size) for size in range(1, 5000, 7)]
    assert (64, 3) == (thread_count(0), thread_count(3))


def test_l2_by_parts() -> None:
    """L2 applies to each weight and no bias, for any division of a step into blocks."""
    network = Network(parse_network("3-tanh-2-softmax-2"))  # biases at 0, 1 and 8, 9
    parameters = np.arange(1, 15, dtype=np.float32)
    pulled = np.ones(14, bool)
    pulled[[0, 1, 8, 9]] = False
    for name, expected in (
        ("sgd", parameters - np.float32(0.1) * (parameters * np.float32(0.5) * pulled)),
        ("adamw", np.where(pulled, parameters * np.float32(1 - 0.1 * 0.5), parameters)),
    ):
        rule = UpdateRule(network, make_optimizer(name), 0.5)
        state = rule.optimizer.initial_state(parameters)
        for cut in range(15):
            after = np.zeros_like(parameters), {key: np.zeros_like(parameters) for key in state}
            for block in (slice(0, cut), slice(cut, 14)):
                gradient = np.zeros(block.stop - block.start, np.float32)
                rule.apply(block, (parameters, state), gradient, 0.1, 1, after)
            np.testing.assert_allclose(after[0], expected, rtol=1e-6)


def test_network_inputs_are_narrowed() -> None:
    """Columns that are blank in all rows are left out if they are a tenth or more."""
    stored = np.zeros((3, 20), np.uint8)
    stored[:, 0] = 255
    stored[0, [4, 19]] = 255
    stored[2, 7] = 51
    inputs, columns = network_inputs(stored, np.dtype("float32"), BYTES, Workspace())
    assert columns is not None
    assert [0, 4, 7, 19] == columns.tolist()
    np.testing.assert_allclose(inputs[2], [1, 0, 0.2, 0], rtol=1e-6)
    inputs, columns = network_inputs(np.ones((3, 20), np.uint8), np.dtype("float32"), BYTES)
    assert columns is None
    assert (3, 20) == inputs.shape
