"""Which checkpoint of a run is meant: the best, the latest, an epoch's, or that of a digest.

And which dataset, where none is given: that of the run.

Imports neither Zarr nor Dask: a job that finds its work done needs no more than this.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from jobs.choices import DEFAULT_DATASET
from jobs.training.config import VALIDATION
from jobs.training.history import Metrics, history_of
from storage.checkpoints import (
    Checkpoint,
    CheckpointName,
    Tensors,
    list_checkpoints,
    load_checkpoint,
    load_newest,
)
from storage.errors import BadDataError, UsageError
from storage.location import Location
from storage.places import Place, open_location
from storage.runs import Run

if TYPE_CHECKING:
    from storage.dataset import Dataset

EPOCH = re.compile(r"[0-9]{1,7}", re.ASCII)
DIGEST = re.compile(r"[0-9a-f]{8,64}", re.ASCII)
"""The first digits of a model's digest; a shorter number is an epoch's."""
NAME = re.compile(r"[0-9]{6,}-[0-9]{6,}", re.ASCII)


def best_checkpoint(metrics: list[Metrics]) -> CheckpointName | None:
    """The checkpoint of the epoch with the lowest validation cross-entropy, the first of equals.

    None where there is no validation split.
    """
    scored = [
        (line["evaluation"][VALIDATION]["cross_entropy"], line["epoch"])
        for line in metrics
        if VALIDATION in line["evaluation"]
    ]
    return CheckpointName(min(scored)[1], 0) if scored else None


def choose_checkpoint(
    run: Run, choice: str, template: Tensors | None = None
) -> tuple[Checkpoint, tuple[str, ...]]:
    """The checkpoint `best`, `latest`, of an epoch's number or a model's digest; and warnings.

    `best` is the one with the lowest validation cross-entropy or, where there is no validation, the
    latest. A damaged newest checkpoint is warned of where another one is the best. A checkpoint's
    own name (`000010-000000`) will do, too. Where a training prunes it while it is read, another
    one is chosen. Raises `BadDataError` where the checkpoint is damaged or there is none, and
    `UsageError` for a choice that is none.
    """
    while True:
        names = list_checkpoints(run)
        try:
            return _chosen(run, choice, names, template)
        except BadDataError:
            if list_checkpoints(run) == names:
                raise


def _chosen(
    run: Run, choice: str, names: list[CheckpointName], template: Tensors | None
) -> tuple[Checkpoint, tuple[str, ...]]:
    if not names:
        raise BadDataError(
            f"The run {run.location} has no checkpoint yet. Train it with `pipeline train`."
        )
    if EPOCH.fullmatch(choice):
        return load_checkpoint(run, _of_epoch(run, choice, names), template), ()
    if NAME.fullmatch(choice):
        return load_checkpoint(run, _named(run, choice, names), template), ()
    if DIGEST.fullmatch(choice):
        return _of_digest(run, choice, names, template), ()
    if choice not in ("best", "latest"):
        raise UsageError(
            f"--checkpoint is {choice!r}; expected best, latest, the number of an epoch, or the "
            "first 8 or more digits of a model's digest."
        )
    return _newest_or_best(run, choice, template)


def _newest_or_best(
    run: Run, choice: str, template: Tensors | None
) -> tuple[Checkpoint, tuple[str, ...]]:
    newest = None
    damaged: list[tuple[CheckpointName, BadDataError]] = []
    for found in load_newest(run, template):
        if isinstance(found, Checkpoint):
            newest = found
        else:
            damaged.append(found)
    assert newest is not None  # load_newest raises where none is sound
    # Where the newest checkpoint is damaged, its epoch's line is in the metrics still.
    metrics = run.metrics() if damaged else history_of(newest)
    best = best_checkpoint(metrics) if choice == "best" else None
    if damaged and (best is None or best > newest.name):
        name, error = damaged[0]
        raise BadDataError(
            f"Checkpoint {name}, the newest one, cannot be used: {error} The newest sound one is "
            f"{newest.name} (epoch-step); choose it by --checkpoint {newest.name}, or continue "
            "training from it with `pipeline train --resume`."
        )
    warnings = tuple(f"Checkpoint {name} is not used: {error}" for name, error in damaged)
    if best and best != newest.name:
        return load_checkpoint(run, best, template), warnings
    return newest, warnings


def _of_epoch(run: Run, choice: str, names: list[CheckpointName]) -> CheckpointName:
    name = CheckpointName(int(choice), 0)
    if name not in names:
        kept = ", ".join(str(found.epoch) for found in names if not found.step)
        raise BadDataError(
            f"The run {run.location} has no checkpoint of epoch {choice}; it keeps those of "
            f"epochs {kept or '(none)'}. Train with a larger --keep to have more."
        )
    return name


def _named(run: Run, choice: str, names: list[CheckpointName]) -> CheckpointName:
    for name in names:
        if str(name) == choice:
            return name
    raise BadDataError(
        f"The run {run.location} has no checkpoint {choice}; it keeps {', '.join(map(str, names))}."
    )


def _of_digest(
    run: Run, digest: str, names: list[CheckpointName], template: Tensors | None
) -> Checkpoint:
    """The newest checkpoint whose model has a digest that begins so; damaged ones do not count."""
    found: Checkpoint | None = None
    for name in reversed(names):
        try:
            checkpoint = load_checkpoint(run, name, template)
        except BadDataError:
            continue
        if not checkpoint.parameters_digest.startswith(digest):
            continue
        if found is not None and found.parameters_digest != checkpoint.parameters_digest:
            raise UsageError(
                f"Several models of {run.location} have a digest that begins with {digest}; give "
                "more of it."
            )
        found = found or checkpoint
    if found is None:
        raise BadDataError(
            f"The run {run.location} has no sound checkpoint of a model with digest {digest}. "
            f"`pipeline inspect {run.location}` lists those that there are."
        )
    return found


def choose_dataset(
    run: Run | None, given: Place | None, storage_options: Mapping[str, str] | None
) -> Location:
    """Return the location of the dataset that is given, else of the run's own, else the default."""
    recorded = None if run is None else run.dataset_place
    return open_location(given or recorded or DEFAULT_DATASET, storage_options)


def open_chosen_dataset(
    run: Run | None, given: Place | None, storage_options: Mapping[str, str] | None
) -> "Dataset":
    """Open the dataset that `choose_dataset` chooses; errors say why it was chosen."""
    from storage.dataset import open_dataset

    try:
        return open_dataset(choose_dataset(run, given, storage_options))
    except BadDataError as error:
        if run is None or given is not None:
            raise
        why = (
            "expects its dataset there"
            if run.dataset_place
            else "does not record its dataset's place"
        )
        raise BadDataError(
            f"{error} The run {run.location} {why}; pass --dataset if it lies elsewhere."
        ) from error
