"""Clocks that jump by up to a day, in several time zones: the same bits."""

from concurrent.futures import ThreadPoolExecutor

from tests.chaos.clock import EXPERIMENTS
from tests.chaos.scene import scene
from tests.chaos.tally import Experiment, Plan, Tally


def test_clock() -> None:
    """A job that is stopped and gone on with under such clocks gives what it always gives."""
    scene()
    tally = Tally()

    def run(experiment: Experiment) -> None:
        experiment.run(Plan(count=1, seed=1), tally)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, EXPERIMENTS))
    tally.check()
