"""Jobs on clusters whose workers die all the time: the bits of one process, every time.

Workers live four seconds on average, and for each that dies another one joins. Now and then one
stands still for a while, or the scheduler dies, and the same command runs again on a new cluster.
"""

import random
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jobs.scoring.job import score
from jobs.training.job import train
from pipeline.ingest import ingest
from tests.chaos.tally import Experiment, Plan, Tally, try_cases
from tests.cluster import processes
from tests.cluster.trainings import ROUNDS, STEPS, outcome
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
EPOCHS = {"train": 25, "rounds": 25, "ingest": 0, "score": 0}
COUNTS = {"train": 20, "rounds": 10, "ingest": 10, "score": 10}
"""Cases of the long run, by the job that is harmed."""


@dataclass(frozen=True)
class Oracle:
    """What nothing ever disturbed, made once for all cases."""

    home: Path

    @property
    def dataset(self) -> Path:
        """Drawn digits, in chunks of 100 rows."""
        return self.home / "dataset"

    @cached_property
    def digests(self) -> dict[str, Any]:
        """By job, what it comes to; made here, without a cluster."""
        made = ingest(f"synthetic:{ROWS}", self.dataset, rows_per_chunk=100)
        found: dict[str, Any] = {"ingest": made.dataset.digest}
        for job, config in (("train", STEPS), ("rounds", ROUNDS)):
            longer = config.updated({"epochs": EPOCHS[job]}, "The chaos run")
            run = self.home / job
            found[job] = outcome(train(longer, dataset=self.dataset, run=run))
        scored = score(run=self.home / "train", dataset=self.dataset, split="train")
        found["score"] = scored.scores.digest
        return found


def commands(job: str, oracle: Oracle, home: Path) -> list[str]:
    """The arguments of `pipeline` that do a job in a directory."""
    if job == "ingest":
        return [
            "ingest",
            f"synthetic:{ROWS}",
            "--out",
            str(home / "made"),
            "--rows-per-chunk",
            "10",
        ]
    if job == "score":
        run = ["--run", str(home / "train"), "--dataset", str(oracle.dataset)]
        return ["score", *run, "--split", "train"]
    config = {"train": STEPS, "rounds": ROUNDS}[job].updated({"epochs": EPOCHS[job]}, "Chaos")
    file = home / "config.toml"
    lines = [
        f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}\n"
        for name, value in config.to_json().items()
        if value is not None
    ]
    file.write_text("".join(lines))
    places = ["--dataset", str(oracle.dataset), "--run", str(home / "run"), "--resume"]
    return ["train", *places, "--config", str(file)]


def came_to(job: str, oracle: Oracle, home: Path) -> Any:
    """What the job left, as in `Oracle.digests`; the same command finds it done."""
    if job == "ingest":
        return ingest(f"synthetic:{ROWS}", home / "made", rows_per_chunk=10).dataset.digest
    if job == "score":
        return score(run=home / "train", dataset=oracle.dataset, split="train").scores.digest
    config = {"train": STEPS, "rounds": ROUNDS}[job].updated({"epochs": EPOCHS[job]}, "Chaos")
    return outcome(train(config, dataset=oracle.dataset, run=home / "run", resume=True))


def harm(job: str, oracle: Oracle, case: int, chance: random.Random) -> str:
    """Do a job on a cluster while its workers die, until it is done; then compare."""
    expected = oracle.digests[job]
    scheduler_dies = chance.random() < SCHEDULER_DIES
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        if job == "score":
            subprocess.run(["cp", "-r", oracle.home / "train", home / "train"], check=True)
            subprocess.run(["rm", "-rf", home / "train" / "scores"], check=True)
        if job == "ingest":
            expected = ingest(f"synthetic:{ROWS}", home / "alone", rows_per_chunk=10).dataset.digest
        attempt = 0
        while True:
            attempt += 1
            code, err = _attempt(
                commands(job, oracle, home), home, chance, scheduler_dies and attempt == 1
            )
            if code == 0:
                break
            assert (6, 1) == (code, attempt), f"exit {code}: {err}"
            assert "Traceback" not in err, err
        assert expected == came_to(job, oracle, home)
    return "survived"


def _attempt(
    arguments: list[str], home: Path, chance: random.Random, scheduler_dies: bool
) -> tuple[int, str]:
    """The command on a new cluster to its end, its exit code and stderr."""
    with (
        processes.Cluster(Path(tempfile.mkdtemp(dir=home)), WORKERS) as cluster,
        start_pipeline(
            *arguments, "--scheduler", cluster.address, "--cluster-timeout", "30", cwd=home
        ) as job,
    ):
        alive = list(range(WORKERS))
        while not _ended(job, chance.expovariate(WORKERS / LIFE_SECONDS)):
            if scheduler_dies and chance.random() < SCHEDULER_DIES:
                cluster.kill_scheduler()
                break
            number = chance.choice(alive)
            if chance.random() < PAUSED:
                _pause(cluster, number)
                continue
            cluster.kill_worker(number)
            alive.remove(number)
            alive.append(cluster.add_worker())
        _, err = job.communicate()
    return job.returncode, err


def _ended(job: "subprocess.Popen[str]", seconds: float) -> bool:
    """Whether a process ends within so many seconds."""
    try:
        job.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _pause(cluster: processes.Cluster, number: int) -> None:
    cluster.signal_worker(number, signal.SIGSTOP)
    threading.Timer(PAUSE_SECONDS, cluster.signal_worker, (number, signal.SIGCONT)).start()


def run_harm(job: str, plan: Plan, tally: Tally) -> None:
    """Try the cases of one job, one after the other: each has a cluster's processes."""
    with tempfile.TemporaryDirectory() as directory:
        oracle = Oracle(Path(directory))
        assert oracle.digests
        alone = Plan(plan.count, plan.seed, 1, plan.case)
        try_cases(f"cluster-{job}", alone, tally, partial(harm, job, oracle), plan.cases())


EXPERIMENTS = tuple(
    Experiment(f"cluster-{job}", partial(run_harm, job), count, scaled_by="kills")
    for job, count in COUNTS.items()
)
