"""Scale: memory and time per row at 60,000, 600,000 and 6 million rows; seeking; slow stores."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.nn.architecture import parse_network
from jobs.training.config import TrainConfig
from jobs.training.environment import one_blas_thread
from jobs.training.trainer import Trainer
from pipeline.stream import BatchStream
from storage.dataset import Dataset, open_dataset
from storage.local import LocalLocation
from storage.location import Version
from storage.places import open_location
from tests.benchmarks.contest import Verdict
from tests.benchmarks.contestants import PROJECT
from tests.benchmarks.data import NETWORK, Workplace

SIZES = (60_000, 600_000, 6_000_000)
IN_TURN = (60_000, 600_000, 600_000, 6_000_000, 600_000, 600_000, 60_000)
"""Small sizes come before and after the large one, as a machine's speed changes in minutes."""
ROWS = ("inputs/c", "targets/c")
"""Prefixes of the objects that store a split's rows."""
SHUFFLE_MEMORY = 32 * 2**20
"""Small enough for full windows of every size."""


@dataclass(frozen=True)
class Usage:
    """The resources that a process used."""

    seconds: float
    peak_bytes: int
    stated_bytes: int
    """The bound that it stated, in whole MB."""


LAUNCHER = """
import json, os, subprocess, sys, time
began = time.perf_counter()
with subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True) as job:
    printed = job.stdout.read()
    _, status, usage = os.wait4(job.pid, 0)
    job.returncode = os.waitstatus_to_exitcode(status)
result = (job.returncode, time.perf_counter() - began, usage.ru_maxrss * 1024, printed)
print(json.dumps(result))
"""
"""A process's peak includes that of its parent, so the parent must be small."""


def measured(*arguments: str) -> Usage:
    """Run a command; return its duration, its peak resident memory, and its stated bound."""
    command = [sys.executable, "-m", "jobs.commands.cli", *arguments, "--verbose"]
    launched = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, *command],
        stdout=subprocess.PIPE,
        check=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )
    code, seconds, peak_bytes, printed = json.loads(launched.stdout)
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}")
    stated = next(line for line in printed.splitlines() if line.startswith("memory at most"))
    megabytes = int(stated.split()[3].replace(",", ""))
    return Usage(seconds, peak_bytes, megabytes * 10**6)


def bench_scale(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Measure ingest, one epoch of training, and scoring for each size."""
    for job in ("ingest", "train", "score"):
        usages_of: dict[int, list[Usage]] = {rows: [] for rows in SIZES}
        for rows in IN_TURN:
            usages_of[rows].append(measured(*_command(job, rows, workplace.directory)))
        yield from _judged(job, usages_of)
    yield from _reading(open_dataset(open_location(workplace.directory / "rows-6000000" / "data")))


def _command(job: str, rows: int, directory: Path) -> list[str]:
    """Return the arguments for a size, after removing earlier results."""
    place = directory / f"rows-{rows}"
    data, run = str(place / "data"), str(place / "run")
    if job == "ingest":
        return ["ingest", f"synthetic:{rows},{rows // 6}", "--out", data, "--overwrite"]
    common = ["--dataset", data, "--run", run]
    if job == "train":
        shutil.rmtree(run, ignore_errors=True)
        return ["train", *common, "--epochs", "1", "--shuffle-memory", str(SHUFFLE_MEMORY)]
    shutil.rmtree(place / "run" / "scores", ignore_errors=True)
    return ["score", *common, "--split", "train"]


def _judged(job: str, usages_of: dict[int, list[Usage]]) -> Iterator[Verdict]:
    peaks = [max(usage.peak_bytes for usage in usages) / 1e6 for usages in usages_of.values()]
    note = ", ".join(f"{peak:.0f} MB" for peak in peaks)
    yield Verdict(f"{job}: largest / smallest peak memory", max(peaks) / min(peaks), 1.1, note=note)
    over = max(
        usage.peak_bytes / usage.stated_bytes for usages in usages_of.values() for usage in usages
    )
    yield Verdict(f"{job}: peak memory / what it stated", over, 1.0)
    seconds = {
        rows: statistics.mean(usage.seconds for usage in usages)
        for rows, usages in usages_of.items()
    }
    slopes = [(seconds[rows] - seconds[SIZES[0]]) / (rows - SIZES[0]) for rows in SIZES[1:]]
    yield Verdict(
        f"{job}: time per further row, up to 6 million / up to 600 thousand",
        slopes[1] / slopes[0],
        1.1,
        note=", ".join(f"{mean:.1f} s" for mean in seconds.values()),
    )


def _reading(dataset: Dataset) -> Iterator[Verdict]:
    """Measure the bytes read per epoch, and seeking, on the largest dataset."""
    split = dataset.split("train")
    location = dataset.location.child("train")
    stored = sum(location.size(key) for key in location.objects() if key.startswith(ROWS))
    batches: dict[str, Any] = {"batch_size": 10_000, "epochs": 1, "shuffle_memory": SHUFFLE_MEMORY}
    with watched_reads() as reads, BatchStream(dataset, "train", **batches) as stream:
        for _ in stream:
            pass
        state = stream.state
    read = sum(size for key, size in reads if key.startswith(ROWS))
    yield Verdict("bytes read in an epoch / bytes stored", read / stored, 1.0, unit="ratio")
    batch = split.schema.rows // 10_000 // 2
    sought = type(state).from_json(state.to_json() | {"epoch": 0, "next_batch": batch})
    with watched_reads() as reads:
        began = time.perf_counter()
        with BatchStream(dataset, "train", **batches, state=sought) as stream:
            next(iter(stream))
            waited = stream.seconds_waited
            seconds = time.perf_counter() - began - waited
            window = stream.state.window_chunks
    chunks = len({key for key, _ in reads if key.startswith(ROWS)})
    note = f"{chunks} objects for windows of {window} chunks"
    yield Verdict("seeking, without reading, seconds", seconds, 0.1, unit="s", note=note)


def bench_latency(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Measure the share of an epoch that training waits if every read takes 50 ms."""
    config = TrainConfig(
        optimizer="sgd", learning_rate=0.1, schedule="constant", l2=0.0, epochs=10**6
    )
    with ExitStack() as stack:
        stack.enter_context(watched_reads(delay=0.05))
        stack.enter_context(one_blas_thread())
        trainer = stack.enter_context(Trainer(config, parse_network(NETWORK), workplace.dataset))
        trainer.train_epoch(lambda: None)
        before = trainer.stream.seconds_waited
        began = time.perf_counter()
        for _ in range(rounds):
            trainer.train_epoch(lambda: None)
        share = (trainer.stream.seconds_waited - before) / (time.perf_counter() - began)
    yield Verdict("waiting for a store with 50 ms latency / epoch", share, 0.1)


@contextmanager
def watched_reads(delay: float = 0.0) -> Iterator[list[tuple[str, int]]]:
    """Record the name and size of every file read; delay each by `delay` seconds."""
    reads: list[tuple[str, int]] = []
    get = LocalLocation.get_with_version

    def watched(location: LocalLocation, key: str, *bounds: Any) -> tuple[bytes, Version | None]:
        if delay:
            time.sleep(delay)
        data, version = get(location, key, *bounds)
        reads.append((f"{Path(str(location)).name}/{key}", len(data)))
        return data, version

    LocalLocation.get_with_version = watched  # type: ignore[method-assign, assignment]
    try:
        yield reads
    finally:
        LocalLocation.get_with_version = get  # type: ignore[method-assign]
