"""A trained model: the network and parameters of one of a run's checkpoints."""

from dataclasses import dataclass

from jobs.choice import choose_checkpoint
from jobs.config import TrainConfig
from jobs.nn.architecture import parse_network
from jobs.nn.network import Network
from jobs.nn.parameters import Floats
from jobs.training.trainer import flat_parameters, parameters_digest, template
from storage.checkpoints import CheckpointName
from storage.errors import BadDataError
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
    """The model of a checkpoint: see `choose_checkpoint`, which says what is raised."""
    config = TrainConfig.from_json(run.configuration, f"{run.location}/{RECORD}")
    try:
        layers = parse_network(config.network)
    except ValueError as error:
        raise BadDataError(f"{run.location}/{RECORD}: {error}") from error
    checkpoint, warnings = choose_checkpoint(run, choice, template(config, layers))
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
    assert isinstance(names, list)
    assert isinstance(transforms, list)
    if len(set(names)) != outputs or len(names) != outputs:
        raise BadDataError(
            f"{run.location}/{RECORD} has {len(names)} class names for {outputs} outputs."
        )
    return tuple(names), tuple(transforms)
