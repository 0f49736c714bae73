"""The sweep: record all trials, train those that have not ended, compare the configurations."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from jobs.output import percent
from jobs.signals import StopSignal
from jobs.sweeps.halving import Summary, has_reached, rungs, summarise, survivors
from jobs.sweeps.search import Configuration, Search
from jobs.sweeps.trials import TrialTask, train_here, train_on_cluster
from jobs.training.config import VALIDATION, TrainConfig
from jobs.training.portable import arithmetic_of_workers, check_arithmetic
from jobs.training.prepare import (
    check_fit,
    configure,
    warn_of_evaluation,
    warn_of_no_effect,
    warn_of_values,
)
from jobs.training.presets import flat_settings
from jobs.training.select_checkpoint import open_chosen_dataset
from storage.dataset import Dataset
from storage.errors import (
    BadDataError,
    ConflictError,
    PipelineError,
    QualityGateError,
    StoppedError,
    UnreachableError,
    UsageError,
    counted,
)
from storage.events import Progress, event, no_progress
from storage.location import Location, TakeOver, is_foreign
from storage.places import Place, open_location, recorded_place
from storage.runs import LOCK
from storage.sweeps import (
    FAILED,
    PERMANENT,
    RECORD,
    Sweep,
    Trial,
    TrialResult,
    open_sweep,
    sweep_exists,
)

if TYPE_CHECKING:
    from pipeline.cluster.client import Cluster, OpenCluster

logger = logging.getLogger(__name__)

DISTORTIONS = "Distortions"
"""The section of the settings that `distort` stands for."""
ERRORS = {
    error.exit_code: error
    for error in (UsageError, BadDataError, ConflictError, QualityGateError, UnreachableError)
}
COMPARED = ("dataset_digest", "settings", "search", "seeds", "rungs")
"""What must be the same when a sweep is continued."""


@dataclass(frozen=True, repr=False)
class SweepResult:
    """The result of `sweep`, also of one that is not finished."""

    sweep: Sweep
    """The sweep's record."""
    results: dict[str, TrialResult]
    """The results of the trials by their names."""

    @classmethod
    def read(cls, location: Location) -> Self:
        """Return what is recorded of a sweep; raise `BadDataError` if it is missing or damaged."""
        recorded = open_sweep(location)
        return cls(recorded, recorded.results())

    @cached_property
    def kept(self) -> set[int]:
        """The numbers of the configurations that halving has not stopped."""
        return survivors(self.sweep, self.results)[0]

    @cached_property
    def ranking(self) -> list[Summary]:
        """A summary of each configuration, best first; those that halving stopped come last."""

        def key(one: Summary) -> tuple[Any, ...]:
            is_kept = one.number in self.kept
            return not is_kept, 0 if is_kept else -one.epochs, one.rank

        return sorted(summarise(self.sweep, self.results), key=key)

    @property
    def best(self) -> Summary | None:
        """The best configuration; None if no trial has a result."""
        return next((one for one in self.ranking if one.results), None)

    def __repr__(self) -> str:
        best = "" if self.best is None else f"\n  best: {self.best.configuration}"
        trials = counted(len(self.sweep.trials), "trial")
        return f"<SweepResult of {self.sweep.location}>\n  trials: {trials}{best}"


def sweep(
    settings: Mapping[str, Any] | None = None,
    *,
    out: Place,
    grid: Mapping[str, Sequence[Any]] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    sample: int | None = None,
    sample_seed: int = 0,
    seeds: int = 1,
    halving: bool = False,
    dataset: Place | None = None,
    storage_options: Mapping[str, str] | None = None,
    take_over: TakeOver | None = None,
    progress: Progress = no_progress,
    stop: StopSignal | None = None,
    cluster: "Cluster | OpenCluster | None" = None,
) -> SweepResult:
    """Train a run for each configuration of settings and each seed, and compare them.

    The same call continues a sweep that was interrupted.

    Parameters
    ----------
    settings
        Settings of all trials, as `train` takes them. `seed` is the first seed.
    out
        Where to save the sweep. Its runs are in `trials` below.
    grid
        Values to combine, by the names of their settings.
    ranges
        Lowest and highest number to draw from, by the names of their settings.
    sample
        Number of configurations to draw from the ranges and the lists of the grid.
    sample_seed
        Seed of these draws.
    seeds
        Number of seeds that each configuration is trained with.
    halving
        Stop the worse half of the configurations early, several times.
    dataset
        The dataset. None: the one of the continued sweep, or `data/mnist`.
    storage_options
        Options of an S3 store, for a dataset or sweep given by its URL.
    take_over
        Allows taking the lock of a dead writer in an object store; called with its description.
    progress
        Called after each step of a trial in this process with the rows done.
    stop
        Set by a signal handler to stop after the current step, with a checkpoint.
    cluster
        Dask cluster whose workers train one trial each, to the same bits; or a function that
        connects to it, which is called if there are trials to train.

    Raises
    ------
    UsageError
        If settings are invalid for every trial, or there are no validation rows. `RestartError`
        if Python must be started with other environment variables for the setting `arithmetic`.
    BadDataError
        If the dataset or the sweep is damaged.
    ConflictError
        If there is another sweep in its place, or another process is at work there.
    StoppedError
        After a signal; all trials can be continued.

    If no trial finishes, the error of the first one is raised.
    """
    search = Search(grid or {}, ranges or {}, sample, sample_seed)
    location = open_location(out, storage_options)
    recorded = open_sweep(location) if _is_sweep(location) else None
    if recorded is not None and dataset is None:
        dataset = recorded.dataset_place
    data = open_chosen_dataset(None, dataset, storage_options)
    asked = _planned(location, dict(settings or {}), search, seeds, data, halving=halving)
    if recorded is not None:
        _check_same(recorded, asked)
    with location.child(LOCK).writer_lock(f"The sweep {location}", take_over) as lock:
        location = location.under(lock)
        location.sweep()
        if not sweep_exists(location):
            replace(asked, location=location).write()
        recorded = open_sweep(location)
        _check_same(recorded, asked)
        # Settings that change no result, such as threads, are those of this call.
        plan = replace(recorded, settings=asked.settings)
        stop = stop or StopSignal()
        return _Sweeping(plan, data, take_over, progress, stop, cluster).run_to_end()


def _is_sweep(location: Location) -> bool:
    """Return whether there is a sweep; raise `ConflictError` if there is something else."""
    names = location.names()
    if RECORD in names:
        return True
    others = [name for name in names if not is_foreign(name)]
    if others:
        raise ConflictError(
            f"{location} contains {others[0]!r} but no {RECORD}: it is not a sweep, and is left "
            "alone. Choose another --out."
        )
    return False


def _planned(
    location: Location,
    given: dict[str, Any],
    search: Search,
    seeds: int,
    data: Dataset,
    *,
    halving: bool,
) -> Sweep:
    """Return the sweep that was asked for.

    Raises `UsageError` if it cannot be compared, and the error of the first configuration if all
    are invalid.
    """
    settings = flat_settings(given, "sweep()")
    _check_given_once(settings, {*search.grid, *search.ranges})
    if seeds < 1:
        raise UsageError(f"--seeds is {seeds}; expected at least 1.")
    configurations = search.configurations()
    configs = _valid_configs(settings, configurations, data)
    if halving and len({config.epochs for config in configs}) > 1:
        raise UsageError("--halving compares after the same epochs; leave epochs out of the grid.")
    first = settings.pop("seed", 0)
    return Sweep(
        location,
        dataset_digest=data.digest,
        dataset=recorded_place(data.location, location),
        settings=settings,
        search=search.to_json(),
        configurations=configurations,
        seeds=list(range(first, first + seeds)),
        rungs=rungs(configs[0].epochs, len(configurations)) if halving else [],
    )


def _check_given_once(settings: Iterable[str], varied: set[str]) -> None:
    """Raise `UsageError` for a setting of all trials that also varies, or would hide one."""
    distortions = {
        one.name for one in fields(TrainConfig) if one.metadata["section"] == DISTORTIONS
    }
    hiding = distortions if "distort" in varied else set[str]()
    for name in settings:
        if name in varied | hiding:
            raise UsageError(
                f"{name if name in varied else 'distort'} varies in the sweep, and {name} is given "
                "for all trials; leave one out."
            )


def _valid_configs(
    settings: dict[str, Any], configurations: Iterable[Configuration], data: Dataset
) -> list[TrainConfig]:
    """Return the complete settings of the configurations that fit the dataset."""
    valid: list[TrainConfig] = []
    refused: list[UsageError] = []
    for configuration in configurations:
        given = settings | configuration
        try:
            config = configure(given, None, data)
            check_fit(config, data)
        except UsageError as error:
            refused.append(error)
            continue
        check_arithmetic(config.arithmetic)
        if not config.holdout and VALIDATION not in data.splits:
            raise UsageError(
                f"A sweep chooses by validation rows, and {data.location} has no validation "
                "split. Keep training rows for it with --holdout ROWS."
            )
        if not valid:
            warn_of_no_effect(given, config)
            warn_of_evaluation(config, data)
            warn_of_values(data)
        valid.append(config)
    if not valid:
        raise refused[0]
    return valid


def _check_same(recorded: Sweep, asked: Sweep) -> None:
    """Raise `ConflictError` that says what differs from a recorded sweep."""
    differing = [
        f"{name}: {before!r} recorded, {now!r} given"
        for field in COMPARED
        for name, before, now in _differences(
            field, getattr(recorded, field), getattr(asked, field)
        )
    ]
    if differing:
        raise ConflictError(
            f"The sweep {recorded.location} is another one ({'; '.join(differing)}). Give the same "
            "options to continue it, or choose another --out."
        )


def _differences(name: str, before: Any, now: Any) -> list[tuple[str, Any, Any]]:
    """Return the names and values that differ, in objects by their fields."""
    if not isinstance(before, dict):
        return [(name, before, now)] if before != now else []
    changeable = {one.name for one in fields(TrainConfig) if one.metadata["may_change"]}
    names = [one for one in {**before, **now} if one not in changeable]
    pairs = [_differences(one, before.get(one), now.get(one)) for one in names]
    return [difference for pair in pairs for difference in pair]


@dataclass
class _Sweeping:
    """A sweep in progress."""

    sweep: Sweep
    dataset: Dataset
    take_over: TakeOver | None
    progress: Progress
    stop: StopSignal
    cluster: "Cluster | OpenCluster | None"

    def run_to_end(self) -> SweepResult:
        """Train the trials that have not ended; return all results."""
        self.results = {
            name: result
            for name, result in self.sweep.results().items()
            if result.state != FAILED or result.exit in PERMANENT
        }
        self._announce()
        try:
            self._train()
        except StoppedError as error:
            trials = counted(len(self.sweep.trials), "trial")
            raise StoppedError(
                f"Stopped; {self._ended()} of {trials} have ended, and the others keep their "
                "checkpoints. Run the same command again to continue.",
                error.exit_code - 128,
            ) from error
        result = SweepResult(self.sweep, self.results)
        if result.best is None:
            raise self._no_result()
        return result

    def _announce(self) -> None:
        sweep = self.sweep
        trials = counted(len(sweep.trials), "trial")
        parts = f"{counted(len(sweep.configurations), 'configuration')} x "
        parts += counted(len(sweep.seeds), "seed")
        done = f", {self._ended()} ended before" if self.results else ""
        event(
            logger,
            "sweep",
            f"Sweep {sweep.location}: {trials} ({parts}){done}",
            sweep=str(sweep.location),
            trials=len(sweep.trials),
            ended=self._ended(),
        )

    def _left(self, numbers: set[int], until: int | None) -> list[Trial]:
        """Return the trials of these configurations that have not been trained until an epoch."""
        return [
            trial
            for trial in self.sweep.trials
            if trial.configuration in numbers
            and not has_reached(self.results.get(trial.name), until)
        ]

    def _ended(self) -> int:
        """Return the number of trials that are finished, failed, or stopped by halving."""
        numbers, _ = survivors(self.sweep, self.results)
        return len(self.sweep.trials) - len(self._left(numbers, None))

    def _train(self) -> None:
        while True:
            numbers, until = survivors(self.sweep, self.results)
            trials = self._left(numbers, until)
            if not trials:
                return
            place = self.dataset.location
            is_relative = not os.path.isabs(str(place)) and "://" not in str(place)
            # Each trial has a lock of its own.
            unlocked = replace(self.sweep, location=replace(self.sweep.location, lock=None))
            expected = arithmetic_of_workers(self.sweep.settings.get("arithmetic", "native"))
            task = TrialTask(unlocked, place, is_relative, expected, until)
            for trial, result in self._train_trials(task, trials):
                self.results[trial.name] = result
                self.sweep.write_result(trial, result)
                self._report(trial, result)
            if until is not None:
                kept = len(survivors(self.sweep, self.results)[0])
                text = f"After epoch {until}: {kept} of {len(numbers)} configurations continue"
                event(logger, "rung", text, epoch=until, kept=kept, compared=len(numbers))

    def _train_trials(
        self, task: TrialTask, trials: Sequence[Trial]
    ) -> Iterable[tuple[Trial, TrialResult]]:
        if callable(self.cluster):
            self.cluster = self.cluster()
        if self.cluster is None:
            return train_here(task, trials, self.take_over, self.progress, self.stop)
        take_over = self.take_over is not None
        return train_on_cluster(self.cluster, task, trials, take_over=take_over)

    def _report(self, trial: Trial, result: TrialResult) -> None:
        """Log how a trial ended, or how far it got."""
        facts: dict[str, Any] = {"trial": trial.name, "state": result.state}
        if result.state == FAILED:
            text = f"Trial {trial.name} failed: {result.reason}"
            event(logger, "trial", text, logging.WARNING, **facts, error=result.reason)
            return
        accuracy, loss = (
            figures[result.best] for figures in (result.accuracy, result.cross_entropy)
        )
        epochs = len(result.accuracy)
        text = (
            f"{trial.name}: validation {percent(accuracy)} ({loss:.4f}) in "
            f"{counted(epochs, 'epoch')}, {result.seconds:.1f} s"
        )
        event(logger, "trial", text, **facts, accuracy=accuracy, cross_entropy=loss, epochs=epochs)

    def _no_result(self) -> PipelineError:
        """Return the error of the first trial, for a sweep in which all failed."""
        first = next(iter(self.results.values()))
        error_type = ERRORS.get(first.exit or 0, BadDataError)
        return error_type(
            f"No trial of the sweep {self.sweep.location} has a result. The first one failed: "
            f"{first.reason}"
        )
