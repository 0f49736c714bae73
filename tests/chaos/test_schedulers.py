"""Some kills of two schedulers and their jobs: everything is scored once."""

from tests.chaos.schedulers import EXPERIMENTS
from tests.chaos.tally import Plan, Tally


def test_schedulers() -> None:
    """The ledger has each file once, with the scores that it has where nothing is killed."""
    tally = Tally()
    for experiment in EXPERIMENTS:
        experiment.run(Plan(count=1, seed=1), tally)
    tally.check()
