"""Workers compute portably, or say what to set so that they do."""

import shlex
from pathlib import Path

import pytest

from tests.cluster.processes import Cluster, assert_failed
from tests.commands.process import document, run_pipeline

SETTINGS = ("--arithmetic", "portable", "--network", "relu-12", "--epochs", "1")
SWEEP = ("sweep", "--grid", "learning_rate=0.003,0.03", "--holdout", "300", "--out", "sweep")


@pytest.mark.usefixtures("portable_machine")
def test_workers_with_another_kernel(digits: Path, tmp_path: Path) -> None:
    """A job ends with exit 6 and the command that starts a worker; with it, the bits are right."""
    alone = document(run_pipeline("train", *SETTINGS, "--dataset", digits, "--json", cwd=tmp_path))
    with Cluster(tmp_path / "cluster", workers=0) as workers:
        another = workers.add_worker(env={"OPENBLAS_CORETYPE": "Sandybridge"})
        common = (*SETTINGS, "--dataset", digits, "--scheduler", workers.address)
        for parallel in ("steps", "rounds"):
            options = (*common, "--run", parallel, "--parallel", parallel, "--resume")
            ended = run_pipeline("train", *options, cwd=tmp_path)
            assert_failed(ended, 6, "OPENBLAS_CORETYPE=Haswell", "on worker tcp://")
        swept = run_pipeline(*SWEEP, *common, cwd=tmp_path)
        assert (6, 1) == (swept.code, swept.out.count("1 worker at"))
        assert "No trial of the sweep sweep has a result" in swept.err
        command = shlex.split(ended.err.split("`")[1])
        assert ["dask", "worker"] == command[-2:]
        workers.kill_worker(another)
        workers.add_worker(env=dict(word.split("=", 1) for word in command if "=" in word))
        options = (*common, "--run", "steps", "--resume", "--json")
        remote = document(run_pipeline("train", *options, cwd=tmp_path))
    assert alone["parameters_digest"] == remote["parameters_digest"]
