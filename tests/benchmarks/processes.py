"""Whole processes, timed from start to exit."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from tests.benchmarks.contest import Contestant, Verdict, medians
from tests.benchmarks.data import Workplace
from tests.benchmarks.epochs import streamed_epoch

PROJECT = Path(__file__).parents[2]


def process(*arguments: str) -> Contestant:
    """Return a contestant that runs Python with these arguments and drops the output."""

    def run() -> None:
        subprocess.run(
            [sys.executable, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
        )

    return run


def pipeline(*arguments: str) -> Contestant:
    """Return a contestant that runs the command as a process."""
    return process("-m", "jobs.commands.cli", *arguments)


def bench_help(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Measure how fast `--help` answers."""
    times = medians(
        {"help": pipeline("--help"), "click": process("-c", "import click")}, 3 * rounds
    )
    yield Verdict("pipeline --help / import click", times["help"] / times["click"], 1.5)


def bench_ingest(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Compare the ingest of MNIST with decompressing its four files with gzip."""
    named = os.environ.get("MNIST_DIR")
    files = sorted(Path(named).glob("*.gz")) if named else []
    if not files:
        print("ingest: skipped, as MNIST_DIR names no .gz files", file=sys.stderr)
        return
    out = workplace.directory / "ingested"

    def ingest() -> float:
        shutil.rmtree(out, ignore_errors=True)
        began = time.perf_counter()
        pipeline("ingest", "mnist", "--out", str(out))()
        return time.perf_counter() - began

    def gunzip() -> None:
        for file in files:
            subprocess.run(["gzip", "-dc", str(file)], check=True, stdout=subprocess.DEVNULL)

    times = medians({"ingest": ingest, "gzip": gunzip}, rounds)
    note = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items())
    yield Verdict("ingest of MNIST / gzip alone", times["ingest"] / times["gzip"], 3, note=note)


def bench_train(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Compare a training of ten epochs with its ten streamed epochs alone."""
    run = workplace.directory / "whole"
    sgd = ["--optimizer", "sgd", "--learning-rate", "0.1", "--schedule", "constant", "--l2", "0"]

    def whole() -> float:
        shutil.rmtree(run, ignore_errors=True)
        began = time.perf_counter()
        place = str(workplace.dataset.location)
        pipeline("train", "--dataset", place, "--run", str(run), "--batch-size", "100", *sgd)()
        return time.perf_counter() - began

    with ExitStack() as stack:
        epoch = streamed_epoch(workplace, 100, 0, stack)

        def ten() -> None:
            for _ in range(10):
                epoch()

        times = medians({"whole": whole, "ten epochs": ten}, max(1, rounds // 2))
    note = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items())
    ratio = times["whole"] / times["ten epochs"]
    yield Verdict("pipeline train / its ten epochs alone", ratio, 1.35, note=note)


PYTORCH_TO_98 = """
    import sys, time
    import numpy as np, torch
    torch.manual_seed(int(sys.argv[2])); torch.set_num_threads(int(sys.argv[3]))
    data = np.load(sys.argv[1])
    scaled = lambda name: torch.from_numpy(data[name].astype(np.float32) / 255)
    images, tests = scaled("images"), scaled("test_images")
    labels, test_labels = (torch.from_numpy(data[n]) for n in ("labels", "test_labels"))
    relu, sigmoid, linear = torch.nn.ReLU(), torch.nn.Sigmoid(), torch.nn.Linear
    model = torch.nn.Sequential(
        linear(784, 200), relu, linear(200, 80), sigmoid, linear(80, 10)
    )
    batch, epochs, rate, decay = 200, 10, 0.006, 0.1
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=epochs * -(-len(images) // batch), cycle_momentum=False
    )
    for epoch in range(epochs):
        order = torch.randperm(len(images))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step(); schedule.step()
        with torch.no_grad():
            accuracy = (model(tests).argmax(1) == test_labels).float().mean().item()
        if accuracy >= 0.98:
            break
    print(epoch + 1, accuracy)
"""


def bench_to_98(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Measure the time to 98 % test accuracy, compared with PyTorch with the same settings."""
    arrays = workplace.directory / "arrays.npz"
    test = workplace.dataset.split("test")
    blocks = [test.read_chunk(number) for number in range(test.schema.chunks)]
    np.savez(
        arrays,
        images=workplace.train_bytes[:, 1:],
        labels=workplace.train_targets.argmax(axis=1),
        test_images=np.concatenate([block.inputs[:, 1:] for block in blocks]),
        test_labels=np.concatenate(
            [block.targets.argmax(axis=1) for block in blocks if block.targets is not None]
        ),
    )
    run = workplace.directory / "to-98"
    script = textwrap.dedent(PYTORCH_TO_98)
    cores = str(len(os.sched_getaffinity(0)))

    def pipeline_train() -> float:
        shutil.rmtree(run, ignore_errors=True)
        command = [sys.executable, "-m", "jobs.commands.cli", "train"]
        command += ["--dataset", str(workplace.dataset.location), "--run", str(run)]
        began = time.perf_counter()
        with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as job:
            assert job.stdout is not None
            for _ in job.stdout:
                if _last_accuracy(run) >= 0.98:
                    break
            seconds = time.perf_counter() - began
            job.kill()
        return seconds

    torch_run = process("-c", script, str(arrays), "0", cores)
    times = medians({"pipeline": pipeline_train, "torch": torch_run}, max(1, rounds // 2))
    note = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items())
    yield Verdict("start to 98 % / PyTorch's", times["pipeline"] / times["torch"], 0.7, note=note)


def _last_accuracy(run: Path) -> float:
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return float(json.loads(lines[-1])["evaluation"]["test"]["accuracy"]) if lines else 0.0
