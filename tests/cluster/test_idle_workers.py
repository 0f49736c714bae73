"""Workers that start only for tasks, and workers that take none."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distributed import Client as DaskClient
from distributed import Status, Worker

from jobs.commands.logs import attached
from jobs.signals import StopSignal, stop_on_signals
from jobs.training.job import train
from pipeline.cluster import tasks
from storage.errors import StoppedError, UnreachableError
from tests.cluster.processes import PLAIN, Cluster, connected
from tests.cluster.trainings import SETTINGS, STEPS, HarmAt, Reference, train_on
from tests.commands.process import run_pipeline

ADAPTIVE = """
import sys
from distributed import LocalCluster

if __name__ == "__main__":
    options = dict(n_workers=0, threads_per_worker=1, dashboard_address="127.0.0.1:0")
    with LocalCluster(**options) as cluster:
        cluster.adapt(minimum=0, maximum=2, interval="100 ms", wait_count=1)
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""
"""The workers of this cluster end as soon as there is no task."""


def test_adaptive_clusters(digits: Path, reference: Reference, tmp_path: Path) -> None:
    """Each command starts without a worker, because workers start only for tasks."""
    script = tmp_path / "adaptive.py"
    script.write_text(ADAPTIVE)
    with subprocess.Popen(
        [sys.executable, script],
        env=os.environ | PLAIN | {"DASK_TEMPORARY_DIRECTORY": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        options = ["--scheduler", process.stdout.readline().strip()]
        train_options = ["--dataset", digits, "--run", "run", *SETTINGS]
        for command in (
            ["ingest", "synthetic:300,50", "--out", "made", "--rows-per-chunk", "40"],
            ["train", *train_options],
            ["score", "--dataset", digits, "--run", "run"],
        ):
            ended = run_pipeline(*command, *options, cwd=tmp_path)
            assert (0, "") == (ended.code, ended.err)
            assert re.search(r"^\d workers? at tcp://[\d.:]+(, |$)", ended.out, re.MULTILINE)
        process.stdin.close()
    ended = run_pipeline("train", *train_options, "--resume", "--verbose", cwd=tmp_path)
    assert reference.steps["parameters_digest"] in ended.out


def set_status(dask_worker: Worker, name: str) -> None:
    """Pause or resume the worker, as its memory monitor would; this worker has none."""
    dask_worker.status = Status[name]


def set_all(address: str, status: str) -> None:
    """Set the status of all workers."""
    with DaskClient(address, set_as_default=False) as client:
        client.run(set_status, name=status)


def test_a_worker_without_memory(tmp_path: Path) -> None:
    """A worker that pauses from the start counts as none, and the message says why.

    The job does not ask the scheduler for unknown tasks, which it would log with a traceback.
    """
    with Cluster(tmp_path / "cluster", workers=0) as workers:
        workers.add_worker("--memory-limit", "60MB")
        workers.wait_for_paused()
        limit = ("--scheduler", workers.address, "--cluster-timeout", "1")
        ended = run_pipeline("ingest", "synthetic:60,10", *limit, cwd=tmp_path)
        assert "Traceback" not in workers.logs()
    assert 6 == ended.code, ended.err
    assert "for 1 s: 0 of 1 running, 1 paused for lack of memory. Start" in ended.err


class Resume(logging.Handler):
    """Resumes the workers once a job waits for them."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address

    def emit(self, record: logging.LogRecord) -> None:
        if "0 of 1 running, 2 paused for lack of memory" in record.getMessage():
            set_all(self._address, "running")


def test_all_workers_pause(digits: Path, reference: Reference, tmp_path: Path) -> None:
    """A training continues, to the same bits, once a worker takes tasks again; else it ends."""
    with Cluster(tmp_path / "cluster", workers=2) as workers:
        workers.wait_for_workers(2)

        def pause() -> None:
            set_all(workers.address, "paused")

        run, harm = tmp_path / "run", HarmAt({5: pause})
        with connected(workers) as client, attached(Resume(workers.address)):
            result = train(STEPS, dataset=digits, run=run, progress=harm, cluster=client)
        assert reference.steps["parameters_digest"] == result.parameters_digest
        with pytest.raises(UnreachableError, match=r"for 2 s: 0 of 1 running, 2 paused for lack"):
            train_on(workers, STEPS, digits, tmp_path / "other", {5: pause}, timeout=2)


def test_a_signal_while_all_workers_are_paused(digits: Path, tmp_path: Path) -> None:
    """The first signal ends the wait."""
    with Cluster(tmp_path / "cluster", workers=1) as workers, stop_on_signals() as stop:
        workers.wait_for_workers(1)
        harm = HarmAt({5: lambda: set_all(workers.address, "paused")})

        def check(text: str) -> None:
            if harm.done:
                os.kill(os.getpid(), signal.SIGTERM)
            stop.check(text)

        with (
            connected(workers, check=check) as client,
            pytest.raises(StoppedError, match="while no worker took tasks") as raised,
        ):
            train(STEPS, dataset=digits, run=tmp_path / "run", progress=harm, cluster=client)
        assert 143 == raised.value.exit_code


def wait_for(file: Path) -> None:
    """Wait until a file exists."""
    while not file.exists():
        time.sleep(0.01)


def test_a_signal_while_a_task_is_stalled(
    standing: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal ends the wait for a long task, although its worker is there."""
    monkeypatch.setattr(tasks, "SLOW_SECONDS", 0.0)
    stop = StopSignal()
    with connected(standing, check=stop.check) as client:
        stop.number = signal.SIGTERM
        stalled = tasks.Task("wait", "rows 7..9 of test", wait_for, (tmp_path / "end",))
        with pytest.raises(StoppedError, match=r"while waiting for rows 7\.\.9 of test\."):
            tasks.Pending(client, stalled).result()
        (tmp_path / "end").touch()
