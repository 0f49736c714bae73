"""The machine dies after some of the operations, and nothing is lost or silently wrong."""

import pytest

from tests.chaos.crashes import EXPERIMENTS
from tests.chaos.tally import Experiment, Plan, Tally


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_crashes(experiment: Experiment) -> None:
    """After each death a reader finds all or nothing, and the same command comes to its end."""
    tally = Tally()
    experiment.run(Plan(count=12, seed=3), tally)
    tally.check()
