"""The description of a model in its own file: images, classes, networks and digests.

It is a JSON object. Checkpoints and exported models carry it, so that each can be used alone.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jobs.nn.architecture import format_network, parse_network
from jobs.nn.network import Network
from jobs.nn.parameters import names
from jobs.training.signature import Signature
from pipeline.transforms import background
from storage.scores import average_digest

FORMAT = "mnist-stream model"
FORMAT_VERSION = 1
METADATA = "model"
"""The key of the description, as JSON text, in the metadata of a safetensors file."""
LAYOUT = (
    "Flatten each image to a row and map its values from `scaling` to [0, 1]; null leaves them "
    "unchanged. Each of a member's `tensors` is a layer, (1 + inputs, outputs): row 0 is the bias, "
    "the others are the weights. Its output is activation(row @ weights + bias)."
)


def describe(
    signature: Signature, members: Iterable[Mapping[str, Any]], average_shifts: int
) -> dict[str, Any]:
    """Return the description of a model whose members `describe_member` described."""
    entries = [dict(member) for member in members]
    preparation, element_type = signature.preparation, np.dtype(signature.element_type or "float32")
    scaling = preparation.scaling
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_digest": average_digest([entry["digest"] for entry in entries], average_shifts),
        "image_shape": list(signature.image_shape or (signature.features,)),
        "element_type": element_type.name,
        "scaling": scaling and [scaling.low, scaling.high],
        "transposed": preparation.transposed,
        "class_names": list(signature.class_names),
        "labels": list(signature.labels),
        "average_shifts": average_shifts,
        "background": background(scaling, element_type),
        "members": entries,
    }


def describe_member(network: Network, digest: str, dataset_digest: str) -> dict[str, Any]:
    """Return the description of a network with parameters of this digest."""
    return {
        "digest": digest,
        "dataset_digest": dataset_digest,
        "network": format_network(network.layers),
        "activations": [layer.activation for layer in network.layers],
        "dtype": network.dtype.name,
    }


def tensor_metadata(description: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a safetensors file: the description, with the layout of its tensors.

    A single member's are `layer_0`, `layer_1` and so on; those of several begin with `member_N.`.
    """
    members = description["members"]
    entries = [
        member | {"tensors": tensor_names(member["network"], prefix_of(number, len(members)))}
        for number, member in enumerate(members)
    ]
    # As one text: safetensors writes several entries in random order.
    return {METADATA: json.dumps({**description, "layout": LAYOUT, "members": entries})}


def tensor_names(network: str, prefix: str = "") -> list[str]:
    """Return the names of the tensors of a network, given by its text."""
    return [f"{prefix}{name}" for name in names(parse_network(network))]


def prefix_of(number: int, members: int) -> str:
    """Return what precedes the names of a member's tensors; empty for a single member."""
    return f"member_{number}." if members > 1 else ""
