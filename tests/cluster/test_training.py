"""Training on a cluster: the bits of one process, whatever happens to the workers."""

import signal
import threading
import time
from pathlib import Path

import pytest
from dask.utils import key_split
from distributed import Scheduler

from jobs.training.job import train
from pipeline.cluster.client import Cluster as Client
from pipeline.cluster.tasks import Handle
from tests.cluster.processes import Cluster, connected
from tests.cluster.trainings import ROUNDS, STEPS, Reference, outcome, train_on
from tests.jobs.trainings import checkpoints, stopped_at

PAUSE_SECONDS = 3.0
FORGETTING_SECONDS = 300.0
"""In which what the client has let go of must have reached the scheduler."""


def test_any_number_of_workers(digits: Path, reference: Reference, tmp_path: Path) -> None:
    """Steps and rounds have the bits of one process on 1, 2, 3 and 4 workers."""
    with Cluster(tmp_path / "cluster", workers=0) as cluster:
        for workers in (1, 2, 3, 4):
            cluster.add_worker()
            steps = train_on(cluster, STEPS, digits, tmp_path / f"steps-{workers}")
            assert reference.steps == steps
            rounds = train_on(cluster, ROUNDS, digits, tmp_path / f"rounds-{workers}")
            assert reference.rounds == rounds


@pytest.mark.parametrize("kind", ["steps", "rounds"])
def test_workers_are_killed(kind: str, digits: Path, reference: Reference, tmp_path: Path) -> None:
    """Killed one by one, all but one, then all, with others that join late: the same bits."""
    config = {"steps": STEPS, "rounds": ROUNDS}[kind]
    expected = {"steps": reference.steps, "rounds": reference.rounds}[kind]
    with Cluster(tmp_path / "cluster", workers=3) as cluster:

        def replace_all() -> None:
            cluster.kill_worker(2)
            cluster.add_worker()
            cluster.add_worker()

        found = train_on(
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
    assert expected == found


def test_a_worker_is_paused(digits: Path, reference: Reference, tmp_path: Path) -> None:
    """A worker that stands still for a while is waited for, or done without: the same bits."""
    with Cluster(tmp_path / "cluster", workers=2) as cluster:

        def pause() -> None:
            cluster.signal_worker(1, signal.SIGSTOP)
            timer = threading.Timer(PAUSE_SECONDS, cluster.signal_worker, (1, signal.SIGCONT))
            timer.start()

        found = train_on(cluster, STEPS, digits, tmp_path / "run", {7: pause})
    assert reference.steps == found


@pytest.mark.parametrize("kind", ["steps", "rounds"])
def test_resumed_with_another_cluster_or_none(
    kind: str, cluster: Client, digits: Path, reference: Reference, tmp_path: Path
) -> None:
    """From every checkpoint, also within epochs, there and back: the same bits."""
    config = {"steps": STEPS, "rounds": ROUNDS}[kind]
    expected = {"steps": reference.steps, "rounds": reference.rounds}[kind]
    run = reference.home / kind
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
    """Where memory cannot be mapped, parameters and gradients are sent: the same bits."""

    def refuse(handle: Handle) -> None:
        raise PermissionError

    monkeypatch.setattr(Handle, "array", refuse)
    for config, expected in ((STEPS, reference.steps), (ROUNDS, reference.rounds)):
        run = tmp_path / config.parallel
        result = train(config, dataset=digits, run=run, cluster=cluster)
        assert expected == outcome(result)


def test_nothing_stays(standing: Cluster, cluster: Client, digits: Path, tmp_path: Path) -> None:
    """After a training a task of each name is left, that the job ends with; then there is none."""
    with connected(standing) as opened:
        train(STEPS, dataset=digits, run=tmp_path / "run", cluster=opened)
        _wait_for_tasks(cluster, opened.job, ["gradient"])
        assert 1 == len(opened.client.futures)
    _wait_for_tasks(cluster, opened.job, [])


def _wait_for_tasks(cluster: Client, job: str, names: list[str]) -> None:
    """Until the scheduler knows of just the tasks of these names of a job."""
    deadline = time.monotonic() + FORGETTING_SECONDS
    while names != (found := _tasks(cluster, job)):
        assert time.monotonic() < deadline, found


def _tasks(cluster: Client, job: str) -> list[str]:
    """The names of the tasks of a job that the scheduler knows of."""

    def keys(dask_scheduler: Scheduler) -> list[str]:
        return [str(key) for key in dask_scheduler.tasks]

    found: list[str] = cluster.client.run_on_scheduler(keys)
    return sorted(key_split(key) for key in found if job[-8:] in key)
