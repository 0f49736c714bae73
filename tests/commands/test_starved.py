"""Under limits on files, processes or memory a command succeeds or ends with exit code 6."""

import ctypes
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import UnreachableError

pytestmark = pytest.mark.slow

PR_CAPBSET_DROP = 24
CAP_SYS_ADMIN, CAP_SYS_RESOURCE = 21, 24
UNPRIVILEGED = 65534
GENEROUS_SECONDS = 120
FILES, PROCESSES, MEMORY = resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_AS
NETWORK = ("--network", "784-relu-20-softmax-10", "--epochs", "1", "--batch-size", "50")
COMMANDS = {
    "verify": ("verify", "set"),
    "ingest": ("ingest", "synthetic:200,50", "--out", "made"),
    "train": ("train", "--dataset", "set", "--run", "new", *NETWORK),
    "workers": ("train", "--dataset", "set", "--run", "new", *NETWORK, "--workers", "2"),
    "score": ("score", "--dataset", "set", "--run", "run"),
}

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can run a command as a user without other processes"
)


def limited(command: str, limit: int, value: int, cwd: Path) -> tuple[int, str]:
    """Return the exit code and output of a command under a limit of the system."""
    libc = ctypes.CDLL(None)

    def limit_this_process() -> None:
        """Run as a user to whom the limit applies, with root's access to files."""
        if limit == PROCESSES:
            for capability in (CAP_SYS_ADMIN, CAP_SYS_RESOURCE):
                libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
            os.setresuid(UNPRIVILEGED, 0, 0)
        resource.setrlimit(limit, (value, value))

    ended = subprocess.run(
        [sys.executable, "-m", "jobs.commands.cli", *COMMANDS[command]],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=GENEROUS_SECONDS,
        preexec_fn=limit_this_process,
        check=False,
    )
    return ended.returncode, ended.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a dataset and a run."""
    directory = tmp_path_factory.mktemp("starved")
    for words in (
        ("ingest", "synthetic:600,100", "--out", "set", "--rows-per-chunk", "50"),
        ("train", "--dataset", "set", "--run", "run", *NETWORK),
    ):
        subprocess.run(
            [sys.executable, "-m", "jobs.commands.cli", *words, "--quiet"],
            cwd=directory,
            check=True,
        )
    return directory


@pytest.mark.parametrize(
    ("command", "limit", "value", "words"),
    [
        ("ingest", FILES, 6, "open files (ulimit -n)"),
        ("workers", FILES, 16, "open files (ulimit -n)"),
        pytest.param("ingest", PROCESSES, 1, "(ulimit -u", marks=needs_root),
        pytest.param("score", PROCESSES, 3, "(ulimit -u", marks=needs_root),
        pytest.param("workers", PROCESSES, 20, "(ulimit -u", marks=needs_root),
    ],
)
def test_the_exhausted_resource_is_named(
    place: Path, command: str, limit: int, value: int, words: str
) -> None:
    """The message names the exhausted resource and its limit."""
    code, output = limited(command, limit, value, place)
    assert (UnreachableError.exit_code, 0) == (code, output.count("Traceback")), output
    assert "The system has no more" in output
    assert words in output
    assert not (place / "made").exists()


@needs_root
def test_a_sound_dataset_is_not_called_damaged(place: Path) -> None:
    """With two threads in addition to its own, verification reads everything."""
    code, output = limited("verify", PROCESSES, 3, place)
    assert (0, True) == (code, "is sound" in output), output


@pytest.mark.parametrize("megabytes", [150, 180])
@pytest.mark.parametrize("command", ["verify", "ingest", "train", "score"])
def test_little_memory(tmp_path: Path, place: Path, command: str, megabytes: int) -> None:
    """The command succeeds, or names the limit."""
    for name in ("set", "run"):
        (tmp_path / name).symlink_to(place / name)
    code, output = limited(command, MEMORY, megabytes * 2**20, tmp_path)
    assert "Traceback" not in output
    assert 0 == code or (UnreachableError.exit_code == code and "ulimit -v" in output), output
