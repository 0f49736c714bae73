"""Training on a cluster gives the bits of one process, whatever happens to the workers."""

import signal
import threading
import time
from pathlib import Path

import pytest
from dask.utils import key_split
from distributed import Scheduler

from jobs.training.job import train
from jobs.training.reproduce import reproduce
from pipeline.cluster.client import Cluster as Client
from pipeline.cluster.tasks import Handle
from tests.cluster.processes import Cluster, connected
from tests.cluster.trainings import ROUNDS, STEPS, Reference, outcome, train_on
from tests.jobs.trainings import checkpoints, stopped_at

PAUSE_SECONDS = 3.0
FORGETTING_SECONDS = 300.0
"""Time limit for the scheduler to forget tasks that the client released."""


def test_any_number_of_workers(digits: Path, reference: Reference, tmp_path: Path) -> None:
    """Steps and rounds give the bits of one process on 1, 2, 3 and 4 workers."""
    with Cluster(tmp_path / "cluster", workers=0) as cluster:
        for workers in (1, 2, 3, 4):
            cluster.add_worker()
            steps = train_on(cluster, STEPS, digits, tmp_path / f"steps-{workers}")
            assert reference.steps == steps
            rounds = train_on(cluster, ROUNDS, digits, tmp_path / f"rounds-{workers}")
            assert reference.rounds == rounds


def test_reproduce(reference: Reference, tmp_path: Path) -> None:
    """Runs of one process are reproduced by two workers."""
    with Cluster(tmp_path / "cluster", workers=2) as workers, connected(workers) as client:
        for name in ("steps", "rounds"):
            assert reproduce(reference.home / name, cluster=client).is_same


@pytest.mark.parametrize("parallel", ["steps", "rounds"])
def test_workers_are_killed(
    parallel: str, digits: Path, reference: Reference, tmp_path: Path
) -> None:
    """Workers are killed one by one, then all, while others join: the same bits."""
    config = {"steps": STEPS, "rounds": ROUNDS}[parallel]
    expected = {"steps": reference.steps, "rounds": reference.rounds}[parallel]
    with Cluster(tmp_path / "cluster", workers=3) as cluster:

        def replace_all() -> None:
            cluster.kill_worker(2)
            cluster.add_worker()
            cluster.add_worker()

        actual = train_on(
            cluster,
            config,
            digits,
            tmp_path / "run",
            {
                2: lambda: cluster.kill_worker(0),
                4: lambda: cluster.kill_worker(1),
                6: replace_all,
                8: lambda: cluster.kill_worker(3),
            },
        )
    assert expected == actual


@pytest.mark.parametrize("parallel", ["steps", "rounds"])
def test_from_another_run(
    parallel: str, cluster: Client, digits: Path, reference: Reference, tmp_path: Path
) -> None:
    """A run from a parent's checkpoint has the same bits on a cluster and without one."""
    config = {"steps": STEPS, "rounds": ROUNDS}[parallel]
    parent = f"{reference.home / 'steps'}@2"
    alone = train(config, dataset=digits, run=tmp_path / "alone", parent=parent)
    shared = train(config, dataset=digits, run=tmp_path / "shared", parent=parent, cluster=cluster)
    assert outcome(alone) == outcome(shared)
    assert reference.steps["parameters_digest"] != alone.parameters_digest


def test_a_worker_is_paused(digits: Path, reference: Reference, tmp_path: Path) -> None:
    """A stalled worker is waited for or replaced: the same bits."""
    with Cluster(tmp_path / "cluster", workers=2) as cluster:

        def pause() -> None:
            cluster.signal_worker(1, signal.SIGSTOP)
            timer = threading.Timer(PAUSE_SECONDS, cluster.signal_worker, (1, signal.SIGCONT))
            timer.start()

        actual = train_on(cluster, STEPS, digits, tmp_path / "run", {7: pause})
    assert reference.steps == actual


@pytest.mark.parametrize("parallel", ["steps", "rounds"])
def test_resumed_with_another_cluster_or_none(
    parallel: str, cluster: Client, digits: Path, reference: Reference, tmp_path: Path
) -> None:
    """Runs resumed from every checkpoint, with and without a cluster, give the same bits."""
    config = {"steps": STEPS, "rounds": ROUNDS}[parallel]
    expected = {"steps": reference.steps, "rounds": reference.rounds}[parallel]
    run = reference.home / parallel
    names = checkpoints(run)
    assert any(name.step for name in names)
    for number, name in enumerate(names[:-1]):
        copy = stopped_at(run, name, tmp_path / str(name))
        on = cluster if number % 2 else None
        result = train(config, dataset=digits, run=copy, resume=True, cluster=on)
        assert expected == outcome(result)


def test_workers_that_share_no_memory(
    cluster: Client,
    digits: Path,
    reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Parameters and gradients are sent if memory cannot be shared: the same bits."""

    def refuse(handle: Handle) -> None:
        raise PermissionError

    monkeypatch.setattr(Handle, "array", refuse)
    for config, expected in ((STEPS, reference.steps), (ROUNDS, reference.rounds)):
        run = tmp_path / config.parallel
        result = train(config, dataset=digits, run=run, cluster=cluster)
        assert expected == outcome(result)


def test_nothing_stays(standing: Cluster, cluster: Client, digits: Path, tmp_path: Path) -> None:
    """A training leaves one task of each name, which ends with the job."""
    with connected(standing) as opened:
        train(STEPS, dataset=digits, run=tmp_path / "run", cluster=opened)
        _wait_for_tasks(cluster, opened.job, ["gradient"])
        assert 1 == len(opened.client.futures)
    _wait_for_tasks(cluster, opened.job, [])


def _wait_for_tasks(cluster: Client, job: str, names: list[str]) -> None:
    """Wait until the scheduler has exactly tasks of these names for a job."""
    deadline = time.monotonic() + FORGETTING_SECONDS
    while names != (current := _tasks(cluster, job)):
        assert time.monotonic() < deadline, current


def _tasks(cluster: Client, job: str) -> list[str]:
    """Return the names of a job's tasks on the scheduler."""

    def keys(dask_scheduler: Scheduler) -> list[str]:
        return [str(key) for key in dask_scheduler.tasks]

    task_keys: list[str] = cluster.client.run_on_scheduler(keys)
    return sorted(key_split(key) for key in task_keys if job[-8:] in key)
