"""Rounds: the mini-batches of each replica, and the outer step."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.training.config import TrainConfig
from jobs.training.job import train
from jobs.training.rounds import RoundPlan, initial_state, of_replica, outer_step, replica_rate
from storage.errors import ConflictError
from tests.jobs.trainings import small

plans = st.builds(RoundPlan, st.integers(1, 400), st.integers(1, 9), st.integers(1, 20))


@given(plans)
def test_each_mini_batch_once(plan: RoundPlan) -> None:
    """In the rounds of an epoch each replica takes its part of the order once."""
    visited: list[list[int]] = [[] for _ in range(plan.replicas)]
    for taken in range(0, plan.batches, plan.round_batches):
        for numbers, share in zip(visited, plan.shares(taken), strict=True):
            numbers.extend(share)
    assert [list(plan.part(replica)) for replica in range(plan.replicas)] == visited
    assert list(range(plan.batches)) == list(chain.from_iterable(visited))


@given(plans)
def test_rounds_are_whole(plan: RoundPlan) -> None:
    """All rounds but the last of an epoch have `sync_every` steps of every replica."""
    *others, last = (
        [len(share) for share in plan.shares(taken)]
        for taken in range(0, plan.batches, plan.round_batches)
    )
    assert [[plan.sync_every] * plan.replicas] * len(others) == others
    assert max(last) - min(last) <= 1


@given(plans)
def test_steps_are_counted(plan: RoundPlan) -> None:
    """A replica's steps before a round are the sum of its shares so far, over epochs."""
    taken = [0] * plan.replicas
    for epoch in range(3):
        for first in range(0, plan.batches, plan.round_batches):
            counted = [plan.steps_before(replica, epoch, first) for replica in range(plan.replicas)]
            assert taken == counted
            for replica, share in enumerate(plan.shares(first)):
                taken[replica] += len(share)


def test_the_step_size_of_replicas() -> None:
    """The rate grows with the square root of the number of replicas, and is unchanged for one."""
    assert [0.5, 1.0, 1.5] == [replica_rate(0.5, replicas) for replicas in (1, 4, 9)]


def test_the_mean() -> None:
    """With an outer learning rate of 1 and no momentum the parameters are the replicas' mean."""
    replicas = [np.array(values, np.float32) for values in ([1, 4], [2, 8], [6, 0])]
    moved, velocity = outer_step(np.zeros(2, np.float32), replicas, None, 1.0, 0.0)
    assert velocity is None
    assert [3, 4] == moved.tolist()


def test_the_outer_nesterov_step() -> None:
    """Two rounds, computed by hand: v = 0.5 v + (w - mean); w = w - 0.8 ((w - mean) + 0.5 v)."""
    parameters, velocity = np.array([1.0]), np.array([0.0])
    moved, new = outer_step(parameters, [np.array([0.0]), np.array([0.5])], velocity, 0.8, 0.5)
    assert new is not None
    assert [0.75, 0.1] == pytest.approx([new.item(), moved.item()])
    moved, new = outer_step(moved, [np.array([0.1])], new, 0.8, 0.5)
    assert new is not None
    assert [0.375, -0.05] == pytest.approx([new.item(), moved.item()])
    assert (1.0, 0.0) == (parameters.item(), velocity.item())


def test_memory_by_replica() -> None:
    """Each replica has its own optimizer state, and the outer step a velocity."""
    config = TrainConfig(parallel="rounds", replicas=2, optimizer="momentum")
    memory = initial_state(config, np.zeros(3))
    assert ["replica-0.velocity", "replica-1.velocity", "outer.velocity"] == list(memory)
    assert ["velocity"] == list(of_replica(memory, 1))
    assert ["velocity"] == list(initial_state(TrainConfig(optimizer="momentum"), np.zeros(3)))


def test_another_algorithm(digits: Path, tmp_path: Path) -> None:
    """A run of rounds cannot be resumed with steps or with other rounds."""
    rounds = small(parallel="rounds", replicas=2, sync_every=2, epochs=1)
    run = tmp_path / "run"
    train(rounds, dataset=digits, run=run)
    with pytest.raises(ConflictError, match="parallel: 'rounds' recorded, 'steps' given"):
        train(small(epochs=1), dataset=digits, run=run, resume=True)
    other = small(parallel="rounds", replicas=2, sync_every=3, epochs=1)
    with pytest.raises(ConflictError, match="sync_every: 2 recorded, 3 given"):
        train(other, dataset=digits, run=run, resume=True)


def test_one_replica_that_is_averaged_is_ordinary_training(digits: Path, tmp_path: Path) -> None:
    """A single replica, without outer momentum, has the parameters of `steps`."""
    common = {"epochs": 2, "schedule": "constant"}
    steps = train(small(**common), dataset=digits, run=tmp_path / "steps")
    alone = small(**common, parallel="rounds", replicas=1, sync_every=4, outer_momentum=0.0)
    rounds = train(alone, dataset=digits, run=tmp_path / "rounds")
    assert steps.parameters_digest == rounds.parameters_digest
    assert steps.order_digest == rounds.order_digest
