"""Data-parallel steps: the same bits on any number of cores, even if processes die."""

import os
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.nn.architecture import parse_network
from jobs.nn.choices import OPTIMIZERS
from jobs.nn.initialise import initialise
from jobs.nn.network import LossSum, Network
from jobs.nn.optimizers import Stepped, make_optimizer
from jobs.nn.parameters import Floats
from jobs.training.data_parallel import DataParallelStep
from jobs.training.environment import one_blas_thread
from jobs.training.gradients import GradientRule, network_inputs
from jobs.training.job import train
from jobs.training.local_step import local_step
from jobs.training.step import UpdateRule, default_micro_batches
from jobs.training.trainer import parameters_digest
from jobs.training.unit_parallel import UnitParallelStep
from pipeline.order import EpochOrder
from pipeline.stream import Batch, chunks_per_window
from storage.dataset import open_dataset
from storage.errors import BadDataError
from storage.places import open_location
from storage.preparation import BYTES
from storage.schema import SplitSchema
from tests.jobs.training.test_step import by_definition
from tests.jobs.trainings import small
from tests.storage.artefacts import stored_rows

LAYERS = parse_network("12-tanh-7-softmax-3")
SCHEMA = SplitSchema(
    rows=100, features=12, dtype="uint8", classes=3, chunk_rows=10, chunks_per_shard=1
)


def batch(generator: np.random.Generator, rows: int) -> Batch:
    """Random rows for `LAYERS`, with some columns blank in all of them."""
    inputs = generator.integers(0, 256, (rows, 13), dtype=np.uint8)
    inputs[:, 0] = 255
    inputs[:, [3, 9]] = 0
    targets = np.eye(3, dtype=np.uint8)[generator.integers(0, 3, rows)]
    return Batch(inputs, targets, np.arange(rows))


def parts(whole: Batch, count: int) -> list[Batch]:
    """A mini-batch's contiguous micro-batches, without empty ones."""
    assert whole.targets is not None
    cut = zip(
        np.array_split(whole.inputs, count),
        np.array_split(whole.targets, count),
        np.array_split(whole.rows, count),
        strict=True,
    )
    return [Batch(*arrays) for arrays in cut if len(arrays[0])]


def one_by_one(
    rule: UpdateRule, before: Stepped, batches: list[Batch], number: int, rate: float = 0.1
) -> Stepped:
    """A step by definition: the gradients of the parts, summed in the tree."""
    sums = []
    rows = sum(len(part.inputs) for part in batches)
    units = rule.network.parts if len(batches) == 1 else 1
    with one_blas_thread():
        for part in batches:
            assert part.targets is not None
            inputs, columns = network_inputs(part.inputs, rule.network.dtype, BYTES)
            gradient = rule.network.gradient_sum(
                before[0], inputs, part.targets, columns, weight=1 / rows, parts=units
            )
            sums.append(gradient.gradient)
    gradient: Floats = by_definition(sums)
    after = np.empty_like(before[0]), {key: np.empty_like(before[0]) for key in before[1]}
    rule.apply(slice(0, len(before[0])), before, gradient, rate, number, after)
    return after


def stepper_of(
    rule: UpdateRule, start: Stepped, rows: int, micro_batches: int, threads: int
) -> DataParallelStep | UnitParallelStep:
    """Takes steps of mini-batches of `LAYERS`' rows."""
    parts = rule.network.parts if micro_batches == 1 else 1
    return local_step(
        GradientRule(rule.network, parts=parts),
        rule,
        *start,
        SCHEMA,
        batch_size=rows,
        micro_batches=micro_batches,
        threads=threads,
    )


def beginning(optimizer: str, l2: float = 0.0) -> tuple[UpdateRule, Stepped]:
    """A rule, and the parameters and state to start from."""
    rule = UpdateRule(Network(LAYERS), make_optimizer(optimizer), l2)
    parameters = initialise("scaled", LAYERS, 0)
    return rule, (parameters, rule.optimizer.initial_state(parameters))


@pytest.mark.slow
@given(
    rows=st.integers(1, 90),
    micro_batches=st.one_of(st.integers(1, 13), st.integers(30, 90)),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(["float32", "float64"]),
    optimizer=st.sampled_from(OPTIMIZERS),
)
@settings(deadline=None, max_examples=30)
def test_any_number_of_cores(
    rows: int, micro_batches: int, seed: int, dtype: str, optimizer: str
) -> None:
    """Three steps on one to four cores have the bits of the definition."""
    rule = UpdateRule(Network(LAYERS, dtype), make_optimizer(optimizer), 0.01)
    parameters = initialise("scaled", LAYERS, seed, dtype)
    state = rule.optimizer.initial_state(parameters)
    generator = np.random.default_rng(seed)
    mini_batches = [parts(batch(generator, rows), micro_batches) for _ in range(3)]
    expected: Stepped = parameters, state
    for number, batches in enumerate(mini_batches, 1):
        expected = one_by_one(rule, expected, batches, number)
    for threads in (1, 2, 3, 4):
        start = parameters, state
        with stepper_of(rule, start, rows, min(micro_batches, rows), threads) as stepper:
            losses = [
                stepper.step(iter(batches), rows, 0.1, number)
                for number, batches in enumerate(mini_batches, 1)
            ]
            assert expected[0].tobytes() == stepper.parameters.tobytes()
            for key, vector in expected[1].items():
                assert vector.tobytes() == stepper.state[key].tobytes()
        assert [rows] * 3 == [loss.rows for loss in losses]


def test_more_cores_than_a_group() -> None:
    """The bits are the same on more cores than `GROUP`."""
    rule, start = beginning("sgd")
    batches = parts(batch(np.random.default_rng(1), 90), 85)
    with stepper_of(rule, start, 90, 85, threads=19) as stepper:
        stepper.step(iter(batches), 90, 0.1, 1)
        expected, _ = one_by_one(rule, start, batches, 1)
        assert expected.tobytes() == stepper.parameters.tobytes()


def steps(threads: int, *, kill: bool = False, signals: tuple[int, ...] = ()) -> Any:
    """Return losses and parameters of ten steps; after five, processes are signalled or killed."""
    rule, start = beginning("adamw", l2=0.1)
    generator = np.random.default_rng(3)
    with stepper_of(rule, start, 40, 4, threads) as stepper:
        losses: list[LossSum] = []
        for number in range(1, 11):
            if number == 6:
                harm(stepper.process_numbers[:2] if kill else [], (signal.SIGKILL,))
                harm(stepper.process_numbers, signals)
            losses.append(stepper.step(iter(parts(batch(generator, 40), 4)), 40, 0.1, number))
        left = threads - 1 - (2 if kill else 0)
        assert left == len(stepper.process_numbers)
        return losses, stepper.parameters.tobytes()


def harm(processes: list[int], signals: tuple[int, ...]) -> None:
    """Send each process each signal, and wait for those that it kills."""
    for process in processes:
        for number in signals:
            os.kill(process, number)
            if number == signal.SIGKILL:
                os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)


def test_killed_processes_change_no_bit() -> None:
    """With two of the three forks killed, the steps have the same bits."""
    assert steps(1) == steps(4, kill=True)


def test_forks_ignore_signals() -> None:
    """The forks survive an interrupt or SIGTERM of the whole process group."""
    assert steps(1) == steps(4, signals=(signal.SIGINT, signal.SIGTERM))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_micro_batches_are_released(threads: int) -> None:
    """No micro-batch is held while the next is taken: they are views of windows."""
    rule, start = beginning("sgd")
    generator = np.random.default_rng(0)
    taken: list[weakref.ref[Batch]] = []

    def micro_batches() -> Iterator[Batch]:
        for _ in range(7):
            assert [] == [reference for reference in taken if reference() is not None]
            part = batch(generator, 5)
            taken.append(weakref.ref(part))
            yield part
            del part

    with stepper_of(rule, start, 35, 7, threads) as stepper:
        stepper.step(micro_batches(), 35, 0.1, 1)
    assert 7 == len(taken)


def test_unlabelled() -> None:
    """Rows without labels are refused: there is nothing to learn from them."""
    rows = batch(np.random.default_rng(0), 4)
    with (
        stepper_of(*beginning("sgd"), rows=4, micro_batches=1, threads=1) as stepper,
        pytest.raises(BadDataError, match="no labels"),
    ):
        stepper.step(iter([Batch(rows.inputs, None, rows.rows)]), 4, 0.1, 1)


@pytest.mark.parametrize("shuffle", [True, False])
def test_full_batch(shuffle: bool, digits: Path, tmp_path: Path) -> None:
    """A mini-batch of all rows, streamed window by window, equals one held in memory."""
    config = small(
        batch_size=0,
        micro_batches=None,
        epochs=1,
        optimizer="sgd",
        schedule="constant",
        l2=0.0,
        shuffle=shuffle,
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
    stored = stored_rows(split)
    assert stored.targets is not None
    inputs, targets = stored.inputs[rows], stored.targets[rows]
    layers = parse_network(config.network)
    rule = UpdateRule(Network(layers), make_optimizer("sgd"), 0.0)
    batches = parts(Batch(inputs, targets, rows), 5)
    assert 5 == default_micro_batches(len(rows))
    before: Stepped = initialise(config.init, layers, config.seed), {}
    after = one_by_one(rule, before, batches, 1, config.learning_rate)
    assert parameters_digest(layers, after[0]) == result.parameters_digest
