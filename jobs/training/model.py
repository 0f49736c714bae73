"""A trained model: the network and parameters of one or several of a run's checkpoints."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jobs.choices import DEFAULT_CHECKPOINT, DEFAULT_MODELS, DEFAULT_RUN
from jobs.nn.architecture import Layer, format_network, parse_network
from jobs.nn.network import Network
from jobs.nn.parameters import Floats
from jobs.output import average_text
from jobs.training.config import TrainConfig
from jobs.training.environment import one_blas_thread
from jobs.training.evaluate import Predictor
from jobs.training.select_checkpoint import ModelChoice, choose_holder, choose_model
from jobs.training.trainer import flat_parameters, parameters_digest, template
from pipeline.transforms import add_bias
from pipeline.values import check_values
from storage.checkpoints import Checkpoint, CheckpointName, check_template
from storage.errors import BadDataError, UsageError
from storage.models import held_name
from storage.places import Place, open_location
from storage.preparation import BYTE_SCALE, Preparation
from storage.runs import RECORD, Run, open_run
from storage.schema import ELEMENT_TYPES
from storage.scores import average_digest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A trained network, loaded from a run, which predicts the classes of images.

    It may have several members, whose probabilities are averaged: checkpoints of the same run.
    """

    network: Network
    """The layers and the floating-point type."""
    members: Floats
    """The parameters of each member, layer by layer: `(members, parameters)`."""
    member_digests: tuple[str, ...]
    """SHA-256 of network, dtype and parameters of each member."""
    checkpoints: tuple[CheckpointName, ...]
    """The epoch and step at which each member was saved."""
    average_shifts: int
    """Probabilities are averaged over an image and its shifts by up to this number of pixels."""
    class_names: tuple[str, ...]
    """The name of each class, in the order of the columns of probabilities."""
    preparation: Preparation
    """The transforms of the training images; the same scaling is applied before predicting."""
    image_shape: tuple[int, ...] | None
    """The shape of a training image; None for runs of early releases, which do not record it."""
    element_type: str | None
    """The type of the training images' values; None if it is neither recorded nor uint8."""
    labels: tuple[int, ...] = ()
    """The label of each class in the training files; empty for runs of early releases."""

    @classmethod
    def load(
        cls,
        run: Place = DEFAULT_RUN,
        checkpoint: str | int = DEFAULT_CHECKPOINT,
        storage_options: Mapping[str, str] | None = None,
        average_shifts: int | None = None,
        *,
        model: str | None = None,
        models: Place = DEFAULT_MODELS,
    ) -> "Model":
        """Load the model of one or several of a run's checkpoints.

        Parameters
        ----------
        run
            The run.
        checkpoint
            `best` (lowest validation loss, or the latest without validation), `latest`, an epoch's
            number, or the first 8 or more digits of a model's digest. Several of them with commas
            are averaged; `average` means all snapshots of a run with warm restarts.
        storage_options
            Options of an S3 store, for a run given by its URL.
        average_shifts
            Average over an image and its shifts by 1 to this number of pixels up, down, left and
            right. None: as the run's evaluations do.
        model
            A promoted name, instead of run, checkpoint and shifts.
        models
            The directory or prefix with the promoted names.

        Raises
        ------
        BadDataError
            If there is no such run or checkpoint, or it is damaged, or no longer the promoted one.
        UsageError
            If `checkpoint` is none of these, images cannot be shifted, or no model has the name.
        """
        if model is not None:
            if (run, checkpoint, average_shifts) != (DEFAULT_RUN, DEFAULT_CHECKPOINT, None):
                raise UsageError(
                    f"The name {model!r} determines run, checkpoint and shifts; leave them out."
                )
            promoted = held_name(open_location(models, storage_options), model)
            record, chosen, warnings = choose_holder(*promoted, storage_options)
        else:
            record = open_run(open_location(run, storage_options))
            chosen, warnings = choose_model(record, checkpoint, average_shifts)
        for warning in warnings:
            logger.warning("%s", warning)
        return model_of(record, chosen)

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the model; a single member without shifts has its own."""
        return average_digest(self.member_digests, self.average_shifts)

    @property
    def parameters(self) -> Floats:
        """The parameters of the only member; raises `ValueError` if there are several."""
        parameters: Floats
        (parameters,) = self.members
        return parameters

    @property
    def checkpoint(self) -> CheckpointName:
        """The checkpoint of the only member; raises `ValueError` if there are several."""
        (checkpoint,) = self.checkpoints
        return checkpoint

    @property
    def predictor(self) -> Predictor:
        """The function that computes the probabilities of stored rows."""
        shifts = self.image_shape, self.average_shifts
        return Predictor(self.network, self.members, self.preparation.scaling, *shifts)

    def predict(self, images: ArrayLike) -> NDArray[np.int64]:
        """Return the index in `class_names` of the most probable class of each image, `(rows,)`.

        Parameters and errors are those of `predict_proba`.
        """
        classes: NDArray[np.int64] = self.predict_proba(images).argmax(axis=1)
        return classes

    def predict_proba(self, images: ArrayLike) -> NDArray[np.float32]:
        """Return the probability of each class for each image, `(rows, classes)`.

        Parameters
        ----------
        images
            An array `(rows, height, width)` or `(rows, features)`, upright as the dataset stores
            them, with values of the training images' range. Integers may have any integer type.

        Raises
        ------
        BadDataError
            If the images have another shape or type, or values that are not finite.
        """
        array = self._lossless(np.asarray(images))
        check_images(self, "The array", self._image_shape_of(array), array.dtype.name)
        if array.size:
            check_values(array, self.preparation.scaling, "The array", 0)
        with one_blas_thread():
            return self.predictor(add_bias(array, self.preparation.bias(array.dtype)))[0]

    def _lossless(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return integers of another type as the training images' type, if that holds them all."""
        expected = np.dtype(self.element_type or array.dtype)
        if array.dtype == expected or array.dtype.kind not in "biu" or expected.kind not in "iu":
            return array
        converted = array.astype(expected)
        return converted if (converted == array).all() else array

    def _image_shape_of(self, array: NDArray[Any]) -> tuple[int, ...]:
        """Return the shape of an image in the array; raise `BadDataError` unless it fits."""
        shape, flat = array.shape[1:], (self.network.layers[0].inputs,)
        fits = math.prod(shape) == flat[0] and shape in (flat, self.image_shape or shape)
        if not fits:
            shapes = dict.fromkeys([self.image_shape or ("height", "width"), flat])
            expected = " or ".join(f"(rows, {', '.join(map(str, sizes))})" for sizes in shapes)
            raise BadDataError(f"The array has shape {array.shape}; expected {expected}.")
        return self.image_shape or shape

    def __repr__(self) -> str:
        shape = _times(self.image_shape or (self.network.layers[0].inputs,))
        names = ", ".join(self.class_names[:20]) + ", ..." * (len(self.class_names) > 20)
        noun = "checkpoint" if len(self.checkpoints) == 1 else "checkpoints"
        checkpoints = f"{noun} {', '.join(map(str, self.checkpoints))}"
        average = average_text(len(self.members), self.average_shifts)
        average = f"  {average}\n" if average else ""
        return (
            f"<Model {self.digest[:12]} of {checkpoints}>\n{average}"
            f"  network: {format_network(self.network.layers)}, {self.network.dtype}\n"
            f"  images: {shape} {self.element_type or 'numbers'}, {self.preparation}\n"
            f"  classes: {names}"
        )


def model_of(run: Run, choice: ModelChoice) -> Model:
    """Return the model of loaded checkpoints; raise `BadDataError` if one does not fit the run."""
    place = f"{run.location}/{RECORD}"
    config = TrainConfig.from_json(run.configuration, place)
    try:
        layers = parse_network(config.network)
    except ValueError as error:
        raise BadDataError(f"{place}: {error}") from error
    network = Network(layers, config.dtype)
    members = np.empty((len(choice.checkpoints), network.parameter_count), network.dtype)
    expected = template(config, layers)
    for number, checkpoint in enumerate(choice.checkpoints):
        check_template(run.location.child(checkpoint.name.key), checkpoint.tensors, expected)
        members[number] = _checked_parameters(layers, checkpoint)
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
        network,
        members,
        choice.members,
        tuple(checkpoint.name for checkpoint in choice.checkpoints),
        choice.average_shifts,
        class_names,
        Preparation.from_names(transforms, place),
        shape,
        element_type,
        _labels_of(run, class_names),
    )


def _checked_parameters(layers: tuple[Layer, ...], checkpoint: Checkpoint) -> Floats:
    """Return a checkpoint's parameters; raise `BadDataError` if they have another digest."""
    parameters = flat_parameters(layers, checkpoint.tensors)
    digest = parameters_digest(layers, parameters)
    if digest != checkpoint.parameters_digest:
        raise BadDataError(
            f"The parameters of checkpoint {checkpoint.name} have digest {digest}; its manifest "
            f"has {checkpoint.parameters_digest}: it is damaged."
        )
    return parameters


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


def check_images(model: Model, place: str, image_shape: tuple[int, ...], element_type: str) -> None:
    """Raise `BadDataError` if images at `place` differ from the model's in shape or type."""
    trained, features = model.image_shape, model.network.layers[0].inputs
    if math.prod(image_shape) != features or image_shape != (trained or image_shape):
        raise BadDataError(
            f"{place} has images of {_times(image_shape)}; the run was trained on images of "
            f"{_times(trained or (features,))}. Give images of that shape."
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


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape)


def _family(element_type: str) -> str:
    """Return one name for all floating-point types, which are interchangeable."""
    return "float" if element_type.startswith("float") else element_type
