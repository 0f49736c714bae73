"""Models of random parameters, for images and networks of any kind."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.nn.architecture import parse_network
from jobs.nn.network import Network
from jobs.training.model import Member, Model
from jobs.training.trainer import parameters_digest
from storage.checkpoints import CheckpointName
from storage.preparation import BYTES, Preparation, ValueRange

CASES: dict[str, dict[str, Any]] = {
    "bytes": {},
    "bytes not scaled": {"scaling": None},
    "float32": {"element_type": "float32", "scaling": ValueRange(-1.5, 2.5)},
    "float64": {"element_type": "float64", "scaling": ValueRange(0, 1), "dtype": "float64"},
    "int16": {"element_type": "int16", "scaling": ValueRange(-1024, 2036)},
    "int32, far from 0": {"element_type": "int32", "scaling": ValueRange(2e9, 2e9 + 9)},
    "int8, not scaled": {"element_type": "int8", "scaling": None},
    "colours": {"shape": (4, 5, 3)},
    "vectors": {"shape": (7,)},
    "one layer": {"networks": ("softmax",)},
    "float64 arithmetic": {"dtype": "float64"},
    "shifts": {"average_shifts": 2},
    "shifts of a dark range": {"average_shifts": 3, "scaling": ValueRange(100, 200)},
    "members": {"networks": ("relu-6", "softmax", "tanh-3-sigmoid-4"), "average_shifts": 1},
}
"""Arguments of `random_model`, by the name of a test."""


def random_model(
    shape: tuple[int, ...] = (4, 5),
    element_type: str = "uint8",
    scaling: ValueRange | None = BYTES,
    networks: tuple[str, ...] = ("relu-6-sigmoid-5-tanh-4",),
    dtype: str = "float32",
    average_shifts: int = 0,
) -> Model:
    """Return a model of three classes."""
    members, features = [], int(np.prod(shape))
    for number, text in enumerate(networks):
        network = Network(parse_network(text, features, 3), dtype)
        size = network.parameter_count
        parameters = np.random.default_rng(number).normal(0, 1, size).astype(dtype)
        if scaling is None:  # sums of large values would all be in the same part of a sigmoid
            parameters[: network.layers[0].parameter_count] /= 100
        digest = parameters_digest(network.layers, parameters)
        run: Any = SimpleNamespace(dataset_digest="d" * 64)
        members.append(Member(network, parameters, digest, CheckpointName(1, 0), run))
    return Model(
        features,
        ("zero", 'a "b"', "Ä, ö"),
        Preparation(scaling),
        shape,
        element_type,
        (0, 1, 2),
        tuple(members),
        average_shifts,
    )


def random_images(model: Model, rows: int = 40) -> NDArray[Any]:
    """Return images with values in the model's range and, where the type allows, around it."""
    dtype, scaling = np.dtype(model.element_type), model.preparation.scaling or BYTES
    low, high = scaling.low, scaling.high
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        low, high = max(low - 3, limits.min), min(high + 3, limits.max)
    values = np.random.default_rng(9).uniform(low, high, (rows, *(model.image_shape or ())))
    return values.astype(dtype)
