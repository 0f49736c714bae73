"""Clusters on object storage: processes that share nothing but the store come to the same bits."""

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
"""What the fixture `digits` is."""


def expected(digits: Path, reference: Reference, copy: Path) -> list[Any]:
    """The digests of the three commands without a cluster, on a local disk."""
    shutil.copytree(reference.home / "steps", copy)
    scored = score(run=copy, dataset=digits)
    return [
        open_dataset(open_location(digits)).digest,
        (reference.steps["parameters_digest"], reference.steps["order_digest"]),
        scored.scores.digest,
    ]


def found(store: Store, home: Path, options: list[object], env: dict[str, str]) -> list[Any]:
    """The same of commands that get `options` and `env`, each in an empty directory of its own."""
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
    """Each worker finds rows and places in the store, by its own environment's credentials."""
    with Cluster(tmp_path / "cluster", workers=0) as cluster:
        for _ in range(2):
            cluster.add_worker(env=store.environment)
        there: list[object] = ["--scheduler", cluster.address]
        told = found(store, tmp_path, there, store.environment)
        assert expected(digits, reference, tmp_path / "run") == told, cluster.logs()
        for directory in (tmp_path / "cluster").glob("dask_worker-*"):
            assert ["log"] == [path.name for path in directory.iterdir()]


def test_options_travel(
    store: Store, standing: Cluster, digits: Path, reference: Reference, tmp_path: Path
) -> None:
    """Workers that know of no store reach it by the `--storage-option`s of the job."""
    there: list[object] = ["--scheduler", standing.address]
    for name, value in store.options.items():
        there += ["--storage-option", f"{name}={value}"]
    told = found(store, tmp_path, there, {})
    assert expected(digits, reference, tmp_path / "run") == told
