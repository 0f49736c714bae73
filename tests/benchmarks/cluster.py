"""Worker processes of this machine: four compared with one, and with no cluster."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from distributed.comm.tcp import TCP

from jobs.nn.architecture import count_parameters, parse_network
from jobs.scoring.job import score
from jobs.training.cluster_stepper import ClusterTrainer
from jobs.training.config import TrainConfig
from jobs.training.job import train
from jobs.training.round_trainer import RoundTrainer
from jobs.training.trainer import Trainer
from pipeline.cluster.client import Cluster
from pipeline.cluster.connect import connect
from pipeline.cluster.options import ClusterOptions
from pipeline.ingest import ingest
from storage.places import open_location
from tests.benchmarks.contest import Contestant, Verdict, medians
from tests.benchmarks.data import CORES, NETWORK, Workplace
from tests.benchmarks.epochs import epoch_of
from tests.object_store.server import running_store

WORKERS = 4 if CORES >= 4 else 2
LARGE_NETWORK = "784-relu-2500-relu-2000-softmax-10"
BATCH_SIZE = 1024
STEPS = 8
"""Steps of the large network per measurement."""
MANY_ROWS = 600_000
ROUNDS = TrainConfig(
    network=NETWORK, schedule="constant", epochs=10**6, parallel="rounds", replicas=WORKERS
)
"""Epochs of the default network, one after the other."""


def bench_cluster(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Measure steps, rounds, rounds from a store, and scoring."""
    yield from _steps(workplace, rounds)
    yield from _rounds(workplace, rounds)
    yield from _rounds_from_store(workplace, rounds)
    yield from _scoring(workplace, rounds)


def _cluster(workers: int, stack: ExitStack) -> Cluster:
    cluster = connect(ClusterOptions(workers=workers))
    assert cluster is not None
    return stack.enter_context(cluster)


def _steps(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Measure `--parallel steps`, and the bytes that pass through the scheduler."""
    made = ingest(f"synthetic:{STEPS * BATCH_SIZE},100", workplace.directory / "steps")
    config = TrainConfig(
        network=LARGE_NETWORK, batch_size=BATCH_SIZE, schedule="constant", epochs=ROUNDS.epochs
    )
    layers = parse_network(LARGE_NETWORK)
    with ExitStack() as stack:
        trainers = {
            str(workers): stack.enter_context(
                ClusterTrainer(config, layers, made.dataset, cluster=_cluster(workers, stack))
            )
            for workers in (1, WORKERS)
        }
        times = medians({name: epoch_of(trainer) for name, trainer in trainers.items()}, rounds)
        with counted_writes() as sizes:
            epoch_of(trainers[str(WORKERS)])()
    faster = times["1"] / times[str(WORKERS)]
    note = ", ".join(f"{name}: {seconds / STEPS:.3f} s a step" for name, seconds in times.items())
    yield Verdict(
        f"--parallel steps, {WORKERS} workers / 1, of linear",
        faster / WORKERS,
        0.75,
        at_least=True,
        note=note,
    )
    # The scheduler runs in this process: it and the client send half of what passes through it.
    moved = STEPS * (1 + WORKERS) * 4 * count_parameters(layers)
    note = f"{2 * sum(sizes) / STEPS:,.0f} bytes a step"
    yield Verdict(
        "bytes through the scheduler / parameters and gradients",
        2 * sum(sizes) / moved,
        0.05,
        note=note,
    )


def _rounds(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Measure `--parallel rounds` with the default network."""
    alone = replace(ROUNDS, parallel="steps", threads=1)
    layers = parse_network(NETWORK)
    with ExitStack() as stack:
        one = stack.enter_context(Trainer(alone, layers, workplace.dataset))
        cluster = _cluster(WORKERS, stack)
        several = stack.enter_context(
            RoundTrainer(ROUNDS, layers, workplace.dataset, cluster=cluster)
        )
        times = medians({"one": epoch_of(one), "several": epoch_of(several)}, rounds)
    note = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items())
    yield Verdict(
        f"--parallel rounds, {WORKERS} replicas on {WORKERS} workers / one process, one thread",
        times["one"] / times["several"],
        2.5 if WORKERS == 4 else 1.4,
        at_least=True,
        note=note,
    )


def _rounds_from_store(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Measure rounds over data that no worker can hold, from a store and from disk.

    The store is moto's server, which runs on the same cores.
    """
    source, layers = f"synthetic:{MANY_ROWS},100", parse_network(NETWORK)
    with ExitStack() as stack:
        store = stack.enter_context(running_store())
        cluster = _cluster(WORKERS, stack)
        places = {"disk": open_location(workplace.directory / "many"), "store": store.new_place()}
        trainers = {
            name: stack.enter_context(
                RoundTrainer(
                    ROUNDS,
                    layers,
                    ingest(source, place, cluster=cluster).dataset,
                    cluster=cluster,
                )
            )
            for name, place in places.items()
        }
        times = medians({name: epoch_of(trainer) for name, trainer in trainers.items()}, rounds)
    note = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items())
    yield Verdict(
        f"the same with {MANY_ROWS:,} rows, on the S3 server / from local disk",
        times["disk"] / times["store"],
        0.9,
        at_least=True,
        note=note,
    )


def _scoring(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Measure scoring of many rows."""
    data, run = workplace.directory / "many", workplace.directory / "scoring-run"
    with ExitStack() as stack:
        clusters = {str(workers): _cluster(workers, stack) for workers in (1, WORKERS)}
        ingest(f"synthetic:{MANY_ROWS},100", data, cluster=clusters[str(WORKERS)])
        train(TrainConfig(epochs=1), dataset=workplace.dataset.location, run=run)

        def scoring(cluster: Cluster) -> Contestant:
            def again() -> None:
                shutil.rmtree(run / "scores", ignore_errors=True)
                score(run=run, dataset=data, split="train", cluster=cluster)

            return again

        times = medians({name: scoring(cluster) for name, cluster in clusters.items()}, rounds)
    note = ", ".join(f"{name}: {seconds:.2f} s" for name, seconds in times.items())
    yield Verdict(
        f"scoring {MANY_ROWS:,} rows, {WORKERS} workers / 1, of linear",
        times["1"] / times[str(WORKERS)] / WORKERS,
        0.75,
        at_least=True,
        note=note,
    )


@contextmanager
def counted_writes() -> Iterator[list[int]]:
    """Record the size of every message that this process sends over TCP."""
    sizes: list[int] = []
    write = TCP.write

    async def counted(comm: TCP, *arguments: Any, **options: Any) -> int:
        size: int = await write(comm, *arguments, **options)  # type: ignore[no-untyped-call]
        sizes.append(size)
        return size

    TCP.write = counted  # type: ignore[method-assign, assignment]
    try:
        yield sizes
    finally:
        TCP.write = write  # type: ignore[method-assign]
