"""A trained model: the network and parameters of one of a run's checkpoints."""

import math
from dataclasses import dataclass

from jobs.nn.architecture import parse_network
from jobs.nn.network import Network
from jobs.nn.parameters import Floats
from jobs.training.config import TrainConfig
from jobs.training.select_checkpoint import choose_checkpoint
from jobs.training.trainer import flat_parameters, parameters_digest, template
from storage.checkpoints import Checkpoint, CheckpointName, check_template
from storage.errors import BadDataError
from storage.preparation import BYTE_SCALE, Preparation
from storage.runs import RECORD, Run
from storage.schema import ELEMENT_TYPES


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
    preparation: Preparation
    """The transforms of the training rows; rows to score are scaled by the same numbers."""
    image_shape: tuple[int, ...] | None
    """The shape of the training images; None for runs of older releases, which do not record it."""
    element_type: str | None
    """The type of the stored training images; known for bytes even without a record."""
    warnings: tuple[str, ...]
    """Checkpoints that were passed over because they are damaged."""


def load_model(run: Run, choice: str) -> Model:
    """The model of a checkpoint: see `choose_checkpoint`, which says what is raised."""
    checkpoint, warnings = choose_checkpoint(run, choice)
    return model_of(run, checkpoint, warnings)


def model_of(run: Run, checkpoint: Checkpoint, warnings: tuple[str, ...] = ()) -> Model:
    """Return the model of a checkpoint that was read; `BadDataError` where it is not the run's."""
    config = TrainConfig.from_json(run.configuration, f"{run.location}/{RECORD}")
    try:
        layers = parse_network(config.network)
    except ValueError as error:
        raise BadDataError(f"{run.location}/{RECORD}: {error}") from error
    place = run.location.child(checkpoint.name.key)
    check_template(place, checkpoint.tensors, template(config, layers))
    parameters = flat_parameters(layers, checkpoint.tensors)
    digest = parameters_digest(layers, parameters)
    if digest != checkpoint.parameters_digest:
        raise BadDataError(
            f"The parameters of checkpoint {checkpoint.name} have digest {digest}; its manifest "
            f"says {checkpoint.parameters_digest}: it is damaged."
        )
    network = Network(layers, config.dtype)
    class_names, transforms = _trained_on(run, layers[-1].outputs)
    shape, element_type = _images_of(run)
    if element_type is None and BYTE_SCALE in transforms:
        element_type = "uint8"
    return Model(
        network,
        parameters,
        digest,
        checkpoint.name,
        class_names,
        Preparation.from_names(transforms, f"{run.location}/{RECORD}"),
        shape,
        element_type,
        warnings,
    )


def _images_of(run: Run) -> tuple[tuple[int, ...] | None, str | None]:
    """The shape and the element type of the images that a run was trained on, where it has them."""
    shape, element_type = run.dataset.get("image_shape"), run.dataset.get("element_type")
    sizes = shape if isinstance(shape, list) else []
    known = shape is None or (sizes and all(type(size) is int for size in sizes))
    if not known or element_type not in (None, *ELEMENT_TYPES):
        raise BadDataError(
            f"{run.location}/{RECORD} gives its images the shape {shape!r} and the type "
            f"{element_type!r}; expected sizes and a type of IDX."
        )
    return (None if shape is None else tuple(sizes)), element_type


def check_images(model: Model, place: str, image_shape: tuple[int, ...], element_type: str) -> None:
    """Raise `BadDataError` where images, as they are stored, are not like the model's.

    `place` names where they come from.
    """
    trained, features = model.image_shape, model.network.layers[0].inputs
    if trained is not None and image_shape != trained:
        raise BadDataError(
            f"{place} has images of {_times(image_shape)}; the run was trained on images of "
            f"{_times(trained)}. Give images of that shape."
        )
    if math.prod(image_shape) != features:
        raise BadDataError(
            f"{place} has images of {_times(image_shape)}, {math.prod(image_shape):,} values each; "
            f"the model takes {features:,} values. Give images like those that it was trained on."
        )
    expected = model.element_type
    if expected is None and element_type != "uint8":
        return
    if expected is None or _family(element_type) != _family(expected):
        raise BadDataError(
            f"{place} holds {_values(element_type)}; the run was trained on "
            f"{_values(expected or 'values other than bytes')}. Convert them to the same type and "
            "range."
        )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape)


def _family(element_type: str) -> str:
    """Types whose values are taken for the same: those of all floats are."""
    return "float" if element_type.startswith("float") else element_type


def _values(element_type: str) -> str:
    if element_type == "uint8":
        return "bytes (0 to 255)"
    return element_type if " " in element_type else f"{element_type} values"


def _trained_on(run: Run, outputs: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The class names and the transforms of the dataset of a run."""
    names, transforms = (run.dataset.get(field) for field in ("class_names", "transforms"))
    for values in (names, transforms):
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise BadDataError(f"{run.location}/{RECORD} does not say what it was trained on.")
    assert isinstance(names, list)
    assert isinstance(transforms, list)
    if len(set(names)) != outputs or len(names) != outputs:
        raise BadDataError(
            f"{run.location}/{RECORD} has {len(names)} class names for {outputs} outputs."
        )
    return tuple(names), tuple(transforms)
