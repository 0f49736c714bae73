"""Some of the operations that change the disk fail, and nothing is lost or silently wrong."""

import pytest

from tests.chaos.faults import EXPERIMENTS
from tests.chaos.tally import Experiment, Plan, Tally


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_faults(experiment: Experiment) -> None:
    """Each is told with exit code 6, spoils nothing, and the same command does its work."""
    tally = Tally()
    experiment.run(Plan(count=12, seed=3), tally)
    tally.check()
