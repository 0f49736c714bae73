"""Some kills at random moments: nothing is lost, nothing is half."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline.order import EpochOrder
from storage.checkpoints import list_checkpoints, load_checkpoint
from storage.places import open_location
from storage.runs import open_run
from tests.chaos.kills import EXPERIMENTS
from tests.chaos.scene import CONFIG, scene
from tests.chaos.subject import ROWS_PER_CHUNK
from tests.chaos.tally import Experiment, Plan, Tally


def test_kills() -> None:
    """The same command, run again to its end, gives what it gives where nothing is killed."""
    scene()
    tally = Tally()

    def run(experiment: Experiment) -> None:
        experiment.run(Plan(count=3, seed=1), tally)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, EXPERIMENTS))
    tally.check()


def test_the_order_digest_is_that_of_each_row_once_per_epoch() -> None:
    """The chain that every run must show is, worked out here, that of six whole permutations."""
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
