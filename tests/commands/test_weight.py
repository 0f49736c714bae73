"""Libraries that commands must not import, because the import takes longer than their work."""

import re
import subprocess
from pathlib import Path

import dask.config
import pytest

from jobs.commands.cli import cli
from pipeline.cluster.options import places
from tests.cluster.processes import NOWHERE
from tests.commands.process import COMMAND, REPOSITORY, run_pipeline

HEAVY = {
    *("numpy", "zarr", "dask", "pyarrow", "distributed", "safetensors", "matplotlib"),
    "pooch",
}


def imported(*arguments: str, cwd: Path) -> set[str]:
    """Return the top-level packages that the real command imports, as `-X importtime` reports."""
    python, *rest = COMMAND
    process = subprocess.run(
        [python, "-X", "importtime", *rest, *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = re.findall(r"^import time: .*\| +([\w.]+)$", process.stderr, re.MULTILINE)
    return {line.partition(".")[0] for line in lines}


@pytest.mark.parametrize("arguments", [(), *((name,) for name in cli.commands)], ids=" ".join)
def test_help_imports_little(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """`pipeline --help` and every command's --help import neither numpy, zarr nor dask."""
    packages = imported(*arguments, "--help", cwd=tmp_path)
    assert {"click", "jobs"} <= packages
    assert set() == HEAVY & packages


def test_imports_are_seen(tmp_path: Path) -> None:
    """The measurement works: a command that does work reports some imports."""
    assert {"numpy", "numcodecs"} <= imported("inspect", "nothing", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["ingest", "train", "score"])
def test_what_jobs_spare(files: Path, job: str) -> None:
    """Jobs on local data import neither zarr nor distributed."""
    here = files.parent
    small = ("--epochs", "1", "--batch-size", "10")
    place = ("--dataset", "data/synthetic", "--run", "runs/it")
    commands = {
        "ingest": ("ingest", "synthetic:60,20"),
        "train": ("train", *place, *small),
        "score": ("score", *place),
    }
    for before in list(commands)[: list(commands).index(job)]:
        assert run_pipeline(*commands[before], cwd=here).code == 0
    packages = imported(*commands[job], cwd=here)
    assert {"numpy", "numcodecs"} <= packages
    spared = {"zarr", "distributed", "pyarrow"} | ({"dask"} if job == "ingest" else set())
    assert set() == spared & packages
    made = {"ingest": "data/synthetic", "train": "runs/it/checkpoints", "score": "runs/it/scores"}
    assert (here / made[job]).is_dir()


@pytest.mark.slow
def test_a_configuration_in_a_place_where_dask_looks(tmp_path: Path) -> None:
    """A scheduler in a Dask configuration file is used; this one is unreachable (exit 6)."""
    home = tmp_path / "home" / ".config" / "dask"
    home.mkdir(parents=True)
    (home / "mine.yaml").write_text(f"scheduler-address: {NOWHERE}\n")
    ended = run_pipeline(
        *("ingest", "synthetic:60,20", "--cluster-timeout", 1),
        cwd=tmp_path,
        env={"HOME": str(tmp_path / "home")},
    )
    assert ended.code == 6, ended.err
    assert NOWHERE in ended.err


def test_the_places_are_those_where_dask_looks() -> None:
    """The list is complete, so that no configuration file is ignored."""
    assert set(dask.config._get_paths()) == set(places())
