"""Writers and readers at one moment: one writes, others are told who does, readers read."""

from concurrent.futures import ThreadPoolExecutor

from tests.chaos.scene import scene
from tests.chaos.tally import Experiment, Plan, Tally
from tests.chaos.writers import EXPERIMENTS


def test_writers() -> None:
    """Who is refused is so at once; what comes of it is what one alone would have made."""
    scene()
    tally = Tally()

    def run(experiment: Experiment) -> None:
        experiment.run(Plan(count=1, seed=1), tally)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, EXPERIMENTS))
    tally.check()
