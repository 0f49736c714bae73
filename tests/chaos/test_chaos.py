"""A few cases of every experiment."""

import hashlib
import signal
from pathlib import Path

import numpy as np
import pytest

from pipeline.order import EpochOrder
from storage.checkpoints import list_checkpoints, load_checkpoint
from storage.places import open_location
from storage.runs import open_run
from tests.chaos import leaks
from tests.chaos.__main__ import experiments
from tests.chaos.scene import CONFIG, scene
from tests.chaos.signals import SIGNALS
from tests.chaos.subject import ROWS_PER_CHUNK
from tests.chaos.tally import Plan, Tally
from tests.commands.process import run_pipeline

COUNTS = {
    "faults": 12,
    "crashes": 12,
    "kills": 3,
    "signals": 1,
    "writers": 1,
    "schedulers": 1,
    "clock": 1,
    "damage-flip": 106,  # every file twice
    "damage-truncate": 30,
    "damage-misplace": 36,
    "damage-fallback": 6,  # each case damages one more checkpoint than the case before
    "hostile-sample": 1,
}
"""Number of cases of each module or experiment."""
CHOSEN = {
    experiment.name: (experiment, count)
    for name, count in COUNTS.items()
    for experiment in experiments({name})
}


@pytest.mark.parametrize("name", CHOSEN)
def test_experiment(name: str) -> None:
    """Each case ends with the undisturbed result, or a documented error that names the place."""
    experiment, count = CHOSEN[name]
    tally = Tally()
    experiment.run(Plan(count, seed=3), tally)
    tally.check()


@pytest.mark.parametrize("job", leaks.JOBS)
def test_leaks(job: str) -> None:
    """The second half of 40 repetitions uses no more files, threads or memory than the first."""
    leaks.repeat(job, 40)


def test_order_digest() -> None:
    """The oracle's order digest, recomputed here, covers each row exactly once per epoch."""
    run = open_run(open_location(scene().oracle.run))
    stream = load_checkpoint(run, list_checkpoints(run)[-1]).progress["stream"]
    digest = bytes(32)
    for epoch in range(CONFIG.epochs):
        order = EpochOrder(
            CONFIG.seed, epoch, stream["rows"], ROWS_PER_CHUNK, stream["window_chunks"]
        )
        rows = np.concatenate([order.window(n).row_numbers for n in range(order.windows)])
        assert 1 < order.windows
        assert list(range(stream["rows"])) == sorted(rows.tolist())
        for start in range(0, len(rows), CONFIG.batch_size):
            batch = rows[start : start + CONFIG.batch_size].astype("<u8")
            digest = hashlib.sha256(digest + batch.tobytes()).digest()
    assert digest.hex() == scene().expected["run"]["order_digest"]


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_after_the_job(number: signal.Signals, tmp_path: Path) -> None:
    """A signal while Python shuts down, after the job, does not change the exit code."""
    module = ("tests.chaos.signals", str(int(number)))
    assert 0 == run_pipeline("--version", cwd=tmp_path, module=module).code
