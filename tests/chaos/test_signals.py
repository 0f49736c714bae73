"""Some signals at random moments: a job stops soon, and where it can be gone on with."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.scene import scene
from tests.chaos.signals import EXPERIMENTS, SIGNALS
from tests.chaos.tally import Experiment, Plan, Tally
from tests.commands.process import run_pipeline


def test_signals() -> None:
    """The exit code and message are the documented ones; the job goes on to the same bits."""
    scene()
    tally = Tally()

    def run(experiment: Experiment) -> None:
        experiment.run(Plan(count=1, seed=1), tally)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, EXPERIMENTS))
    tally.check()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_comes_too_late(number: signal.Signals, tmp_path: Path) -> None:
    """Once the job is over, a signal while Python winds down leaves the exit code what it is."""
    module = ("tests.chaos.signals", str(int(number)))
    assert 0 == run_pipeline("--version", cwd=tmp_path, module=module).code
