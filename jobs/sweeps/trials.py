"""Train the trials of a sweep: one after the other in this process, or each on a worker.

A trial is what `train` makes of its settings, resumed if it was begun. Errors that a user can act
on become results, so that one trial ends no other.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from jobs.signals import StopSignal
from jobs.training.config import VALIDATION
from jobs.training.job import train
from jobs.training.portable import check_worker
from jobs.training.result import TrainResult
from pipeline.rows import check_seen
from storage.errors import LockedError, StoppedError, UnreachableError, as_pipeline_error
from storage.events import Progress, no_progress
from storage.location import Location, TakeOver
from storage.places import open_location
from storage.sweeps import FAILED, FINISHED, RECORD, TRAINED, Sweep, Trial, TrialResult

if TYPE_CHECKING:
    from pipeline.cluster.client import Cluster

logger = logging.getLogger(__name__)

LOCK_SECONDS = 60.0
"""How long a trial waits for its run's lock: a worker may still train for a sweep that was killed,
until it notices and saves a checkpoint."""
LOCK_POLL_SECONDS = 0.2
QUIET = ("jobs.training", "pipeline", "storage")
"""Loggers whose events are those of one training. The sweep itself warns of what all share."""

Ended = Iterator[tuple[Trial, TrialResult]]


@dataclass(frozen=True)
class TrialTask:
    """The arguments that all trials of a sweep share."""

    sweep: Sweep
    dataset: Location
    is_relative: bool
    """Whether runs record the dataset's path relative to them."""
    arithmetic: str
    """What `arithmetic_of_workers` returned."""
    until: int | None
    """The epoch to train until; None for all."""


class _UntilUnwanted(StopSignal):
    """A stop signal for a worker: set once no job waits for its task."""

    def __init__(self, is_wanted: Callable[[], bool]) -> None:
        super().__init__()
        self._is_wanted = is_wanted

    @property
    def requested(self) -> bool:
        return super().requested or not self._is_wanted()


def train_here(
    task: TrialTask,
    trials: Sequence[Trial],
    take_over: TakeOver | None,
    progress: Progress,
    stop: StopSignal,
) -> Ended:
    """Train trials one after the other; yield each with its result."""
    for trial in trials:
        stop.check("Stopped before the next trial.")
        shown = partial(_progress_of, progress, trial.name)
        with _quiet():
            result = _result(task, trial, take_over, shown, stop)
        yield trial, result


def _progress_of(
    progress: Progress, name: str, stage: str, done: int, total: int, note: str = ""
) -> None:
    progress(f"{name}, {stage}", done, total, note)


def train_on_cluster(
    cluster: "Cluster", task: TrialTask, trials: Sequence[Trial], *, take_over: bool
) -> Ended:
    """Train each trial on a worker, one at a time on each; yield them as they end."""
    from pipeline.cluster.tasks import Task, ended

    tasks = {f"trial {trial.name} of {task.sweep.location}": trial for trial in trials}
    submitted = (
        Task(
            name="train-trial",
            what=what,
            function=train_on_worker,
            arguments=(cluster.job, task, trial, take_over),
            seconds=None,
        )
        for what, trial in tasks.items()
    )
    with closing(ended(cluster, submitted)) as done:
        for pending in done:
            try:
                result = pending.result()
            except UnreachableError as error:
                if not cluster.is_connected:
                    raise
                result = _failed(error.exit_code, str(error))
            yield tasks[pending.task.what], result


def train_on_worker(job: str, task: TrialTask, trial: Trial, take_over: bool) -> TrialResult:
    """Train a trial in a task, until it ends or the job that asked for it does."""
    from pipeline.cluster.worker import wanted

    try:
        check_seen(task.sweep.location, RECORD)
        check_seen(task.dataset)
        check_worker(task.arithmetic)
    except UnreachableError as error:
        return _failed(error.exit_code, f"{str(error).rstrip('.')}.")
    if task.is_relative:
        task = replace(task, dataset=open_location(os.path.relpath(str(task.dataset))))
    # One thread, so that the worker does not fork: it has threads that hold locks.
    trial = replace(trial, settings=trial.settings | {"threads": 1})
    stop = _UntilUnwanted(wanted(job))
    return _result(task, trial, logger.warning if take_over else None, no_progress, stop)


def _result(
    task: TrialTask,
    trial: Trial,
    take_over: TakeOver | None,
    progress: Progress,
    stop: StopSignal,
) -> TrialResult:
    """Train a trial; return its result, also if it fails. Raises `StoppedError`."""
    try:
        return _figures(
            _once_free(
                trial.settings,
                dataset=task.dataset,
                run=task.sweep.run(trial),
                resume=True,
                take_over=take_over,
                progress=progress,
                stop=stop,
                until=task.until,
            )
        )
    except StoppedError:
        raise
    except Exception as error:
        known = as_pipeline_error(error)
        if known is None:
            raise
        return _failed(known.exit_code, str(known))


def _once_free(settings: dict[str, Any], *, stop: StopSignal, **options: Any) -> TrainResult:
    """Call `train`, after waiting for another process to release the run's lock."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return train(settings, stop=stop, **options)
        except LockedError:
            if time.monotonic() > deadline:
                raise
        stop.check("Stopped while waiting for the lock of a trial.")
        time.sleep(LOCK_POLL_SECONDS)


def _figures(result: TrainResult) -> TrialResult:
    ended = len(result.metrics) >= result.config.epochs or result.stopped_early
    evaluations = [line["evaluation"][VALIDATION] for line in result.metrics]
    return TrialResult(
        state=FINISHED if ended else TRAINED,
        accuracy=tuple(one["accuracy"] for one in evaluations),
        cross_entropy=tuple(one["cross_entropy"] for one in evaluations),
        seconds=round(sum(line["timing"]["seconds"] for line in result.metrics), 3),
    )


def _failed(exit_code: int, reason: str) -> TrialResult:
    return TrialResult(FAILED, exit=exit_code, reason=reason)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the events of a training from being printed, unless all events are."""
    loggers = [logging.getLogger(name) for name in QUIET]
    levels = [one.level for one in loggers]
    verbose = logging.getLogger("jobs").level == logging.DEBUG
    for one in [] if verbose else loggers:
        one.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
