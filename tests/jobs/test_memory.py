"""What a job says that it needs: never less than it takes, for networks that are wide or deep."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import resource, subprocess, sys
ended = subprocess.run(sys.argv[1:], capture_output=True, text=True)
print(ended.stdout + ended.stderr)
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def stated_and_taken(*arguments: object, cwd: Path) -> tuple[int, int]:
    """Of a command: the bytes that it said it would need, and the most that a process of it took.

    A process of its own measures, so that no other child counts.
    """
    command = [
        sys.executable,
        "-c",
        MEASURE,
        sys.executable,
        "-m",
        "jobs.cli",
        *map(str, arguments),
    ]
    told = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout
    stated = re.search(r"memory at most ([\d,]+) MB", told)
    taken = re.search(r"peak (\d+)", told)
    assert stated, told
    assert taken, told
    return int(stated[1].replace(",", "")) * 10**6, int(taken[1])


@pytest.mark.parametrize(
    "options",
    [
        ("--network", "784-relu-6000-softmax-10", "--threads", 8, "--batch-size", 50),
        ("--network", "784-relu-3000-relu-3000-softmax-10", "--threads", 1, "--batch-size", 50),
        ("--network", "784-relu-2000-softmax-10", "--dtype", "float64", "--optimizer", "sgd"),
    ],
)
def test_wide_networks(options: tuple[object, ...], digits: Path, tmp_path: Path) -> None:
    """A training, its resumption and a scoring each stay below what they state."""
    where = ("--dataset", digits, "--run", "run")
    for epochs in (1, 2):
        train = ("train", *where, *options, "--schedule", "constant", "--epochs", epochs)
        stated, taken = stated_and_taken(*train, "--resume", cwd=tmp_path)
        assert taken <= stated
    stated, taken = stated_and_taken("score", *where, cwd=tmp_path)
    assert taken <= stated
