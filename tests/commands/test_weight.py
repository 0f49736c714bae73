"""What commands do without: libraries that take longer to be imported than the work takes."""

import re
from pathlib import Path

import dask.config
import pytest

from pipeline.clusters.options import places
from tests.cluster.test_failures import NOWHERE
from tests.commands.process import run_pipeline

IMPORTED = re.compile(r"^import time:.*\| +([a-z_]+)$", re.MULTILINE)
"""A package's line of `python -X importtime`."""


@pytest.mark.parametrize(
    ("command", "spared"),
    [
        (("ingest", "synthetic:60,20"), {"zarr", "dask", "distributed", "pyarrow"}),
        (("train", "--epochs", 1, "--batch-size", 10), {"zarr", "distributed", "pyarrow"}),
        (("score",), {"zarr", "distributed", "pyarrow"}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_is_not_imported(files: Path, command: tuple[object, ...], spared: set[str]) -> None:
    """The real commands at work: each imports what it needs, such as NumPy, and none of these."""
    here = files.parent
    place = ("--dataset", "data/synthetic", "--run", "runs/it")
    if command[0] != "ingest":
        assert run_pipeline("ingest", "synthetic:60,20", cwd=here).code == 0
    if command[0] == "score":
        assert run_pipeline("train", *place, "--epochs", 1, "--batch-size", 10, cwd=here).code == 0
    chosen = () if command[0] == "ingest" else place
    ended = run_pipeline(*command, *chosen, cwd=here, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert ended.code == 0, ended.err
    imported = set(IMPORTED.findall(ended.err))
    assert "numpy" in imported
    assert set() == imported & spared


def test_a_configuration_in_a_place_where_dask_looks(tmp_path: Path) -> None:
    """Dask is asked where it has anything to read: its scheduler is used, and refused with 6."""
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
    """All of them, so that no configuration goes unread."""
    assert set(dask.config._get_paths()) == set(places())
