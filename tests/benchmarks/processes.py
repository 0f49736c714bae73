"""Whole processes, timed from start to exit."""

import itertools
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
from tests.benchmarks.contestants import PROJECT, Case
from tests.benchmarks.data import CORES, NETWORK, Workplace
from tests.benchmarks.epochs import epoch_of, streaming_trainer


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
        trainer = streaming_trainer(workplace, Case(NETWORK, 100), threads=0)
        epoch = epoch_of(stack.enter_context(trainer))

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
"""
JAX_TO_98 = """
    import sys
    import jax, jax.numpy as jnp, numpy as np, optax
    data, seed = np.load(sys.argv[1]), int(sys.argv[2])
    images, tests = jnp.asarray(data["images"]), jnp.asarray(data["test_images"])
    labels, test_labels = (jnp.asarray(data[n], jnp.int32) for n in ("labels", "test_labels"))
    batch, epochs, rate, decay = 200, 10, 0.006, 0.1
    steps = len(images) // batch
    optimizer = optax.adamw(
        optax.cosine_onecycle_schedule(epochs * steps, rate), weight_decay=decay
    )
    generator, widths = np.random.default_rng(seed), (784, 200, 80, 10)
    parameters = [
        (jnp.asarray(generator.normal(0, (2 / a) ** 0.5, (a, b)), jnp.float32), jnp.zeros(b))
        for a, b in zip(widths, widths[1:])
    ]

    def logits(parameters, images):
        first, second, third = parameters
        hidden = jax.nn.relu(images.astype(jnp.float32) / 255 @ first[0] + first[1])
        hidden = jax.nn.sigmoid(hidden @ second[0] + second[1])
        return hidden @ third[0] + third[1]

    def loss(parameters, images, labels):
        outputs = logits(parameters, images)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()

    @jax.jit(donate_argnums=0)
    def train_epoch(carried, order, images, labels, tests, test_labels):
        def step(carried, rows):
            parameters, state = carried
            gradient = jax.grad(loss)(parameters, images[rows], labels[rows])
            updates, state = optimizer.update(gradient, state, parameters)
            return (optax.apply_updates(parameters, updates), state), None

        carried, _ = jax.lax.scan(step, carried, order)
        return carried, (logits(carried[0], tests).argmax(1) == test_labels).mean()

    carried = parameters, optimizer.init(parameters)
    for epoch in range(epochs):
        order = generator.permutation(len(images))[: steps * batch].reshape(steps, batch)
        order = jnp.asarray(order, jnp.int32)
        carried, accuracy = train_epoch(carried, order, images, labels, tests, test_labels)
        if accuracy >= 0.98:
            break
"""


def bench_to_98(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Measure the time to 98 % test accuracy, with the same settings and a seed for each round."""
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
    run, seeds = workplace.directory / "to-98", itertools.count()

    def pipeline_train() -> float:
        shutil.rmtree(run, ignore_errors=True)
        command = [sys.executable, "-m", "jobs.commands.cli", "train", "--seed", str(next(seeds))]
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

    def peer(script: str) -> Contestant:
        own_seeds, program = itertools.count(), textwrap.dedent(script)

        def run() -> None:
            process("-c", program, str(arrays), str(next(own_seeds)), str(CORES))()

        return run

    contestants = {
        "pipeline": pipeline_train,
        "JAX": peer(JAX_TO_98),
        "PyTorch": peer(PYTORCH_TO_98),
    }
    times = medians(contestants, max(1, rounds // 2))
    note = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items())
    for name, target in (("JAX", 0.5), ("PyTorch", 0.7)):
        ratio = times["pipeline"] / times[name]
        yield Verdict(f"start to 98 % / {name}'s", ratio, target, note=note)


FIRST_STEP = """
    import os
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as main does, before NumPy is imported
    from jobs.commands.cli import main
    from jobs.training.trainer import Trainer

    Trainer.train_epoch = lambda trainer, after_step: next(trainer._losses()) and os._exit(0)
    main()
"""
OPENING = """
    import sys, time
    from storage.dataset import open_dataset
    from storage.places import open_location
    began = time.perf_counter()
    open_dataset(open_location(sys.argv[1]))
    print(time.perf_counter() - began)
"""
FIRST_STEP_SECONDS = 0.6


def bench_start(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Measure `pipeline train` from process start to the end of its first step."""
    run, place = workplace.directory / "started", str(workplace.dataset.location)
    start = process(
        "-c", textwrap.dedent(FIRST_STEP), "train", "--dataset", place, "--run", f"{run}"
    )

    def first_step() -> float:
        shutil.rmtree(run, ignore_errors=True)
        began = time.perf_counter()
        start()
        return time.perf_counter() - began

    def opening() -> float:
        program = [sys.executable, "-c", textwrap.dedent(OPENING), place]
        return float(subprocess.check_output(program, cwd=PROJECT, text=True))

    imported = process("-c", "import numpy")
    contestants = {"first step": first_step, "import numpy": imported, "opening": opening}
    times = medians(contestants, 3 * rounds)
    note = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in times.items())
    allowed = max(FIRST_STEP_SECONDS, 2 * times["import numpy"] + times["opening"])
    yield Verdict(
        "process start to the first step / 0.6 s, or 2.0 times `import numpy` and the opening",
        times["first step"] / allowed,
        1.0,
        note=note,
    )


def _last_accuracy(run: Path) -> float:
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return float(json.loads(lines[-1])["evaluation"]["test"]["accuracy"]) if lines else 0.0
