"""Epochs of training: streamed from disk, from memory, as bare products, and in PyTorch."""

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
from threadpoolctl import threadpool_limits

from jobs.nn.architecture import parse_network
from jobs.nn.initialise import initialise
from jobs.nn.network import NO_ROWS, Network
from jobs.nn.optimizers import make_optimizer
from jobs.training.config import TrainConfig
from jobs.training.data_parallel import DataParallelStep
from jobs.training.environment import one_blas_thread
from jobs.training.gradients import GradientRule
from jobs.training.step import UpdateRule, default_micro_batches
from jobs.training.trainer import Trainer
from pipeline.stream import Batch
from tests.benchmarks.contest import Contestant, Verdict, medians
from tests.benchmarks.data import CORES, NETWORK, Workplace
from tests.benchmarks.peers import bare_products, torch_epoch

MANY = 10**6


def micro_batches(batch_size: int, threads: int) -> int:
    """Return the default number of micro-batches, but no more than there are threads."""
    return min(default_micro_batches(batch_size), threads)


def streamed_epoch(
    workplace: Workplace, batch_size: int, threads: int, stack: ExitStack
) -> Contestant:
    """Return an epoch of `pipeline train`, without evaluation and checkpoint."""
    config = TrainConfig(
        batch_size=batch_size,
        threads=threads,
        micro_batches=micro_batches(batch_size, threads) if threads else None,
        optimizer="sgd",
        learning_rate=0.1,
        schedule="constant",
        l2=0.0,
        epochs=MANY,
    )
    trainer = Trainer(config, parse_network(NETWORK), workplace.dataset)
    return epoch_of(stack.enter_context(trainer))


def epoch_of(trainer: Trainer) -> Contestant:
    """Return a contestant that trains one more epoch."""

    def epoch() -> None:
        with one_blas_thread():
            trainer.sums = NO_ROWS
            trainer.train_epoch(lambda: None)

    return epoch


def memory_epoch(
    workplace: Workplace, batch_size: int, threads: int, stack: ExitStack
) -> Contestant:
    """Return an epoch with the same steps over shuffled rows in memory."""
    inputs, targets = workplace.train_bytes, workplace.train_targets
    layers = parse_network(NETWORK)
    parts = micro_batches(batch_size, threads)
    network = Network(layers)
    stepper = stack.enter_context(
        DataParallelStep(
            GradientRule(network),
            UpdateRule(network, make_optimizer("sgd"), l2=0.0),
            initialise("scaled", layers, 0),
            {},
            workplace.dataset.split("train").schema,
            batch_size=batch_size,
            micro_batches=parts,
            threads=threads,
        )
    )

    def cut(rows: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Iterator[Batch]:
        for part in np.array_split(rows, parts):
            yield Batch(inputs[part], targets[part], part)

    def epoch() -> None:
        order = np.random.default_rng(0).permutation(len(inputs))
        with one_blas_thread():
            for number, start in enumerate(range(0, len(order), batch_size), 1):
                rows = order[start : start + batch_size]
                stepper.step(cut(rows), len(rows), 0.1, number)

    return epoch


def bench_epochs(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Compare epochs on one thread and on all cores, with batches of 100 and 1000."""
    rows = len(workplace.train_bytes)
    bare_targets = {(1, 1000): 1.12, (1, 100): 1.20, (CORES, 1000): 1.6}
    for threads in dict.fromkeys((1, CORES)):
        for batch_size in (100, 1000):
            with ExitStack() as stack:
                products = bare_products(rows, batch_size)

                def bare(products: Contestant = products, threads: int = threads) -> None:
                    with threadpool_limits(threads, user_api="blas"):
                        products()

                contestants = {
                    "bare": bare,
                    "torch": torch_epoch(workplace, batch_size, threads, loader=False),
                    "loader": torch_epoch(workplace, batch_size, threads, loader=True),
                    "memory": memory_epoch(workplace, batch_size, threads, stack),
                    "streamed": streamed_epoch(workplace, batch_size, threads, stack),
                }
                times = medians(contestants, rounds)
            where = f"{threads} thread{'s' if threads > 1 else ''}, batch {batch_size}"
            note = f"{micro_batches(batch_size, threads)} micro-batches: " + ", ".join(
                f"{name} {seconds:.3f} s" for name, seconds in times.items()
            )
            streamed = times["streamed"]
            if (threads, batch_size) in bare_targets:
                target = bare_targets[threads, batch_size]
                yield Verdict(
                    f"streamed / bare, {where}", streamed / times["bare"], target, note=note
                )
            yield Verdict(
                f"streamed / PyTorch in memory, {where}",
                streamed / times["torch"],
                0.75,
                note=note,
            )
            yield Verdict(
                f"streamed / PyTorch DataLoader, {where}", streamed / times["loader"], 0.55
            )
            yield Verdict(
                f"streamed / the same in memory, {where}", streamed / times["memory"], 1.05
            )
