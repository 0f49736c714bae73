"""Connecting to a cluster: impossible requests fail at once, and every wait has a limit."""

import copy
import logging
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import dask
import psutil
import pytest

from pipeline.cluster.client import STOPPED
from pipeline.cluster.client import Cluster as Client
from pipeline.cluster.connect import LOCAL_SETTINGS, LOGGERS, SILENT, connect, dashboard_link
from pipeline.cluster.options import ClusterOptions, address_in
from pipeline.cluster.tasks import Task, results
from pipeline.cluster.worker import reason
from storage.errors import UnreachableError, UsageError
from tests.cluster.processes import NOWHERE, Cluster, assert_failed, connected
from tests.commands.process import limited_to, run_pipeline, start_pipeline

LIMIT = ("--cluster-timeout", "2")
MEMORY = 10**9
"""An address space that suffices for the command, but not for the announced message."""


@pytest.mark.parametrize(
    "address",
    [
        "nonsense",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:abc",
        "tcp://127.0.0.1:99999",
        "inproc://x",
        "carrier://pigeon",
    ],
)
def test_malformed_addresses(address: str) -> None:
    """It is a usage error, without any wait."""
    with pytest.raises(UsageError, match="expected one such as tcp://host:8786") as raised:
        connect(ClusterOptions(scheduler=address))
    assert repr(address) in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {"scheduler": ""},
        {"scheduler_file": ""},
        {"timeout": float("nan")},
        {"scheduler": NOWHERE, "workers": 2},
        {"scheduler_file": "file", "workers": 0},
        {"tls_ca": __file__},
        {"tls_ca": "x", "tls_cert": "y", "tls_key": "z"},
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, object]) -> None:
    """Options that are contradictory, incomplete or empty are usage errors."""
    with pytest.raises(UsageError):
        ClusterOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["scheduler-address: [tcp", "- no mapping"])
@pytest.mark.parametrize("command", [("ingest", "synthetic:60,10"), ("train",)])
def test_a_configuration_that_dask_cannot_read(
    content: str, command: tuple[str, ...], tmp_path: Path
) -> None:
    """It is a usage error that names the file, for every command that needs Dask."""
    file = tmp_path / "dask.yaml"
    file.write_text(content)
    ended = run_pipeline(*command, cwd=tmp_path, env={"DASK_CONFIG": str(file)})
    assert_failed(ended, 2, str(file), "malformed")


def test_variables_that_contradict_each_other(tmp_path: Path) -> None:
    """A variable with a value and with parts is a usage error; Dask raises a TypeError."""
    variables = {"DASK_SCHEDULER_ADDRESS": NOWHERE, "DASK_SCHEDULER_ADDRESS__PART": "5"}
    codes = set()
    for order in (1, -1):  # Dask's result depends on their order
        env = dict(list(variables.items())[::order])
        ended = run_pipeline("ingest", "synthetic:60,10", *LIMIT, cwd=tmp_path, env=env)
        assert_failed(ended, ended.code)
        codes.add(ended.code)
    assert {2} <= codes <= {2, 6}


def test_no_scheduler(tmp_path: Path) -> None:
    """Each way to name a missing scheduler ends with exit 6 within the timeout."""
    missing = ("--scheduler-file", "nothing.json")
    ended = run_pipeline("ingest", "synthetic:60,10", *missing, *LIMIT, cwd=tmp_path)
    assert_failed(ended, 6, "nothing.json")
    ended = run_pipeline("ingest", "synthetic:60,10", "--scheduler", NOWHERE, *LIMIT, cwd=tmp_path)
    assert_failed(ended, 6, NOWHERE, "(Connection refused)")
    variable = {"DASK_SCHEDULER_ADDRESS": NOWHERE}
    ended = run_pipeline("train", *LIMIT, cwd=tmp_path, env=variable)
    assert_failed(ended, 6, NOWHERE)
    ended = run_pipeline("train", *LIMIT, "--workers", "0", cwd=tmp_path, env=variable)
    assert_failed(ended, 3, "There is no dataset")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"no JSON", b"\xff\xfe", b"[1, 2]", b"{}"])
def test_no_scheduler_file(content: bytes, tmp_path: Path) -> None:
    """It is a usage error that names the file, without any wait."""
    file = tmp_path / "scheduler.json"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=f"{file} is not a scheduler file"):
        address_in(str(file))


def test_a_scheduler_file_that_is_a_pipe(tmp_path: Path) -> None:
    """A file that is not regular is refused without waiting."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(UsageError, match="is not a scheduler file"):
            address_in(str(tmp_path / name))


def test_an_unfinished_scheduler_file(tmp_path: Path) -> None:
    """It may still be written, so the job waits for it, with a limit."""
    (tmp_path / "file").write_text('{"address": "tcp://127.0.0.1:1')
    ended = run_pipeline("train", "--scheduler-file", "file", *LIMIT, cwd=tmp_path)
    assert_failed(ended, 6, "scheduler file file", "missing or unfinished")


@pytest.mark.parametrize("place", [("--scheduler", NOWHERE), ("--scheduler-file", "nothing")])
def test_a_wait_is_seen_and_can_be_ended(place: tuple[str, str], tmp_path: Path) -> None:
    """A line reports what the job waits for; the first Ctrl-C ends the wait."""
    with start_pipeline("ingest", "synthetic:60,10", *place, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert any(re.match(f"waiting for .*{place[1]}", line) for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (130, f"{STOPPED}\n") == (process.returncode, err)


def hold(connection: socket.socket) -> None:
    """Answer nothing until the peer closes the connection."""
    while connection.recv(2**16):
        pass


def trickle(connection: socket.socket) -> None:
    """Send a byte every half second, like a message of Dask."""
    for byte in struct.pack("QQ", 100, 1):
        connection.sendall(bytes([byte]))
        threading.Event().wait(0.5)


@contextmanager
def served(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Run a server that treats each connection alike; yield its address."""

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            answer(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


WEB = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda c: (c.sendall(WEB), hold(c)), "the server there is not a Dask scheduler"),
        (lambda c: (c.sendall(b"\xff" * 100), hold(c)), "the server there is not a Dask scheduler"),
        (lambda c: (c.sendall(struct.pack("QQQ", 18, 1, 2) + b"\1\1"), hold(c)), ""),
        (lambda c: c.sendall(struct.pack("Q", 2**30) + b"\1" * 2**20), ""),
        (trickle, "no answer after 2 s"),
        (hold, "no answer after 2 s"),
        (lambda c: None, ""),
    ],
    ids=["web", "huge", "garbled", "large", "trickle", "silent", "closed"],
)
def test_no_dask_scheduler(
    answer: Callable[[socket.socket], object], words: str, tmp_path: Path
) -> None:
    """The job ends with exit 6 and the address, in time and without allocating that size."""
    space = {"preexec_fn": limited_to(MEMORY), "env": {"OPENBLAS_NUM_THREADS": "1"}}
    with served(answer) as address:
        ended = run_pipeline("train", "--scheduler", address, *LIMIT, cwd=tmp_path, **space)
    assert_failed(ended, 6, f"No compatible Dask scheduler responded at {address}", words)


def test_a_stalled_scheduler(tmp_path: Path) -> None:
    """The wait is limited, and the process ends afterwards."""
    with Cluster(tmp_path / "cluster", workers=0) as workers:
        workers.scheduler.send_signal(signal.SIGSTOP)
        ended = run_pipeline("train", "--scheduler", workers.address, *LIMIT, cwd=tmp_path)
    assert_failed(ended, 6, workers.address, "no answer after 2 s")


def test_the_address_of_a_worker(cluster: Client) -> None:
    """Only a scheduler is accepted."""
    assert f"<Cluster at {cluster.address}>" == repr(cluster)
    with pytest.raises(UnreachableError, match="it is a worker"):
        connect(ClusterOptions(scheduler=cluster.workers()[0], timeout=60))


def test_no_workers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without workers, the job reports the wait and then ends with exit 6."""
    caplog.set_level("INFO")
    with (
        Cluster(tmp_path / "cluster", workers=0) as alone,
        pytest.raises(UnreachableError, match="too few workers for 6 s: 0 of 1 running"),
    ):
        connected(alone, timeout=6)
    assert re.search(r"waiting for workers of tcp.*: 0 of 1 running, \d s left", caplog.text)


def test_a_stalled_worker(tmp_path: Path) -> None:
    """A worker that does not answer is named; one that recovers in time is used."""
    with Cluster(tmp_path / "cluster", workers=2) as workers:
        workers.wait_for_workers(2)
        workers.signal_worker(1, signal.SIGSTOP)
        with pytest.raises(UnreachableError, match=r"did not answer for 2 s: tcp://\S+\. Stop"):
            connected(workers, timeout=2)
        workers.signal_worker(1, signal.SIGCONT)
        with connected(workers) as opened:
            assert 2 == len(opened.workers())


def test_a_worker_that_cannot_import_the_project(tmp_path: Path) -> None:
    """A worker with the right versions but a broken installation is reported in a sentence."""
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
        options = ("--scheduler", workers.address)
        ended = run_pipeline("ingest", "synthetic:60,10", *options, cwd=tmp_path)
    assert_failed(ended, 6, "A worker cannot be set up", "No module named pipeline")


def test_other_versions(tmp_path: Path) -> None:
    """A worker with another version of this project is named, even if it joins late."""
    fake = tmp_path / "fake" / "mnist_stream-9.9.9.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: mnist-stream\nVersion: 9.9.9\n")
    path = f"{fake.parent}{os.pathsep}{Path(__file__).parents[2]}"
    with Cluster(tmp_path / "cluster", workers=1) as workers:
        with connected(workers) as client:
            workers.kill_worker(workers.add_worker(env={"PYTHONPATH": path}) - 1)
            late = "this worker: mnist-stream 9.9.9, the job has"
            with pytest.raises(UnreachableError, match=late):
                list(results(client, [Task("look", "nothing", os.getcwd, ())], 1))
        with pytest.raises(UnreachableError, match=r"tcp://\S+: mnist-stream 9.9.9, the job has"):
            connected(workers)


def test_tls(tmp_path: Path) -> None:
    """TLS works with certificates; a client without them is refused with a clear message."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=here"]
    subprocess.run(
        [openssl, *made, "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    ours = ("--tls-ca", certificate, "--tls-cert", certificate, "--tls-key", key)
    dasks = ("--tls-ca-file", *ours[1:])
    with Cluster(tmp_path / "c", workers=1, options=dasks, host="tls://127.0.0.1") as workers:
        common = ["ingest", "synthetic:60,10", "--out", "data", "--scheduler"]
        ended = run_pipeline(*common, workers.address, *LIMIT, cwd=tmp_path)
        assert_failed(ended, 6, "(TLS needs certificates)", "--tls-ca, --tls-cert and --tls-key")
        plain = workers.address.replace("tls", "tcp")
        ended = run_pipeline(*common, plain, *LIMIT, cwd=tmp_path)
        assert_failed(ended, 6, "If it uses TLS")
        ended = run_pipeline(*common, workers.address, *ours, cwd=tmp_path)
        assert (0, "") == (ended.code, ended.err)


def dashboard_of(options: ClusterOptions, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Return the address in the event `cluster`, after checking that it serves Bokeh's page."""
    events: dict[str, tuple[str, dict[str, Any]]] = {}

    def record(logger: object, name: str, text: str, **facts: Any) -> None:
        events[name] = text, facts

    monkeypatch.setattr("pipeline.cluster.connect.event", record)
    cluster = connect(options)
    assert cluster is not None
    with cluster:
        text, facts = events["cluster"]
        address: str | None = facts["dashboard"]
        if address is None:
            assert "dashboard" not in text
            return None
        assert text.endswith(f", dashboard {address}")
        with urlopen(address, timeout=60) as page:
            assert 200 == page.status
            assert b"Bokeh" in page.read()
    return address


def test_settings_of_local_workers() -> None:
    """Dask has all of them: one that a new version renames would have no effect."""
    for name in LOCAL_SETTINGS:
        dask.config.get(name)  # raises KeyError


def test_the_dashboard_of_local_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on loopback and ends with the job; without Bokeh there is none."""
    pytest.importorskip("bokeh")
    address = dashboard_of(ClusterOptions(workers=1), monkeypatch)
    assert address is not None
    assert address.startswith("http://127.0.0.1:")
    with pytest.raises(URLError):
        urlopen(address, timeout=60)
    monkeypatch.setattr("pipeline.cluster.connect.find_spec", lambda name: None)
    assert dashboard_of(ClusterOptions(workers=1), monkeypatch) is None


def test_the_dashboard_of_a_scheduler(
    standing: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of a scheduler's dashboard is reported if it serves one."""
    pytest.importorskip("bokeh")
    assert dashboard_of(ClusterOptions(scheduler=standing.address, timeout=60), monkeypatch) is None
    options = ("--dashboard", "--dashboard-address", "127.0.0.1:0")
    with Cluster(tmp_path / "cluster", workers=1, options=options) as workers:
        assert dashboard_of(ClusterOptions(scheduler=workers.address, timeout=60), monkeypatch)


def test_the_dashboard_of_an_ipv6_scheduler() -> None:
    """Its address is in brackets, as URLs require."""
    cluster: Any = SimpleNamespace(address="tcp://[::1]:8786", ask=lambda *question: 8787)
    assert "http://[::1]:8787/status" == dashboard_link(cluster)


def levels() -> set[int]:
    """The levels of the loggers that `connect` silences."""
    return {logging.getLogger(name).level for name in LOGGERS}


def test_the_application_s_logging_and_settings(standing: Cluster) -> None:
    """They are changed only while a cluster is open, even if two overlap."""
    before, settings = levels(), copy.deepcopy(dask.config.config)
    with pytest.raises(UnreachableError):
        connect(ClusterOptions(scheduler=NOWHERE, timeout=1))
    with connected(standing):
        assert {SILENT} == levels()
    assert (before, settings) == (levels(), dask.config.config)
    first, second = connected(standing), connected(standing)
    first.close()
    second.close()
    assert before == levels()


def worker_processes(job: int) -> list[psutil.Process]:
    """The worker processes that a job has started, even if they are still importing."""
    processes = []
    for process in psutil.Process(job).children():
        with suppress(psutil.Error):
            if any("spawn_main" in word for word in process.cmdline()):
                processes.append(process)
    return processes


def test_workers_ignore_signals_from_the_start(tmp_path: Path) -> None:
    """Ctrl-C does not stop workers, even while they import; only the job handles it."""
    arguments = ["ingest", "synthetic:60,10", "--workers", "2"]
    process = start_pipeline(*arguments, cwd=tmp_path, start_new_session=True)
    with process:
        while not worker_processes(process.pid):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate()
    assert (130, f"{STOPPED}\n") == (process.returncode, err)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "in <TCP (closed) Worker->Scheduler local=tcp://a:1 remote=tcp://b:2>: it is closed",
            "it is closed",
        ),
        ("cannot pickle <a.b.C object at 0xabc>", "cannot pickle C"),
        ("no <function f at 0x12>", "no <function f>"),
        ("", "ValueError"),
    ],
)
def test_reasons(text: str, expected: str) -> None:
    """Messages contain no memory addresses."""
    assert expected == reason(ValueError(text))
