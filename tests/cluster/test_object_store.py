"""Processes that share only an object store give the same results."""

import json
import shutil
from itertools import count
from pathlib import Path
from typing import Any

from jobs.scoring.job import score
from storage.dataset import open_dataset
from storage.places import open_location
from tests.cluster.processes import Cluster
from tests.cluster.trainings import SETTINGS, Reference
from tests.commands.process import run_pipeline
from tests.object_store.server import Store

INGEST = ("ingest", "synthetic:2100,430", "--rows-per-chunk", 200)
"""The arguments that make the dataset of the fixture `digits`."""


def expected(digits: Path, reference: Reference, copy: Path) -> list[Any]:
    """The digests of the three commands without a cluster, on a local disk."""
    shutil.copytree(reference.home / "steps", copy)
    scored = score(run=copy, dataset=digits)
    return [
        open_dataset(open_location(digits)).digest,
        (reference.steps["parameters_digest"], reference.steps["order_digest"]),
        scored.scores.digest,
    ]


def digests_of(store: Store, home: Path, options: list[object], env: dict[str, str]) -> list[Any]:
    """The digests of commands with `options` and `env`, each run in an empty directory."""
    place, numbers = str(store.new_place()), count()
    places = ["--dataset", f"{place}/set", "--run", f"{place}/runs/one"]

    def elsewhere(*arguments: object) -> dict[str, Any]:
        directory = home / f"machine-{next(numbers)}"
        directory.mkdir()
        ended = run_pipeline(*arguments, *options, "--json", cwd=directory, env=env)
        assert 0 == ended.code, ended.err
        assert [] == list(directory.iterdir())
        result: dict[str, Any] = json.loads(ended.out)
        return result

    made = elsewhere(*INGEST, "--out", f"{place}/set")
    trained = elsewhere("train", *places, *SETTINGS)
    scored = elsewhere("score", *places)
    return [
        made["digest"],
        (trained["parameters_digest"], trained["order_digest"]),
        scored["scores_digest"],
    ]


def test_workers_share_nothing_but_the_store(
    store: Store, digits: Path, reference: Reference, tmp_path: Path
) -> None:
    """Each worker reaches the store by the credentials of its own environment."""
    with Cluster(tmp_path / "cluster", workers=0) as cluster:
        for _ in range(2):
            cluster.add_worker(env=store.environment)
        options: list[object] = ["--scheduler", cluster.address]
        digests = digests_of(store, tmp_path, options, store.environment)
        assert expected(digits, reference, tmp_path / "run") == digests, cluster.logs()
        for directory in (tmp_path / "cluster").glob("dask_worker-*"):
            assert ["log"] == [path.name for path in directory.iterdir()]


def test_options_travel(
    store: Store, standing: Cluster, digits: Path, reference: Reference, tmp_path: Path
) -> None:
    """Workers without any settings reach the store by the job's `--storage-option`s."""
    options: list[object] = ["--scheduler", standing.address]
    for name, value in store.options.items():
        options += ["--storage-option", f"{name}={value}"]
    digests = digests_of(store, tmp_path, options, {})
    assert expected(digits, reference, tmp_path / "run") == digests
