"""A job's stated memory bound holds, for wide and deep networks too."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.nn.architecture import parse_network
from jobs.nn.network import Network
from jobs.training.memory import score_memory
from storage.schema import SplitSchema
from tests.storage.idx_files import write_idx

MEASURE = """
import resource, subprocess, sys
ended = subprocess.run(sys.argv[1:], capture_output=True, text=True)
print(ended.stdout + ended.stderr)
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def stated_and_taken(*arguments: object, cwd: Path) -> tuple[int, int]:
    """Return a command's stated memory bound and the peak of its processes, in bytes.

    A separate process measures, so that no other child counts.
    """
    command = [
        sys.executable,
        "-c",
        MEASURE,
        sys.executable,
        "-m",
        "jobs.commands.cli",
        *map(str, arguments),
        "--verbose",
    ]
    printed = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout
    stated = re.search(r"memory at most ([\d,]+) MB", printed)
    taken = re.search(r"peak (\d+)", printed)
    assert stated, printed
    assert taken, printed
    return int(stated[1].replace(",", "")) * 10**6, int(taken[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--network", "784-relu-6000-softmax-10", "--threads", 8, "--batch-size", 50),
        ("--network", "784-relu-3000-relu-3000-softmax-10", "--threads", 1, "--batch-size", 50),
        ("--network", "784-relu-2000-softmax-10", "--dtype", "float64", "--optimizer", "sgd"),
    ],
)
def test_wide_networks(options: tuple[object, ...], digits: Path, tmp_path: Path) -> None:
    """Training, resumed training and scoring each stay below their stated bounds."""
    where = ("--dataset", digits, "--run", "run")
    for epochs in (1, 2):
        train = ("train", *where, *options, "--schedule", "constant", "--epochs", epochs)
        stated, taken = stated_and_taken(*train, "--resume", cwd=tmp_path)
        assert taken <= stated
    stated, taken = stated_and_taken("score", *where, cwd=tmp_path)
    assert taken <= stated


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--replicas", 100, "--network", "784-relu-200-softmax-10"),
        ("--replicas", 100, "--network", "784-relu-10-softmax-10", "--shuffle-memory", 1_100_000),
    ],
    ids=["vectors", "windows"],
)
def test_rounds_of_many_replicas(options: tuple[object, ...], tmp_path: Path) -> None:
    """Each replica's state and windows count, in the first epoch and when resumed."""
    source = ("ingest", "synthetic:1200,10", "--out", "set", "--rows-per-chunk", 50)
    subprocess.run(
        [sys.executable, "-m", "jobs.commands.cli", *map(str, source)], cwd=tmp_path, check=True
    )
    rounds = ("--parallel", "rounds", "--sync-every", 1, "--batch-size", 6, "--evaluate", "none")
    train = ("train", "--dataset", "set", "--run", "run", *rounds, *options, "--resume")
    for epochs in (1, 2):
        resumed = (*train, "--schedule", "constant", "--epochs", epochs)
        stated, taken = stated_and_taken(*resumed, cwd=tmp_path)
        assert taken <= stated


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv", "npz", "parquet"])
def test_probabilities_of_many_classes(form: str, tmp_path: Path) -> None:
    """Probabilities are written a few rows at a time for any chunk size."""
    rows = 4_000
    random = np.random.default_rng(0)
    write_idx(tmp_path / "train-images-idx3-ubyte", random.integers(0, 256, (rows, 4, 4), np.uint8))
    write_idx(tmp_path / "train-labels-idx1-int", (np.arange(rows) % 1000).astype(np.int32))
    network = ("--network", "16-relu-4-softmax-1000", "--epochs", "1", "--evaluate", "none")
    for command in (
        ("ingest", ".", "--out", "set", "--rows-per-chunk", str(rows)),
        ("train", "--dataset", "set", "--run", "run", *network),
    ):
        subprocess.run(
            [sys.executable, "-m", "jobs.commands.cli", *command], cwd=tmp_path, check=True
        )
    score = ("score", "--dataset", "set", "--run", "run", "--split", "train", "--threads", 1)
    stated, taken = stated_and_taken(*score, "--out", f"x.{form}", "--probabilities", cwd=tmp_path)
    assert taken <= stated


def test_few_rows_of_many_pixels() -> None:
    """No more rows than a chunk's are counted: ten images of four million pixels need little."""
    network = Network(parse_network("4000000-relu-2-softmax-2"), "float32")
    split = SplitSchema.plan(rows=10, features=4_000_000, dtype="uint8", classes=2)
    assert score_memory([network], split, threads=2) < 10**9


def test_chunks_of_many_classes() -> None:
    """Targets count if they are wider than the inputs; MNIST's chunks are unchanged."""
    wide = SplitSchema.plan(rows=600_000, features=1, dtype="uint8", classes=1000)
    assert wide.chunk_rows * wide.row_bytes < 4 * 10**6
    mnist = SplitSchema.plan(rows=60_000, features=784, dtype="uint8", classes=10)
    assert 2000 == mnist.chunk_rows
