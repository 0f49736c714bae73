"""Choose the checkpoints that a model averages: of one run, of several, or of a promoted name.

Imports neither Zarr nor Dask, which a job without work to do does not need.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from jobs.choices import DEFAULT_CHECKPOINT
from jobs.training.config import TrainConfig
from jobs.training.select_checkpoint import (
    AVERAGE,
    choose_checkpoint,
    snapshots,
    split_checkpoint,
)
from jobs.training.settings import check_range, convert
from jobs.training.signature import signature_of
from storage.checkpoints import Checkpoint, CheckpointName, list_checkpoints
from storage.errors import BadDataError, UsageError
from storage.models import Holder, ModelName
from storage.places import Place, open_location, reference_to
from storage.runs import RECORD, Run, open_run
from storage.scores import average_digest

RunPlace: TypeAlias = Place | tuple[Place, str]
"""A run, as `RUN` or `RUN@CHECKPOINT`; in Python also a pair of a run and a checkpoint."""
Runs: TypeAlias = Place | Sequence[RunPlace]
"""One run, or several whose models are averaged."""


@dataclass(frozen=True)
class ChosenCheckpoint:
    """A checkpoint, and the run that has it."""

    run: Run
    checkpoint: Checkpoint

    def __str__(self) -> str:
        return f"checkpoint {self.checkpoint.name} of {self.run.location}"


@dataclass(frozen=True)
class ModelChoice:
    """The checkpoints and the shifts of images that a model averages."""

    members: tuple[ChosenCheckpoint, ...]
    average_shifts: int = 0
    """The largest shift in pixels; 0 for none."""

    @property
    def run(self) -> Run:
        """The run of the first member, below which the model's scores are kept."""
        return self.members[0].run

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs that have a member, each once."""
        return tuple({str(member.run.location): member.run for member in self.members}.values())

    @property
    def names(self) -> str:
        """The names of the checkpoints, with commas: `choose_model` chooses them by it."""
        return ",".join(str(member.checkpoint.name) for member in self.members)

    @property
    def digests(self) -> tuple[str, ...]:
        """The digest of each checkpoint's parameters."""
        return tuple(member.checkpoint.parameters_digest for member in self.members)

    @property
    def digest(self) -> str:
        """The digest of the model."""
        return average_digest(self.digests, self.average_shifts)


def recorded_runs(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the record of the members' runs: empty if all have the same one.

    Its list `runs` has a reference to each, from the first one.
    """
    references = [reference_to(run.location, runs[0].location) for run in runs]
    return {"runs": references} if len(set(references)) > 1 else {}


def choose_model(
    run: Run, choice: str | int, average_shifts: int | None = None
) -> tuple[ModelChoice, tuple[str, ...]]:
    """Return the chosen checkpoints with the shifts to average over, and warnings.

    `choice` is one that `choose_checkpoint` accepts, several with commas between them, or
    `average` for the run's snapshots. With `average_shifts` None the shifts are those of the run's
    evaluations. Raises as `choose_checkpoint` does, and `UsageError` for a run without snapshots
    and for shifts that do not fit its images.
    """
    config = TrainConfig.from_json(run.configuration, f"{run.location}/{RECORD}")
    if average_shifts is None:
        average_shifts = config.average_shifts
    check_shifts(average_shifts, run.dataset.get("image_shape"), f"The run {run.location}")
    choices = str(choice).split(",")
    if len(choices) > 1:
        choices = [name.strip() for name in choices]
    if choices == [AVERAGE]:
        choices = [str(name) for name in _all_snapshots(run, config)]
    if AVERAGE in choices:
        raise UsageError(
            f"--checkpoint is {choice!r}; average means all snapshots. Give it by itself, or name "
            "each checkpoint."
        )
    chosen = [choose_checkpoint(run, name) for name in choices]
    names = [checkpoint.name for checkpoint, _ in chosen]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"--checkpoint is {choice!r}, which names checkpoint {name} more than once. Name "
                "each checkpoint once."
            )
    warnings = dict.fromkeys(warning for _, warnings in chosen for warning in warnings)
    members = tuple(ChosenCheckpoint(run, checkpoint) for checkpoint, _ in chosen)
    return ModelChoice(members, average_shifts), tuple(warnings)


def choose_models(
    runs: Runs,
    choice: str | int = DEFAULT_CHECKPOINT,
    average_shifts: int | None = None,
    storage_options: Mapping[str, str] | None = None,
) -> tuple[ModelChoice, tuple[str, ...]]:
    """Return the chosen checkpoints of one or several runs, and warnings.

    `choice` is as in `choose_model`, for each run that is given without a checkpoint. Raises as
    `choose_model` does, and `UsageError` for runs whose models cannot be averaged: they differ in
    their images or classes, or are the same.
    """
    places = [runs] if isinstance(runs, Place) else list(runs)
    if not places:
        raise UsageError("No run is given; name at least one.")
    parts: list[ModelChoice] = []
    warnings: list[str] = []
    for place in places:
        run_place, own_choice = _pair(place, storage_options)
        run = open_run(open_location(run_place, storage_options))
        part, warned = choose_model(run, own_choice or choice, average_shifts)
        parts.append(part)
        warnings += warned
    shifts = {part.average_shifts: part.run.location for part in parts}
    if len(shifts) > 1:
        texts = [f"{shift} in {location}" for shift, location in shifts.items()]
        raise UsageError(
            f"The runs average over different shifts: {', '.join(texts)}. Pass --average-shifts."
        )
    members = tuple(member for part in parts for member in part.members)
    chosen = ModelChoice(members, parts[0].average_shifts)
    _check_members(chosen)
    return chosen, tuple(dict.fromkeys(warnings))


def _pair(
    place: RunPlace, storage_options: Mapping[str, str] | None
) -> tuple[Place, str | int | None]:
    return place if isinstance(place, tuple) else split_checkpoint(place, storage_options)


def _check_members(chosen: ModelChoice) -> None:
    """Raise `UsageError` if a model is there twice, or the runs' images or classes differ."""
    first: dict[str, ChosenCheckpoint] = {}
    for member in chosen.members:
        other = first.setdefault(member.checkpoint.parameters_digest, member)
        if other is not member:
            raise UsageError(
                f"Model {member.checkpoint.parameters_digest[:12]} is named twice: {other} and "
                f"{member}. Name each model once."
            )
    if len(chosen.runs) == 1:
        return
    signature = signature_of(chosen.run)
    for run in chosen.runs[1:]:
        if differences := signature.differences(signature_of(run)):
            raise UsageError(
                f"{chosen.run.location} and {run.location} cannot be averaged: they have different "
                f"{'; different '.join(differences)}. Name runs of the same images and classes."
            )


def choose_holder(
    name: ModelName, holder: Holder, storage_options: Mapping[str, str] | None
) -> tuple[ModelChoice, tuple[str, ...]]:
    """Return the checkpoints of a promoted model, and warnings.

    Raises `BadDataError` if they are no longer the ones that were promoted.
    """
    places = name.run_places(holder)
    chosen, warnings = choose_models(places, "", holder.average_shifts, storage_options)
    run_ids = [run.run_id for run in chosen.runs]
    if (run_ids, chosen.digest) != (holder.run_ids, holder.model_digest):
        runs = " and ".join(str(run.location) for run in chosen.runs)
        raise BadDataError(
            f"{name.name} is model {holder.model_digest}; checkpoint {chosen.names} of {runs} is "
            f"now {chosen.digest}: the run was replaced. Restore it, or promote another."
        )
    return chosen, warnings


def _all_snapshots(run: Run, config: TrainConfig) -> list[CheckpointName]:
    """Return the run's snapshots; raise if it is trained without, or one is missing."""
    names, kept = snapshots(config, config.epochs), list_checkpoints(run)
    if not names:
        raise UsageError(
            f"The run {run.location} was trained without --restarts, so it has no snapshots to "
            f"average. Name checkpoints that it keeps: {', '.join(map(str, kept)) or 'none yet'}."
        )
    if kept and (missing := [str(name) for name in names if name not in kept]):
        raise BadDataError(
            f"The run {run.location} lacks {', '.join(missing)} of the snapshots that --checkpoint "
            "average needs. If its training is not finished, continue it with `pipeline train "
            f"--resume`. Otherwise name checkpoints that it keeps: {', '.join(map(str, kept))}."
        )
    return names


def check_shifts(average_shifts: int, image_shape: Sequence[int] | None, place: str) -> None:
    """Raise `UsageError` for shifts out of range, or of images without height and width alone."""
    setting = TrainConfig.__dataclass_fields__["average_shifts"]
    check_range(setting, convert(setting, average_shifts, "The call"))
    if average_shifts and (image_shape is None or len(image_shape) != 2):
        shape = " x ".join(map(str, image_shape or ()))
        images = f"has images of {shape}" if shape else "does not record the shape of its images"
        raise UsageError(
            f"{place} {images}; --average-shifts {average_shifts} needs images of height x width. "
            "Use --average-shifts 0."
        )
