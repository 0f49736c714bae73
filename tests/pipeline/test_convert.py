"""Parts of a split on their way into a dataset: as many side by side as there are threads."""

import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.convert import convert_part
from pipeline.ingest import ingest


def test_a_part_for_each_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large parts are, the threads of an ingest convert one each at the same time."""
    both = threading.Barrier(2, timeout=60)

    def together(*arguments: Any) -> Any:
        both.wait()
        return convert_part(*arguments)

    monkeypatch.setattr("pipeline.ingest.convert_part", together)
    monkeypatch.setattr("pipeline.ingest.BYTES_IN_FLIGHT", 1)
    made = ingest("synthetic:40,20", tmp_path / "set", rows_per_chunk=10, threads=2)
    assert 4 == made.dataset.split("train").schema.chunks
