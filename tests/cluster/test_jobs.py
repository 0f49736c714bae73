"""Ingest and scoring on a cluster: what one process makes, whatever happens to workers."""

import shutil
import signal
from collections.abc import Callable
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
from tests.cluster.trainings import ROUNDS, SETTINGS, STEPS, Reference
from tests.commands.process import run_pipeline
from tests.storage.idx_files import write_idx


@pytest.fixture
def files(tmp_path: Path) -> str:
    """IDX files of 1,000 drawn digits, compressed."""
    source = tmp_path / "source"
    source.mkdir()
    images, labels = draw_digits(3, "train", 0, 1000)
    write_idx(source / "train-images-idx3-ubyte.gz", images)
    write_idx(source / "train-labels-idx1-ubyte.gz", labels)
    return str(source)


@pytest.fixture
def trained(reference: Reference, tmp_path: Path) -> Path:
    """A run that can be scored."""
    return Path(shutil.copytree(reference.home / "steps", tmp_path / "trained"))


class At:
    """A progress callback that acts at given reports of finished rows, counted from 1."""

    def __init__(self, actions: dict[int, Callable[[], object]]) -> None:
        self._actions = actions
        self._reports = 0

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        self._reports += bool(done)
        if done and self._reports in self._actions:
            self._actions.pop(self._reports, lambda: None)()


def test_ingest(files: str, tmp_path: Path) -> None:
    """From files and drawn digits, with workers killed meanwhile: the same digest, and sound."""
    with Cluster(tmp_path / "cluster", workers=2) as workers, connected(workers) as client:

        def replace_worker() -> None:
            workers.kill_worker(0)
            workers.add_worker()

        progress = At({4: replace_worker, 9: lambda: workers.kill_worker(1)})
        for number, source in enumerate((files, "synthetic:900,150")):
            make = partial(ingest, source, rows_per_chunk=70)
            place = tmp_path / f"there-{number}"
            there = make(place, progress=progress, cluster=client)
            assert make(tmp_path / f"here-{number}").dataset.digest == there.dataset.digest
            checked = list(verify_location(open_location(place)))
            assert [] == [error for _, error in checked if error is not None]


def test_ingest_beside_a_worker_that_stands_still(
    files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that it does not take go to another one; nothing waits for it for ever."""
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "6 s")
    make = partial(ingest, files, rows_per_chunk=20)
    with Cluster(tmp_path / "cluster", workers=2) as workers, connected(workers) as client:
        client.timeout = 2.0
        progress = At({4: lambda: workers.signal_worker(0, signal.SIGSTOP)})
        there = make(tmp_path / "there", progress=progress, cluster=client)
    assert make(tmp_path / "here").dataset.digest == there.dataset.digest


def scored(run: Path, **options: Any) -> tuple[Any, ...]:
    """What a scoring comes to, besides how long it takes; it leaves nothing."""
    result = score(run=run, split="train", **options)
    shutil.rmtree(run / "scores")
    return result.scores.chunk_digests, result.metrics["quality"], result.already_done


def test_score(digits: Path, trained: Path, tmp_path: Path) -> None:
    """Chunk by chunk on workers that are killed meanwhile: the same predictions and figures."""
    with Cluster(tmp_path / "cluster", workers=2) as workers, connected(workers) as client:
        progress = At({3: lambda: workers.kill_worker(0)})
        there = scored(trained, dataset=digits, progress=progress, cluster=client)
    assert scored(trained, dataset=digits) == there


def test_a_scoring_is_gone_on_with(cluster: Client, digits: Path, trained: Path) -> None:
    """One that died here is ended by a cluster, which counts what was written before: the same."""
    here = scored(trained, dataset=digits)

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(run=trained, dataset=digits, split="train", progress=At({6: die}))
    assert here == scored(trained, dataset=digits, cluster=cluster)


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
        assert f"2 workers at {standing.address}" in ended.out


def test_rows_that_a_worker_does_not_see(standing: Cluster, digits: Path, tmp_path: Path) -> None:
    """A training ends with exit 6, and says what to do."""
    mine = "/proc/self/cwd/dataset"  # in each process another directory by the same absolute path
    shutil.copytree(digits, tmp_path / "dataset")
    common = ["train", "--dataset", mine, "--scheduler", standing.address, *SETTINGS]
    for parallel in ("steps", "rounds"):
        ended = run_pipeline(*common, "--run", parallel, "--parallel", parallel, cwd=tmp_path)
        assert_told(ended, 6, f"{mine} cannot be seen", "S3 store", "on worker tcp://")


def test_a_home_that_a_worker_does_not_see(
    cluster: Client,
    digits: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is published that workers wrote to disks of their own."""

    def reduce(place: LocalLocation) -> tuple[object, ...]:
        return LocalLocation, (place.path if place.path == digits else tmp_path / "there",)

    monkeypatch.setattr(LocalLocation, "__reduce__", reduce)
    with pytest.raises(UnreachableError, match="cannot be seen"):
        ingest("synthetic:300,50", tmp_path / "made", rows_per_chunk=40, cluster=cluster)
    with pytest.raises(UnreachableError, match="cannot be seen"):
        score(run=trained, dataset=digits, cluster=cluster)
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "there").exists()
    assert [] == list((trained / "scores").glob("*/metrics.json"))


def settings() -> tuple[int, int]:
    """The most threads of any BLAS of this process, and the reads of an array at once by Zarr."""
    libraries = [found for found in threadpool_info() if found["user_api"] == "blas"]
    return max(found["num_threads"] for found in libraries), zarr.config.get("async.concurrency")


def test_workers_are_set(tmp_path: Path) -> None:
    """Whatever their environment says, workers compute with one thread and read by few."""
    with Cluster(tmp_path / "cluster", workers=0) as workers:
        workers.add_worker(env={"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3"})
        with connected(workers) as client:
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
            digests.append((digest, model, scored(where, dataset=place, cluster=workers)))
    assert digests[:2] == digests[2:]
