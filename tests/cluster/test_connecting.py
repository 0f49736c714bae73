"""Until a job has its cluster: what cannot be is told at once, and every wait has its limit."""

import fcntl
import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipeline.cluster.client import STOPPED
from pipeline.cluster.connect import Cluster as Client
from pipeline.cluster.connect import connect
from pipeline.cluster.options import ClusterOptions
from storage.errors import UnreachableError, UsageError
from tests.cluster.processes import Cluster
from tests.cluster.test_failures import NOWHERE, assert_told
from tests.commands.process import run_pipeline, start_pipeline


@pytest.mark.parametrize(
    "address",
    ["nonsense", "tcp://127.0.0.1", "tcp://127.0.0.1:abc", "tcp://127.0.0.1:99999", "inproc://x"],
)
def test_what_is_no_address(address: str, tmp_path: Path) -> None:
    """Wrong usage, told at once: Dask's client would hold the process up until its time is over."""
    ended = run_pipeline("train", "--scheduler", address, cwd=tmp_path)
    assert_told(ended, 2, "The scheduler's address is", address)
    assert 1 == ended.err.count("\n")


def test_options_that_say_nothing() -> None:
    """An empty name, as of a variable that is not set, does not mean to work without a cluster."""
    for options in ({"scheduler": ""}, {"scheduler_file": ""}, {"timeout": float("nan")}):
        with pytest.raises(UsageError):
            ClusterOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["scheduler-address: [tcp", "- no mapping"])
def test_a_configuration_that_dask_cannot_read(content: str, tmp_path: Path) -> None:
    """Wrong usage, told in a sentence that names the file, by every command that needs Dask."""
    file = tmp_path / "dask.yaml"
    file.write_text(content)
    for command in (("ingest", "synthetic:60,10"), ("train",)):
        ended = run_pipeline(*command, cwd=tmp_path, env={"DASK_CONFIG": str(file)})
        assert_told(ended, 2, str(file), "malformed")
        assert ended.err.endswith("): mend that file, or remove it.\n")
        assert 1 == ended.err.count("\n")


def test_variables_that_contradict_each_other(tmp_path: Path) -> None:
    """One that has a value and parts besides is wrong usage: Dask itself ends in a TypeError."""
    variables = {"DASK_SCHEDULER_ADDRESS": NOWHERE, "DASK_SCHEDULER_ADDRESS__PART": "5"}
    codes = set()
    for order in (1, -1):
        env = dict(list(variables.items())[::order])
        limit = ("--cluster-timeout", "1")
        ended = run_pipeline("ingest", "synthetic:60,10", *limit, cwd=tmp_path, env=env)
        assert ended.code in (2, 6), ended.err  # what Dask makes of them depends on their order
        codes.add(ended.code)
        assert "Traceback" not in ended.err
        assert 1 == ended.err.count("\n")
    assert 2 in codes


def test_a_scheduler_that_stands_still(tmp_path: Path) -> None:
    """It is waited for with a limit, and the process ends after that."""
    with Cluster(tmp_path / "cluster", workers=0) as workers:
        workers.scheduler.send_signal(signal.SIGSTOP)
        limit = ("--cluster-timeout", "2")
        ended = run_pipeline("train", "--scheduler", workers.address, *limit, cwd=tmp_path)
    assert_told(ended, 6, workers.address, "no answer after 2 s")


def test_the_address_of_a_worker(cluster: Client, tmp_path: Path) -> None:
    """What answers must be a scheduler."""
    worker = cluster.workers()[0]
    ended = run_pipeline("train", "--scheduler", worker, cwd=tmp_path)
    assert_told(ended, 6, worker, "it is a worker")


def test_a_worker_that_stands_still(tmp_path: Path) -> None:
    """A worker that does not answer is named; one that recovers in time can be used."""
    with Cluster(tmp_path / "cluster", workers=2) as workers:
        workers.wait_for_workers(2)
        workers.signal_worker(1, signal.SIGSTOP)
        with pytest.raises(UnreachableError, match=r"did not answer for 2 s: tcp://\S+\. Stop"):
            connect(ClusterOptions(scheduler=workers.address, timeout=2))
        workers.signal_worker(1, signal.SIGCONT)
        opened = connect(ClusterOptions(scheduler=workers.address, timeout=60))
        assert opened is not None
        with opened:
            assert 2 == len(opened.workers())


def test_another_cluster_of_the_machine_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests' own clusters start while a process that is paused holds Dask's scratch space."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    scratch = tmp_path / "dask-scratch-space"
    scratch.mkdir()
    with (scratch / "global.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Cluster(tmp_path / "cluster", workers=1) as workers:
            workers.wait_for_workers(1)


def test_a_worker_that_cannot_import_the_project(tmp_path: Path) -> None:
    """The versions are alike, and still it is not fit: a sentence, and no traceback."""
    (tmp_path / "broken.py").write_text(
        "import sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'pipeline':\n"
        "            raise ModuleNotFoundError('No module named pipeline', name=name)\n"
        "sys.meta_path.insert(0, Broken())\n"
    )
    with Cluster(tmp_path / "cluster", workers=0) as workers:
        workers.add_worker("--preload", str(tmp_path / "broken.py"))
        there = ("--scheduler", workers.address)
        ended = run_pipeline("ingest", "synthetic:60,10", *there, cwd=tmp_path)
    assert_told(ended, 6, "A worker cannot be set up", "No module named pipeline")


@pytest.mark.parametrize("place", [("--scheduler", NOWHERE), ("--scheduler-file", "nothing")])
def test_a_wait_is_seen_and_can_be_ended(place: tuple[str, str], tmp_path: Path) -> None:
    """A line tells what is waited for; the first Ctrl-C ends the wait."""
    with start_pipeline("ingest", "synthetic:60,10", *place, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert any(re.match(f"waiting for .*{place[1]}", line) for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (130, f"{STOPPED}\n") == (process.returncode, err)


def worker_processes(job: int) -> list[psutil.Process]:
    """The processes that a job has started, to become workers; some may only just begin."""
    found = []
    for process in psutil.Process(job).children():
        with suppress(psutil.Error):
            if any("spawn_main" in word for word in process.cmdline()):
                found.append(process)
    return found


def test_workers_heed_no_signal_from_birth(tmp_path: Path) -> None:
    """Ctrl-C reaches them while they still import; the job alone heeds it, once they are there."""
    arguments = ["ingest", "synthetic:60,10", "--workers", "2"]
    process = start_pipeline(*arguments, cwd=tmp_path, start_new_session=True)
    with process:
        while not worker_processes(process.pid):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate()
    assert (130, f"{STOPPED}\n") == (process.returncode, err)
