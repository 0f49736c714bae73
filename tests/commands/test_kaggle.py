"""Kaggle's Digit Recognizer, from the files of the competition to a submission."""

import csv
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources.digits import draw_digits
from tests.commands.process import run_pipeline, succeeded
from tests.commands.sets import write_kaggle


@pytest.mark.slow
def test_submission(tmp_path: Path) -> None:
    """The submission has a header, rows numbered from 1, and nearly always the right digit."""
    write_kaggle(tmp_path / "kaggle")
    ended = run_pipeline("ingest", "kaggle", cwd=tmp_path)
    assert "CSV files that are not used: sample_submission.csv" in ended.err
    assert "3,000 train, 200 test (no labels) rows of 28 x 28 in data/kaggle" in ended.out
    succeeded(
        run_pipeline("train", "--dataset", "data/kaggle", "--run", "runs/mnist", cwd=tmp_path)
    )
    score = ("score", "--dataset", "data/kaggle", "--split", "test", "--out", "submission.csv")
    succeeded(run_pipeline(*score, "--columns", "ImageId,Label", cwd=tmp_path))
    with (tmp_path / "submission.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert ["ImageId", "Label"] == header
    assert [str(number) for number in range(1, 201)] == [number for number, _ in rows]
    predicted = np.array([int(label) for _, label in rows])
    assert 0.85 < np.mean(predicted == draw_digits(0, "test", 0, 200)[1])
