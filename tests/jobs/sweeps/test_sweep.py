"""A sweep trains ordinary runs, each the one that `train` makes, and continues where it was."""

import logging
from pathlib import Path
from typing import Any

import pytest

from jobs.signals import StopSignal
from jobs.sweeps import job, trials
from jobs.sweeps.job import SweepResult, sweep
from jobs.training.job import train
from pipeline.ingest import ingest
from storage.errors import BadDataError, ConflictError, QualityGateError, StoppedError, UsageError
from storage.runs import open_run, run_lock
from storage.sweeps import FAILED, FINISHED, TRAINED, TrialResult, best_runs
from tests.jobs.trainings import Log, outcome, tree, warnings_in

SETTINGS: dict[str, Any] = {
    "network": "relu-9",
    "epochs": 4,
    "batch_size": 97,
    "holdout": 200,
    "threads": 1,
}
GRID: dict[str, Any] = {"learning_rate": [0.003, 0.03], "optimizer": ["adam", "adamw"]}


TWO: dict[str, Any] = {"grid": {"optimizer": ["adam", "adamw"]}, "seeds": 1}
"""Options of a sweep of two trials."""


def swept(place: Path, digits: Path, **options: Any) -> SweepResult:
    """Sweep `GRID` with two seeds, and `SETTINGS` except those that vary."""
    given = {"grid": GRID, "seeds": 2, "dataset": digits, "out": place} | options
    settings = {name: value for name, value in SETTINGS.items() if name not in given["grid"]}
    return sweep(settings, **given)


def assert_as_trained(result: SweepResult, name: str, digits: Path, other: Path) -> None:
    """Assert that a trial is the run that `train` makes with its settings, to the same bits."""
    [trial] = [trial for trial in result.sweep.trials if trial.name == name]
    expected = train(trial.settings, dataset=digits, run=other)
    actual = train({}, run=result.sweep.run(trial), resume=True)
    assert actual.already_done
    assert outcome(expected) == outcome(actual)
    recorded = [vars(open_run(one.run.location)) for one in (expected, actual)]
    differing = {"location", "run_id", "dataset"}
    first, second = ({key: one[key] for key in one.keys() - differing} for one in recorded)
    assert first == second


@pytest.mark.slow
def test_trials_are_runs(digits: Path, tmp_path: Path) -> None:
    """Each trial has the digests and the configuration of the same training by itself."""
    result = swept(tmp_path / "sweep", digits)
    assert {FINISHED} == {one.state for one in result.results.values()}
    assert 8 == len(result.results)
    assert_as_trained(result, "002-seed1", digits, tmp_path / "run")
    losses = [one.figures("cross_entropy")[0] for one in result.ranking]
    assert losses == sorted(losses)
    assert result.best is not None
    assert result.ranking[0].configuration == result.best.configuration
    best = best_runs(result.sweep.location, 1)[0]
    metrics = train({}, run=best, resume=True).metrics
    lowest = min(one.cross_entropy[one.best] for one in result.results.values())
    assert lowest == min(line["evaluation"]["validation"]["cross_entropy"] for line in metrics)


def test_finished_trials_are_not_repeated(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that is repeated trains nothing, opens no cluster, and leaves all files alone."""
    first = swept(tmp_path / "sweep", digits, **TWO)
    before = tree(tmp_path / "sweep")
    monkeypatch.setattr(trials, "train", None)
    again = swept(tmp_path / "sweep", digits, cluster=pytest.fail, **TWO)
    assert before == tree(tmp_path / "sweep")
    assert first.results == again.results


class _StopIn:
    """Progress that requests a stop in the given step of a trial."""

    def __init__(self, name: str, step: int) -> None:
        self.signal = StopSignal()
        self._name, self._left = name, step

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        self._left -= stage.startswith(self._name)
        if not self._left:
            self.signal.number = 15


@pytest.mark.slow
def test_stopped_and_continued(digits: Path, tmp_path: Path) -> None:
    """A stop saves the trial in progress; the next call resumes it, to the same bits."""
    place = tmp_path / "sweep"
    stop = _StopIn("002-seed0, ", 14)
    with pytest.raises(StoppedError, match="2 of 8 trials have ended") as error:
        swept(place, digits, progress=stop, stop=stop.signal)
    assert 143 == error.value.exit_code
    assert ["000001-000000", "000001-000005"] == sorted(
        path.name for path in (place / "trials" / "002-seed0" / "checkpoints").iterdir()
    )
    expected = swept(tmp_path / "other", digits)
    actual = swept(place, digits)
    assert_as_trained(actual, "002-seed0", digits, tmp_path / "run")
    assert [one.rank for one in expected.ranking] == [one.rank for one in actual.ranking]


@pytest.mark.slow
def test_halving(digits: Path, tmp_path: Path) -> None:
    """The worse half stops early; a survivor is the run that `train` makes."""
    result = swept(tmp_path / "sweep", digits, halving=True)
    assert [1, 2] == result.sweep.rungs
    epochs = sorted(len(one.accuracy) for one in result.results.values())
    assert [1, 1, 1, 1, 2, 2, 4, 4] == epochs
    assert {FINISHED, TRAINED} == {one.state for one in result.results.values()}
    assert result.best is not None
    survivor = f"{result.best.number + 1:03d}-seed1"
    assert_as_trained(result, survivor, digits, tmp_path / "run")
    whole = swept(tmp_path / "whole", digits)
    for name, one in result.results.items():
        assert whole.results[name].cross_entropy[: len(one.cross_entropy)] == one.cross_entropy


def test_failed_trials(digits: Path, tmp_path: Path, caplog: Log) -> None:
    """A trial that diverges, or is invalid, is reported, and ends no other."""
    grid = {"learning_rate": [0.01, 1e6], "batch_size": [97, 831, 832]}
    result = swept(tmp_path / "sweep", digits, grid=grid, seeds=1)
    states = [result.results[trial.name].state for trial in result.sweep.trials]
    assert [FINISHED, FINISHED, FAILED, FAILED, FINISHED, FAILED] == states
    warnings = warnings_in(caplog)
    assert 3 == len(warnings)
    assert any("--batch-size 832 is more than the 831 training rows" in text for text in warnings)
    assert any("Trial 004-seed0 failed: Training diverged" in text for text in warnings)
    caplog.clear()
    assert result.results == swept(tmp_path / "sweep", digits, grid=grid, seeds=1).results
    assert [] == warnings_in(caplog)


def test_survivors_fail(digits: Path, tmp_path: Path) -> None:
    """If all survivors of a halving fail, the best of the others is the best."""
    result = swept(tmp_path / "sweep", digits, halving=True, grid=TWO["grid"], seeds=1)
    assert result.best is not None
    name = f"{result.best.number + 1:03d}-seed0"
    lost = SweepResult(result.sweep, result.results | {name: TrialResult(FAILED, reason="lost")})
    assert lost.best is not None
    assert lost.best.number != result.best.number


def test_all_trials_fail(digits: Path, tmp_path: Path) -> None:
    """Without any result, the error is that of the first trial."""
    with pytest.raises(QualityGateError, match=r"No trial of the sweep .* Training diverged"):
        swept(tmp_path / "sweep", digits, grid={"learning_rate": [1e6]})
    with pytest.raises(UsageError, match="--batch-size 5,000 is more than"):
        swept(tmp_path / "other", digits, grid={"batch_size": [5000]})
    assert not (tmp_path / "other").exists()


def test_another_sweep_is_in_its_place(digits: Path, tmp_path: Path) -> None:
    """Other settings, grids, seeds or files are a conflict that says what differs."""
    place = tmp_path / "sweep"
    quick = {"grid": {"learning_rate": [0.01]}, "seeds": 1}
    swept(place, digits, **quick)
    more = r"learning_rate: \[0.01\] recorded, \[0.01, 0.02\] given"
    with pytest.raises(ConflictError, match=more):
        swept(place, digits, grid={"learning_rate": [0.01, 0.02]}, seeds=1)
    with pytest.raises(ConflictError, match=r"seeds: \[0\] recorded, \[0, 1\] given"):
        swept(place, digits, **quick | {"seeds": 2})
    with pytest.raises(ConflictError, match="epochs: 4 recorded, 5 given"):
        sweep(SETTINGS | {"epochs": 5}, dataset=digits, out=place, **quick)
    sweep(SETTINGS | {"threads": 2, "keep": 1}, dataset=digits, out=place, **quick)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(ConflictError, match=r"contains 'a.txt' but no sweep\.json"):
        swept(tmp_path / "notes", digits)
    with run_lock(job.open_location(place)), pytest.raises(ConflictError, match="being written by"):
        swept(place, digits, **quick)


def test_refusals(digits: Path, tmp_path: Path) -> None:
    """A sweep without validation rows, or with a setting given twice, is refused."""
    place = {"dataset": digits, "out": tmp_path / "sweep"}
    with pytest.raises(UsageError, match="with --holdout ROWS"):
        sweep({"epochs": 1}, **place)
    with pytest.raises(UsageError, match="learning_rate varies in the sweep, and learning_rate"):
        sweep(SETTINGS | {"learning_rate": 0.1}, grid=GRID, **place)
    with pytest.raises(UsageError, match="distort varies in the sweep, and rotate"):
        sweep(SETTINGS | {"rotate": 10.0}, grid={"distort": ["none", "digits"]}, **place)
    with pytest.raises(UsageError, match="leave epochs out"):
        sweep({"holdout": 200}, grid={"epochs": [1, 2]}, halving=True, **place)
    with pytest.raises(UsageError, match="--seeds is 0"):
        sweep(SETTINGS, seeds=0, **place)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_damaged_data_is_tried_again(tmp_path: Path) -> None:
    """A trial that failed for another reason than its settings is tried again."""
    data = tmp_path / "data"
    ingest("synthetic:400,50", data, rows_per_chunk=100)
    chunk = data / "train" / "inputs" / "c.1.0"
    sound = chunk.read_bytes()
    chunk.write_bytes(sound[:-30] + bytes(30))
    arguments: dict[str, Any] = {"dataset": data, "out": tmp_path / "sweep"}
    with pytest.raises(BadDataError, match="No trial of the sweep"):
        sweep(SETTINGS, **arguments)
    chunk.write_bytes(sound)
    result = sweep(SETTINGS, **arguments)
    assert [FINISHED] == [one.state for one in result.results.values()]


@pytest.mark.slow
def test_a_locked_trial_is_waited_for(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial waits for its run's lock, with a limit, after which it has failed."""
    monkeypatch.setattr(trials, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(trials, "LOCK_POLL_SECONDS", 0.01)
    place = tmp_path / "sweep"
    run = job.open_location(place / "trials" / "001-seed0")
    stop = StopSignal()
    stop.number = 2
    with pytest.raises(StoppedError, match="0 of 2 trials have ended"):
        swept(place, digits, stop=stop, **TWO)
    with run_lock(run):
        result = swept(place, digits, **TWO)
    states = [one.state for one in result.results.values()]
    assert [FAILED, FINISHED] == states
    assert "is being written by" in str(result.results["001-seed0"].reason)
    again = swept(place, digits, **TWO)
    assert [FINISHED, FINISHED] == [one.state for one in again.results.values()]


@pytest.mark.slow
def test_events_of_trainings_are_not_shown(digits: Path, tmp_path: Path, caplog: Log) -> None:
    """The sweep has a line for each trial, and warns once of what all share."""
    caplog.set_level(logging.INFO, "jobs")
    sweep(SETTINGS | {"momentum": 0.5}, seeds=2, dataset=digits, out=tmp_path / "sweep")
    events = [getattr(record, "event", "") for record in caplog.records]
    assert ["sweep", "trial", "trial"] == [name for name in events if name]
    assert ["--momentum has no effect with --optimizer adamw."] == warnings_in(caplog)
