"""A trained model: the network and parameters of one of a run's checkpoints."""

from dataclasses import dataclass
from typing import Any

from jobs.config import TrainConfig
from jobs.history import history_of
from jobs.nn.architecture import parse_network
from jobs.nn.network import Network
from jobs.nn.parameters import Floats
from jobs.train import best_checkpoint
from jobs.trainer import flat_parameters, parameters_digest, template
from storage.checkpoints import (
    Checkpoint,
    CheckpointName,
    list_checkpoints,
    load_checkpoint,
    load_newest,
)
from storage.errors import BadDataError, UsageError
from storage.runs import RECORD, Run


@dataclass(frozen=True)
class Model:
    """What scores rows."""

    network: Network
    parameters: Floats
    digest: str
    """SHA-256 of network, dtype and parameters."""
    checkpoint: CheckpointName
    class_names: tuple[str, ...]
    """In the order of the network's outputs."""
    transforms: tuple[str, ...]
    """Of the dataset that it was trained on."""
    warnings: tuple[str, ...]
    """Checkpoints that were passed over because they are damaged."""


def load_model(run: Run, choice: str) -> Model:
    """The model of the checkpoint `best`, `latest`, or of an epoch's number.

    `best` is the one with the lowest validation cross-entropy or, where the run keeps no
    validation rows, the latest. Raises `BadDataError` where there is none that is sound, and
    `UsageError` for a choice that is none.
    """
    config = TrainConfig.from_json(run.configuration, f"{run.location}/{RECORD}")
    try:
        layers = parse_network(config.network)
    except ValueError as error:
        raise BadDataError(f"{run.location}/{RECORD}: {error}") from error
    names = list_checkpoints(run)
    if not names:
        raise BadDataError(
            f"The run {run.location} has no checkpoint yet. Train it with `pipeline train`."
        )
    tensors = template(config, layers)
    checkpoint, warnings = _choose(run, choice, names, tensors)
    parameters = flat_parameters(layers, checkpoint.tensors)
    digest = parameters_digest(layers, parameters)
    if digest != checkpoint.parameters_digest:
        raise BadDataError(
            f"The parameters of checkpoint {checkpoint.name} have digest {digest}; its manifest "
            f"says {checkpoint.parameters_digest}: it is damaged."
        )
    network = Network(layers, config.dtype)
    class_names, transforms = _trained_on(run, layers[-1].outputs)
    return Model(network, parameters, digest, checkpoint.name, class_names, transforms, warnings)


def _trained_on(run: Run, outputs: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The class names and the transforms of the dataset of a run."""
    names, transforms = (run.dataset.get(field) for field in ("class_names", "transforms"))
    for values in (names, transforms):
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise BadDataError(f"{run.location}/{RECORD} does not say what it was trained on.")
    assert isinstance(names, list) and isinstance(transforms, list)
    if len(set(names)) != outputs or len(names) != outputs:
        raise BadDataError(
            f"{run.location}/{RECORD} has {len(names)} class names for {outputs} outputs."
        )
    return tuple(names), tuple(transforms)


def _choose(
    run: Run, choice: str, names: list[CheckpointName], tensors: dict[str, Any]
) -> tuple[Checkpoint, tuple[str, ...]]:
    if choice not in ("best", "latest"):
        return load_checkpoint(run, _of_epoch(run, choice, names), tensors), ()
    warnings = []
    newest = None
    for found in load_newest(run, tensors):
        if isinstance(found, Checkpoint):
            newest = found
        else:
            warnings.append(f"Checkpoint {found[0]} is not used: {found[1]}")
    assert newest is not None  # load_newest raises where none is sound
    best = best_checkpoint(history_of(newest))
    if choice == "best" and best and best != newest.name:
        return load_checkpoint(run, best, tensors), tuple(warnings)
    return newest, tuple(warnings)


def _of_epoch(run: Run, choice: str, names: list[CheckpointName]) -> CheckpointName:
    if not choice.isascii() or not choice.isdigit():
        raise UsageError(
            f"--checkpoint is {choice!r}; expected best, latest, or the number of an epoch."
        )
    name = CheckpointName(int(choice), 0)
    if name not in names:
        kept = ", ".join(str(found.epoch) for found in names if not found.step)
        raise BadDataError(
            f"The run {run.location} has no checkpoint of epoch {choice}; it keeps those of "
            f"epochs {kept or '(none)'}. Train with a larger --keep to have more."
        )
    return name
