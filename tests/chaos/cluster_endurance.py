"""What a cluster has to stand in the long run: a worker away for long, and very many steps."""

import random
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from distributed import Scheduler

from jobs.training.job import TrainListener, TrainResult, train
from pipeline.cluster.connect import Cluster, connect
from pipeline.cluster.options import ClusterOptions
from pipeline.ingest import ingest
from tests.chaos.tally import Experiment, Plan, Tally, try_cases
from tests.cluster import processes
from tests.cluster.trainings import STEPS, HarmAt, outcome

PAUSE_SECONDS = 20.0
PAUSED_TRAINING = replace(STEPS, epochs=20)
STEPS_IN_ALL = 20_000
BATCHES = 42
LONG_TRAINING = replace(
    STEPS,
    epochs=-(-STEPS_IN_ALL // BATCHES),
    batch_size=50,  # of 2,100 rows
    micro_batches=2,
    checkpoint_every=0,
    keep=2,
    evaluate="none",
)
TASKS_A_STEP = 2
MEMORY_SLACK = 6 * 2**20
"""Bytes that the second half of many steps may need above the first."""
KEY_BYTES = 700
"""What the scheduler keeps of each of the last 100,000 keys: `dask.utils.key_split` is cached."""
TASKS_AT_ONCE = 20
"""Tasks that a scheduler may know of while a step of a few is under way."""


def pause(dataset: Path, case: int, chance: random.Random) -> str:
    """A worker stands still for `PAUSE_SECONDS` at a moment: the same bits, and it helps again."""
    step = chance.randrange(5, 150)
    with (
        tempfile.TemporaryDirectory() as directory,
        processes.Cluster(Path(directory) / "cluster", workers=3) as workers,
    ):
        home = Path(directory)
        expected = outcome(train(PAUSED_TRAINING, dataset=dataset, run=home / "alone"))
        number = chance.randrange(3)

        def stop() -> None:
            workers.signal_worker(number, signal.SIGSTOP)
            going_on = (number, signal.SIGCONT)
            threading.Timer(PAUSE_SECONDS, workers.signal_worker, going_on).start()

        with _client(workers) as cluster:
            found = train(
                PAUSED_TRAINING,
                dataset=dataset,
                run=home / "run",
                listener=HarmAt({step: stop}),
                cluster=cluster,
            )
            assert expected == outcome(found)
            assert 3 == len(cluster.workers(now=True)), workers.logs()
    return "survived"


def endure(dataset: Path, case: int, chance: random.Random) -> str:
    """Very many steps: neither client nor scheduler needs more for the second half of them."""
    with (
        tempfile.TemporaryDirectory() as directory,
        processes.Cluster(Path(directory) / "cluster", workers=2) as workers,
        _client(workers) as cluster,
    ):
        watch = _Watch(cluster, workers.scheduler.pid)
        result: TrainResult = train(
            LONG_TRAINING,
            dataset=dataset,
            run=Path(directory) / "run",
            listener=watch,
            cluster=cluster,
        )
        assert STEPS_IN_ALL <= result.metrics[-1]["steps"]
        watch.check()
    return "survived"


class _Watch(TrainListener):
    """Looks at the memory of client and scheduler, and at the tasks, after each epoch."""

    def __init__(self, cluster: Cluster, scheduler: int) -> None:
        self._cluster = cluster
        self._processes = {"client": "self", "scheduler": str(scheduler)}
        self._held: dict[str, list[int]] = {"client": [], "scheduler": [], "tasks": []}

    def finished_epoch(self, line: dict[str, object]) -> None:
        for name, number in self._processes.items():
            pages = int(Path(f"/proc/{number}/statm").read_text().split()[1])
            self._held[name].append(pages * resource.getpagesize())
        self._held["tasks"].append(self._cluster.client.run_on_scheduler(_count_tasks))

    def check(self) -> None:
        """Tell what was held, and raise `AssertionError` where it grew."""
        for name, held in self._held.items():
            half = len(held) // 2
            first, second = max(held[:half]), max(held[half:])
            shown = ", ".join(f"{value:,}" for value in held[:: max(1, len(held) // 8)])
            print(f"{name}: {shown}", file=sys.stderr, flush=True)
            limit = first + MEMORY_SLACK
            if name == "scheduler":
                limit += KEY_BYTES * TASKS_A_STEP * STEPS_IN_ALL // 2
            if name == "tasks":
                limit = TASKS_AT_ONCE
            assert second <= limit, f"{name}: {first:,} in the first half, {second:,} later"


def _count_tasks(dask_scheduler: Scheduler) -> int:
    return len(dask_scheduler.tasks)


def _client(workers: processes.Cluster) -> Cluster:
    cluster = connect(ClusterOptions(scheduler=workers.address, timeout=60))
    assert cluster is not None
    return cluster


def run(
    name: str, try_case: Callable[[Path, int, random.Random], str], plan: Plan, tally: Tally
) -> None:
    """Try the cases one after the other, on one dataset."""
    with tempfile.TemporaryDirectory() as directory:
        dataset = Path(directory) / "dataset"
        ingest("synthetic:2100,50", dataset, rows_per_chunk=200)
        alone = Plan(plan.count, plan.seed, 1, plan.case)
        try_cases(name, alone, tally, partial(try_case, dataset), plan.cases())


EXPERIMENTS = tuple(
    Experiment(name, partial(run, name, try_case), count=1)
    for name, try_case in (("cluster-pause", pause), ("cluster-endurance", endure))
)
