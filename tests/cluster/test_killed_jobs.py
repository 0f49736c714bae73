"""A killed job, and how the next one on the same cluster deals with it."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, Scheduler, Worker, get_worker

from pipeline.cluster.connect import connect
from pipeline.cluster.options import ClusterOptions
from pipeline.cluster.tasks import Pending, Task
from pipeline.cluster.worker import JOB_PREFIX, JobPlugin
from pipeline.ingest import ingest
from tests.cluster.processes import Cluster, connected
from tests.commands.process import REPOSITORY, run_pipeline, start_pipeline

JOB = """
import sys, time
from pathlib import Path
from tests.cluster.test_killed_jobs import begin
if __name__ == "__main__":
    begin(sys.argv[1], Path(sys.argv[2]))
"""


def outlast(job: str, home: Path) -> None:
    """Run until the worker has begun to forget the job, and half a second longer."""
    (home / "begun").touch()
    while job in get_worker().plugins:
        time.sleep(0.01)
    time.sleep(0.5)
    (home / "ended").touch()


def begin(scheduler: str, home: Path) -> None:
    """Start a job whose task does not end by itself."""
    cluster = connect(ClusterOptions(scheduler=scheduler))
    assert cluster is not None
    Pending(cluster, Task("outlast", "nothing", outlast, (cluster.job, home))).result()


def jobs_on(dask_scheduler: Scheduler) -> list[str]:
    """Return the jobs with a plugin on the workers."""
    return [name for name in dask_scheduler.worker_plugins if name.startswith(JOB_PREFIX)]


def test_tasks_of_a_killed_job(tmp_path: Path) -> None:
    """They end before the next job starts, and the workers keep nothing for their job."""
    with Cluster(tmp_path / "cluster", workers=1) as workers:
        with subprocess.Popen(
            [sys.executable, "-c", JOB, workers.address, tmp_path], cwd=REPOSITORY
        ) as job:
            while not (tmp_path / "begun").exists():
                assert job.poll() is None
                time.sleep(0.02)
            job.kill()
        with connected(workers) as client, Client(workers.address, set_as_default=False) as other:
            assert (tmp_path / "ended").exists()
            living: Any = other.run_on_scheduler(jobs_on)
            assert [client.job] == living


def test_an_ingest_that_was_killed(tmp_path: Path) -> None:
    """The same command does all the work, and removes what the killed one left behind."""
    command = ["ingest", "synthetic:3000,60", "--rows-per-chunk", "20", "--out", "made"]
    with Cluster(tmp_path / "cluster", workers=2) as workers:
        command += ["--scheduler", workers.address]
        with start_pipeline(*command, cwd=tmp_path) as killed:
            while not any(tmp_path.glob(".made.ingest-*/train/inputs/c*")):
                assert killed.poll() is None
            killed.kill()
        ended = run_pipeline(*command, "--json", cwd=tmp_path)
    assert (0, "") == (ended.code, ended.err)
    assert not json.loads(ended.out)["already_done"]
    assert [] == list(tmp_path.glob(".made.ingest-*"))


def running_tasks(job: str, dask_worker: Worker) -> int:
    """Return the number of a job's tasks that a worker runs."""
    plugin = dask_worker.plugins[job]
    assert isinstance(plugin, JobPlugin)
    return plugin.running(dask_worker)


def test_an_ingest_that_stops(standing: Cluster, tmp_path: Path) -> None:
    """No worker still writes to the files that the job then removes."""

    def stop(stage: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with connected(standing) as client:
        with pytest.raises(KeyboardInterrupt):
            ingest(
                "synthetic:24000,10",
                tmp_path / "d",
                rows_per_chunk=4000,
                progress=stop,
                cluster=client,
            )
        running: Any = client.client.run(running_tasks, client.job)
    assert {0} == set(running.values())
    assert [] == list(tmp_path.glob(".d.ingest-*"))
