"""The signature of a model: the images that it takes and the classes that it distinguishes."""

import math
from dataclasses import dataclass
from typing import Any

from jobs.nn.architecture import Layer, parse_network
from jobs.training.config import TrainConfig
from storage.errors import BadDataError
from storage.preparation import BYTE_SCALE, Preparation
from storage.runs import RECORD, Run
from storage.schema import ELEMENT_TYPES

SHOWN = 10
"""Classes that a message names at most."""


@dataclass(frozen=True, eq=False)
class Signature:
    """The images that a model takes, and the classes that it distinguishes."""

    features: int
    """The values of an image."""
    class_names: tuple[str, ...]
    """The name of each class, in the order of the columns of probabilities."""
    preparation: Preparation
    """The transforms of the training images; the same scaling is applied before predicting."""
    image_shape: tuple[int, ...] | None
    """The shape of a training image; None for runs of early releases, which do not record it."""
    element_type: str | None
    """The type of the training images' values; None if it is neither recorded nor uint8."""
    labels: tuple[int, ...]
    """The label of each class in the training files; empty for runs of early releases."""

    def differences(self, other: "Signature") -> list[str]:
        """Return each difference as a text that has this signature's value first.

        What one of them does not record is not compared.
        """
        pairs = [
            ("classes", self.class_names, other.class_names),
            ("labels", self.labels, other.labels),
            ("image shapes", *self._shapes(other)),
            ("element types", _family(self.element_type), _family(other.element_type)),
            ("ranges of values", self._range, other._range),
            ("orientations", self._orientation, other._orientation),
        ]
        return [
            f"{name} ({_text(own)} and {_text(others)})"
            for name, own, others in pairs
            if own and others and own != others
        ]

    def _shapes(self, other: "Signature") -> tuple[str, str]:
        shapes = [self.image_shape, other.image_shape]
        if None in shapes:
            shapes = [(self.features,), (other.features,)]
        first, second = (times_text(shape or ()) for shape in shapes)
        return first, second

    @property
    def _range(self) -> str:
        return str(self.preparation.scaling or "none")

    @property
    def _orientation(self) -> str:
        return "transposed" if self.preparation.transposed else "not transposed"


def layers_of(run: Run) -> tuple[Layer, ...]:
    """Return the layers of a run's network; raise `BadDataError` if its record is damaged."""
    place = f"{run.location}/{RECORD}"
    try:
        return parse_network(TrainConfig.from_json(run.configuration, place).network)
    except ValueError as error:
        raise BadDataError(f"{place}: {error}") from error


def signature_of(run: Run) -> Signature:
    """Return the signature of a run's models from its record.

    Raises `BadDataError` if the record is damaged, or if its network has another number of classes.
    """
    layers = layers_of(run)
    class_names = _texts(run, "class_names")
    if len(class_names) != layers[-1].outputs or len(set(class_names)) != len(class_names):
        raise BadDataError(
            f"{run.location}/{RECORD} has {len(class_names)} class names for {layers[-1].outputs} "
            "outputs."
        )
    transforms = _texts(run, "transforms")
    shape, element_type = _images_of(run)
    if element_type is None and BYTE_SCALE in transforms:
        element_type = "uint8"
    preparation = Preparation.from_names(transforms, f"{run.location}/{RECORD}")
    labels = _labels_of(run, class_names)
    return Signature(layers[0].inputs, class_names, preparation, shape, element_type, labels)


def _texts(run: Run, name: str) -> tuple[str, ...]:
    """Return a list of texts from a run's record of its dataset."""
    values = run.dataset.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadDataError(f"{run.location}/{RECORD} has no list of {name}; it is damaged.")
    return tuple(values)


def _labels_of(run: Run, class_names: tuple[str, ...]) -> tuple[int, ...]:
    """Return the label of each class in the training files, if a run records them."""
    labels = run.dataset.get("labels", [])
    integers = isinstance(labels, list) and all(type(label) is int for label in labels)
    if not integers or {len(labels), len(set(labels))} not in ({0}, {len(class_names)}):
        raise BadDataError(
            f"{run.location}/{RECORD} has the labels {labels!r}; expected an integer for each of "
            f"{len(class_names):,} classes."
        )
    return tuple(labels)


def _images_of(run: Run) -> tuple[tuple[int, ...] | None, str | None]:
    """Return the shape and the element type of a run's training images, if they are recorded."""
    shape, element_type = run.dataset.get("image_shape"), run.dataset.get("element_type")
    sizes = shape if isinstance(shape, list) else []
    known = shape is None or (sizes and all(type(size) is int for size in sizes))
    if not known or element_type not in (None, *ELEMENT_TYPES):
        raise BadDataError(
            f"{run.location}/{RECORD} gives its images the shape {shape!r} and the type "
            f"{element_type!r}; expected sizes and an element type of IDX files."
        )
    return (None if shape is None else tuple(sizes)), element_type


def check_images(
    model: Signature, place: str, image_shape: tuple[int, ...], element_type: str
) -> None:
    """Raise `BadDataError` if images at `place` differ from the model's in shape or type."""
    trained, features = model.image_shape, model.features
    if math.prod(image_shape) != features or image_shape != (trained or image_shape):
        raise BadDataError(
            f"{place} has images of {times_text(image_shape)}; the run was trained on images of "
            f"{times_text(trained or (features,))}. Give images of that shape."
        )
    expected = model.element_type
    if expected is None and element_type != "uint8":
        return  # a run of an early release records no type, only that it was not bytes
    if expected is None or _family(element_type) != _family(expected):
        raise BadDataError(
            f"{place} holds values of type {element_type}; the run was trained on values of "
            f"{f'type {expected}' if expected else 'another type'}. Convert them to the same type "
            "and range."
        )


def times_text(shape: tuple[int, ...]) -> str:
    """Return sizes as `28 x 28`."""
    return " x ".join(f"{size:,}" for size in shape)


def _text(value: Any) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return ", ".join(map(str, value[:SHOWN])) + ", ..." * (len(value) > SHOWN)


def _family(element_type: str | None) -> str | None:
    """Return one name for all floating-point types, which are interchangeable."""
    is_float = element_type is not None and element_type.startswith("float")
    return "float" if is_float else element_type
