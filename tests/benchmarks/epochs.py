"""Epochs of training: streamed from disk, from memory, and by peers, one after the other."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

from jobs.nn.network import NO_ROWS, Network
from jobs.nn.optimizers import make_optimizer
from jobs.training.config import TrainConfig
from jobs.training.environment import one_blas_thread
from jobs.training.gradients import GradientRule
from jobs.training.local_step import local_step
from jobs.training.step import UpdateRule, default_micro_batches
from jobs.training.trainer import Trainer
from pipeline.stream import Batch
from tests.benchmarks.contest import Contestant, Verdict, race
from tests.benchmarks.contestants import Case, ContestantProcess, Entry
from tests.benchmarks.data import CORES, NETWORK, Workplace

MANY = 10**6
LARGE_NETWORK = "784-relu-1024-relu-1024-softmax-10"
WIDE_NETWORK = "784-relu-1500-relu-1000-relu-500-softmax-10"
CASES = [
    Case(network, batch_size, optimizer, rows)
    for network, rows in ((NETWORK, 60_000), (LARGE_NETWORK, 20_000))
    for batch_size, optimizer in ((100, "sgd"), (200, "adamw"), (1000, "sgd"))
]
WIDE_CASE = Case(WIDE_NETWORK, 512, "adamw", rows=5_120, micro_batches=2)
"""Ten steps of 3 million parameters."""
PEERS = {
    "products": "products.training",
    "JAX scan": "jax_peers.scan",
    "JAX step": "jax_peers.step",
    "PyTorch": "torch_peers.memory",
    "memory": "epochs.memory",
    "streamed": "epochs.streamed",
}
UNPINNED = "streamed, with a second core to load"
"""All other contestants of one thread have one core for everything that they do."""
LOADER = {"DataLoader": "torch_peers.loader"}
TARGETS: dict[str, tuple[float | None, float | None]] = {
    "JAX scan": (1.0, 1.0),
    "JAX step": (None, None),
    "PyTorch": (0.75, 0.75),
    "memory": (1.05, 1.05),
    "products": (None, None),
    "DataLoader": (None, None),
}
"""The streamed epoch / each contestant's at most, on one thread and on all cores."""
TARGETS_1000 = TARGETS | {"JAX scan": (1.0, 0.95)}
WIDE_TARGETS = TARGETS | {
    "JAX scan": (None, None),
    "PyTorch": (0.9, 0.9),
    "products": (1.10, 1.25),
}
TWO_THREADS = {100: 0.80, 200: 0.70, 1000: 0.58}
"""The streamed epoch on two threads / on one, by batch size."""
SAME_LOSS = 0.01
"""Relative difference of the losses of contestants that train the same network."""


def micro_batches(case: Case, threads: int) -> int:
    """Return the case's micro-batches: the default, but no more than there are threads."""
    return case.micro_batches or min(default_micro_batches(case.batch_size), threads)


def streamed(
    workplace: Workplace, threads: int, options: dict[str, Any], stack: ExitStack
) -> Entry:
    """Return an epoch of `pipeline train`, without evaluation and checkpoint."""
    case = Case(**options)
    trainer = stack.enter_context(streaming_trainer(workplace, case, threads))
    return Entry(epoch_of(trainer), lambda: trainer.parameters)


def streaming_trainer(workplace: Workplace, case: Case, threads: int) -> Trainer:
    """Return the trainer of a case, which streams its rows from disk."""
    config = TrainConfig(
        network=case.network,
        batch_size=case.batch_size,
        threads=threads,
        micro_batches=micro_batches(case, threads) if threads else None,
        optimizer=case.optimizer,
        learning_rate=case.learning_rate,
        schedule="constant",
        l2=case.l2,
        epochs=MANY,
        holdout=len(workplace.train_bytes) - case.rows,
    )
    return Trainer(config, case.layers, workplace.dataset)


def epoch_of(trainer: Trainer) -> Contestant:
    """Return a contestant that trains one more epoch."""

    def epoch() -> None:
        with one_blas_thread():
            trainer.sums = NO_ROWS
            trainer.train_epoch(lambda: None)

    return epoch


def memory(workplace: Workplace, threads: int, options: dict[str, Any], stack: ExitStack) -> Entry:
    """Return an epoch with the same steps, over rows that are gathered in memory."""
    case = Case(**options)
    inputs, targets, order = workplace.train_bytes, workplace.train_targets, case.order(workplace)
    parts, network = micro_batches(case, threads), Network(case.layers)
    optimizer, parameters = make_optimizer(case.optimizer), case.initial_parameters()
    stepper = stack.enter_context(
        local_step(
            GradientRule(network, parts=network.parts if parts == 1 else 1),
            UpdateRule(network, optimizer, case.l2),
            parameters,
            optimizer.initial_state(parameters),
            workplace.dataset.split("train").schema,
            batch_size=case.batch_size,
            micro_batches=parts,
            threads=threads,
        )
    )
    steps = 0

    def epoch() -> None:
        nonlocal steps
        with one_blas_thread():
            for rows in order:
                steps += 1
                batches = (
                    Batch(inputs[part], targets[part], part) for part in np.array_split(rows, parts)
                )
                stepper.step(batches, len(rows), case.learning_rate, steps)

    return Entry(epoch, lambda: stepper.parameters)


def bench_epochs(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Compare epochs on one thread and on all cores, of two networks, with three batch sizes."""
    for case in CASES:
        if workplace.quick:
            case = replace(case, rows=case.rows // 5)  # noqa: PLW2901 - a short form
        peers = PEERS | LOADER if case.network == NETWORK and case.optimizer == "sgd" else PEERS
        targets = TARGETS_1000 if case.batch_size == 1000 else TARGETS
        yield from _bench_case(workplace, rounds, case, peers, targets)


def bench_step(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Compare steps of a network of 3 million parameters on one core and on all."""
    yield from _bench_case(workplace, rounds, WIDE_CASE, PEERS, WIDE_TARGETS)


def _bench_case(
    workplace: Workplace,
    rounds: int,
    case: Case,
    peers: dict[str, str],
    targets: dict[str, tuple[float | None, float | None]],
) -> Iterator[Verdict]:
    counts = list(dict.fromkeys((1, CORES)))
    with ExitStack() as stack:
        contestants = {
            (name, threads): stack.enter_context(
                ContestantProcess(function, workplace, threads, case)
            )
            for name, function in peers.items()
            for threads in counts
        }
        if len(counts) > 1:
            contestants[UNPINNED, 1] = stack.enter_context(
                ContestantProcess("epochs.streamed", workplace, 1, case, cores=CORES)
            )
        _check_losses({key: process.ready() for key, process in contestants.items()})
        seconds = race(contestants, rounds)
        busy = {key: median(process.busy) for key, process in contestants.items()}
    times = {key: median(values) for key, values in seconds.items()}
    for name, threads in contestants:
        if name != "streamed":
            own = "streamed" if name in peers else name
            peer = name if name in peers else "JAX scan"
            ratio = times[own, threads] / times[peer, threads]
            target = targets[peer][threads > 1] if own == "streamed" else None
            note = "; ".join(
                f"{key[0]} {times[key]:.3f} s ({min(seconds[key]):.3f} to {max(seconds[key]):.3f}, "
                f"{busy[key]:.2f} cores)"
                for key in ((own, threads), (peer, threads))
            )
            where = f"{case.name}, {threads} thread{'s' if threads > 1 else ''}"
            yield Verdict(f"{own} / {peer}, {where}", ratio, target, note=note)
    if len(counts) > 1:
        ratio = times["streamed", CORES] / times["streamed", 1]
        target = TWO_THREADS.get(case.batch_size) if CORES == 2 else None
        yield Verdict(f"streamed, {CORES} threads / 1, {case.name}", ratio, target)


def _check_losses(losses: dict[tuple[str, int], float | None]) -> None:
    """Raise `RuntimeError` unless all contestants that train have the same loss."""
    known = {key: loss for key, loss in losses.items() if loss is not None}
    if max(known.values()) > (1 + SAME_LOSS) * min(known.values()):
        raise RuntimeError(f"Contestants train different networks; their losses: {known}.")
