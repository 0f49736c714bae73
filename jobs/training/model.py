"""A trained model: the networks and parameters of one or several checkpoints."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jobs.choices import DEFAULT_CHECKPOINT, DEFAULT_MODELS, DEFAULT_RUN
from jobs.nn.architecture import Layer, format_network
from jobs.nn.network import Network
from jobs.nn.parameters import Floats
from jobs.output import average_text, member_names
from jobs.training.choose_model import ModelChoice, Runs, choose_holder, choose_models
from jobs.training.config import TrainConfig
from jobs.training.environment import one_blas_thread
from jobs.training.evaluate import Predictor, TrainedNetwork
from jobs.training.signature import (
    Signature,
    check_images,
    layers_of,
    signature_of,
    times_text,
)
from jobs.training.trainer import flat_parameters, parameters_digest, template
from pipeline.transforms import add_bias
from pipeline.values import check_values
from storage.checkpoints import Checkpoint, CheckpointName, check_template
from storage.errors import BadDataError, UsageError
from storage.models import held_name
from storage.places import Place, open_location
from storage.runs import RECORD, Run
from storage.scores import average_digest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class Member(TrainedNetwork):
    """A checkpoint of a run, as a member of a model."""

    digest: str
    """SHA-256 of network, dtype and parameters."""
    checkpoint: CheckpointName
    """The epoch and step at which it was saved."""
    run: Run
    """The run that has the checkpoint."""


@dataclass(frozen=True, eq=False, repr=False)
class Model(Signature):
    """A trained network, loaded from a run, which predicts the classes of images.

    It may have several members, whose probabilities are averaged. They may have different
    networks; their images and classes are the same.
    """

    members: tuple[Member, ...]
    """The networks, at least one, in the order in which they are averaged."""
    average_shifts: int
    """Probabilities are averaged over an image and its shifts by up to this number of pixels."""

    @classmethod
    def load(
        cls,
        run: Runs = DEFAULT_RUN,
        checkpoint: str | int = DEFAULT_CHECKPOINT,
        storage_options: Mapping[str, str] | None = None,
        average_shifts: int | None = None,
        *,
        model: str | None = None,
        models: Place = DEFAULT_MODELS,
    ) -> "Model":
        """Load the model of one or several checkpoints, of one or several runs.

        Parameters
        ----------
        run
            The run, or a list of runs whose models are averaged. `RUN@CHECKPOINT` chooses the
            checkpoint of one of them.
        checkpoint
            `best` (lowest validation loss, or the latest without validation), `latest`, an epoch's
            number, or the first 8 or more digits of a model's digest. Several of them with commas
            are averaged; `average` means all snapshots of a run with warm restarts. Of several runs
            it is chosen for each.
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
            If `checkpoint` is none of these, images cannot be shifted, no model has the name, or
            the runs cannot be averaged.
        """
        if model is not None:
            if (run, checkpoint, average_shifts) != (DEFAULT_RUN, DEFAULT_CHECKPOINT, None):
                raise UsageError(
                    f"The name {model!r} determines run, checkpoint and shifts; leave them out."
                )
            promoted = held_name(open_location(models, storage_options), model)
            chosen, warnings = choose_holder(*promoted, storage_options)
        else:
            chosen, warnings = choose_models(run, checkpoint, average_shifts, storage_options)
        for warning in warnings:
            logger.warning("%s", warning)
        return model_of(chosen)

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the model; a single member without shifts has its own."""
        return average_digest([member.digest for member in self.members], self.average_shifts)

    @property
    def network(self) -> Network:
        """The network of all members; raises `ValueError` if they have different ones."""
        (network,) = {member.network for member in self.members}
        return network

    @property
    def parameters(self) -> Floats:
        """The parameters of the only member; raises `ValueError` if there are several."""
        (member,) = self.members
        return member.parameters

    @property
    def checkpoint(self) -> CheckpointName:
        """The checkpoint of the only member; raises `ValueError` if there are several."""
        (member,) = self.members
        return member.checkpoint

    @property
    def predictor(self) -> Predictor:
        """The function that computes the probabilities of stored rows."""
        shifts = self.image_shape, self.average_shifts
        return Predictor(self.members, self.preparation.scaling, *shifts)

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
        shape, flat = array.shape[1:], (self.features,)
        fits = math.prod(shape) == flat[0] and shape in (flat, self.image_shape or shape)
        if not fits:
            shapes = dict.fromkeys([self.image_shape or ("height", "width"), flat])
            expected = " or ".join(f"(rows, {', '.join(map(str, sizes))})" for sizes in shapes)
            raise BadDataError(f"The array has shape {array.shape}; expected {expected}.")
        return self.image_shape or shape

    def __repr__(self) -> str:
        shape = times_text(self.image_shape or (self.features,))
        names = ", ".join(self.class_names[:20]) + ", ..." * (len(self.class_names) > 20)
        noun = "checkpoint" if len(self.members) == 1 else "checkpoints"
        checkpoints = [str(member.checkpoint) for member in self.members]
        runs = [str(member.run.location) for member in self.members]
        members = member_names(runs if len(set(runs)) > 1 else [], ",".join(checkpoints))
        networks = dict.fromkeys(
            f"{format_network(member.network.layers)}, {member.network.dtype}"
            for member in self.members
        )
        average = average_text(len(self.members), self.average_shifts, members)
        average = f"  {average}\n" if average else ""
        return (
            f"<Model {self.digest[:12]} of {noun} {', '.join(checkpoints)}>\n{average}"
            f"  network: {'; '.join(networks)}\n"
            f"  images: {shape} {self.element_type or 'numbers'}, {self.preparation}\n"
            f"  classes: {names}"
        )


def model_of(choice: ModelChoice) -> Model:
    """Return the model of loaded checkpoints; raise `BadDataError` if one does not fit its run."""
    members = tuple(_member(chosen.run, chosen.checkpoint) for chosen in choice.members)
    signature = signature_of(choice.run)
    return Model(**vars(signature), members=members, average_shifts=choice.average_shifts)


def _member(run: Run, checkpoint: Checkpoint) -> Member:
    layers = layers_of(run)
    config = TrainConfig.from_json(run.configuration, f"{run.location}/{RECORD}")
    place = run.location.child(checkpoint.name.key)
    check_template(place, checkpoint.tensors, template(config, layers))
    network, parameters = Network(layers, config.dtype), checked_parameters(layers, checkpoint)
    return Member(network, parameters, checkpoint.parameters_digest, checkpoint.name, run)


def checked_parameters(layers: tuple[Layer, ...], checkpoint: Checkpoint) -> Floats:
    """Return a checkpoint's parameters; raise `BadDataError` if they have another digest."""
    parameters = flat_parameters(layers, checkpoint.tensors)
    digest = parameters_digest(layers, parameters)
    if digest != checkpoint.parameters_digest:
        raise BadDataError(
            f"The parameters of checkpoint {checkpoint.name} have digest {digest}; its manifest "
            f"has {checkpoint.parameters_digest}: it is damaged."
        )
    return parameters
