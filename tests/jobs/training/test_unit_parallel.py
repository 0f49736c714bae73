"""Steps divided by units: the same bits on any number of cores, even if processes die."""

import os
import signal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.nn.architecture import parse_network
from jobs.nn.choices import OPTIMIZERS
from jobs.nn.initialise import initialise
from jobs.nn.network import Network
from jobs.nn.optimizers import Stepped, make_optimizer
from jobs.training import process_pool
from jobs.training.dropout import Dropout
from jobs.training.gradients import DistortionPlan, GradientRule
from jobs.training.process_pool import shared_array
from jobs.training.step import UpdateRule
from jobs.training.unit_parallel import UnitParallelStep
from pipeline.distortions import Distortions
from tests.jobs.training.test_data_parallel import SCHEMA, batch, one_by_one, stepper_of

NETWORKS = (
    "12-softmax-3",
    "12-tanh-7-softmax-3",
    "12-relu-40-softmax-3",
    "12-relu-33-sigmoid-9-softmax-3",
    "12-tanh-600-relu-5-tanh-4-softmax-3",
)


@pytest.mark.slow
@given(
    text=st.sampled_from(NETWORKS),
    rows=st.lists(st.integers(1, 90), min_size=3, max_size=3),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(["float32", "float64"]),
    optimizer=st.sampled_from(OPTIMIZERS),
    l2=st.sampled_from([0.0, 0.01]),
)
@settings(deadline=None, max_examples=40)
def test_any_number_of_cores(
    text: str, rows: list[int], seed: int, dtype: str, optimizer: str, l2: float
) -> None:
    """Three steps of any sizes on one to four cores have the bits of the definition."""
    layers = parse_network(text)
    rule = UpdateRule(Network(layers, dtype), make_optimizer(optimizer), l2)
    parameters = initialise("scaled", layers, seed, dtype)
    start: Stepped = parameters, rule.optimizer.initial_state(parameters)
    generator = np.random.default_rng(seed)
    batches = [batch(generator, count) for count in rows]
    expected = start
    for number, mini_batch in enumerate(batches, 1):
        expected = one_by_one(rule, expected, [mini_batch], number)
    for threads in (1, 2, 3, 4):
        with stepper_of(rule, start, max(rows), 1, threads) as stepper:
            for number, mini_batch in enumerate(batches, 1):
                stepper.step(iter([mini_batch]), len(mini_batch.rows), 0.1, number)
            assert expected[0].tobytes() == stepper.parameters.tobytes()
            for key, vector in expected[1].items():
                assert vector.tobytes() == stepper.state[key].tobytes()


class Harmed(UnitParallelStep):
    """A step whose forks are harmed at one stage of the fifth step."""

    def __init__(self, stage: str, number: int, *arguments: Any, **options: Any) -> None:
        """`number` is the signal that does the harm."""
        self.stage, self.signal, self.now = stage, number, 0
        self.begun = shared_array((4,), np.int64)  # for each first part, the step
        super().__init__(*arguments, **options)

    def harm(self, stage: str) -> None:
        """Send the signal if the step has come to the stage."""
        if self.now == 5 and stage == self.stage:
            os.kill(os.getpid(), self.signal)

    def _work(self, numbers: Any, meet: Any) -> Any:
        self.now = int(numbers[0])  # only in forks
        self.begun[int(numbers[4])] = self.now
        self.harm("beginning")

        def harmed() -> None:
            self.harm("before meeting")
            meet()
            self.harm("after meeting")

        reply = super()._work(numbers, harmed)
        self.harm("end")
        return reply

    def _shares(self, *arguments: Any) -> Any:
        self.shares = super()._shares(*arguments)
        return self.shares

    def _wait_for_forks(self) -> None:
        """Wait until all forks have begun the step; a task not begun would be taken back."""
        if not self.now:
            for share in self.shares[:-1]:
                while self.begun[int(share.first_part)] < share.number:
                    os.sched_yield()

    def _distort(self, *arguments: Any) -> None:
        self._wait_for_forks()
        super()._distort(*arguments)

    def _prepare(self, *arguments: Any) -> None:
        self._wait_for_forks()
        super()._prepare(*arguments)

    def _save(self, part: int | None, block: slice) -> None:
        super()._save(part, block)
        self.harm("saved")
        if self.now == 5 and self.stage == "updating":
            for vector in self._vectors.values():
                vector[block.start : (block.start + block.stop) // 2] = 7
            self.harm("updating")

    def _put(self, part: int, narrow: Any) -> None:
        if self.now == 5 and self.stage == "putting":
            self._weights.first[part][self._columns[:5]] = 7
            self.harm("putting")
        super()._put(part, narrow)


PLAN = DistortionPlan(Distortions(rotate=10.0, shift=1.0), (3, 4), seed=1, full_epochs=1)
RULES = {
    "sgd": {},
    "adamw": {"dropout": Dropout(0.25, 3), "label_smoothing": 0.1},
    "momentum": {"distortions": PLAN},
}


def steps(optimizer: str, threads: int, stage: str = "", number: int = signal.SIGKILL) -> Any:
    """Return losses, parameters and state of ten steps, one of them with harmed forks."""
    layers = parse_network("12-tanh-600-relu-5-softmax-3")
    network = Network(layers)
    update = UpdateRule(network, make_optimizer(optimizer), 0.1 if optimizer == "adamw" else 0.0)
    parameters = initialise("scaled", layers, 0)
    state = update.optimizer.initial_state(parameters)
    rule = GradientRule(network, parts=network.parts, **RULES[optimizer])
    generator = np.random.default_rng(3)
    with Harmed(
        stage, number, rule, update, parameters, state, SCHEMA, batch_size=40, threads=threads
    ) as stepper:
        losses = [
            stepper.step(iter([batch(generator, rows)]), rows, 0.1, step)
            for step, rows in enumerate([40, 40, 7, 40, 40, 40, 1, 40, 40, 3], 1)
        ]
        left = len(stepper.process_numbers)
        state = {name: vector.tobytes() for name, vector in stepper.state.items()}
        return left, (losses, stepper.parameters.tobytes(), state)


@pytest.mark.parametrize("optimizer", RULES)
@pytest.mark.parametrize(
    "stage",
    ["beginning", "before meeting", "after meeting", "putting", "saved", "updating", "end"],
)
def test_killed_processes_change_no_bit(stage: str, optimizer: str) -> None:
    """All forks are killed at a stage of a step, even when half of an update is written."""
    left, result = steps(optimizer, 3, stage)
    assert (0 if optimizer == "sgd" or stage != "putting" else 2) == left
    assert steps(optimizer, 1)[1] == result


@pytest.mark.parametrize("stage", ["before meeting", "updating"])
def test_stuck_processes_are_ended(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forks that are stopped within a step delay it for a limited time only."""
    monkeypatch.setattr(process_pool, "STUCK_SECONDS", 0.1)
    left, result = steps("sgd", 3, stage, signal.SIGSTOP)
    assert left == 0
    assert steps("sgd", 1)[1] == result
