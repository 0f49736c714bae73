"""Initial parameters: a pure function of scheme, layers, seed and dtype.

NumPy guarantees that the raw stream of a bit generator never changes, but not the distributions
drawn from it. This module uses `Philox.random_raw` alone, and has its own distributions.
"""

import hashlib
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from jobs.nn.architecture import Layer, count_parameters
from jobs.nn.parameters import Floats, views

DEVIATIONS: dict[str, Callable[[Layer], float]] = {
    # He, Zhang, Ren and Sun, Delving Deep into Rectifiers, 2015, eq. 10
    "he": lambda layer: math.sqrt(2 / layer.inputs),
    # Glorot and Bengio, Understanding the difficulty of training deep feedforward neural
    # networks, 2010, eq. 12
    "glorot": lambda layer: math.sqrt(2 / (layer.inputs + layer.outputs)),
    # LeCun, Bottou, Orr and Mueller, Efficient BackProp, 1998, eq. 16
    "lecun": lambda layer: math.sqrt(1 / layer.inputs),
}
"""The standard deviation of a layer's weights, by the first author of its paper."""


def initialise(
    scheme: str, layers: tuple[Layer, ...], seed: int, dtype: DTypeLike = np.float32
) -> Floats:
    """Return the flat vector of initial parameters, `(parameters,)`, for one of `INITS`.

    Weights are drawn in float64 and rounded to `dtype`. Biases are 0, except with `normal-0.1`,
    which draws them too.
    """
    flat: Floats = np.zeros(count_parameters(layers), dtype)
    for number, (layer, matrix) in enumerate(zip(layers, views(flat, layers), strict=True)):
        if scheme == "normal-0.1":
            matrix[:] = normals(layer.parameter_count, seed, number).reshape(layer.shape) / 10
        else:
            matrix[1:] = _weights(scheme, layer, seed, number)
    return flat


def initialise_memory(layers: tuple[Layer, ...]) -> int:
    """Return the bytes that `initialise` needs at most."""
    return 64 * max(layer.parameter_count for layer in layers)


def _weights(scheme: str, layer: Layer, seed: int, number: int) -> NDArray[np.float64]:
    """Return a layer's weights, `(inputs, outputs)`."""
    if scheme == "scaled":
        scheme = "he-normal" if layer.activation == "relu" else "glorot-normal"
    author, distribution = scheme.split("-")
    deviation = DEVIATIONS[author](layer)
    count = layer.inputs * layer.outputs
    if distribution == "normal":
        weights = normals(count, seed, number) * deviation
    else:
        # The uniform distribution on (-a, a) has the standard deviation a / sqrt(3).
        weights = (2 * uniforms(count, seed, number) - 1) * (math.sqrt(3) * deviation)
    return weights.reshape(layer.inputs, layer.outputs)


def uniforms(count: int, seed: int, layer: int) -> NDArray[np.float64]:
    """Return `count` uniform numbers in the open interval (0, 1): odd multiples of 2^-53.

    The stream is Philox with counter 0. Its key is the first 128 bits, as two little-endian
    integers, of the SHA-256 of `mnist-stream init 1|{seed}|{layer}`.
    """
    digest = hashlib.sha256(f"mnist-stream init 1|{seed}|{layer}".encode("ascii")).digest()
    key = np.frombuffer(digest, "<u8", count=2).astype(np.uint64)
    words = np.random.Philox(key=key, counter=0).random_raw(count)
    odd = (words >> np.uint64(11)) | np.uint64(1)
    return odd.astype(np.float64) * 2.0**-53


def normals(count: int, seed: int, layer: int) -> NDArray[np.float64]:
    """Return `count` standard normal numbers, from `uniforms` (Box and Muller, 1958).

    Logarithm and cosine are the C library's, so a number may differ in its last bit on a platform
    that rounds them differently.
    """
    pairs = (count + 1) // 2
    draws = uniforms(2 * pairs, seed, layer)
    radii = np.sqrt(-2 * np.log(draws[:pairs]))
    angles = 2 * np.pi * draws[pairs:]
    return np.concatenate([radii * np.cos(angles), radii * np.sin(angles)])[:count]
