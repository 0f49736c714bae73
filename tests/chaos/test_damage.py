"""Damage to files, the short part: a sample of flips, truncations and files out of place."""

import pytest

from tests.chaos.damage import EXPERIMENTS
from tests.chaos.tally import Experiment, Plan, Tally

COUNTS = {
    "damage-flip": 212,  # every file four times
    "damage-truncate": 30,
    "damage-misplace": 36,
    "damage-fallback": 6,  # one checkpoint more each time: the last case damages all of them
}


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_damage_is_told_or_without_effect(experiment: Experiment) -> None:
    """Each case ends as if nothing had been, or with exit 3 and the place named."""
    tally = Tally()
    experiment.run(Plan(COUNTS[experiment.name], jobs=2), tally)
    tally.check()
