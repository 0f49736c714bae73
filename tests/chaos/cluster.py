"""Jobs on failing clusters, and very long jobs, have the same bits as in a single process.

Workers live four seconds on average, and each that dies is replaced. Occasionally one is paused,
or the scheduler dies and the same command runs again on a new cluster. Two more experiments pause a
worker for a long time and take very many steps.
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
"""A worker's mean lifetime."""
PAUSED = 0.15
"""The probability that a worker is paused for `PAUSE_SECONDS` instead of killed."""
PAUSE_SECONDS = 3.0
SCHEDULER_DIES = 0.25
"""The probability that the scheduler dies once in a case."""
ROWS = "4200,430"
TRAININGS = {"train": replace(STEPS, epochs=25), "rounds": replace(ROUNDS, epochs=25)}
COUNTS = {"train": 20, "rounds": 10, "ingest": 10, "score": 10}
"""Cases of the long run for each job."""

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
"""Bytes by which the second half of many steps may exceed the first."""
KEY_BYTES = 700
"""Bytes that the scheduler keeps for each of the last 100,000 keys, cached by `key_split`."""
TASKS_AT_ONCE = 20
"""The number of tasks that the scheduler may hold during a step."""


@dataclass(frozen=True)
class Oracle:
    """The undisturbed results, computed once for all cases."""

    home: Path

    @property
    def dataset(self) -> Path:
        """A dataset of drawn digits in chunks of 100 rows."""
        return self.home / "dataset"

    @cached_property
    def few(self) -> Path:
        """A dataset of 2,100 rows."""
        ingest("synthetic:2100,50", self.home / "few", rows_per_chunk=200)
        return self.home / "few"

    @cached_property
    def digests(self) -> dict[str, Any]:
        """The digest of each job's result, computed without a cluster."""
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
    """Return this process's oracle."""
    return Oracle(scratch())


def commands(job: str, oracle: Oracle, home: Path) -> list[str]:
    """Return the arguments of `pipeline` that run a job in a directory."""
    if job == "ingest":
        out = ["--out", str(home / "made"), "--rows-per-chunk", "10"]
        return ["ingest", f"synthetic:{ROWS}", *out]
    places = ["--dataset", str(oracle.dataset), "--run", str(home / "run")]
    if job == "score":
        return ["score", *places, "--split", "train"]
    return ["train", *places, "--resume", *config_options(TRAININGS[job])]


def result_digest(job: str, oracle: Oracle, home: Path) -> Any:
    """Return the digest of the job's result, as in `Oracle.digests`."""
    if job == "ingest":
        return ingest(f"synthetic:{ROWS}", home / "made", rows_per_chunk=10).dataset.digest
    if job == "score":
        return score(run=home / "run", dataset=oracle.dataset, split="train").scores.digest
    config = TRAININGS[job]
    return outcome(train(config, dataset=oracle.dataset, run=home / "run", resume=True))


def harm(job: str, oracle: Oracle, case: int, chance: random.Random) -> str:
    """Run a job on a cluster while its workers die; compare its result with the oracle's."""
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
        assert expected == result_digest(job, oracle, home)
    return "survived"


def _attempt(
    arguments: list[str], home: Path, chance: random.Random, scheduler_dies: bool
) -> tuple[int, str]:
    """Run the command on a new failing cluster; return its exit code and stderr."""
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
    """Pause a worker for a long time; it takes part again, and the bits are the same."""
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
        result = train(config, dataset=oracle.few, run=run, progress=harm, cluster=cluster)
        assert expected == outcome(result)
        assert 3 == len(cluster.workers(now=True)), workers.logs()
    return "survived"


def endure(oracle: Oracle, case: int, chance: random.Random) -> str:
    """Take very many steps; neither client nor scheduler needs more memory in the second half."""
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
    """Records the memory of client and scheduler, and the tasks, after each epoch."""

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
        """Print the memory and tasks held; raise `AssertionError` if they grew."""
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
