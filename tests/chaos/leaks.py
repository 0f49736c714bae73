"""Open files, threads and memory do not grow with the epochs or scorings of a process.

    python -m tests.chaos.leaks JOB COUNT

runs COUNT epochs of training, or COUNT scorings, and prints the open files, threads and bytes
after each.
"""

import gc
import json
import os
import resource
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jobs.scoring.job import score
from jobs.training.job import train
from storage.runs import SCORES
from tests.chaos.processes import GIVEN_UP
from tests.chaos.subject import longer, undisturbed
from tests.chaos.tally import Experiment
from tests.commands.process import REPOSITORY

JOBS = ("train", "score")
TIMES = 200
"""Epochs or scorings in the long run."""
MEMORY_SLACK = 3 * 2**20
"""Bytes by which the second half may exceed the first, for the allocator and metrics."""

Held = dict[str, int]


def repeat(name: str, count: int, *case: Any) -> str:
    """Repeat a job in a new process; the second half must hold no more than the first."""
    process = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.chaos.leaks", name, str(count)],
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
        text=True,
        timeout=GIVEN_UP,
    )
    assert 0 == process.returncode, process.stderr
    held: list[Held] = json.loads(process.stdout)
    assert count == len(held)
    first, second = held[: count // 2], held[count // 2 :]
    for what, slack in (("files", 0), ("threads", 0), ("memory", MEMORY_SLACK)):
        before = max(one[what] for one in first)
        after = max(one[what] for one in second)
        assert after <= before + slack, f"{what}: {before:,} at first, {after:,} later"
    return "survived"


def holds() -> Held:
    """Return this process's open files, threads and bytes of memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "memory": pages * resource.getpagesize(),
    }


class _HeldAfterEpochs:
    """A progress callback that records the resources held after each epoch."""

    def __init__(self) -> None:
        self.held: list[Held] = []

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        if done == total:
            self.held.append(holds())


def repeat_here(name: str, count: int) -> list[Held]:
    """Return the resources that this process holds after each epoch, or after each scoring."""
    with TemporaryDirectory(prefix="chaos-") as directory:
        subject = undisturbed(Path(directory))
        if name == "train":
            recorder = _HeldAfterEpochs()
            config = longer(epochs=count)
            train(config, dataset=subject.dataset, run=subject.home / "long", progress=recorder)
            return recorder.held
        held = []
        for _ in range(count):
            shutil.rmtree(subject.run / SCORES)
            score(run=subject.run, dataset=subject.dataset, threads=2)
            held.append(holds())
        return held


EXPERIMENTS = tuple(Experiment(f"leaks-{name}", partial(repeat, name, TIMES), 1) for name in JOBS)


if __name__ == "__main__":
    print(json.dumps(repeat_here(sys.argv[1], int(sys.argv[2]))))
