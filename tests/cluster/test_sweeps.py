"""A sweep on a cluster: a trial per worker, whatever happens to the workers or the job."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.sweeps.job import SweepResult, sweep
from jobs.training.job import train
from pipeline.cluster.client import Cluster as Client
from pipeline.ingest import ingest
from storage.errors import ConflictError
from storage.places import open_location
from storage.runs import LOCK, open_run, run_lock
from storage.sweeps import FAILED, FINISHED, best_runs
from tests.cluster.processes import Cluster, connected
from tests.commands.process import REPOSITORY
from tests.jobs.trainings import outcome
from tests.object_store.server import Store

SETTINGS: dict[str, Any] = {"network": "relu-12", "epochs": 3, "batch_size": 170, "holdout": 300}
GRID = {"learning_rate": [0.003, 0.03], "optimizer": ["adam", "adamw"]}
LONG = ("--network", "relu-12", "--epochs", "100000", "--holdout", "300", "--batch-size", "50")
SECONDS = 300.0


def swept(place: Path, digits: Path, cluster: Client | None, **options: Any) -> SweepResult:
    given = {"grid": GRID, "dataset": digits, "out": place, "cluster": cluster} | options
    return sweep(SETTINGS, **given)


def outcomes(result: SweepResult) -> dict[str, Any]:
    """The comparable outcome of each trial."""
    runs = {trial.name: result.sweep.run(trial) for trial in result.sweep.trials}
    return {name: outcome(train({}, run=run, resume=True)) for name, run in runs.items()}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_locked(run: Path) -> bool:
    """Whether a process trains the run."""
    return open_location(run).child(LOCK).lock_holder() is not None


def test_same_bits(cluster: Client, digits: Path, tmp_path: Path) -> None:
    """The trials are those of one process, and their runs record the same; halving too."""
    here = swept(tmp_path / "here", digits, None, halving=True)
    remote = swept(tmp_path / "remote", digits, cluster, halving=True)
    assert [one.rank for one in here.ranking] == [one.rank for one in remote.ranking]
    assert outcomes(here) == outcomes(remote)
    first, second = (open_run(one.sweep.run(one.sweep.trials[0])) for one in (here, remote))
    assert first.configuration | {"threads": 1} == second.configuration
    assert first.dataset == second.dataset


def test_relative_places(cluster: Client, digits: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Runs record the path of the dataset as a training of this process does."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(digits)
    result = swept(Path("sweep"), Path("data"), cluster, grid={})
    run = open_run(result.sweep.run(result.sweep.trials[0]))
    train(SETTINGS, dataset="data", run="run")
    place = open_run(open_location("run")).dataset["place"]
    assert not Path(place).is_absolute()
    assert Path("run", place).resolve() == Path(str(run.location), run.dataset["place"]).resolve()
    assert not Path(run.dataset["place"]).is_absolute()


def test_failed_trials(cluster: Client, digits: Path, tmp_path: Path) -> None:
    """A trial that fails on a worker is tried once, and ends no other."""
    grid = {"learning_rate": [0.003, 1e6], "batch_size": [100, 5000]}
    given = {"network": "relu-12", "epochs": 2, "holdout": 300}
    result = sweep(given, out=tmp_path / "sweep", dataset=digits, grid=grid, cluster=cluster)
    states = [result.results[trial.name].state for trial in result.sweep.trials]
    assert [FINISHED, FAILED, FAILED, FAILED] == states
    reasons = [str(result.results[trial.name].reason) for trial in result.sweep.trials]
    assert "--batch-size 5,000 is more than" in reasons[1]
    assert "Training diverged" in reasons[2]


def test_workers_are_killed(digits: Path, tmp_path: Path) -> None:
    """A lost worker's trial is resumed from its checkpoint by another one, to the same bits."""
    place = tmp_path / "sweep"
    settings: dict[str, Any] = SETTINGS | {"epochs": 15, "checkpoint_every": 2}
    given: dict[str, Any] = {"dataset": digits, "grid": {"optimizer": ["adam", "adamw"]}}
    with Cluster(tmp_path / "cluster", workers=2) as workers, connected(workers) as cluster:

        def kill_when_both_train() -> None:
            wait_until(
                lambda: all(
                    list((place / "trials" / name / "checkpoints").glob("*"))
                    for name in ("001-seed0", "002-seed0")
                )
            )
            workers.kill_worker(0)

        killer = threading.Thread(target=kill_when_both_train)
        killer.start()
        result = sweep(settings, out=place, cluster=cluster, **given)
        killer.join()
    expected = sweep(settings, out=tmp_path / "here", **given)
    assert outcomes(expected) == outcomes(result)


def test_in_a_store(store: Store, cluster: Client, digits: Path, tmp_path: Path) -> None:
    """Workers write the runs of a sweep in an object store, and read its dataset there."""
    made = ingest("synthetic:2100,430", store.location("set"), rows_per_chunk=200).dataset
    given: dict[str, Any] = {"grid": {"optimizer": ["adam", "adamw"]}}
    remote = sweep(
        SETTINGS, out=store.location("a"), dataset=made.location, cluster=cluster, **given
    )
    expected = sweep(SETTINGS, out=tmp_path / "here", dataset=digits, **given)
    assert [one.rank for one in expected.ranking] == [one.rank for one in remote.ranking]
    assert 2 == len(best_runs(store.location("a"), 2))
    with pytest.raises(ConflictError, match="being written by"), run_lock(store.location("a")):
        sweep(SETTINGS, out=store.location("a"), dataset=made.location, **given)


def test_own_workers_after_a_kill(digits: Path, tmp_path: Path) -> None:
    """A sweep with its own workers that is killed is continued by the same command."""
    command = [sys.executable, "-m", "jobs.commands.cli", "sweep", "--out", str(tmp_path / "sweep")]
    command += ["--network", "relu-12", "--epochs", "16", "--holdout", "300", "--json"]
    command += ["--dataset", str(digits), "--workers", "2", "--seeds", "2", "--checkpoint-every"]
    command += ["5"]
    runs = [tmp_path / "sweep" / "trials" / f"001-seed{seed}" for seed in (0, 1)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as job:
        wait_until(lambda: all(list((run / "checkpoints").glob("*-*")) for run in runs))
        job.kill()
    again = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    [configuration] = json.loads(again.stdout)["configurations"]
    settings = {"network": "relu-12", "epochs": 16, "holdout": 300}
    for seed, trial in enumerate(configuration["trials"]):
        other = train(settings | {"seed": seed}, dataset=digits, run=tmp_path / f"run-{seed}")
        resumed = train({}, run=runs[seed], resume=True)
        assert other.parameters_digest == resumed.parameters_digest
        assert FINISHED == trial["state"]


def test_a_killed_job(standing: Cluster, digits: Path, tmp_path: Path) -> None:
    """Workers stop the trials of a job that was killed, with a checkpoint, as no one waits."""
    place = tmp_path / "sweep"
    runs = [place / "trials" / f"001-seed{seed}" for seed in (0, 1)]
    command = [sys.executable, "-m", "jobs.commands.cli", "sweep", *LONG, "--seeds", "2"]
    command += ["--out", str(place), "--dataset", str(digits), "--scheduler", standing.address]
    for number in (signal.SIGKILL, signal.SIGTERM):
        job = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
        with job:
            wait_until(lambda: all(map(is_locked, runs)))
            time.sleep(0.5)
            before = [len(open_run(open_location(run)).metrics()) for run in runs]
            job.send_signal(number)
            job.wait(SECONDS)
        assert job.returncode in (-signal.SIGKILL, 128 + signal.SIGTERM)
        wait_until(lambda: not any(map(is_locked, runs)))
        after = [len(open_run(open_location(run)).metrics()) for run in runs]
        assert all(first <= second for first, second in zip(before, after, strict=True))
        assert all(list((run / "checkpoints").glob("*-*")) for run in runs)
