"""Ingest and scoring on a cluster give the results of one process, whatever happens to workers."""

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from jobs.scoring.job import score
from jobs.training.job import train
from pipeline.cluster.client import Cluster as Client
from pipeline.cluster.tasks import Task, results
from pipeline.ingest import ingest
from pipeline.sources.digits import draw_digits
from storage.errors import BadDataError, UnreachableError
from storage.local import LocalLocation
from storage.places import open_location
from storage.verify import verify_location
from tests.cluster.processes import Cluster, assert_failed, connected
from tests.cluster.trainings import ROUNDS, SETTINGS, STEPS, Reference
from tests.commands.process import run_pipeline
from tests.jobs.trainings import small
from tests.pipeline.sources.test_picture_folder import write_pictures
from tests.storage.idx_files import write_idx


@pytest.fixture
def files(tmp_path: Path) -> str:
    """Compressed IDX files of 1,000 generated digits."""
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
    """A progress callback that acts on given reports of finished rows, counted from 1."""

    def __init__(self, actions: dict[int, Callable[[], object]]) -> None:
        self._actions = actions
        self._reports = 0

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        self._reports += bool(done)
        if done and self._reports in self._actions:
            self._actions.pop(self._reports, lambda: None)()


def test_ingest(files: str, tmp_path: Path) -> None:
    """Files and generated digits give the same sound dataset, although workers are killed."""
    with Cluster(tmp_path / "cluster", workers=2) as workers, connected(workers) as client:

        def replace_worker() -> None:
            workers.kill_worker(0)
            workers.add_worker()

        progress = At({4: replace_worker, 9: lambda: workers.kill_worker(1)})
        for number, source in enumerate((files, "synthetic:900,150")):
            make = partial(ingest, source, rows_per_chunk=70)
            place = tmp_path / f"cluster-{number}"
            result = make(place, progress=progress, cluster=client)
            assert make(tmp_path / f"alone-{number}").dataset.digest == result.dataset.digest
            checked = list(verify_location(open_location(place)))
            assert [] == [error for _, error in checked if error is not None]


def test_ingest_pictures(cluster: Client, tmp_path: Path) -> None:
    """Workers decode the files that they are sent; a damaged file stops the ingest."""
    images, labels = draw_digits(5, "train", 0, 300)
    write_pictures(tmp_path / "set", images, labels, "train")
    make = partial(ingest, str(tmp_path / "set"), rows_per_chunk=20)
    made = make(tmp_path / "cluster-made", cluster=cluster)
    assert make(tmp_path / "alone").dataset.digest == made.dataset.digest
    (damaged,) = (tmp_path / "set").glob("train/*/250.png")
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with pytest.raises(BadDataError, match=r"250\.png is damaged"):
        make(tmp_path / "refused", cluster=cluster)
    assert not (tmp_path / "refused").exists()


def test_ingest_with_a_stalled_worker(
    files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker takes its rows, and no wait is endless."""
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "6 s")
    make = partial(ingest, files, rows_per_chunk=20)
    with Cluster(tmp_path / "cluster", workers=2) as workers, connected(workers) as client:
        client.timeout = 2.0
        progress = At({4: lambda: workers.signal_worker(0, signal.SIGSTOP)})
        result = make(tmp_path / "cluster-made", progress=progress, cluster=client)
    assert make(tmp_path / "alone").dataset.digest == result.dataset.digest


def scored(run: Path, **options: Any) -> tuple[Any, ...]:
    """Return a scoring's results except its duration, and remove it."""
    result = score(run=run, split="train", **options)
    shutil.rmtree(run / "scores")
    assert result.drift is not None
    quality = result.metrics["quality"]
    return result.scores.chunk_digests, quality, result.drift, result.already_done


def test_score(digits: Path, trained: Path, tmp_path: Path) -> None:
    """Predictions and metrics are the same, although a worker is killed."""
    with Cluster(tmp_path / "cluster", workers=2) as workers, connected(workers) as client:
        progress = At({3: lambda: workers.kill_worker(0)})
        scores = scored(trained, dataset=digits, progress=progress, cluster=client)
    assert scored(trained, dataset=digits) == scores


def test_score_an_average(cluster: Client, digits: Path, trained: Path, tmp_path: Path) -> None:
    """An average of checkpoints and shifts has the same bits on no, one and two workers."""
    options: dict[str, Any] = {"dataset": digits, "checkpoint": "1,3", "average_shifts": 1}
    expected = scored(trained, **options)
    assert expected == scored(trained, cluster=cluster, **options)
    with Cluster(tmp_path / "cluster", workers=1) as worker, connected(worker) as client:
        assert expected == scored(trained, cluster=client, **options)


def test_score_an_ensemble(cluster: Client, digits: Path, trained: Path, tmp_path: Path) -> None:
    """An average over runs with different networks and element types has the same bits."""
    settings: dict[str, Any] = {"network": "784-tanh-7-relu-5-softmax-10", "dtype": "float64"}
    other = train(small(epochs=1, **settings), dataset=digits, run=tmp_path / "other").run
    runs = [trained, other.location]
    expected = score(run=runs, dataset=digits, split="train")
    shutil.rmtree(trained / "scores")
    result = score(run=runs, dataset=digits, split="train", cluster=cluster)
    assert (expected.scores.chunk_digests, expected.metrics["quality"], expected.drift) == (
        result.scores.chunk_digests,
        result.metrics["quality"],
        result.drift,
    )


def test_an_interrupted_scoring_is_continued(cluster: Client, digits: Path, trained: Path) -> None:
    """A cluster completes a scoring that was interrupted here, and counts what was written."""
    expected = scored(trained, dataset=digits)

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(run=trained, dataset=digits, split="train", progress=At({6: die}))
    assert expected == scored(trained, dataset=digits, cluster=cluster)


def test_from_other_directories(standing: Cluster, tmp_path: Path) -> None:
    """Relative paths work for workers in other directories."""
    options = ["--scheduler-file", standing.file]
    commands: list[list[object]] = [
        ["ingest", "synthetic:300,50", "--out", "d", "--rows-per-chunk", "40", *options],
        ["train", "--dataset", "d", "--run", "r", "--epochs", "1", *options],
        ["score", "--dataset", "d", "--run", "r", *options],
    ]
    for command in commands:
        ended = run_pipeline(*command, cwd=tmp_path)
        assert (0, "") == (ended.code, ended.err)
        assert f"2 workers at {standing.address}" in ended.out


def test_rows_that_a_worker_does_not_see(standing: Cluster, digits: Path, tmp_path: Path) -> None:
    """A training ends with exit 6, and says what to do."""
    mine = "/proc/self/cwd/dataset"  # another directory in each process, by the same absolute path
    shutil.copytree(digits, tmp_path / "dataset")
    common = ["train", "--dataset", mine, "--scheduler", standing.address, *SETTINGS]
    for parallel in ("steps", "rounds"):
        ended = run_pipeline(*common, "--run", parallel, "--parallel", parallel, cwd=tmp_path)
        assert_failed(ended, 6, f"{mine} cannot be seen", "S3 store", "on worker tcp://")


def test_a_home_that_a_worker_does_not_see(
    cluster: Client,
    digits: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is published that workers wrote to other disks."""

    def reduce(place: LocalLocation) -> tuple[object, ...]:
        return LocalLocation, (place.path if place.path == digits else tmp_path / "elsewhere",)

    monkeypatch.setattr(LocalLocation, "__reduce__", reduce)
    with pytest.raises(UnreachableError, match="cannot be seen"):
        ingest("synthetic:300,50", tmp_path / "made", rows_per_chunk=40, cluster=cluster)
    with pytest.raises(UnreachableError, match="cannot be seen"):
        score(run=trained, dataset=digits, cluster=cluster)
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "elsewhere").exists()
    assert [] == list((trained / "scores").glob("*/metrics.json"))


def blas_threads() -> int:
    """Return the most BLAS threads of this process."""
    libraries = [one for one in threadpool_info() if one["user_api"] == "blas"]
    return max(one["num_threads"] for one in libraries)


def test_workers_are_set(tmp_path: Path) -> None:
    """Workers use one BLAS thread, whatever their environment says."""
    with Cluster(tmp_path / "cluster", workers=0) as workers:
        workers.add_worker(env={"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3"})
        with connected(workers) as client:
            task = Task("look", "its settings", blas_threads, ())
            assert [1] == list(results(client, [task], 1))


def test_values_of_another_range(cluster: Client, tmp_path: Path) -> None:
    """Workers scale and transpose like one process, in every job."""
    images, labels = draw_digits(3, "train", 0, 600)
    write_idx(tmp_path / "train-images-idx3-short", images.astype(np.int16) * 12 - 1024)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    digests = []
    for name, workers in (("alone", None), ("cluster", cluster)):
        place, run = tmp_path / name / "data", tmp_path / name / "run"
        make = partial(ingest, str(tmp_path), place, rows_per_chunk=70, transpose=True)
        digest = make(cluster=workers).dataset.digest
        for config in (STEPS, ROUNDS):
            # Only bytes can be distorted.
            plain = replace(config, rotate=0.0, elastic=0.0, distort_until=1.0)
            short = replace(plain, epochs=1, evaluate="none", checkpoint_every=0)
            where = run / config.parallel
            model = train(short, dataset=place, run=where, cluster=workers).parameters_digest
            digests.append((digest, model, scored(where, dataset=place, cluster=workers)))
    assert digests[:2] == digests[2:]
