"""Warm start: begin a run with the parameters of a checkpoint of another run, its parent."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jobs.choices import DEFAULT_CHECKPOINT
from jobs.nn.architecture import Layer, format_hidden, parse_network
from jobs.nn.initialise import initialise
from jobs.nn.parameters import Floats, views
from jobs.training.choose_model import ChosenCheckpoint, ModelChoice
from jobs.training.config import TrainConfig
from jobs.training.model import model_of
from jobs.training.rounds import initial_state
from jobs.training.select_checkpoint import (
    AVERAGE,
    DIGEST,
    choose_checkpoint,
    position_of,
    split_checkpoint,
)
from jobs.training.signature import Signature, check_images, signature_of
from jobs.training.step import optimizer_of
from jobs.training.trainer import Start, saved_state, steps_taken
from storage.checkpoints import Checkpoint, CheckpointName
from storage.dataset import Dataset
from storage.errors import BadDataError, ConflictError, UsageError
from storage.events import event
from storage.location import Location
from storage.places import Place, is_same_place, open_location, recorded_place
from storage.runs import Run, open_run

logger = logging.getLogger(__name__)

START_VERSION = 1
"""The version of how parameters are taken over from a parent."""
INHERITED = ("network", "dtype")
"""The settings that a run has from its parent."""
OF_OPTIMIZER = ("optimizer", "momentum", "beta1", "beta2")
"""The settings that give the vectors of an optimizer their meaning."""
CHANGES = {
    "kept": "",
    "reordered": "; the outputs are in the order of the dataset's classes",
    "new": "; the last layer is new, because the dataset has other classes",
}
"""What becomes of the last layer, as the end of a sentence."""
ANY_TIME = ("best", "latest")
"""The choices of a checkpoint that may mean another one later."""


@dataclass(frozen=True, eq=False)
class Parent:
    """The checkpoint that a run is started from, without its tensors."""

    run: Run
    checkpoint: CheckpointName
    digest: str
    """SHA-256 of network, dtype and parameters."""
    config: TrainConfig
    layers: tuple[Layer, ...]
    signature: Signature
    """The images and classes that the parent was trained on."""

    def __str__(self) -> str:
        return f"checkpoint {self.checkpoint} of {self.run.location}"

    @property
    def settings(self) -> dict[str, str]:
        """The settings that a run has from its parent: `INHERITED`."""
        return {"network": format_hidden(self.layers), "dtype": self.config.dtype}

    def record(self, location: Location, *, optimizer: bool) -> dict[str, Any]:
        """Return what run.json records of the parent of a run at `location`."""
        return {
            "place": recorded_place(self.run.location, location),
            "run_id": self.run.run_id,
            "checkpoint": str(self.checkpoint),
            "model_digest": self.digest,
            "optimizer": optimizer,
        }


def open_parent(
    parent: Place, run: Location, storage_options: Mapping[str, str] | None = None
) -> Parent:
    """Return the checkpoint that `RUN` or `RUN@CHECKPOINT` names, for a new run at `run`.

    Raises `UsageError` for an empty text, an average, or the run itself, and `BadDataError` if
    there is no such run or checkpoint, or it is damaged.
    """
    place, choice = _place_and_choice(parent, storage_options)
    if is_same_place(place, run):
        raise UsageError(f"--from is {place}, the run to train. Choose another --run.")
    chosen = open_run(place)
    checkpoint, warnings = choose_checkpoint(chosen, choice)
    for warning in warnings:
        logger.warning("%s", warning)
    return _parent(chosen, checkpoint)


def _place_and_choice(
    parent: Place, storage_options: Mapping[str, str] | None
) -> tuple[Location, str]:
    """Return the location and the choice of a checkpoint in `RUN@CHECKPOINT`."""
    place, given = split_checkpoint(parent, storage_options)
    choice, text = DEFAULT_CHECKPOINT if given is None else given, str(parent)
    if not str(place).strip():
        raise UsageError(
            f"--from is {text!r}; expected a run, or RUN@CHECKPOINT such as runs/mnist@best."
        )
    if choice == AVERAGE or "," in choice:
        raise UsageError(
            f"--from is {text!r}; an average of checkpoints has no parameters to start from. Name "
            "one checkpoint."
        )
    if choice not in ANY_TIME and position_of(choice) is None and not DIGEST.fullmatch(choice):
        raise UsageError(
            f"--from is {text!r}; expected best, latest, the number of an epoch, or the first 8 or "
            "more digits of a model's digest after the last @."
        )
    return open_location(place, storage_options), choice


def _parent(run: Run, checkpoint: Checkpoint) -> Parent:
    """Return a checkpoint as a parent; raise `BadDataError` if it does not fit its run."""
    model = model_of(ModelChoice((ChosenCheckpoint(run, checkpoint),)))
    layers, signature = model.network.layers, signature_of(run)
    config = TrainConfig.from_json(run.configuration, str(run.location))
    return Parent(run, checkpoint.name, model.digest, config, layers, signature)


def check_parent(parent: Parent, config: TrainConfig, dataset: Dataset, *, optimizer: bool) -> None:
    """Raise `PipelineError` unless a run with this configuration and dataset can start from it."""
    _check_images(parent, dataset)
    hidden = format_hidden(parse_network(config.network))
    own = {"network": hidden, "dtype": config.dtype}
    for name, value in parent.settings.items():
        if own[name] != value:
            raise UsageError(
                f"--{name} is {own[name]}; {parent} has {value}, which a run from it keeps. Leave "
                f"--{name} out, or leave --from out."
            )
    change = _change_of_classes(parent, dataset)
    if change == "new" and len(parent.layers) == 1:
        raise UsageError(
            f"The network of {parent} has no hidden layer, and {dataset.location} has other "
            "classes, so no parameter could be kept. Leave --from out."
        )
    if optimizer:
        _check_optimizer(parent, config)
        if change != "kept":
            raise UsageError(
                f"--from-optimizer needs the parent's classes in the same order, and "
                f"{dataset.location} has others. Leave --from-optimizer out."
            )


def _check_images(parent: Parent, dataset: Dataset) -> None:
    """Raise `BadDataError` unless the dataset's images are prepared like the parent's."""
    signature, schema = parent.signature, dataset.split("train").schema
    try:
        check_images(signature, str(dataset.location), dataset.image_shape, schema.dtype)
    except BadDataError as error:
        raise BadDataError(f"A run on other images cannot start from {parent}: {error}") from error
    given, expected = dataset.preparation, signature.preparation
    if (given.scaling, given.transposed) != (expected.scaling, expected.transposed):
        raise BadDataError(
            f"{dataset.location} has its {given}; {parent} was trained with {expected}. Ingest the "
            "files again with the same --scale and --transpose."
        )


def _check_optimizer(parent: Parent, config: TrainConfig) -> None:
    """Raise `UsageError` unless the parent's optimizer can continue with this configuration."""
    if "rounds" in (config.parallel, parent.config.parallel):
        raise UsageError(
            "--from-optimizer needs --parallel steps, in the parent too: each replica of rounds "
            "has an optimizer of its own. Leave it out."
        )
    if optimizer_of(config) != optimizer_of(parent.config):
        differing = [
            f"{name} {getattr(parent.config, name)}, not {getattr(config, name)}"
            for name in OF_OPTIMIZER
            if getattr(parent.config, name) != getattr(config, name)
        ]
        raise UsageError(
            f"--from-optimizer needs the parent's optimizer: {parent} has {'; '.join(differing)}. "
            "Give the same settings, or leave --from-optimizer out."
        )


def check_recorded_parent(
    run: Run | None,
    parent: Place | None,
    storage_options: Mapping[str, str] | None = None,
    *,
    optimizer: bool,
) -> None:
    """Raise `ConflictError` if a run was not started from `parent`; nothing is read of it.

    `best` and `latest` mean what they meant when the run was started. Raises `UsageError` for
    `optimizer` without a parent.
    """
    if parent is None:
        if optimizer:
            raise UsageError("--from-optimizer needs --from RUN, whose optimizer it continues.")
        return
    if run is None:
        return
    recorded = run.parent
    if recorded is None:
        raise ConflictError(
            f"The run {run.location} was not started from another run. Leave --from out, or "
            "choose another --run."
        )
    place, choice = _place_and_choice(parent, storage_options)
    checkpoint, digest = recorded["checkpoint"], recorded["model_digest"]
    is_same = choice in ANY_TIME or str(position_of(choice)) == checkpoint
    is_same = is_same or bool(DIGEST.fullmatch(choice) and digest.startswith(choice))
    recorded_run = open_location(run.parent_place or "", storage_options)
    if not is_same_place(place, recorded_run) or not is_same:
        raise ConflictError(
            f"The run {run.location} was started from checkpoint {checkpoint} of {recorded_run}, "
            f"model {digest[:12]}; --from is {parent}. Leave --from out, or choose another --run."
        )
    if optimizer and not recorded["optimizer"]:
        raise ConflictError(
            f"The run {run.location} was started without the optimizer's state of its parent. "
            "Leave --from-optimizer out, or choose another --run."
        )


def starting_state(
    run: Run,
    config: TrainConfig,
    dataset: Dataset,
    storage_options: Mapping[str, str] | None = None,
) -> Start | None:
    """Return the state that a run with a parent starts from; None for a run without.

    Raises `BadDataError` if the parent's checkpoint is missing, damaged, or no longer the same.
    """
    if run.parent is None:
        return None
    parent, checkpoint = _recorded_parent(run, storage_options)
    check_parent(parent, config, dataset, optimizer=run.parent["optimizer"])
    change, optimizer = _change_of_classes(parent, dataset), run.parent["optimizer"]
    with_state = ", with the state of its optimizer" if optimizer else ""
    event(
        logger,
        "parent",
        f"Started from {parent}{with_state}{CHANGES[change]}",
        parent=run.parent_checkpoint,
        model_digest=parent.digest,
        optimizer=optimizer,
        last_layer=change,
    )
    saved = saved_state(parent.config, parent.layers, checkpoint.tensors, checkpoint.progress)
    if optimizer:
        steps = saved.optimizer_steps + steps_taken(checkpoint.progress)
        return replace(saved, optimizer_steps=steps)
    parameters = _adapted(saved.parameters, parent, config, dataset)
    return Start(parameters, initial_state(config, parameters))


def _recorded_parent(
    run: Run, storage_options: Mapping[str, str] | None
) -> tuple[Parent, Checkpoint]:
    """Return the parent that a run records; raise `BadDataError` if it is not there any more."""
    recorded = run.parent or {}
    digest = recorded["model_digest"]
    lost = f"The run {run.location} cannot start from its parent again"
    advice = "Restore that checkpoint, or train another run from one that is still kept."
    try:
        parent_run = open_run(open_location(run.parent_place or "", storage_options))
        checkpoint, _ = choose_checkpoint(parent_run, recorded["checkpoint"])
        parent = _parent(parent_run, checkpoint)
    except BadDataError as error:
        raise BadDataError(f"{lost}: {error} {advice}") from error
    if (parent_run.run_id, parent.digest) != (recorded["run_id"], digest):
        raise BadDataError(
            f"{lost}: {parent} is now model {parent.digest[:12]}; expected {digest[:12]}. {advice}"
        )
    return parent, checkpoint


def _change_of_classes(parent: Parent, dataset: Dataset) -> str:
    """Return what becomes of the last layer: it is `kept`, `reordered` or `new`."""
    before, after = parent.signature.class_names, dataset.class_names
    if before == after:
        return "kept"
    return "reordered" if {*before} == {*after} else "new"


def _adapted(parameters: Floats, parent: Parent, config: TrainConfig, dataset: Dataset) -> Floats:
    """Return the parent's parameters with a last layer for the dataset's classes."""
    change, names = _change_of_classes(parent, dataset), parent.signature.class_names
    if change == "kept":
        return parameters
    if change == "reordered":
        last = views(parameters, parent.layers)[-1]
        last[:] = last[:, [names.index(name) for name in dataset.class_names]]
        return parameters
    layers = parse_network(config.network)
    adapted = initialise(config.init, layers, config.seed, config.dtype)
    kept = views(parameters, parent.layers)[:-1]
    for matrix, trained in zip(views(adapted, layers), kept, strict=False):
        matrix[:] = trained
    return adapted
