"""Steps of a wide network: bare products, PyTorch, and the project's step, from memory."""

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from jobs.nn.architecture import parse_network
from jobs.nn.initialise import initialise
from jobs.nn.network import Network
from jobs.nn.optimizers import make_optimizer
from jobs.training.data_parallel import DataParallelStep
from jobs.training.environment import one_blas_thread
from jobs.training.gradients import GradientRule
from jobs.training.step import UpdateRule
from pipeline.stream import Batch
from tests.benchmarks.contest import Contestant, Verdict, medians
from tests.benchmarks.data import CORES, Workplace
from tests.benchmarks.peers import bare_products, torch_model, torch_tensors

NETWORK = "784-relu-1500-relu-1000-relu-500-softmax-10"
BATCH_SIZE = 512
MICRO_BATCHES = 2
STEPS = 10
RATE = 1e-4


def products(threads: int) -> Contestant:
    """Return the matrix products of `STEPS` steps, each with all rows of the mini-batch."""
    epoch = bare_products(STEPS * BATCH_SIZE, BATCH_SIZE, network=NETWORK)

    def run() -> None:
        with threadpool_limits(threads, user_api="blas"):
            epoch()

    return run


def torch_steps(workplace: Workplace, threads: int) -> Contestant:
    """Return `STEPS` steps in PyTorch, with its fastest AdamW."""
    images, labels = torch_tensors(workplace)
    model = torch_model(NETWORK)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1, fused=True)

    def run() -> None:
        torch.set_num_threads(threads)
        for rows in _mini_batches(workplace):
            optimizer.zero_grad(set_to_none=True)
            outputs = model(images[rows])
            torch.nn.functional.cross_entropy(outputs, labels[rows]).backward()
            optimizer.step()

    return run


def own_steps(workplace: Workplace, threads: int, stack: ExitStack) -> Contestant:
    """Return `STEPS` steps of the project, with AdamW."""
    inputs, targets = workplace.train_bytes, workplace.train_targets
    layers = parse_network(NETWORK)
    network, optimizer = Network(layers), make_optimizer("adamw")
    parameters = initialise("scaled", layers, 0)
    stepper = stack.enter_context(
        DataParallelStep(
            GradientRule(network),
            UpdateRule(network, optimizer, l2=0.1),
            parameters,
            optimizer.initial_state(parameters),
            workplace.dataset.split("train").schema,
            batch_size=BATCH_SIZE,
            micro_batches=MICRO_BATCHES,
            threads=threads,
        )
    )
    steps = 0

    def run() -> None:
        nonlocal steps
        with one_blas_thread():
            for rows in _mini_batches(workplace):
                steps += 1
                parts = np.array_split(rows, MICRO_BATCHES)
                batches = (Batch(inputs[part], targets[part], part) for part in parts)
                stepper.step(batches, len(rows), RATE, steps)

    return run


def _mini_batches(workplace: Workplace) -> "Iterator[np.ndarray[tuple[int], np.dtype[np.int64]]]":
    order = np.random.default_rng(0).permutation(len(workplace.train_bytes))
    yield from order[: STEPS * BATCH_SIZE].reshape(STEPS, BATCH_SIZE)


def bench_step(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Compare steps of a network of 3 million parameters on one core and on all."""
    for threads in dict.fromkeys((1, CORES)):
        with ExitStack() as stack:
            contestants = {
                "bare": products(threads),
                "torch": torch_steps(workplace, threads),
                "step": own_steps(workplace, threads, stack),
            }
            times = medians(contestants, rounds)
        where = f"{threads} thread{'s' if threads > 1 else ''}, batch {BATCH_SIZE}"
        note = f"{NETWORK}, {MICRO_BATCHES} micro-batches: " + ", ".join(
            f"{name} {1000 * seconds / STEPS:.0f} ms" for name, seconds in times.items()
        )
        target = 1.10 if threads == 1 else 1.25
        yield Verdict(
            f"wide step / bare products, {where}", times["step"] / times["bare"], target, note=note
        )
        yield Verdict(f"wide step / PyTorch, {where}", times["step"] / times["torch"], 0.9)
