"""Warm restarts: the rate of each step of a run, snapshots, and resuming within a cycle."""

import shutil
from pathlib import Path

import pytest

from jobs.training.job import train
from jobs.training.select_checkpoint import snapshots
from jobs.training.trainer import rate_of_step
from storage.checkpoints import MANIFEST, CheckpointName
from storage.errors import ConflictError, UsageError
from storage.runs import RECORD
from tests.jobs.trainings import (
    Log,
    checkpoints,
    new_process,
    outcome,
    small,
    stopped_at,
    warnings_in,
)

CYCLES = small(schedule="cosine", warm_up=0.2, restarts=2, restart_factor=0.5, keep=1)
"""Three cycles of two epochs, each of 11 steps."""
ENDS = [CheckpointName(2, 0), CheckpointName(4, 0), CheckpointName(6, 0)]


def test_rate_of_each_step() -> None:
    """The steps of a cycle's epochs decide the rate: 4 of 22 rise, and the 5th has the peak."""
    rates = [rate_of_step(CYCLES, 0.01, step, 11) for step in range(66)]
    assert [0.002, 0.004, 0.006, 0.008, 0.01] == pytest.approx(rates[:5])
    assert pytest.approx(0.005) == rates[13]  # half-way from step 4 to step 22
    assert rates[22:44] == rates[44:] == pytest.approx([rate / 2 for rate in rates[:22]])


def test_snapshots_are_the_ends_of_cycles() -> None:
    """A run without restarts has no snapshots; an unfinished one has those that it reached."""
    assert ENDS == snapshots(CYCLES, 6)
    assert ENDS[:2] == snapshots(CYCLES, 5)
    assert [] == snapshots(small(schedule="cosine"), 6)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["steps", "rounds"])
def test_resume_within_a_cycle(parallel: str, digits: Path, tmp_path: Path) -> None:
    """A run that is resumed in the warm-up or the fall of a later cycle has the same bits."""
    every = small(
        schedule="cosine",
        warm_up=0.2,
        restarts=2,
        restart_factor=0.5,
        parallel=parallel,
        replicas=2,
        sync_every=1,
        checkpoint_every=2,
    )
    expected = outcome(train(every, dataset=digits, run=tmp_path / "whole"))
    for stop in (CheckpointName(2, 2), CheckpointName(4, 0), CheckpointName(5, 4)):
        run = stopped_at(tmp_path / "whole", stop, tmp_path / str(stop))
        assert expected == outcome(train(every, dataset=digits, run=run, resume=True)), stop


@pytest.mark.slow
def test_snapshots_are_kept_through_kills(digits: Path, tmp_path: Path) -> None:
    """With --keep 1 the ends of cycles stay, also if the process is killed between them."""
    whole = train(CYCLES, dataset=digits, run=tmp_path / "whole")
    assert ENDS == checkpoints(tmp_path / "whole")
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(tmp_path / "whole" / RECORD, run)
    process = new_process("PAUSE", digits, run, 50)
    assert process.stdout is not None
    assert "paused\n" == process.stdout.readline()
    process.kill()
    process.communicate()
    assert ENDS[:2] == checkpoints(run)
    assert outcome(whole) == outcome(train(dataset=digits, run=run, resume=True))
    assert ENDS == checkpoints(run)


def test_damaged_snapshot(digits: Path, tmp_path: Path, log: Log) -> None:
    """If the newest checkpoint is a damaged snapshot, a resume makes it again."""
    run = tmp_path / "run"
    expected = outcome(train(CYCLES, dataset=digits, run=run))
    (run / ENDS[-1].key / MANIFEST).write_bytes(b"")
    assert expected == outcome(train(dataset=digits, run=run, resume=True))
    assert f"Checkpoint {ENDS[-1]} is not used" in warnings_in(log)[0]
    assert ENDS == checkpoints(run)


def test_cycles_are_fixed(digits: Path, tmp_path: Path) -> None:
    """Other epochs or restarts are refused on resume, those that leave no first cycle included."""
    run = tmp_path / "run"
    train(CYCLES, dataset=digits, run=run)
    for settings, message in (
        ({"epochs": 8}, "epochs: 6 recorded, 8 given"),
        ({"epochs": 2}, r"epochs: 6 recorded, 2 given\). Its cosine schedule spans exactly"),
        ({"restarts": 1}, "restarts: 2 recorded, 1 given"),
        ({"restarts": 6}, "restarts: 2 recorded, 6 given"),
        ({"restart_epochs": 3}, "restart_epochs: None recorded, 3 given"),
        ({"restart_epochs": 2}, "restart_epochs: None recorded, 2 given"),
        ({"warm_up": 0.1}, "warm_up: 0.2 recorded, 0.1 given"),
        ({"schedule": "one-cycle"}, "schedule: 'cosine' recorded, 'one-cycle' given"),
    ):
        with pytest.raises(ConflictError, match=message):
            train(settings, run=run, resume=True)


def test_restarts_longer_than_a_new_run(digits: Path, tmp_path: Path) -> None:
    """Restarts that leave no first cycle are refused before the run is created."""
    with pytest.raises(UsageError, match="needs at least 3 epochs; --epochs is 2"):
        train(small(schedule="cosine", restarts=2, epochs=2), dataset=digits, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
