"""The notebook runs from its first cell to its last, on MNIST or on drawn digits."""

import os
from pathlib import Path

import pytest

from tests.commands.process import REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "tutorial.ipynb"


def test_has_no_outputs() -> None:
    """The notebook is committed without outputs, which would differ between machines."""
    nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
def test_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the files of MNIST, its source is `synthetic`, as the notebook says."""
    nbclient = pytest.importorskip("nbclient", reason="needs the extra docs")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    if "MNIST_DIR" not in os.environ:
        for cell in notebook.cells:
            cell.source = cell.source.replace('"mnist"', '"synthetic"')
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": tmp_path}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert 3 == sum("image/png" in output.get("data", {}) for output in outputs)
