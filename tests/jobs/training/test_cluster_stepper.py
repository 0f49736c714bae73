"""The fixed tree on a cluster: the sum does not depend on the workers or the order."""

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jobs.training.step import subtree_size
from tests.jobs.training.test_step import by_definition


@given(
    micro_batches=st.integers(1, 150),
    workers=st.integers(1, 40),
    size=st.one_of(st.none(), st.sampled_from([1, 2, 4, 8, 16, 256])),
    random=st.randoms(use_true_random=False),
    seed=st.integers(0, 2**32),
)
def test_any_split_in_any_order(
    micro_batches: int, workers: int, size: int | None, random: Random, seed: int
) -> None:
    """The sum of subtrees of any size, computed in any order, equals the tree's sum."""
    generator = np.random.default_rng(seed)
    sums = list(generator.standard_normal((micro_batches, 5)).astype(np.float32))
    size = size or subtree_size(micro_batches, workers, 16)
    starts = list(range(0, micro_batches, size))
    done = {}
    for start in random.sample(starts, len(starts)):
        done[start] = by_definition(sums[start : start + size])
    expected = by_definition(sums)
    assert expected.tobytes() == by_definition([done[start] for start in starts]).tobytes()


@given(st.integers(1, 1000), st.integers(1, 64), st.integers(1, 100))
def test_size_of_a_subtree(micro_batches: int, workers: int, most: int) -> None:
    """The size is a power of two with at most the given number of sums."""
    size = subtree_size(micro_batches, workers, most)
    assert 1 == size.bit_count()
    assert -(-micro_batches // size) <= most


def test_workers_share_the_work() -> None:
    """Four micro-batches: one task for one worker, two for two or three, four for four."""
    assert [4, 2, 2, 1] == [subtree_size(4, workers, 16) for workers in (1, 2, 3, 4)]
