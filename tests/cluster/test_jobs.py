"""Ingest, scoring and windows on a cluster: what one process makes, whatever happens to workers."""

import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from threadpoolctl import threadpool_info

from jobs.scoring.job import score
from jobs.training.job import train
from pipeline.cluster.client import Cluster as Client
from pipeline.cluster.tasks import Task, results
from pipeline.cluster.worker import ZARR_CONCURRENCY
from pipeline.ingest import ingest
from pipeline.sources.digits import draw_digits
from storage.errors import UnreachableError
from storage.local import LocalLocation
from storage.places import open_location
from storage.verify import verify_location
from tests.cluster.processes import Cluster, assert_told, connected
from tests.cluster.trainings import ROUNDS, SETTINGS, STEPS
from tests.commands.process import run_pipeline
from tests.storage.idx_files import write_idx


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """IDX files of 1,000 drawn digits, compressed."""
    source = tmp_path / "source"
    source.mkdir()
    images, labels = draw_digits(3, "train", 0, 1000)
    write_idx(source / "train-images-idx3-ubyte.gz", images)
    write_idx(source / "train-labels-idx1-ubyte.gz", labels)
    return source


def test_ingest(files: Path, tmp_path: Path) -> None:
    """From files and drawn digits, with workers killed meanwhile: the same digest, and sound."""
    with Cluster(tmp_path / "cluster", workers=2) as workers:
        client = connected(workers)
        with client:
            reports = 0

            def report(stage: str, done: int, total: int) -> None:
                nonlocal reports
                reports += 1 if done else 0
                if done and reports == 4:
                    workers.kill_worker(0)
                    workers.add_worker()
                if done and reports == 9:
                    workers.kill_worker(1)

            for number, source in enumerate((str(files), "synthetic:900,150")):
                here = ingest(source, tmp_path / f"here-{number}", rows_per_chunk=70)
                there = ingest(
                    source,
                    tmp_path / f"there-{number}",
                    rows_per_chunk=70,
                    progress=report,
                    cluster=client,
                )
                assert here.dataset.digest == there.dataset.digest
                checked = list(verify_location(open_location(tmp_path / f"there-{number}")))
                assert [] == [error for _, error in checked if error is not None]


def test_ingest_beside_a_worker_that_stands_still(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that it does not take go to another one; nothing waits for it for ever."""
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "6 s")
    here = ingest(str(files), tmp_path / "here", rows_per_chunk=20)
    with Cluster(tmp_path / "cluster", workers=2) as workers:
        client = connected(workers)
        client.timeout = 2.0
        reports = 0

        def report(stage: str, done: int, total: int) -> None:
            nonlocal reports
            reports += 1 if done else 0
            if done and reports == 4:
                workers.signal_worker(0, signal.SIGSTOP)

        with client:
            there = ingest(
                str(files), tmp_path / "there", rows_per_chunk=20, progress=report, cluster=client
            )
    assert here.dataset.digest == there.dataset.digest


def scored(result: Any) -> tuple[Any, ...]:
    """What a scoring came to, besides how long it took."""
    return result.scores.chunk_digests, result.metrics["quality"], result.already_done


def test_score(digits: Path, tmp_path: Path) -> None:
    """Chunk by chunk on workers that are killed meanwhile: the same predictions and figures."""
    run = tmp_path / "run"
    train(STEPS, dataset=digits, run=run)
    here = scored(score(run=run, dataset=digits, split="train"))
    shutil.rmtree(run / "scores")
    with Cluster(tmp_path / "cluster", workers=2) as workers:
        client = connected(workers)
        reports = 0

        def report(stage: str, done: int, total: int, note: str = "") -> None:
            nonlocal reports
            reports += 1
            if reports == 3:
                workers.kill_worker(0)

        with client:
            there = score(run=run, dataset=digits, split="train", progress=report, cluster=client)
    assert here == scored(there)


def test_a_scoring_is_gone_on_with(cluster: Client, digits: Path, tmp_path: Path) -> None:
    """One that died here is ended by a cluster, which counts what was written before: the same."""
    run = tmp_path / "run"
    train(STEPS, dataset=digits, run=run)
    here = scored(score(run=run, dataset=digits, split="train"))
    shutil.rmtree(run / "scores")

    def die(stage: str, done: int, total: int, note: str = "") -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(run=run, dataset=digits, split="train", progress=die)
    there = score(run=run, dataset=digits, split="train", cluster=cluster)
    assert here == scored(there)


def test_from_other_directories(standing: Cluster, tmp_path: Path) -> None:
    """The three commands with relative paths, on workers that stand in other directories."""
    there = ["--scheduler-file", standing.file]
    commands: list[list[object]] = [
        ["ingest", "synthetic:300,50", "--out", "d", "--rows-per-chunk", "40", *there],
        ["train", "--dataset", "d", "--run", "r", "--epochs", "1", *there],
        ["score", "--dataset", "d", "--run", "r", *there],
    ]
    for command in commands:
        ended = run_pipeline(*command, cwd=tmp_path)
        assert (0, "") == (ended.code, ended.err)
        assert f"cluster {standing.address}, 2 workers" in ended.out


def test_rows_that_a_worker_does_not_see(standing: Cluster, digits: Path, tmp_path: Path) -> None:
    """A training ends with exit 6, and says what to do."""
    mine = "/proc/self/cwd/dataset"  # in each process another directory by the same absolute path
    shutil.copytree(digits, tmp_path / "dataset")
    common = ["train", "--dataset", mine, "--scheduler", standing.address, *SETTINGS]
    for parallel in ("steps", "rounds"):
        ended = run_pipeline(*common, "--run", parallel, "--parallel", parallel, cwd=tmp_path)
        assert_told(ended, 6, f"{mine} cannot be seen", "S3 store", "on worker tcp://")


def test_a_home_that_a_worker_does_not_see(
    cluster: Client, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is published that workers wrote to disks of their own."""
    run = tmp_path / "run"
    train(STEPS, dataset=digits, run=run)

    def reduce(place: LocalLocation) -> tuple[object, ...]:
        return LocalLocation, (place.path if place.path == digits else tmp_path / "there",)

    monkeypatch.setattr(LocalLocation, "__reduce__", reduce)
    with pytest.raises(UnreachableError, match="cannot be seen"):
        ingest("synthetic:300,50", tmp_path / "made", rows_per_chunk=40, cluster=cluster)
    with pytest.raises(UnreachableError, match="cannot be seen"):
        score(run=run, dataset=digits, cluster=cluster)
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "there").exists()
    assert [] == list((run / "scores").glob("*/metrics.json"))


def settings() -> tuple[int, int]:
    """The most threads of any BLAS of this process, and the reads of an array at once by Zarr."""
    libraries = [found for found in threadpool_info() if found["user_api"] == "blas"]
    return max(found["num_threads"] for found in libraries), zarr.config.get("async.concurrency")


def test_workers_are_set(tmp_path: Path) -> None:
    """Whatever their environment says, workers compute with one thread and read by few."""
    with Cluster(tmp_path / "cluster", workers=0) as workers:
        workers.add_worker(env={"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3"})
        client = connected(workers)
        with client:
            task = Task("look", "its settings", settings, ())
            assert [(1, ZARR_CONCURRENCY)] == list(results(client, [task], 1))


def test_values_of_another_range(cluster: Client, tmp_path: Path) -> None:
    """Workers scale and transpose as one process does, in every job."""
    images, labels = draw_digits(3, "train", 0, 600)
    write_idx(tmp_path / "train-images-idx3-short", images.astype(np.int16) * 12 - 1024)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    digests = []
    for name, workers in (("here", None), ("there", cluster)):
        place, run = tmp_path / name / "data", tmp_path / name / "run"
        make = partial(ingest, str(tmp_path), place, rows_per_chunk=70, transpose=True)
        digest = make(cluster=workers).dataset.digest
        for config in (STEPS, ROUNDS):
            short = replace(config, epochs=1, evaluate="none", checkpoint_every=0)
            where = run / config.parallel
            model = train(short, dataset=place, run=where, cluster=workers).parameters_digest
            scored = score(dataset=place, run=where, split="train", cluster=workers)
            digests.append((digest, model, scored.scores.digest))
    assert digests[:2] == digests[2:]
