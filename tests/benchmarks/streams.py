"""The stream alone, and scoring without process start."""

import itertools
import time
from collections.abc import Iterator

import numpy as np
from threadpoolctl import threadpool_limits

from jobs.scoring.job import score
from jobs.training.config import TrainConfig
from jobs.training.job import train
from pipeline.stream import BatchStream
from tests.benchmarks.contest import Verdict, medians
from tests.benchmarks.data import CORES, Workplace
from tests.benchmarks.peers import bare_products, loader_batches, torch_tensors

BATCH_ROWS = 128
EPOCHS = 5


def bench_stream(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Measure shuffled batches of 128, from opening the stream to its end."""
    inputs, targets = workplace.train_bytes, workplace.train_targets
    images, labels = torch_tensors(workplace)

    def streamed() -> float:
        began = time.perf_counter()
        with BatchStream(
            workplace.dataset, "train", batch_size=BATCH_ROWS, epochs=EPOCHS
        ) as stream:
            for _ in range(EPOCHS):
                for _ in stream:
                    pass
        return (time.perf_counter() - began) / EPOCHS

    def gathered() -> None:
        order = np.random.default_rng(0).permutation(len(inputs))
        for start in range(0, len(order), BATCH_ROWS):
            rows = order[start : start + BATCH_ROWS]
            inputs[rows], targets[rows]

    def loaded() -> None:
        for _ in loader_batches(images, labels, BATCH_ROWS):
            pass

    times = medians({"stream": streamed, "gather": gathered, "loader": loaded}, rounds)
    rate = {name: len(inputs) / seconds for name, seconds in times.items()}
    note = ", ".join(f"{name} {value:,.0f} rows/s" for name, value in rate.items())
    yield Verdict("stream alone", rate["stream"], 1_500_000, True, "rows/s", note)
    peer = rate["loader"]
    yield Verdict("stream / PyTorch DataLoader, row by row", rate["stream"] / peer, 5, True)
    yield Verdict("stream / gathering in memory", rate["stream"] / rate["gather"], 0.5, True)


def bench_score(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Measure scoring the test split in this process, each time without earlier scores."""
    trained = workplace.directory / "scored"
    train(TrainConfig(epochs=1), dataset=workplace.dataset.location, run=trained)
    names = itertools.count()
    rows = workplace.dataset.split("test").schema.rows

    def scored() -> float:
        (trained / "scores").exists() and (trained / "scores").rename(
            workplace.directory / f"scores-{next(names)}"
        )
        began = time.perf_counter()
        score(run=trained, dataset=workplace.dataset.location)
        return time.perf_counter() - began

    products = bare_products(rows, 500, backward=False)

    def bare() -> None:
        with threadpool_limits(1, user_api="blas"):
            products()

    times = medians({"score": scored, "bare": bare}, rounds)
    note = f"score {times['score']:.3f} s on {CORES} cores, products {times['bare']:.3f} s on one"
    ratio = times["score"] / times["bare"]
    yield Verdict("scoring / forward matrix products", ratio, 1.5, note=note)
