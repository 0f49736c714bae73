"""Halving stops the worse configurations, by their means over seeds at each rung."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.commands.sweep_table import sweep_report
from jobs.sweeps.halving import rungs, summarise, survivors
from jobs.sweeps.job import SweepResult
from storage.places import open_location
from storage.sweeps import FAILED, FINISHED, TRAINED, Sweep, Trial, TrialResult

RATES = [0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """A sweep of five rates with two seeds, halved after epochs 1 and 2 of 4."""
    configurations = [{"learning_rate": rate} for rate in RATES]
    place = open_location(tmp_path)
    return Sweep(place, "0" * 64, "data", {"epochs": 4}, {}, configurations, [0, 1], [1, 2])


def trained(*losses: float, state: str = TRAINED) -> TrialResult:
    """The result of a trial with these losses after its epochs."""
    return TrialResult(state, tuple(1 - loss for loss in losses), losses)


def test_rungs() -> None:
    """As many halvings as leave one configuration, each after twice the epochs of the last."""
    assert [1, 2, 5] == rungs(10, 8)
    assert [12, 25, 50] == rungs(100, 5)
    assert [1] == rungs(3, 8)
    assert [] == rungs(10, 1)
    assert [] == rungs(1, 8)


def test_survivors(sweep: Sweep) -> None:
    """A rung waits for all trials, compares means over seeds, and keeps the larger half."""
    results: dict[str, TrialResult] = {}
    assert ({0, 1, 2, 3, 4}, 1) == survivors(sweep, results)
    for number, losses in enumerate(
        [(0.9, 0.9), (0.1, 0.9), (0.6, 0.6), (0.2, 0.2), (0.7, 0.7)], 1
    ):
        for seed, loss in enumerate(losses):
            results[f"{number:03d}-seed{seed}"] = trained(loss)
    assert ({1, 2, 3}, 2) == survivors(sweep, results)
    assert ({0, 1, 2, 3, 4}, 1) == survivors(sweep, results | {"001-seed0": trained()})
    # The loss after a later epoch does not change an earlier decision.
    later = {
        f"002-seed{seed}": trained(*losses) for seed, losses in enumerate([(0.1, 0), (0.9, 0)])
    }
    assert ({1, 2, 3}, 2) == survivors(sweep, results | later)
    later |= {"003-seed0": trained(0.6, 0.6), "003-seed1": trained(0.6, 0.6)}
    later |= {"004-seed0": trained(0.2, 0.3), "004-seed1": trained(0.2, 0.3)}
    assert ({1, 3}, None) == survivors(sweep, results | later)


def test_failed_seeds_come_last(sweep: Sweep) -> None:
    """A configuration of which a seed failed is worse than all that have their seeds."""
    results = {trial.name: trained(0.1 * trial.configuration) for trial in sweep.trials}
    results["001-seed1"] = TrialResult(FAILED, exit=5, reason="diverged")
    assert {1, 2, 3} == survivors(sweep, results)[0]
    (first, *_) = summarise(sweep, results)
    assert (1, 0.0) == first.rank


def test_figures(sweep: Sweep) -> None:
    """Mean and sample deviation are those of each seed's best epoch, by its loss."""
    sweep = replace(sweep, rungs=[])
    results = {
        "001-seed0": trained(0.5, 0.3, 0.4, state=FINISHED),
        "001-seed1": trained(0.6, 0.7, 0.8, state=FINISHED),
        "002-seed0": trained(0.5, state=FINISHED),
    }
    first, second, *_ = summarise(sweep, results)
    assert pytest.approx((0.45, 0.45 * 2**0.5 / 3)) == first.figures("cross_entropy")
    assert pytest.approx(0.55) == first.figures("accuracy")[0]
    assert (0.5, None) == second.figures("cross_entropy")
    assert 3 == first.epochs


def test_report_of_many_configurations(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work for a report grows with the configurations, not with their square or cube."""
    made: list[None] = []

    def counted(*fields: Any) -> Trial:
        made.append(None)
        return Trial(*fields)

    monkeypatch.setattr("storage.sweeps.Trial", counted)
    large = replace(sweep, configurations=sweep.configurations * 20)
    results = {trial.name: trained(0.2, 0.1) for trial in large.trials}
    sweep_report(SweepResult(large, results))
    assert len(made) <= 10 * len(results)
