"""An epoch of training: streamed from disk, from memory, as bare products, and in PyTorch."""

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
from threadpoolctl import threadpool_limits

from jobs.environment import one_blas_thread
from jobs.nn.architecture import parse_network
from jobs.nn.initialise import initialise
from jobs.nn.network import NO_ROWS, Network
from jobs.nn.optimizers import make_optimizer
from jobs.training.config import TrainConfig
from jobs.training.data_parallel import DataParallelStep
from jobs.training.step import UpdateRule, default_micro_batches
from jobs.training.trainer import Trainer
from pipeline.stream import Batch
from tests.benchmarks.contest import Contestant, Verdict, medians
from tests.benchmarks.data import CORES, NETWORK, Workplace
from tests.benchmarks.peers import bare_products, torch_epoch

MANY = 10**6


def micro_batches(batch_size: int, threads: int) -> int:
    """As one sets `--micro-batches` who has so many cores: the default, but no more than cores."""
    return min(default_micro_batches(batch_size), threads)


def streamed_epoch(
    workplace: Workplace, batch_size: int, threads: int, stack: ExitStack
) -> Contestant:
    """All that `pipeline train` does in an epoch but evaluation and checkpoint."""
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
    """One more epoch of a training."""

    def epoch() -> None:
        with one_blas_thread():
            trainer.sums = NO_ROWS
            trainer.train_epoch(lambda: None)

    return epoch


def memory_epoch(
    workplace: Workplace, batch_size: int, threads: int, stack: ExitStack
) -> Contestant:
    """Our own steps over rows that lie in memory, shuffled afresh."""
    inputs, targets = workplace.train_bytes, workplace.train_targets
    layers = parse_network(NETWORK)
    parts = micro_batches(batch_size, threads)
    rule = UpdateRule(Network(layers), make_optimizer("sgd"), l2=0.0)
    stepper = stack.enter_context(
        DataParallelStep(
            rule,
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
    """The four rows: one thread and all cores, batches of 100 and 1000."""
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
                found = medians(contestants, rounds)
            where = f"{threads} thread{'s' if threads > 1 else ''}, batch {batch_size}"
            note = f"{micro_batches(batch_size, threads)} micro-batches: " + ", ".join(
                f"{name} {seconds:.3f} s" for name, seconds in found.items()
            )
            streamed = found["streamed"]
            if (threads, batch_size) in bare_targets:
                target = bare_targets[threads, batch_size]
                yield Verdict(
                    f"streamed / bare, {where}", streamed / found["bare"], target, note=note
                )
            yield Verdict(
                f"streamed / PyTorch in memory, {where}",
                streamed / found["torch"],
                0.75,
                note=note,
            )
            yield Verdict(
                f"streamed / PyTorch DataLoader, {where}", streamed / found["loader"], 0.55
            )
            yield Verdict(
                f"streamed / our own in memory, {where}", streamed / found["memory"], 1.05
            )
