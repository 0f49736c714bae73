"""Other users of the machine cannot use a job's worker processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.cluster.connect import DIRECTORY_PREFIX, connect, private_directory
from pipeline.cluster.options import ClusterOptions
from pipeline.cluster.tasks import SharedVector
from tests.cluster.processes import PLAIN, Cluster
from tests.cluster.trainings import SETTINGS
from tests.commands.process import start_pipeline

BECOME_NOBODY = """
import os
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""
"""Become another user if allowed; else stay the same user, without the job's certificate."""

INTRUDER = f"""
import asyncio, json, sys, urllib.error, urllib.request
import distributed.comm.tcp
from distributed import rpc
from distributed.security import Security
own = Security.temporary()
own.get_connection_args("client")
{BECOME_NOBODY}
"""
INTRUDER += """
async def answer(address, security):
    arguments = security.get_connection_args("client")
    async with rpc(address, timeout=3, connection_args=arguments) as server:
        return await asyncio.wait_for(server.identity(), 3)

def page(port, path):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code

got = {}
paths = ("/", "/status", "/health", "/metrics", "/info/main/workers.html", "/json/index.html")
for port in json.loads(sys.argv[1]):
    tries = {
        "tcp": lambda: asyncio.run(answer(f"tcp://127.0.0.1:{port}", Security())),
        "tls": lambda: asyncio.run(answer(f"tls://127.0.0.1:{port}", own)),
    } | {path: lambda path=path: page(port, path) for path in paths}
    for name, attempt in tries.items():
        try:
            answer_or_status = attempt()
        except Exception as error:
            continue
        if answer_or_status != 404:
            got[f"{name} {port}"] = str(answer_or_status)
print(json.dumps(got))
"""


PAGES = {"/", "/status", "/health", "/metrics", "/info/main/workers.html"}
"""The pages of the list above that the dashboard serves."""


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """The addresses on which a process and its children listen."""
    return {
        tuple(connection.laddr)
        for each in [process, *process.children(recursive=True)]
        for connection in each.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def intrude(ports: set[int]) -> dict[str, str]:
    """What a user without the job's certificate gets from these ports."""
    ended = subprocess.run(
        [sys.executable, "-c", INTRUDER, json.dumps(sorted(ports))],
        cwd="/",
        env={**PLAIN, "HOME": "/nonexistent", "PATH": os.environ["PATH"]},
        capture_output=True,
        check=True,
        text=True,
    )
    answers: dict[str, str] = json.loads(ended.stdout)
    return answers


@pytest.mark.parametrize("dashboard", [False, True])
def test_other_users_can_at_most_read_the_dashboard(
    dashboard: bool, standing: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scheduler, nannies and workers require the job's certificate and serve no other pages."""
    if dashboard:
        pytest.importorskip("bokeh")
    else:
        monkeypatch.setattr("pipeline.cluster.connect.find_spec", lambda name: None)
    unprotected = int(standing.address.rpartition(":")[2])
    assert {f"tcp {unprotected}"} == intrude({unprotected}).keys()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = listening(psutil.Process())
    opened = connect(ClusterOptions(workers=1))
    assert opened is not None
    with opened:
        addresses = listening(psutil.Process()) - before
        assert {"127.0.0.1"} == {host for host, _ in addresses}
        assert len(addresses) >= 3
        answers = intrude({port for _, port in addresses})
        assert ({"200"} if dashboard else set()) == set(answers.values())
        assert (PAGES if dashboard else set()) == {name.split()[0] for name in answers}
        assert dashboard == len({name.split()[1] for name in answers})
        [directory] = tmp_path.glob(f"{DIRECTORY_PREFIX}*")
        assert not directory.stat().st_mode & 0o077
        assert list(directory.rglob("worker-*"))
    assert [] == list(tmp_path.glob(f"{DIRECTORY_PREFIX}*"))


def test_shared_memory_is_the_owners() -> None:
    """Shared memory has no name, and is only accessible through its owner's process."""
    with SharedVector(10, "float32") as vector:
        look = f"{BECOME_NOBODY}\nopen({vector.handle.path!r}, 'rb').read(1)"
        command = [sys.executable, "-c", look]
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if os.geteuid() == 0:
        assert "PermissionError" in ended.stderr


def test_what_a_killed_job_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next job removes a killed job's directory, but not that of a running one."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    left = tmp_path / f"{DIRECTORY_PREFIX}dead"
    (left / "below").mkdir(parents=True)
    with private_directory() as first, private_directory() as second:
        assert {first, second} == set(tmp_path.iterdir())
    assert [] == list(tmp_path.iterdir())


def test_gradients_computed_here_listen_on_nothing(digits: Path, tmp_path: Path) -> None:
    """The processes of a training without a cluster listen on no port."""
    options = ["--dataset", digits, "--run", "run", *SETTINGS, "--threads", "2"]
    options[options.index("--epochs") + 1] = "1000000"
    with start_pipeline("train", *options, cwd=tmp_path, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        assert any("1/1000000" in line for line in process.stdout)
        job = psutil.Process(process.pid)
        assert job.children()
        assert set() == listening(job)
        process.kill()
