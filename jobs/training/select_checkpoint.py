"""Select a checkpoint of a run, and the dataset if none is given.

Imports neither Zarr nor Dask, which a job without work to do does not need.
"""

import logging
import re
from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from jobs.choices import DEFAULT_DATASET
from jobs.training.config import VALIDATION, TrainConfig
from jobs.training.history import Metrics, history_of
from storage.checkpoints import (
    Checkpoint,
    CheckpointName,
    Tensors,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    parse_name,
)
from storage.errors import BadDataError, UsageError, did_you_mean
from storage.location import Location
from storage.places import Place, open_location
from storage.runs import Run, run_exists

if TYPE_CHECKING:
    from storage.dataset import Dataset

logger = logging.getLogger(__name__)

AVERAGE = "average"
"""The choice of all snapshots of a run with warm restarts."""
EPOCH = re.compile(r"[0-9]{1,7}", re.ASCII)
DIGEST = re.compile(r"[0-9a-f]{8,64}", re.ASCII)
"""The first digits of a model's digest. A shorter number is an epoch."""


def best_checkpoint(metrics: list[Metrics]) -> CheckpointName | None:
    """Return the checkpoint of the epoch with the lowest validation loss, the first of equals.

    Return None without validation rows.
    """
    scored = [
        (line["evaluation"][VALIDATION]["cross_entropy"], line["epoch"])
        for line in metrics
        if VALIDATION in line["evaluation"]
    ]
    return CheckpointName(min(scored)[1], 0) if scored else None


def stopped_early(config: TrainConfig, metrics: list[Metrics]) -> bool:
    """Return whether `patience` ended a training before its last epoch."""
    best, epochs = best_checkpoint(metrics), len(metrics)
    is_over = bool(config.patience and best and best.epoch + config.patience <= epochs)
    return is_over and epochs < config.epochs


def snapshots(config: TrainConfig, epochs: int) -> list[CheckpointName]:
    """Return the checkpoints at the ends of the cycles of a schedule with restarts.

    Only those of the first `epochs` epochs; none without restarts.
    """
    ends = accumulate(config.cycles) if len(config.cycles) > 1 else ()
    return [CheckpointName(end, 0) for end in ends if end <= epochs]


def newest_checkpoint(
    run: Run, template: Tensors | None = None
) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """Return the newest sound checkpoint, or None, and a warning for each newer damaged one.

    Raises `BadDataError` if there are checkpoints and all are damaged; the warnings are logged.
    """
    warnings: list[str] = []
    try:
        for loaded in load_newest(run, template):
            if isinstance(loaded, Checkpoint):
                return loaded, tuple(warnings)
            name, error = loaded
            warnings.append(f"Checkpoint {name} is not used: {error}")
    except BadDataError:
        for warning in warnings:
            logger.warning(warning)
        raise
    return None, ()


def choose_checkpoint(run: Run, choice: str) -> tuple[Checkpoint, tuple[str, ...]]:
    """Return the chosen checkpoint (`best`, `latest`, an epoch or a model's digest) and warnings.

    `best` has the lowest validation loss; without validation it is the latest. A checkpoint's name
    (`000010-000000`) is accepted too. Returns a warning if the newest checkpoint is damaged and
    another one is the best. If a training run prunes the checkpoint while it is read, the choice is
    repeated. Raises `BadDataError` if the checkpoint is damaged or does not exist, and `UsageError`
    for an invalid choice.
    """
    while True:
        names = list_checkpoints(run)
        try:
            return _chosen(run, choice, names)
        except BadDataError:
            if list_checkpoints(run) == names:
                raise


def split_checkpoint(
    place: Place, storage_options: Mapping[str, str] | None
) -> tuple[Place, str | None]:
    """Split `RUN@CHECKPOINT` into the run and the choice of a checkpoint, None without one.

    A run whose own name has an `@` stays whole.
    """
    run, at, choice = str(place).rpartition("@")
    is_whole = not at or "/" in choice or isinstance(place, Location)
    if is_whole or run_exists(open_location(place, storage_options)):
        return place, None
    return run, choice


def _chosen(
    run: Run, choice: str, names: list[CheckpointName]
) -> tuple[Checkpoint, tuple[str, ...]]:
    if not names:
        raise BadDataError(
            f"The run {run.location} has no checkpoint yet. Train it with `pipeline train`."
        )
    if choice in ("best", "latest"):
        return _newest_or_best(run, choice)
    name = position_of(choice)
    if name in names:
        return load_checkpoint(run, name), ()
    if name is not None:
        was_saved = CheckpointName(1, 0) <= name < names[-1]
        advice = " Train with a larger --keep to have more." if was_saved else ""
        raise BadDataError(
            f"The run {run.location} has no checkpoint {name} (epoch-step); it keeps "
            f"{', '.join(map(str, names))}.{advice}"
        )
    if DIGEST.fullmatch(choice):
        return _of_digest(run, choice, names), ()
    raise UsageError(
        f"--checkpoint is {choice!r}; expected best, latest, the number of an epoch, or the "
        "first 8 or more digits of a model's digest; several of these with commas; or average."
        f"{did_you_mean(choice, ('best', 'latest', AVERAGE))}"
    )


def position_of(choice: str) -> CheckpointName | None:
    """Return the checkpoint that an epoch's number or a checkpoint's name refers to."""
    return CheckpointName(int(choice), 0) if EPOCH.fullmatch(choice) else parse_name(choice)


def _newest_or_best(run: Run, choice: str) -> tuple[Checkpoint, tuple[str, ...]]:
    newest, warnings = newest_checkpoint(run)
    assert newest is not None
    # If the newest checkpoint is damaged, its epoch is still in metrics.jsonl.
    metrics = run.metrics() if warnings else history_of(newest)
    best = best_checkpoint(metrics) if choice == "best" else None
    if warnings and (best is None or best > newest.name):
        raise BadDataError(
            f"{warnings[0]} The newest sound one is {newest.name} (epoch-step); choose it with "
            f"--checkpoint {newest.name}, or continue training from it with "
            "`pipeline train --resume`."
        )
    if best and best != newest.name:
        newest = load_checkpoint(run, best)
    return newest, warnings


def _of_digest(run: Run, digest: str, names: list[CheckpointName]) -> Checkpoint:
    """Return the newest checkpoint of the model whose digest starts with `digest`.

    Damaged checkpoints are skipped.
    """
    matching: Checkpoint | None = None
    for name in reversed(names):
        try:
            checkpoint = load_checkpoint(run, name)
        except BadDataError:
            continue
        if not checkpoint.parameters_digest.startswith(digest):
            continue
        if matching and matching.parameters_digest != checkpoint.parameters_digest:
            raise UsageError(
                f"Several models of {run.location} have a digest that starts with {digest}; give "
                "more digits."
            )
        matching = matching or checkpoint
    if matching is None:
        raise BadDataError(
            f"The run {run.location} has no sound checkpoint of a model with digest {digest}. "
            f"`pipeline inspect {run.location}` lists its checkpoints."
        )
    return matching


def choose_dataset(
    run: Run | None, given: Place | None, storage_options: Mapping[str, str] | None
) -> Location:
    """Return the location of the given dataset, else of the run's, else of the default one."""
    recorded = None if run is None else run.dataset_place
    return open_location(given or recorded or DEFAULT_DATASET, storage_options)


def open_chosen_dataset(
    run: Run | None, given: Place | None, storage_options: Mapping[str, str] | None
) -> "Dataset":
    """Open the dataset of `choose_dataset`; errors say why it was chosen."""
    from storage.dataset import open_dataset

    try:
        return open_dataset(choose_dataset(run, given, storage_options))
    except BadDataError as error:
        if run is None or given is not None:
            raise
        recorded = (
            "expects its dataset there" if run.dataset_place else "does not record its dataset"
        )
        raise BadDataError(
            f"{error} The run {run.location} {recorded}; pass --dataset if it is elsewhere."
        ) from error
