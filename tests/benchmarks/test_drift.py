"""The benchmark of drift in a small form, on generated digits."""

from pathlib import Path

import pytest

pytest.importorskip("torch")  # the other benchmarks need it

from jobs.training.job import train
from jobs.training.model import Model
from jobs.training.reference import make_reference
from pipeline.ingest import ingest
from tests.benchmarks.drift import DAMAGES, Judge, detections, false_alarms, split_rows


@pytest.mark.slow
def test_alarms(tmp_path: Path) -> None:
    """Genuine slices raise no alarm; damaged ones do, save digits that are turned into others."""
    dataset = ingest("synthetic:6000,3000", tmp_path / "set").dataset
    settings = {"network": "784-relu-100-softmax-10", "epochs": 6, "holdout": 1000}
    train(settings, dataset=dataset.location, run=tmp_path / "run")
    model = Model.load(tmp_path / "run")
    judge = Judge(model, make_reference(model, dataset, 1000))
    images, labels = split_rows(dataset, "test")
    genuine = list(false_alarms(judge, images, (100, 500), 100))
    assert [] == [(verdict.name, verdict.note) for verdict in genuine if verdict.figure]
    damaged = list(detections(judge, images, labels, 3))
    assert len(DAMAGES) + 10 == len(damaged)
    missed = {verdict.name for verdict in damaged if not verdict.met}
    assert missed <= {"detected: turned by 180 degrees"}
