"""The stream alone, and scoring without process start."""

import itertools
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from jobs.scoring.job import score
from jobs.training.config import TrainConfig
from jobs.training.job import train
from pipeline.ingest import ingest
from pipeline.stream import BatchStream
from storage.dataset import open_dataset
from storage.places import open_location
from tests.benchmarks.contest import Verdict, medians
from tests.benchmarks.contestants import ContestantProcess, Entry
from tests.benchmarks.data import CORES, Workplace
from tests.benchmarks.torch_peers import loader_batches, torch_tensors

BATCH_ROWS = 128
EPOCHS = 5
MANY_ROWS = 600_000


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
    yield Verdict("stream / gathering in memory", rate["stream"] / rate["gather"], 0.33, True)


def scoring(workplace: Workplace, threads: int, options: dict[str, Any], stack: ExitStack) -> Entry:
    """Return a scoring of a split without earlier scores, by a run that only it uses."""
    dataset, split = options["dataset"], options["split"]
    run = workplace.directory / f"scored-{split}-{threads}"
    shutil.copytree(options["run"], run, dirs_exist_ok=True)
    names = itertools.count()

    def scored() -> float:
        if (run / "scores").exists():
            (run / "scores").rename(run.with_name(f"{run.name}-{next(names)}"))
        began = time.perf_counter()
        score(run=run, dataset=dataset, split=split, threads=threads)
        return time.perf_counter() - began

    return Entry(scored)


def bench_score(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Compare scoring with the forward products, each time without earlier scores."""
    run = workplace.directory / "scored"
    train(TrainConfig(epochs=1), dataset=workplace.dataset.location, run=run)
    test = workplace.dataset
    yield from _bench_scoring(workplace, rounds, run, Path(str(test.location)), "test", 1.5)
    many = workplace.directory / "many"
    ingest(f"synthetic:{MANY_ROWS // (10 if workplace.quick else 1)},100", many)
    yield from _bench_scoring(workplace, rounds, run, many, "train", 1.2)


def _bench_scoring(
    workplace: Workplace, rounds: int, run: Path, dataset: Path, split: str, target: float
) -> Iterator[Verdict]:
    rows = open_dataset(open_location(dataset)).split(split).schema.rows
    options = {"run": str(run), "dataset": str(dataset), "split": split, "rows": rows}
    for threads in dict.fromkeys((1, CORES)):
        with ExitStack() as stack:
            contestants = {
                name: stack.enter_context(ContestantProcess(name, workplace, threads, options))
                for name in ("streams.scoring", "products.scoring")
            }
            for contestant in contestants.values():
                contestant.ready()
            scored, products = medians(contestants, rounds).values()
        note = f"score {scored:.3f} s, products {products:.3f} s"
        where = f"{rows:,} rows, {threads} thread{'s' if threads > 1 else ''}"
        yield Verdict(f"scoring / forward products, {where}", scored / products, target, note=note)
