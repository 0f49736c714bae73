"""Failures on a cluster end with one sentence and the documented exit code."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.commands.options import cluster_of
from jobs.signals import StopSignal, stop_on_signals
from jobs.training.job import train
from pipeline.cluster.client import Cluster as Client
from pipeline.cluster.tasks import Pending, Task, convert_parts, results
from pipeline.sources.splits import Part
from pipeline.sources.synthetic import SyntheticSplit
from storage.dataset import open_dataset
from storage.errors import BadDataError, StoppedError, UnreachableError
from storage.places import open_location
from tests.cluster.processes import Cluster, assert_failed, connected
from tests.cluster.trainings import SETTINGS, STEPS, HarmAt, Reference, train_on
from tests.commands.process import run_pipeline, start_pipeline


def test_a_task_that_fails_by_itself(standing: Cluster, digits: Path, tmp_path: Path) -> None:
    """A damaged chunk ends the training with exit 3, naming chunk, rows and worker."""
    dataset = tmp_path / "dataset"
    shutil.copytree(digits, dataset)
    chunk = dataset / "train" / "inputs" / "c.3.0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 0xFF
    chunk.write_bytes(content)
    arguments = ["--dataset", dataset, "--run", "run", "--scheduler", standing.address]
    ended = run_pipeline("train", *arguments, *SETTINGS, cwd=tmp_path)
    assert_failed(ended, 3, "Chunk 3", "in the order of epoch 1", "on worker tcp://127.0.0.1:")


def fail(reason: str) -> None:
    """Fail with an error that is not one of this project's."""
    raise ZeroDivisionError(reason)


def die() -> None:
    """Kill the worker that runs this task."""
    os.kill(os.getpid(), signal.SIGKILL)


def task(function: object, *arguments: object) -> Task:
    """Return a task for a call."""
    assert callable(function)
    return Task("fail", "rows 7..9 of test", function, arguments)


def fail_at_first(tries: Path, times: int) -> int:
    """Fail `times` times, then return the number of tries, which are counted in a file."""
    with tries.open("a") as file:
        file.write("x")
    tried = len(tries.read_text())
    if tried <= times:
        raise OSError(f"try {tried}")
    return tried


def test_three_tries(cluster: Client, tmp_path: Path) -> None:
    """A task may fail twice; after three failures the job gives up."""
    assert [3] == list(results(cluster, [task(fail_at_first, tmp_path / "two", 2)]))
    with pytest.raises(UnreachableError, match=r"OSError: try 3 \(at rows 7\.\.9 of test"):
        list(results(cluster, [task(fail_at_first, tmp_path / "three", 3)]))
    assert "xxx" == (tmp_path / "three").read_text()


def test_an_unknown_error(cluster: Client) -> None:
    """Any other error keeps its name and text, with the worker and the rows."""
    words = r"ZeroDivisionError: no luck \(at rows 7\.\.9 of test, on worker tcp://"
    with pytest.raises(UnreachableError, match=words):
        list(results(cluster, [task(fail, "no luck")]))


def test_a_project_error_keeps_its_type(cluster: Client, tmp_path: Path) -> None:
    """A `BadDataError` on a worker is raised as one in the job."""
    with pytest.raises(BadDataError, match="There is no dataset"):
        list(results(cluster, [task(open_dataset, open_location(tmp_path / "x"))]))


def test_a_failed_ingest_closes_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass over a source ends with its error, not when the traceback is collected."""
    ended = []

    class Digits(SyntheticSplit):
        def parts(self, rows_per_part: int) -> Generator[Part, None, None]:
            try:
                yield from super().parts(rows_per_part)
            finally:
                ended.append(self.name)

    def failing(_: object, tasks: Iterator[Task], per_worker: int) -> Iterator[object]:
        yield next(tasks)
        raise BadDataError("row 3 is damaged")

    monkeypatch.setattr("pipeline.cluster.tasks.results", failing)
    cluster: Any = SimpleNamespace(let_tasks_end=lambda: None)
    writer: Any = SimpleNamespace(part_rows=2)
    conversion: Any = None
    with pytest.raises(BadDataError) as caught:
        list(convert_parts(cluster, Digits("train", 9, 0), writer, conversion))
    assert (["train"], "row 3 is damaged") == (ended, str(caught.value))


def test_a_result_that_dies_with_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker's death between the task's end and fetching the result costs only a short wait."""
    waits: list[float] = []
    wait = Pending._wait
    with Cluster(tmp_path / "cluster", workers=2) as workers, connected(workers) as client:
        numbers = {process.pid: number for number, process in enumerate(workers.workers)}
        pid = Task("look", "rows 7..9 of test", os.getpid, (), worker=client.workers()[0])
        [doomed] = results(client, [pid])

        def wait_and_kill(pending: Pending, began: float) -> None:
            wait(pending, began)
            if not waits:
                workers.kill_worker(numbers[doomed])
            waits.append(began)

        monkeypatch.setattr(Pending, "_wait", wait_and_kill)
        [survivor] = results(client, [pid])
    assert {doomed, survivor} == set(numbers)
    assert len(waits) <= 4


def test_a_task_that_kills_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After three workers the job names the rows: no hang, and no bare KilledWorker."""
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "0")
    with (
        Cluster(tmp_path / "cluster", workers=4) as workers,
        connected(workers) as client,
        pytest.raises(UnreachableError, match=r"lost rows 7\.\.9 of test 3 times: worker after"),
    ):
        list(results(client, [task(die)]))


def test_the_scheduler_is_killed(digits: Path, reference: Reference, tmp_path: Path) -> None:
    """The job ends with exit 6 and an intact checkpoint; the run resumes on another cluster."""
    run = tmp_path / "run"
    with Cluster(tmp_path / "cluster", workers=2) as workers:
        with pytest.raises(UnreachableError, match="Lost the Dask scheduler") as raised:
            train_on(workers, STEPS, digits, run, {8: workers.kill_scheduler}, timeout=20)
        assert 6 == raised.value.exit_code
    with Cluster(tmp_path / "another", workers=1) as workers:
        assert reference.steps == train_on(workers, STEPS, digits, run)


def test_the_scheduler_stalls(digits: Path, tmp_path: Path) -> None:
    """A scheduler that does not answer is lost after the cluster's timeout."""
    with Cluster(tmp_path / "cluster", workers=1) as workers:

        def stop() -> None:
            workers.scheduler.send_signal(signal.SIGSTOP)

        with pytest.raises(UnreachableError, match="Lost the Dask scheduler"):
            train_on(workers, STEPS, digits, tmp_path / "run", {3: stop}, timeout=2)


def test_a_job_that_lost_its_scheduler(tmp_path: Path) -> None:
    """Each command says what it waited for, what is left, and how to continue.

    Closing the job does not wait for the stalled scheduler.
    """
    left = {
        "ingest": "Nothing was published. Run the command again",
        "train": "All checkpoints are kept. Run the command again with --resume",
        "score": "Finished scores are kept. Run the command again",
    }
    with Cluster(tmp_path / "cluster", workers=1) as workers, ExitStack() as opened:
        chosen = {"scheduler": workers.address, "timeout": 60}
        clients = {
            command: opened.enter_context(cluster_of(command, chosen, StopSignal()))()
            for command in left
        }
        workers.scheduler.send_signal(signal.SIGSTOP)
        for command, client in clients.items():
            assert client is not None
            client.timeout = 1.0
            with pytest.raises(UnreachableError) as raised:
                client.workers(now=True)
            asked = "(listing its workers: no answer for 1 s)."
            where = f"Lost the Dask scheduler at {workers.address}"
            message = f"{where} {asked} {left[command]}, with or without a cluster."
            assert message == str(raised.value)


def test_all_workers_are_gone(digits: Path, tmp_path: Path) -> None:
    """The job ends after the cluster's timeout."""
    with (
        Cluster(tmp_path / "cluster", workers=1) as workers,
        pytest.raises(UnreachableError, match="has had too few workers for 2 s: 0 of 1 running"),
    ):
        harm = {3: lambda: workers.kill_worker(0)}
        train_on(workers, STEPS, digits, tmp_path / "run", harm, timeout=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_all_workers_are_gone(
    number: signal.Signals, digits: Path, reference: Reference, tmp_path: Path
) -> None:
    """The first signal ends the wait; the run resumes from the checkpoint, to the same bits."""
    run = tmp_path / "run"
    with Cluster(tmp_path / "cluster", workers=1) as workers, stop_on_signals() as stop:
        harm = HarmAt({8: lambda: workers.kill_worker(0)})

        def check(text: str) -> None:
            if harm.done:  # the job waits, and no worker will come
                os.kill(os.getpid(), number)
            stop.check(text)

        with (
            connected(workers, check=check) as client,
            pytest.raises(StoppedError, match="while no worker took tasks") as raised,
        ):
            train(STEPS, dataset=digits, run=run, progress=harm, stop=stop, cluster=client)
        assert 128 + number == raised.value.exit_code
        workers.add_worker()
        assert reference.steps == train_on(workers, STEPS, digits, run)


def test_local_workers(digits: Path, tmp_path: Path) -> None:
    """`--workers 2` reports a cluster on loopback, closes quietly, and handles Ctrl-C."""
    arguments = ["train", "--dataset", digits, "--run", "run", "--workers", "2", *SETTINGS]
    ended = run_pipeline(*arguments, cwd=tmp_path)
    assert (0, "") == (ended.code, ended.err)
    assert re.search(r"^2 workers at tls://127\.0\.0\.1:\d+(, |$)", ended.out, re.MULTILINE)
    endless = [*arguments[:-2], "--epochs", "100000", "--resume"]
    endless[endless.index("run")] = "endless"
    process = start_pipeline(*endless, cwd=tmp_path, start_new_session=True)
    assert process.stdout is not None
    with process:
        assert any(re.match(" +1/", line) for line in process.stdout)
        os.killpg(process.pid, signal.SIGINT)  # to all processes, as a terminal does
        _, err = process.communicate()
    assert 130 == process.returncode, err
    assert re.fullmatch(r"Stopped after \d+ steps?; the checkpoint is saved\. .*\n", err)


def test_too_few_resources_for_local_workers(tmp_path: Path) -> None:
    """Too few open files for `--workers` end with exit 6 and the limit's name, without a hang."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (26, 26))

    arguments = ["ingest", "synthetic:60,10", "--workers", "2"]
    ended = run_pipeline(*arguments, cwd=tmp_path, preexec_fn=limit)
    assert_failed(ended, 6, "The system has no more open files (ulimit -n)")


def test_no_directory_for_local_workers(tmp_path: Path) -> None:
    """The message names the directory that Dask is configured to use."""
    env = {"DASK_TEMPORARY_DIRECTORY": str(tmp_path / "missing")}
    ended = run_pipeline("ingest", "synthetic:60,10", "--workers", "1", cwd=tmp_path, env=env)
    assert_failed(ended, 6, f"{tmp_path / 'missing'}/", "No such file or directory")


def test_a_script_that_workers_cannot_import(tmp_path: Path) -> None:
    """If worker processes run the whole script again, the message says how to prevent that."""
    (tmp_path / "script.py").write_text(
        "from pipeline.cluster.connect import connect\n"
        "from pipeline.cluster.options import ClusterOptions\n"
        "connect(ClusterOptions(workers=1))\n"
    )
    ended = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert ended.returncode
    assert 'connect below `if __name__ == "__main__":`.' in ended.stderr.splitlines()[-1]
