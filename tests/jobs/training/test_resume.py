"""Resume: an interrupted run has the same bits as an uninterrupted one."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

from jobs.nn.choices import OPTIMIZERS, SCHEDULES
from jobs.training.job import train
from jobs.training.result import TrainResult
from storage import documents
from storage.checkpoints import MANIFEST, STATE, CheckpointName
from storage.errors import BadDataError, ConflictError, StoppedError
from storage.places import open_location
from storage.runs import METRICS, RECORD, open_run
from tests.jobs.trainings import (
    SMALL,
    Log,
    StopAt,
    checkpoints,
    new_process,
    outcome,
    resumed_at,
    small,
    stopped_at,
    tree,
    untimed,
    warnings_in,
)

BATCHES = 11
"""Mini-batches of an epoch of `SMALL`."""

MATRIX = [
    (optimizer, schedule, (one + two) % 2 == 0, ("float32", "float64")[(one // 2 + two) % 2])
    for one, optimizer in enumerate(OPTIMIZERS)
    for two, schedule in enumerate(SCHEDULES)
]
"""Optimizer, schedule, shuffle, dtype: all pairs of values of two settings occur."""

STOPS = [CheckpointName(epoch, step) for epoch in range(6) for step in (0, 4)][1:]
"""All checkpoints but the last of a run with six batches an epoch that saves after four."""


def test_the_matrix_has_every_pair() -> None:
    """All combinations of the values of any two settings occur."""
    for one, two in combinations(range(4), 2):
        values = [{row[column] for row in MATRIX} for column in (one, two)]
        assert {(row[one], row[two]) for row in MATRIX} == set(product(*values))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(MATRIX)), ids=["-".join(map(str, m)) for m in MATRIX])
def test_every_configuration(number: int, digits: Path, tmp_path: Path, log: Log) -> None:
    """Every optimizer, schedule, order and dtype resumes exactly, within and between epochs.

    Each case uses three of the stops in turn, so that all stops are tested many times.
    """
    optimizer, schedule, shuffle, dtype = MATRIX[number]
    config = small(
        optimizer=optimizer,
        schedule=schedule,
        shuffle=shuffle,
        dtype=dtype,
        l2=0.01,
        elastic=0.0 if shuffle else 1.0,
        distort_until=0.5,
        dropout=0.0 if shuffle else 0.3,
        label_smoothing=0.1,
        batch_size=197,
        checkpoint_every=4,
    )
    expected = outcome(train(config, dataset=digits, run=tmp_path / "whole"))
    for stop in (STOPS[(number + 4 * turn) % len(STOPS)] for turn in range(3)):
        run = stopped_at(tmp_path / "whole", stop, tmp_path / str(stop))
        log.clear()
        # Without checkpoints within the epochs, which saves time.
        goes_on = replace(config, checkpoint_every=0)
        result = train(goes_on, dataset=digits, run=run, resume=True)
        assert [str(stop)] == resumed_at(log)
        assert expected == outcome(result), stop


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam", "schedule": "cosine", "drop_last": True, "batch_size": 101},
        {"optimizer": "adamw", "schedule": "one-cycle", "dtype": "float64", "holdout": 77},
    ],
    ids=lambda settings: settings["optimizer"],
)
def test_new_processes(settings: dict[str, Any], digits: Path, tmp_path: Path) -> None:
    """A new process resumes exactly from each of a run's checkpoints, three an epoch."""
    config = small(checkpoint_every=4, **settings)
    expected = outcome(train(config, dataset=digits, run=tmp_path / "whole"))
    stops = checkpoints(tmp_path / "whole")[:-1]
    assert 6 * 3 - 1 == len(stops)
    runs = [stopped_at(tmp_path / "whole", stop, tmp_path / str(stop)) for stop in stops]
    process = new_process("RESUME", digits, *runs)
    out, err = process.communicate()
    assert ("", 0) == (err, process.returncode)
    outcomes = [json.loads(line) for line in out.splitlines()]
    assert dict.fromkeys(stops, expected) == dict(zip(stops, outcomes, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 11, 15, 65])
def test_stop(step: int, digits: Path, tmp_path: Path, expected: dict[str, Any]) -> None:
    """A stop saves the current step and says so; resumed, the result is the same."""
    config = small()
    stopper = StopAt(step)
    with pytest.raises(StoppedError, match=f"after {step} steps?;") as caught:
        train(config, dataset=digits, run=tmp_path / "run", progress=stopper, stop=stopper.signal)
    assert 143 == caught.value.exit_code
    assert CheckpointName(*divmod(step, BATCHES)) == checkpoints(tmp_path / "run")[-1]
    assert expected == outcome(train(config, dataset=digits, run=tmp_path / "run", resume=True))


def test_stop_at_the_end(digits: Path, tmp_path: Path, expected: dict[str, Any]) -> None:
    """A stop during the very last step leaves a finished run."""
    stopper = StopAt(6 * BATCHES)
    result = train(
        SMALL, dataset=digits, run=tmp_path / "run", progress=stopper, stop=stopper.signal
    )
    assert expected == outcome(result)


@pytest.mark.slow
def test_stop_after_every_step(digits: Path, tmp_path: Path) -> None:
    """A run that is stopped after every step has the same result."""
    config = small(epochs=2, holdout=31)
    expected = outcome(train(config, dataset=digits, run=tmp_path / "whole"))
    for _ in range(2 * BATCHES - 1):
        one_step = StopAt(1)
        with pytest.raises(StoppedError):
            train(
                config,
                dataset=digits,
                run=tmp_path / "run",
                resume=True,
                progress=one_step,
                stop=one_step.signal,
            )
    assert expected == outcome(train(config, dataset=digits, run=tmp_path / "run", resume=True))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal(
    number: signal.Signals, half_done: Path, digits: Path, expected: dict[str, Any]
) -> None:
    """A process that gets a signal in a step saves that step and exits; another resumes."""
    process = new_process("PAUSE", digits, half_done, 2)
    assert process.stdout is not None
    assert "paused\n" == process.stdout.readline()
    process.send_signal(number)
    out, err = process.communicate("go on\n")
    assert (128 + number, "") == (process.returncode, err)
    assert "the checkpoint is saved" in out
    assert CheckpointName(3, 6) == checkpoints(half_done)[-1]
    assert expected == outcome(train(SMALL, dataset=digits, run=half_done, resume=True))


def test_killed(half_done: Path, digits: Path, expected: dict[str, Any]) -> None:
    """A process that is killed loses only the steps since the last checkpoint."""
    process = new_process("PAUSE", digits, half_done, 2)
    assert process.stdout is not None
    assert "paused\n" == process.stdout.readline()
    process.kill()
    process.communicate()
    assert CheckpointName(3, 4) == checkpoints(half_done)[-1]
    assert expected == outcome(train(SMALL, dataset=digits, run=half_done, resume=True))


def test_finished(finished: Path, digits: Path, expected: dict[str, Any]) -> None:
    """A finished run is reported as done and not changed."""
    before = tree(finished)
    result = train(SMALL, dataset=digits, run=finished, resume=True)
    assert result.already_done
    assert expected == outcome(result)
    assert before == tree(finished)


def test_exists_without_resume(finished: Path, digits: Path) -> None:
    """Without `resume` an existing run is refused, and not changed."""
    before = tree(finished)
    with pytest.raises(ConflictError, match="--resume"):
        train(SMALL, dataset=digits, run=finished)
    assert before == tree(finished)


def test_resume_starts_a_new_run(
    digits: Path, tmp_path: Path, expected: dict[str, Any], log: Log
) -> None:
    """`resume` starts a new run, so that a scheduler can always pass it."""
    result = train(SMALL, dataset=digits, run=tmp_path / "r", resume=True)
    assert [] == resumed_at(log)
    assert expected == outcome(result)


def test_no_checkpoint_yet(digits: Path, tmp_path: Path, whole: TrainResult) -> None:
    """A run that died before its first checkpoint is started again."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(whole.run.location.path / RECORD, run)
    assert outcome(whole) == outcome(train(SMALL, dataset=digits, run=run, resume=True))


@pytest.mark.slow
def test_more_epochs_are_recorded(digits: Path, tmp_path: Path) -> None:
    """A resume without settings uses the last number of epochs; a smaller one is refused."""
    six = small(schedule="constant")
    expected = outcome(train(six, dataset=digits, run=tmp_path / "six"))
    run = tmp_path / "run"
    assert 2 == len(train(replace(six, epochs=2), dataset=digits, run=run).metrics)
    stop = StopAt(15)
    with pytest.raises(StoppedError):
        train({"epochs": 6}, run=run, resume=True, progress=stop, stop=stop.signal)
    before = tree(run)
    with pytest.raises(ConflictError, match=r"more than --epochs 3: .* is 000003-000004"):
        train({"epochs": 3}, run=run, resume=True)
    assert before == tree(run)
    assert expected == outcome(train(run=run, resume=True))


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_more_epochs_refused(schedule: str, digits: Path, tmp_path: Path) -> None:
    """With a schedule that spans the epochs their number cannot change; the error gives advice."""
    config = small(schedule=schedule, epochs=1)
    train(config, dataset=digits, run=tmp_path / "run")
    with pytest.raises(ConflictError, match="epochs: 1 recorded, 2 given") as caught:
        train({"epochs": 2}, dataset=digits, run=tmp_path / "run", resume=True)
    assert f"Its {schedule} schedule spans" in str(caught.value)
    assert "--epochs 2 --run OTHER" in str(caught.value)


def _flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def _of_another_run(checkpoint: Path) -> None:
    """Replace the checkpoint by one from another run with the same configuration."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    (checkpoint / MANIFEST).write_bytes(documents.sealed_bytes(manifest | {"run_id": "0" * 32}))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit of the tensors flipped": lambda c: _flip(c / STATE, -1),
    "the state missing": lambda c: (c / STATE).unlink(),
    "the manifest empty": lambda c: (c / MANIFEST).write_bytes(b""),
    "another run's": _of_another_run,
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_newest(
    damage: str,
    half_done: Path,
    digits: Path,
    expected: dict[str, Any],
    log: Log,
) -> None:
    """A damaged newest checkpoint is reported, and training resumes from the one before."""
    newest = checkpoints(half_done)[-1]
    DAMAGE[damage](half_done / newest.key)
    # keep=1 must not keep the damaged one because it has the highest number.
    config = small(keep=1)
    result = train(config, dataset=digits, run=half_done, resume=True)
    assert [str(newest) in warning for warning in warnings_in(log)] == [True]
    assert ["000003-000000"] == resumed_at(log)
    assert expected == outcome(result)
    assert [CheckpointName(6, 0)] == checkpoints(half_done)


def test_damaged_and_stopped_again(
    half_done: Path, digits: Path, expected: dict[str, Any], log: Log
) -> None:
    """Checkpoints before a damaged one are not pruned in favour of it."""
    _flip(half_done / CheckpointName(3, 4).key / STATE, -1)
    config = small(keep=1)
    stop = StopAt(3)
    with pytest.raises(StoppedError):
        train(config, dataset=digits, run=half_done, resume=True, progress=stop, stop=stop.signal)
    assert [CheckpointName(3, 3)] == checkpoints(half_done)
    log.clear()
    result = train(config, dataset=digits, run=half_done, resume=True)
    assert ([], ["000003-000003"]) == (warnings_in(log), resumed_at(log))
    assert expected == outcome(result)


def test_several_damaged(half_done: Path, digits: Path, expected: dict[str, Any], log: Log) -> None:
    """Each damaged checkpoint is reported, from the newest down to a sound one."""
    for name in checkpoints(half_done)[1:]:
        _flip(half_done / name.key / STATE, -1)
    result = train(SMALL, dataset=digits, run=half_done, resume=True)
    names = [warning.split()[1] for warning in warnings_in(log)]
    assert ["000003-000004", "000003-000000"] == names
    assert ["000002-000008"] == resumed_at(log)
    assert expected == outcome(result)


def test_all_damaged(half_done: Path, digits: Path) -> None:
    """If no checkpoint is sound, resuming is an error, not a fresh start; nothing is changed."""
    for name in checkpoints(half_done):
        _flip(half_done / name.key / STATE, -1)
    before = tree(half_done)
    with pytest.raises(BadDataError, match="All 3 checkpoints"):
        train(SMALL, dataset=digits, run=half_done, resume=True)
    assert before == tree(half_done)


def test_leftovers_of_dead_writers(half_done: Path, digits: Path, expected: dict[str, Any]) -> None:
    """An incomplete checkpoint of a dead writer is removed."""
    left = half_done / "checkpoints" / ".000003-000008.tmp"
    left.mkdir()
    (left / STATE).write_bytes(b"half")
    assert expected == outcome(train(SMALL, dataset=digits, run=half_done, resume=True))
    assert not left.exists()


METRICS_DAMAGE: dict[str, Callable[[Path], object]] = {
    "torn": lambda m: m.write_bytes(m.read_bytes()[:-30]),
    "missing": lambda m: m.unlink(),
    "not text": lambda m: m.write_bytes(b"\xff\xfe\n\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", METRICS_DAMAGE)
def test_damaged_metrics(
    damage: str, half_done: Path, digits: Path, expected: dict[str, Any]
) -> None:
    """metrics.jsonl is rewritten from the checkpoint, even if damaged."""
    METRICS_DAMAGE[damage](half_done / METRICS)
    assert expected == outcome(train(SMALL, dataset=digits, run=half_done, resume=True))


def test_metrics_go_back(half_done: Path, digits: Path, whole: TrainResult) -> None:
    """Lines after the checkpoint, which a resume writes again, are removed when it starts."""
    stop = StopAt(1)
    with pytest.raises(StoppedError):
        train(SMALL, dataset=digits, run=half_done, resume=True, progress=stop, stop=stop.signal)
    lines = open_run(open_location(half_done)).metrics()
    assert untimed(whole.metrics[:3]) == untimed(tuple(lines))


EARLY = small(epochs=12, holdout=50, patience=2, learning_rate=0.03, schedule="constant", l2=0.0)
"""A run that overfits its few rows, and stops early."""


@pytest.mark.slow
def test_early_stopping(digits: Path, tmp_path: Path) -> None:
    """Patience spans a resume: training stops after the same epoch, with the same best epoch."""
    result = train(EARLY, dataset=digits, run=tmp_path / "whole")
    expected = outcome(result)
    assert result.stopped_early
    epochs = len(result.metrics)
    assert 4 <= epochs < 12
    scores = [line["evaluation"]["validation"]["cross_entropy"] for line in result.metrics]
    best = 1 + scores.index(min(scores))
    assert CheckpointName(best, 0) == result.best
    assert best + 2 == epochs
    for stop in checkpoints(tmp_path / "whole")[-4:-1]:  # before, at and after the best epoch
        run = stopped_at(tmp_path / "whole", stop, tmp_path / str(stop))
        assert expected == outcome(train(EARLY, dataset=digits, run=run, resume=True)), stop
    assert train(EARLY, dataset=digits, run=tmp_path / "whole", resume=True).already_done
    all_epochs = train(replace(EARLY, epochs=epochs), dataset=digits, run=tmp_path / "all")
    assert not all_epochs.stopped_early


def test_best_checkpoint_stays(digits: Path, tmp_path: Path) -> None:
    """The best checkpoint outlives the pruning of older ones."""
    result = train(replace(EARLY, keep=1), dataset=digits, run=tmp_path / "run")
    last = CheckpointName(len(result.metrics), 0)
    assert result.best is not None
    assert [result.best, last] == checkpoints(tmp_path / "run")


def test_keep(digits: Path, tmp_path: Path) -> None:
    """The newest N checkpoints stay, including those within epochs."""
    train(small(epochs=2, keep=3, checkpoint_every=4), dataset=digits, run=tmp_path / "run")
    expected = [CheckpointName(1, 4), CheckpointName(1, 8), CheckpointName(2, 0)]
    assert expected == checkpoints(tmp_path / "run")


def test_until(digits: Path, tmp_path: Path, expected: dict[str, Any]) -> None:
    """A training that ends after some epochs has no reference yet; a resume trains the others."""
    first = train(SMALL, dataset=digits, run=tmp_path / "run", until=2)
    assert (len(first.metrics), first.stopped_early) == (2, False)
    assert checkpoints(tmp_path / "run") == [CheckpointName(1, 0), CheckpointName(2, 0)]
    assert not (tmp_path / "run" / "references").exists()
    again = train(SMALL, dataset=digits, run=tmp_path / "run", until=2, resume=True)
    assert first.parameters_digest == again.parameters_digest
    result = train(SMALL, dataset=digits, run=tmp_path / "run", resume=True)
    assert expected == outcome(result)
