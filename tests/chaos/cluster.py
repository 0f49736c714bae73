"""Jobs on clusters in trouble, and in the long run: the bits of one process, every time.

Workers live four seconds on average, and for each that dies another one joins. Now and then one
stands still for a while, or the scheduler dies, and the same command runs again on a new cluster.
Others have to stand a worker that is away for long, and very many steps.
"""

import random
import resource
import shutil
import signal
import sys
import threading
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from distributed import Scheduler

from jobs.scoring.job import score
from jobs.training.job import train
from pipeline.cluster.client import Cluster
from pipeline.ingest import ingest
from tests.chaos.processes import has_ended
from tests.chaos.subject import config_options
from tests.chaos.tally import Experiment, scratch
from tests.cluster import processes
from tests.cluster.trainings import ROUNDS, STEPS, HarmAt, outcome
from tests.commands.process import start_pipeline

WORKERS = 3
LIFE_SECONDS = 4.0
"""A worker's mean life."""
PAUSED = 0.15
"""The share of harms that pause a worker for `PAUSE_SECONDS` instead of killing it."""
PAUSE_SECONDS = 3.0
SCHEDULER_DIES = 0.25
"""The share of cases in which the scheduler dies once."""
ROWS = "4200,430"
TRAININGS = {"train": replace(STEPS, epochs=25), "rounds": replace(ROUNDS, epochs=25)}
COUNTS = {"train": 20, "rounds": 10, "ingest": 10, "score": 10}
"""Cases of the long run, by the job that is harmed."""

LONG_PAUSE_SECONDS = 20.0
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


@dataclass(frozen=True)
class Oracle:
    """What nothing ever disturbed, made once for all cases."""

    home: Path

    @property
    def dataset(self) -> Path:
        """Drawn digits, in chunks of 100 rows."""
        return self.home / "dataset"

    @cached_property
    def few(self) -> Path:
        """A dataset of 2,100 rows."""
        ingest("synthetic:2100,50", self.home / "few", rows_per_chunk=200)
        return self.home / "few"

    @cached_property
    def digests(self) -> dict[str, Any]:
        """By job, what it comes to; made here, without a cluster."""
        ingest(f"synthetic:{ROWS}", self.dataset, rows_per_chunk=100)
        trained = {
            job: outcome(train(config, dataset=self.dataset, run=self.home / job))
            for job, config in TRAININGS.items()
        }
        scored = score(run=self.home / "train", dataset=self.dataset, split="train")
        made = ingest(f"synthetic:{ROWS}", self.home / "made", rows_per_chunk=10)
        return trained | {"score": scored.scores.digest, "ingest": made.dataset.digest}


@cache
def oracle() -> Oracle:
    """The one of this process."""
    return Oracle(scratch())


def commands(job: str, oracle: Oracle, home: Path) -> list[str]:
    """The arguments of `pipeline` that do a job in a directory."""
    if job == "ingest":
        out = ["--out", str(home / "made"), "--rows-per-chunk", "10"]
        return ["ingest", f"synthetic:{ROWS}", *out]
    places = ["--dataset", str(oracle.dataset), "--run", str(home / "run")]
    if job == "score":
        return ["score", *places, "--split", "train"]
    return ["train", *places, "--resume", *config_options(TRAININGS[job])]


def came_to(job: str, oracle: Oracle, home: Path) -> Any:
    """What the job left, as in `Oracle.digests`; the same command finds it done."""
    if job == "ingest":
        return ingest(f"synthetic:{ROWS}", home / "made", rows_per_chunk=10).dataset.digest
    if job == "score":
        return score(run=home / "run", dataset=oracle.dataset, split="train").scores.digest
    config = TRAININGS[job]
    return outcome(train(config, dataset=oracle.dataset, run=home / "run", resume=True))


def harm(job: str, oracle: Oracle, case: int, chance: random.Random) -> str:
    """Do a job on a cluster while its workers die, until it is done; then compare."""
    expected = oracle.digests[job]
    scheduler_dies = chance.random() < SCHEDULER_DIES
    with TemporaryDirectory() as directory:
        home = Path(directory)
        if job == "score":
            unscored = shutil.ignore_patterns("scores")
            shutil.copytree(oracle.home / "train", home / "run", ignore=unscored)
        arguments = commands(job, oracle, home)
        code, err = _attempt(arguments, home, chance, scheduler_dies)
        if code == 6:
            assert "Traceback" not in err, err
            code, err = _attempt(arguments, home, chance, scheduler_dies=False)
        assert 0 == code, err
        assert expected == came_to(job, oracle, home)
    return "survived"


def _attempt(
    arguments: list[str], home: Path, chance: random.Random, scheduler_dies: bool
) -> tuple[int, str]:
    """The command on a new cluster to its end, its exit code and stderr."""
    with (
        processes.Cluster(Path(mkdtemp(dir=home)), WORKERS) as cluster,
        start_pipeline(
            *arguments, "--scheduler", cluster.address, "--cluster-timeout", "30", cwd=home
        ) as job,
    ):
        alive = list(range(WORKERS))
        while not has_ended(job, chance.expovariate(WORKERS / LIFE_SECONDS)):
            if scheduler_dies and chance.random() < SCHEDULER_DIES:
                cluster.kill_scheduler()
                break
            number = chance.choice(alive)
            if chance.random() < PAUSED:
                _pause(cluster, number, PAUSE_SECONDS)
                continue
            cluster.kill_worker(number)
            alive.remove(number)
            alive.append(cluster.add_worker())
        _, err = job.communicate()
    return job.returncode, err


def _pause(cluster: processes.Cluster, number: int, seconds: float) -> None:
    cluster.signal_worker(number, signal.SIGSTOP)
    threading.Timer(seconds, cluster.signal_worker, (number, signal.SIGCONT)).start()


def pause(oracle: Oracle, case: int, chance: random.Random) -> str:
    """A worker stands still for long: the same bits, and it helps again."""
    config, step, number = replace(STEPS, epochs=20), chance.randrange(5, 150), chance.randrange(3)
    with (
        TemporaryDirectory() as directory,
        processes.Cluster(Path(directory) / "cluster", workers=3) as workers,
        processes.connected(workers) as cluster,
    ):
        home = Path(directory)
        expected = outcome(train(config, dataset=oracle.few, run=home / "alone"))
        harm = HarmAt({step: partial(_pause, workers, number, LONG_PAUSE_SECONDS)})
        run = home / "run"
        found = train(config, dataset=oracle.few, run=run, progress=harm, cluster=cluster)
        assert expected == outcome(found)
        assert 3 == len(cluster.workers(now=True)), workers.logs()
    return "survived"


def endure(oracle: Oracle, case: int, chance: random.Random) -> str:
    """Very many steps: neither client nor scheduler needs more for the second half of them."""
    with (
        TemporaryDirectory() as directory,
        processes.Cluster(Path(directory) / "cluster", workers=2) as workers,
        processes.connected(workers) as cluster,
    ):
        watch = _Watch(cluster, workers.scheduler.pid)
        run = Path(directory) / "run"
        result = train(LONG_TRAINING, dataset=oracle.few, run=run, progress=watch, cluster=cluster)
        assert STEPS_IN_ALL <= result.metrics[-1]["steps"]
        watch.check()
    return "survived"


class _Watch:
    """Looks at the memory of client and scheduler, and at the tasks, after each epoch."""

    def __init__(self, cluster: Cluster, scheduler: int) -> None:
        self._cluster = cluster
        self._processes = {"client": "self", "scheduler": str(scheduler)}
        self._held: dict[str, list[int]] = {"client": [], "scheduler": [], "tasks": []}

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        if done < total:
            return
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


EXPERIMENTS = (
    *(
        Experiment(
            f"cluster-{job}", partial(harm, job), count, oracle, scaled_by="kills", several="none"
        )
        for job, count in COUNTS.items()
    ),
    Experiment("cluster-pause", pause, 1, oracle, several="none"),
    Experiment("cluster-endurance", endure, 1, oracle, several="none"),
)
