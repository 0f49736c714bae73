"""A Dask cluster of real processes on loopback, whose workers can be killed, paused and added."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from distributed import Client

from pipeline.cluster.client import Cluster as JobCluster
from pipeline.cluster.connect import connect
from pipeline.cluster.options import ClusterOptions
from storage.location import Closing
from tests.commands.process import NOT_INHERITED, REPOSITORY, Ended

STARTING_SECONDS = 300.0
PLAIN = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


NOWHERE = "tcp://127.0.0.1:9"


def assert_failed(ended: Ended, code: int, *words: str) -> None:
    """Assert that a command ended with a code and a one-line message with these words on stderr."""
    assert code == ended.code, ended.err
    assert ended.err.startswith("Error: "), ended.err
    assert 1 == ended.err.count("\n"), ended.err
    assert "KilledWorker" not in ended.err
    for word in words:
        assert word in ended.err


def connected(
    workers: "Cluster", timeout: float = 60, check: Callable[[str], None] = lambda text: None
) -> JobCluster:
    """Open a cluster for a job."""
    opened = connect(ClusterOptions(scheduler=workers.address, timeout=timeout), check)
    assert opened is not None
    return opened


class Cluster(Closing):
    """A scheduler and any number of workers, each with its own directory.

    Scratch space is not shared with other clusters of this machine: a starting process locks it,
    waits for the lock without a limit, and may be paused while it holds it.
    """

    def __init__(
        self,
        home: Path,
        workers: int,
        *,
        options: tuple[str, ...] = (),
        host: str = "tcp://127.0.0.1",
    ) -> None:
        """`options` go to both the scheduler and the workers, as TLS requires."""
        self._home = home
        self._options = options
        self.file = home / "scheduler.json"
        home.mkdir(parents=True, exist_ok=True)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start(
            "dask_scheduler",
            "--host",
            host,
            "--port",
            "0",
            "--no-dashboard",
            "--scheduler-file",
            str(self.file),
        )
        try:
            self.address = self._written_address()
            for _ in range(workers):
                self.add_worker()
        except BaseException:
            self.close()
            raise

    def _written_address(self) -> str:
        deadline = time.monotonic() + STARTING_SECONDS
        while True:
            try:
                return str(json.loads(self.file.read_text())["address"])
            except (OSError, ValueError):
                assert time.monotonic() < deadline, "the scheduler did not start"
                assert self.scheduler.poll() is None, "the scheduler ended"
                time.sleep(0.02)

    def wait_for_workers(self, count: int) -> None:
        """Wait until `count` workers have arrived; fail with the logs if they do not."""
        with Client(self.address, set_as_default=False) as client:
            try:
                client.wait_for_workers(count, timeout=STARTING_SECONDS)
            except TimeoutError as error:
                raise AssertionError(f"{error}\n{self.logs()}") from error

    def wait_for_paused(self) -> None:
        """Wait until a worker has paused for lack of memory."""
        with Client(self.address, set_as_default=False) as client:
            deadline = time.monotonic() + STARTING_SECONDS
            while not any(
                worker["status"] == "paused"
                for worker in client.scheduler_info(n_workers=-1)["workers"].values()
            ):
                assert time.monotonic() < deadline, self.logs()
                time.sleep(0.05)

    def add_worker(self, *options: str, env: dict[str, str] | None = None) -> int:
        """Start another worker with one thread; return its index in `workers`."""
        self.workers.append(
            self._start(
                "dask_worker",
                self.address,
                "--no-nanny",
                "--nthreads",
                "1",
                "--no-dashboard",
                "--memory-limit",
                "0",
                *options,
                env=env,
            )
        )
        return len(self.workers) - 1

    def _start(
        self, module: str, *arguments: str, env: dict[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        directory = self._home / f"{module}-{len(self.workers)}"
        directory.mkdir(exist_ok=True)
        inherited = {
            name: value for name, value in os.environ.items() if name.upper() not in NOT_INHERITED
        }
        log = open(directory / "log", "wb")  # noqa: SIM115 - the process keeps it
        with log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    f"distributed.cli.{module}",
                    *arguments,
                    *self._options,
                ],
                cwd=directory,
                env=inherited | PLAIN | {"DASK_TEMPORARY_DIRECTORY": str(self._home)} | (env or {}),
                stdout=log,
                stderr=log,
            )

    def signal_worker(self, number: int, what: signal.Signals) -> None:
        """Send a worker a signal, unless it has ended."""
        if self.workers[number].poll() is None:
            self.workers[number].send_signal(what)

    def kill_worker(self, number: int) -> None:
        """Kill a worker, and wait until it has ended."""
        self.workers[number].kill()
        self.workers[number].wait()

    def kill_scheduler(self) -> None:
        """Kill the scheduler, and wait until it has ended."""
        self.scheduler.kill()
        self.scheduler.wait()

    def logs(self) -> str:
        """Return the logs of all processes, for a failure's message."""
        return "\n".join(
            f"--- {log.parent.name}\n{log.read_text()[-2000:]}"
            for log in sorted(self._home.glob("*/log"))
        )

    def close(self) -> None:
        """Kill all processes."""
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()
