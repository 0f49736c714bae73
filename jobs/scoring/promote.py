"""Promotion: give a model a name if it passes the gates, or undo that."""

import getpass
import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

from jobs.choices import DEFAULT_CHECKPOINT, DEFAULT_MODELS
from jobs.scoring.gates import Gates, Verdict, at_least, missed
from jobs.scoring.job import score
from jobs.scoring.records import now
from jobs.signals import StopSignal
from jobs.training.choose_model import ModelChoice, Runs, choose_models
from jobs.training.select_checkpoint import open_chosen_dataset
from storage.checkpoints import list_checkpoints, load_checkpoint, pin_checkpoint
from storage.errors import BadDataError, QualityGateError, UsageError
from storage.events import Progress, no_progress
from storage.location import Location, TakeOver
from storage.models import (
    HeldRun,
    Holder,
    ModelName,
    check_model_name,
    held_name,
    name_lock,
    names,
    open_name,
)
from storage.places import Place, open_location, reference_to

logger = logging.getLogger(__name__)

IDENTITY = attrgetter("run_id", "checkpoint", "model_digest")
"""Returns the fields by which two holders are the same model."""


@dataclass(frozen=True)
class PromoteConfig:
    """The checkpoint to promote, its new name, and its gates."""

    run: Runs
    """The run with the model, or several whose models are averaged: see `ScoreConfig`."""
    name: str
    checkpoint: str | int = DEFAULT_CHECKPOINT
    average_shifts: int | None = None
    """Average over images and their shifts by up to this number of pixels; by default that of the
    run's evaluations."""
    models: Place = DEFAULT_MODELS
    dataset: Place | None = None
    """The dataset that the gates are judged on; by default the one that the run was trained on."""
    split: str = "test"
    min_accuracy: float | None = None
    not_worse_than: str | None = None
    """The name of a model whose accuracy on the same rows is the lowest that passes."""
    threads: int = 0
    wait: float = 0.0
    """Seconds to wait for another job that is scoring the same rows."""
    storage_options: Mapping[str, str] = field(default_factory=dict)
    """Options for places that are URLs of an object store."""
    take_over: TakeOver | None = None
    """Permission to take over the locks of dead writers in an object store."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for an invalid name or share."""
        check_model_name(self.name)
        Gates(self.min_accuracy)


@dataclass(frozen=True, repr=False)
class PromoteResult:
    """The model that has a name now, and the previous one."""

    name: str
    holder: Holder | None
    before: Holder | None
    already_done: bool
    verdicts: tuple[Verdict, ...] = ()

    def __repr__(self) -> str:
        """Return the name and its model, on one line."""
        holder, done = self.holder, ", already done" * self.already_done
        model = f"{holder.model_digest[:12]} of {holder.run}" if holder else "no model"
        return f"<PromoteResult {self.name}: {model}{done}>"


def promote(
    config: PromoteConfig, *, progress: Progress = no_progress, stop: StopSignal | None = None
) -> PromoteResult:
    """Give a checkpoint a name, atomically; the model that had the name before is recorded.

    The checkpoints of an average get it together. They are never pruned from then on. Gates are
    judged by scoring the model, which its run's ledger records. If one is missed, raises
    `QualityGateError`: the name keeps its model, and the refusal is recorded. Promoting the same
    model again changes nothing.
    """
    place = open_location(config.models, config.storage_options)
    holder, verdicts = _choose(config, place, {"progress": progress, "stop": stop})
    text = missed(verdicts)
    with name_lock(place, config.name, config.take_over) as lock:
        name = open_name(place.under(lock), config.name)
        before = name.holder
        if text is not None:
            name.with_event(_event("refused", holder, before, verdicts)).save()
            kept = f"{config.name} remains model {before.model_digest[:12]}." if before else ""
            raise QualityGateError(f"{text} {kept or f'No model is named {config.name}.'}")
        if before is not None and IDENTITY(before) == IDENTITY(holder):
            return PromoteResult(config.name, before, None, True, verdicts)
        name = replace(name, holders=(*name.holders, holder))
        name.with_event(_event("promoted", holder, before, verdicts)).save()
    return PromoteResult(config.name, holder, before, False, verdicts)


def undo(models: Place, name: str, take_over: TakeOver | None = None) -> PromoteResult:
    """Return a name to its previous model; raise `UsageError` if no model has it."""
    place = open_location(models)
    held_name(place, name)  # an unknown name must not leave a lock file
    with name_lock(place, name, take_over) as lock:
        model_name, holder = held_name(place.under(lock), name)
        before = model_name.holders[-2] if len(model_name.holders) > 1 else None
        model_name = replace(model_name, holders=model_name.holders[:-1])
        model_name.with_event(_event("undone", before, holder, ())).save()
    return PromoteResult(name, before, holder, False)


def list_names(models: Place) -> list[ModelName]:
    """Return every name with its history."""
    place = open_location(models)
    return [open_name(place, name) for name in names(place)]


def _choose(
    config: PromoteConfig, place: Location, scoring: dict[str, Any]
) -> tuple[Holder, tuple[Verdict, ...]]:
    """Return the model to promote and its verdicts; pin its checkpoints if it passes.

    `scoring` has further arguments of `score`.
    """
    while True:
        chosen, warnings = choose_models(
            config.run, config.checkpoint, config.average_shifts, config.storage_options
        )
        members = [(member.run, member.checkpoint.name) for member in chosen.members]
        try:
            holder, verdicts = _judge(config, place, chosen, scoring)
            if missed(verdicts) is None:
                for run, name in members:
                    pin_checkpoint(run, name)
                    load_checkpoint(run, name)  # a training run may just have pruned it
            break
        except BadDataError:
            if all(name in list_checkpoints(run) for run, name in members):
                raise
    for warning in warnings:
        logger.warning("%s", warning)
    return holder, verdicts


def _judge(
    config: PromoteConfig, place: Location, chosen: ModelChoice, scoring: dict[str, Any]
) -> tuple[Holder, tuple[Verdict, ...]]:
    """Return the chosen model as a holder of the name, and the verdict of each gate."""
    runs = [
        HeldRun(reference_to(member.run.location, place), member.run.run_id)
        for member in chosen.members
    ]
    holder = Holder(
        run=runs[0].run,
        run_id=runs[0].run_id,
        checkpoint=chosen.names,
        model_digest=chosen.digest,
        since=now(),
        accuracy=None,
        judged_by=None,
        average_shifts=chosen.average_shifts,
        runs=tuple(runs) if len(chosen.runs) > 1 else (),
    )
    if config.min_accuracy is None and config.not_worse_than is None:
        return holder, ()
    dataset = open_chosen_dataset(chosen.run, config.dataset, config.storage_options)
    scoring = scoring | {"dataset": dataset.location}
    places = [(member.run.location, str(member.checkpoint.name)) for member in chosen.members]
    accuracy = _accuracy(config, places, holder, scoring)
    subject = f"Model {holder.model_digest[:12]}"
    verdicts = Gates(config.min_accuracy).judge(accuracy, None, subject)
    rival = _rival(config, place)
    if rival is not None:
        name, other = rival
        least = _accuracy(config, name.run_places(other), other, scoring)
        why = f"that of {name.name}, model {other.model_digest[:12]}"
        verdicts = (*verdicts, at_least("not-worse-than", accuracy, least, subject, why))
    judged_by = f"{config.split} of {dataset.digest}"
    return replace(holder, accuracy=accuracy, judged_by=judged_by), verdicts


def _accuracy(
    config: PromoteConfig,
    runs: Sequence[tuple[Place, str]],
    model: Holder,
    scoring: dict[str, Any],
) -> float:
    """Return a model's accuracy, from existing scores if there are any."""
    result = score(
        run=runs,
        split=config.split,
        average_shifts=model.average_shifts,
        threads=config.threads,
        wait=config.wait,
        storage_options=config.storage_options,
        take_over=config.take_over,
        **scoring,
    )
    if result.accuracy is None:
        raise UsageError(
            f"Split {config.split} of {scoring['dataset']} has no labels, so no gate can be judged "
            "on it. Choose another --dataset or --split."
        )
    return result.accuracy


def _rival(config: PromoteConfig, place: Location) -> tuple[ModelName, Holder] | None:
    """Return the name of `not_worse_than` and its model; None for the first model of a name."""
    other = config.not_worse_than
    if other is None or (other == config.name and open_name(place, other).holder is None):
        return None
    return held_name(place, other)


def _event(
    event: str, holder: Holder | None, before: Holder | None, verdicts: tuple[Verdict, ...]
) -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # containers may run as a user without a name
        user = "unknown"
    return {
        "event": event,
        "time": now(),
        "by": f"{user}@{socket.gethostname()}",
        "model": holder.to_json() if holder else None,
        "before": before.to_json() if before else None,
        "gates": [verdict.to_json() for verdict in verdicts],
    }
