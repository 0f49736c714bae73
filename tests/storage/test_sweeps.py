"""The record of a sweep, the results of its trials, and the best of them."""

from pathlib import Path

import pytest

from storage.errors import BadDataError, ConflictError
from storage.places import open_location
from storage.sweeps import FAILED, FINISHED, TRAINED, Sweep, TrialResult, best_runs, open_sweep


def sweep_at(place: Path) -> Sweep:
    """A sweep of two learning rates with two seeds each."""
    return Sweep(
        open_location(place),
        dataset_digest="0" * 64,
        dataset="../data",
        settings={"epochs": 2, "recipe": "quick"},
        search={},
        configurations=[{"learning_rate": 0.1}, {"learning_rate": 0.2}],
        seeds=[3, 4],
        rungs=[1],
    )


def test_round_trip(tmp_path: Path) -> None:
    """A sweep and its results are read as they were written; a second sweep is refused."""
    sweep = sweep_at(tmp_path / "sweep")
    sweep.write()
    assert sweep == open_sweep(sweep.location)
    with pytest.raises(ConflictError):
        sweep.write()
    assert ["001-seed3", "001-seed4", "002-seed3", "002-seed4"] == [
        one.name for one in sweep.trials
    ]
    expected = {"epochs": 2, "recipe": "quick", "learning_rate": 0.2, "seed": 3}
    assert expected == sweep.trials[2].settings
    assert str(tmp_path / "data") == sweep.dataset_place
    result = TrialResult(TRAINED, (0.5, 0.75), (1.5, 0.5), 2.5)
    sweep.write_result(sweep.trials[1], result)
    assert {"001-seed4": result} == open_sweep(sweep.location).results()


def test_best_runs(tmp_path: Path) -> None:
    """The finished trials with the lowest loss at their best epochs; no others."""
    sweep = sweep_at(tmp_path / "sweep")
    sweep.write()
    for trial, state, losses in zip(
        sweep.trials,
        (FINISHED, FINISHED, TRAINED, FAILED),
        ((0.3, 0.9), (0.5, 0.4), (0.1,), (0.1,)),
        strict=True,
    ):
        sweep.write_result(trial, TrialResult(state, losses, losses))
    names = [location.name for location in best_runs(sweep.location, 2)]
    assert ["001-seed3", "001-seed4"] == names
    with pytest.raises(BadDataError, match="has 2 finished trials; expected"):
        best_runs(sweep.location, 3)


def test_damage(tmp_path: Path) -> None:
    """A missing or damaged record or result is an error that names the file."""
    with pytest.raises(BadDataError, match="There is no sweep at"):
        open_sweep(open_location(tmp_path / "none"))
    sweep = sweep_at(tmp_path / "sweep")
    sweep.write()
    sweep.write_result(sweep.trials[0], TrialResult(FINISHED, (0.5,), (1.0,)))
    result = tmp_path / "sweep" / "results" / "001-seed3.json"
    result.write_text(result.read_text().replace("0.5", "0.6"))
    with pytest.raises(BadDataError, match=r"001-seed3\.json is damaged"):
        open_sweep(sweep.location).results()
    record = tmp_path / "sweep" / "sweep.json"
    record.write_text(record.read_text().replace("0.2", "0.3"))
    with pytest.raises(BadDataError, match=r"sweep\.json is damaged"):
        open_sweep(sweep.location)
