"""The benchmark of sources in a tiny form."""

from pathlib import Path

import pytest

pytest.importorskip("torch")  # the other benchmarks of processes need it

from tests.benchmarks import sources
from tests.benchmarks.data import Workplace


@pytest.mark.slow
def test_all_formats_have_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each format and its peer are measured, at both sizes in the long form."""
    monkeypatch.setattr(sources, "LONG", 2)
    monkeypatch.setattr(sources, "CASES", sources.CASES[:2] + sources.CASES[6:7])
    verdicts = list(sources.bench_sources(Workplace(tmp_path), 1, rows=50, long=True))
    figures = {verdict.name: verdict.figure for verdict in verdicts}
    assert 0 == figures["formats whose rows differ from those of IDX"]
    assert 0 < figures["Parquet, 100 rows: time / pandas and Pillow"]
    assert 0 < figures["npz: memory with 2 times the rows"] < 2
    assert [] == list(tmp_path.iterdir())
