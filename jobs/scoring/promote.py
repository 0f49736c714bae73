"""Promotion: give a checkpoint a name, if it passes the gates; take the name back again."""

import getpass
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from jobs.choices import DEFAULT_MODELS
from jobs.scoring.config import ScoreConfig
from jobs.scoring.gates import Gates, Verdict, at_least, missed
from jobs.scoring.job import run_batch
from jobs.scoring.listener import ScoreListener, now
from jobs.signals import StopSignal
from jobs.training.select_checkpoint import choose_checkpoint, open_chosen_dataset
from storage.checkpoints import (
    Checkpoint,
    CheckpointName,
    list_checkpoints,
    load_checkpoint,
    pin_checkpoint,
)
from storage.errors import BadDataError, QualityGateError, UsageError
from storage.location import Location, TakeOver
from storage.models import (
    Holder,
    ModelName,
    check_model_name,
    held_name,
    name_lock,
    names,
    open_name,
)
from storage.places import Place, open_location, reference_to
from storage.runs import Run, open_run


@dataclass(frozen=True)
class PromoteConfig:
    """What is to be promoted, under which name, and what it must pass."""

    run: Place
    name: str
    checkpoint: str = "best"
    models: Place = DEFAULT_MODELS
    dataset: Place | None = None
    """What the gates are judged on; the one that the run was trained on where it is None."""
    split: str = "test"
    min_accuracy: float | None = None
    not_worse_than: str | None = None
    """A name: its holder's accuracy on the same rows is the least that passes."""
    threads: int = 0
    wait: float = 0.0
    storage_options: Mapping[str, str] = field(default_factory=dict)
    """How to reach the places that are URLs of a store."""
    take_over: TakeOver | None = None
    """Leave to take the locks of dead writers in a store."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for what cannot be meant."""
        check_model_name(self.name)
        Gates(self.min_accuracy)

    @property
    def judged(self) -> bool:
        """Whether there is any gate."""
        return self.min_accuracy is not None or self.not_worse_than is not None


@dataclass(frozen=True)
class PromoteResult:
    """Who has a name now, and who had it before."""

    name: str
    holder: Holder | None
    before: Holder | None
    already_done: bool
    verdicts: tuple[Verdict, ...] = ()


def promote(
    config: PromoteConfig,
    *,
    listener: ScoreListener | None = None,
    stop: StopSignal | None = None,
) -> PromoteResult:
    """Give a checkpoint a name, in one step; who had it before is recorded.

    The checkpoint is kept for good from here on. Gates are judged by scorings, which the ledger of
    each run has. Raises `QualityGateError` where one is missed: the name stays where it was, and
    the refusal is recorded. A name that its holder has already is found so.
    """
    listener, stop = listener or ScoreListener(), stop or StopSignal()
    place = open_location(config.models, config.storage_options)
    run = open_run(open_location(config.run, config.storage_options))
    chosen: CheckpointName | None = None
    while True:
        try:
            checkpoint, warnings = choose_checkpoint(run, config.checkpoint)
            chosen = checkpoint.name
            holder, verdicts = _judged(config, place, run, checkpoint, listener, stop)
            text = missed(verdicts)
            if text is None:
                _pin(run, chosen)
            break
        except BadDataError:
            if chosen is None or chosen in list_checkpoints(run):
                raise
            chosen = None  # a training has pruned it: choose again
    for warning in warnings:
        listener.warn(warning)
    with name_lock(place, config.name, config.take_over) as lock:
        found = open_name(place.under(lock), config.name)
        if text is not None:
            event = _event("refused", holder, found.holder, verdicts)
            found.with_event(event, _as_it_is).save()
            raise QualityGateError(f"{text} {config.name} stays with {_message(found.holder)}.")
        if found.holder is not None and _same(found.holder, holder):
            return PromoteResult(config.name, found.holder, None, True, verdicts)
        event = _event("promoted", holder, found.holder, verdicts)
        found.with_event(event, lambda name: replace(name, holders=(*name.holders, holder))).save()
    return PromoteResult(config.name, holder, found.holder, False, verdicts)


def undo(models: Place, name: str, take_over: TakeOver | None = None) -> PromoteResult:
    """Give a name back to who had it before. Raises `UsageError` where nobody has it."""
    place = open_location(models)
    held_name(place, name)  # before a lock is made for a name that there is not
    with name_lock(place, name, take_over) as lock:
        found, holder = held_name(place.under(lock), name)
        before = found.holders[-2] if len(found.holders) > 1 else None
        event = _event("undone", before, holder, ())
        found.with_event(event, lambda name: replace(name, holders=name.holders[:-1])).save()
    return PromoteResult(name, before, holder, False)


def list_names(models: Place) -> list[ModelName]:
    """Every name with its history."""
    place = open_location(models)
    return [open_name(place, name) for name in names(place)]


def _judged(
    config: PromoteConfig,
    place: Location,
    run: Run,
    checkpoint: Checkpoint,
    listener: ScoreListener,
    stop: StopSignal,
) -> tuple[Holder, tuple[Verdict, ...]]:
    """The holder-to-be of the name, and what became of the gates that were asked for."""
    holder = Holder(
        run=reference_to(run.location, place),
        run_id=run.run_id,
        checkpoint=str(checkpoint.name),
        model_digest=checkpoint.parameters_digest,
        since=now(),
        accuracy=None,
        judged_by=None,
    )
    if not config.judged:
        return holder, ()
    # Its own dataset is what the holder of another name is judged on as well.
    dataset = open_chosen_dataset(run, config.dataset, config.storage_options)
    config = replace(config, dataset=dataset.location)
    return _judge(config, place, holder, listener, stop)


def _judge(
    config: PromoteConfig,
    place: Location,
    holder: Holder,
    listener: ScoreListener,
    stop: StopSignal,
) -> tuple[Holder, tuple[Verdict, ...]]:
    """The holder-to-be with its accuracy, and what became of each gate."""

    def accuracy(run: Place, checkpoint: str) -> tuple[float, str]:
        asked = ScoreConfig(
            run=run,
            dataset=config.dataset,
            splits=(config.split,),
            checkpoint=checkpoint,
            threads=config.threads,
            wait=config.wait,
            storage_options=config.storage_options,
            take_over=config.take_over,
        )
        batch = run_batch(asked, listener=listener, stop=stop)
        if batch.error is not None:
            raise batch.error
        (result,) = batch.results
        if result.accuracy is None:
            raise UsageError(
                f"Split {config.split} of {config.dataset} has no labels, so no gate can be judged "
                "on it. Give another --dataset or --split."
            )
        return result.accuracy, result.scores.schema.dataset_digest

    found, digest = accuracy(config.run, holder.checkpoint)
    what = f"Model {holder.model_digest[:12]}"
    verdicts = list(Gates(config.min_accuracy).judge(found, None, what))
    if config.not_worse_than is not None:
        verdicts += _compare(config, place, found, accuracy, what)
    judged_by = f"{config.split} of {digest}"
    return replace(holder, accuracy=found, judged_by=judged_by), tuple(verdicts)


def _compare(
    config: PromoteConfig,
    place: Location,
    found: float,
    accuracy: Callable[[Place, str], tuple[float, str]],
    what: str,
) -> list[Verdict]:
    """The verdict beside another name's holder; none for a name that this one is the first of."""
    assert config.not_worse_than is not None
    if config.not_worse_than == config.name and open_name(place, config.name).holder is None:
        return []
    other, rival = held_name(place, config.not_worse_than)
    least, _ = accuracy(other.run_place(rival), rival.checkpoint)
    why = f"that of {config.not_worse_than}, model {rival.model_digest[:12]}"
    return [at_least("not-worse-than", found, least, what, why)]


def _pin(run: Run, name: CheckpointName) -> None:
    """Keep the checkpoint, and see that it is still there: a training may be pruning."""
    pin_checkpoint(run, name)
    load_checkpoint(run, name)


def _same(one: Holder, other: Holder) -> bool:
    return (one.run_id, one.checkpoint, one.model_digest) == (
        other.run_id,
        other.checkpoint,
        other.model_digest,
    )


def _as_it_is(name: ModelName) -> ModelName:
    return name


def _message(holder: Holder | None) -> str:
    return f"model {holder.model_digest[:12]}" if holder else "no model"


def _event(
    event: str, holder: Holder | None, before: Holder | None, verdicts: tuple[Verdict, ...]
) -> dict[str, Any]:
    return {
        "event": event,
        "time": now(),
        "by": f"{_user()}@{socket.gethostname()}",
        "model": asdict(holder) if holder else None,
        "before": asdict(before) if before else None,
        "gates": [verdict.to_json() for verdict in verdicts],
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"
