"""A trained model: the network and parameters of one of a run's checkpoints."""

import math
from dataclasses import dataclass

from jobs.nn.architecture import parse_network
from jobs.nn.network import Network
from jobs.nn.parameters import Floats
from jobs.training.config import TrainConfig
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


def model_of(run: Run, checkpoint: Checkpoint) -> Model:
    """Return the model of a checkpoint that was read; `BadDataError` where it is not the run's."""
    place = f"{run.location}/{RECORD}"
    config = TrainConfig.from_json(run.configuration, place)
    try:
        layers = parse_network(config.network)
    except ValueError as error:
        raise BadDataError(f"{place}: {error}") from error
    tensors = run.location.child(checkpoint.name.key)
    check_template(tensors, checkpoint.tensors, template(config, layers))
    parameters = flat_parameters(layers, checkpoint.tensors)
    digest = parameters_digest(layers, parameters)
    if digest != checkpoint.parameters_digest:
        raise BadDataError(
            f"The parameters of checkpoint {checkpoint.name} have digest {digest}; its manifest "
            f"says {checkpoint.parameters_digest}: it is damaged."
        )
    class_names = _texts(run, "class_names")
    if len(class_names) != layers[-1].outputs or len(set(class_names)) != len(class_names):
        raise BadDataError(
            f"{place} has {len(class_names)} class names for {layers[-1].outputs} outputs."
        )
    transforms = _texts(run, "transforms")
    shape, element_type = _images_of(run)
    if element_type is None and BYTE_SCALE in transforms:
        element_type = "uint8"
    return Model(
        Network(layers, config.dtype),
        parameters,
        digest,
        checkpoint.name,
        class_names,
        Preparation.from_names(transforms, place),
        shape,
        element_type,
    )


def _texts(run: Run, name: str) -> tuple[str, ...]:
    """Return a field of what a run records of its dataset."""
    values = run.dataset.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadDataError(f"{run.location}/{RECORD} has no list of {name}; it is damaged.")
    return tuple(values)


def _images_of(run: Run) -> tuple[tuple[int, ...] | None, str | None]:
    """Return the shape and the element type of the images that a run was trained on, if known."""
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
    """Raise `BadDataError` where images, as stored at `place`, are not like the model's."""
    trained, features = model.image_shape, model.network.layers[0].inputs
    if math.prod(image_shape) != features or image_shape != (trained or image_shape):
        raise BadDataError(
            f"{place} has images of {_times(image_shape)}; the run was trained on images of "
            f"{_times(trained or (features,))}. Give images of that shape."
        )
    expected = model.element_type
    if expected is None and element_type != "uint8":
        return  # all that is known of a run of an older release: its images are not bytes
    if expected is None or _family(element_type) != _family(expected):
        raise BadDataError(
            f"{place} holds values of type {element_type}; the run was trained on values of "
            f"{f'type {expected}' if expected else 'another type'}. Convert them to the same type "
            "and range."
        )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape)


def _family(element_type: str) -> str:
    """Return the same for types whose values are taken for the same: all floats."""
    return "float" if element_type.startswith("float") else element_type
