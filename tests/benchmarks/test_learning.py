"""The learning benchmark in a tiny form: one epoch on generated digits."""

import json
import re
from pathlib import Path

import pytest

from pipeline.ingest import ingest
from tests.benchmarks import learning
from tests.benchmarks.learning import EXPERIMENTS, Experiment, Laboratory, LearningVerdict, Trial

PLAIN = Experiment("10", "a paper", 12.0, "--network softmax --epochs 2")
AGAIN = Experiment("10, best", "a paper", 11.0, PLAIN.training, "--checkpoint 1")
OWN_OPTIONS = [experiment for experiment in EXPERIMENTS if "--recipe" not in experiment.training]


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """A dataset of 900 training and 150 test digits."""
    return str(ingest("synthetic:900,150", tmp_path / "data").dataset.location)


@pytest.mark.slow
def test_errors_are_those_of_the_test_split_evaluated_once(dataset: str, tmp_path: Path) -> None:
    """No epoch evaluates a split; two experiments with equal training share the run."""
    laboratory = Laboratory(dataset, tmp_path / "runs")
    trials = [laboratory.trial(experiment, 3) for experiment in (PLAIN, AGAIN)]
    (run,) = (tmp_path / "runs").iterdir()
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["evaluation"] for epoch in epochs] == [{}, {}]
    metrics = [json.loads(path.read_text()) for path in run.glob("scores/*/metrics.json")]
    assert {(entry["split"], entry["rows"]) for entry in metrics} == {("test", 150)}
    errors = {100 * (1 - entry["quality"]["accuracy"]) for entry in metrics}
    assert len(errors) == 2
    assert {trial.error for trial in trials} == errors
    assert json.loads((run / "run.json").read_text())["configuration"]["seed"] == 3
    assert trials[0].seconds == trials[1].seconds > 0


@pytest.mark.slow
def test_held_out_rows_in_place_of_the_test_split(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--holdout`, errors are of the last training rows, and nothing is scored."""
    monkeypatch.setattr(learning, "HELD_OUT", 100)
    trial = Laboratory(dataset, tmp_path / "runs", holdout=True).trial(PLAIN, 0)
    (run,) = (tmp_path / "runs").iterdir()
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["evaluation"]
    assert {"validation"} == set(last)
    assert trial.error == 100 * (1 - last["validation"]["accuracy"])
    assert not (run / "scores").exists()


def test_table_has_means_and_deviations() -> None:
    """One row per experiment: published error, mean, sample standard deviation, mean seconds."""
    trials = (Trial(0, 2, 1.0, 2.0), Trial(1, 2, 1.4, 4.0))
    verdict = LearningVerdict("784-10", 1.2, 12.0, source="LeCun 1998", trials=trials)
    header, row = learning.learning_table([verdict]).splitlines()
    assert re.split(r"  +", header)[1:3] == ["published %", "by"]
    assert re.split(r"  +", row) == ["784-10", "12.00", "LeCun 1998", "1.20", "0.28", "2", "3.0"]
    assert verdict.to_json()["trials"] == [vars(trial) for trial in trials]
    assert verdict.met


@pytest.mark.slow
@pytest.mark.parametrize("experiment", OWN_OPTIONS, ids=lambda experiment: experiment.name)
def test_all_experiments_run(experiment: Experiment, dataset: str, tmp_path: Path) -> None:
    """The options of every experiment are valid; those of recipes have tests of their own."""
    laboratory = Laboratory(dataset, tmp_path / "runs", extra=("--epochs", "1"))
    assert 0 <= laboratory.trial(experiment, 0).error <= 100
