"""Some epochs and scorings in one process: it holds no more after the last than before."""

from concurrent.futures import ThreadPoolExecutor

from tests.chaos.leaks import EXPERIMENTS
from tests.chaos.tally import Experiment, Plan, Tally


def test_leaks() -> None:
    """The second half of them needs no more open files, threads or memory than the first."""
    tally = Tally()

    def run(experiment: Experiment) -> None:
        experiment.run(Plan(count=40, seed=1), tally)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, EXPERIMENTS))
    tally.check()
