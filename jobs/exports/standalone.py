"""A trained model that needs NumPy alone.

`python model.py IMAGES.npy` prints the class of each image and its probability, as CSV. In Python:

    import model
    model.predict(images)        # the number of the most probable class of each image
    model.predict_proba(images)  # the probability of each class, (rows, classes)

`DESCRIPTION` has the shape and type of the images, the names of the classes, and for each network
whose probabilities are averaged its layers. Its parameters are at the end of the file.
"""

import base64
import csv
import hashlib
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

DESCRIPTION: dict[str, Any] = json.loads(r"""{"members": []}""")
BLOCK_ROWS = 1000
"""Images that are predicted at a time, to bound the memory."""


def predict(images: Any) -> Any:
    """Return the index in `DESCRIPTION["class_names"]` of each image's most probable class."""
    return predict_proba(images).argmax(axis=1)


def predict_proba(images: Any) -> Any:
    """Return the probability of each class for each image: `(rows, classes)` float32.

    Raises ValueError if the images have another shape or type than those of the training.
    """
    array, shape = np.asarray(images), tuple(DESCRIPTION["image_shape"])
    if array.shape[1:] not in (shape, (math.prod(shape),)):
        sizes = ", ".join(map(str, shape))
        raise ValueError(f"The images have shape {array.shape}; expected (rows, {sizes}).")
    starts = range(0, len(array), BLOCK_ROWS)
    blocks = [mean_probabilities(checked(array[start : start + BLOCK_ROWS])) for start in starts]
    classes = len(DESCRIPTION["class_names"])
    return np.concatenate([np.empty((0, classes), np.float32), *blocks])


def checked(images: Any) -> Any:
    """Return images in the training's shape; raise ValueError for another type of values."""
    expected = np.dtype(DESCRIPTION["element_type"])
    values = images
    if expected.kind in "iu" and images.dtype.kind in "biu":
        values = images.astype(expected)
    floats = expected.kind == "f"
    if values.dtype.kind not in ("f" if floats else "iu") or (values != images).any():
        raise ValueError(f"The images have values of type {images.dtype}; expected {expected}.")
    if not np.isfinite(values).all():
        raise ValueError("The images have values that are not finite.")
    return values.reshape(len(values), *DESCRIPTION["image_shape"])


def mean_probabilities(images: Any) -> Any:
    """Return the mean probabilities of all networks for all shifts of the images."""
    total, terms = 0.0, 0
    for shifted in shifts(images):
        for member, layers in zip(DESCRIPTION["members"], LAYERS, strict=True):
            total = total + forward(member, layers, scaled(shifted, member["dtype"]))
            terms += 1
    return np.divide(total, terms).astype(np.float32)


def shifts(images: Any) -> Iterator[Any]:
    """Yield the images, then the images moved up, down, left and right by 1 pixel, and so on."""
    yield images
    most = DESCRIPTION["average_shifts"]
    if most:
        height, width = images.shape[1:]
        border = ((0, 0), (most, most), (most, most))
        padded = np.pad(images, border, constant_values=DESCRIPTION["background"])
        for pixels in range(1, most + 1):
            for down, right in ((-pixels, 0), (pixels, 0), (0, -pixels), (0, pixels)):
                top, left = most - down, most - right
                yield padded[:, top : top + height, left : left + width]


def scaled(images: Any, dtype: str) -> Any:
    """Return images as rows, with the range of the training mapped to [0, 1]."""
    rows = images.reshape(len(images), -1)
    low, high = DESCRIPTION["scaling"] or (0, 1)
    return (np.subtract(rows, low, dtype=np.float64) / (high - low)).astype(dtype)


def forward(member: dict[str, Any], layers: list[Any], rows: Any) -> Any:
    """Return the probabilities that one network computes: `(rows, classes)`."""
    for matrix, activation in zip(layers, member["activations"], strict=True):
        rows = ACTIVATIONS[activation](rows @ matrix[1:] + matrix[0])  # row 0 is the bias
    return rows


def relu(sums: Any) -> Any:
    """Return max(0, x)."""
    return np.maximum(sums, 0)


def sigmoid(sums: Any) -> Any:
    """Return 1 / (1 + exp(-x))."""
    with np.errstate(over="ignore"):  # exp(-x) may be infinite, and its reciprocal 0
        return 1 / (1 + np.exp(-sums))


def softmax(sums: Any) -> Any:
    """Return exp(x) / sum of exp over the row; its largest x is subtracted, to avoid overflow."""
    powers = np.exp(sums - sums.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": relu,
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "softmax": softmax,
}


def load(parameters: str) -> list[list[Any]]:
    """Return each network's layers, `(1 + inputs, outputs)`; raise ValueError if damaged."""
    data, start, networks = base64.b64decode(parameters), 0, []
    for member in DESCRIPTION["members"]:
        widths = [int(width) for width in member["network"].split("-")[::2]]
        digest = hashlib.sha256(f"{member['network']}|{member['dtype']}|".encode())
        layers = []
        for inputs, outputs in pairwise(widths):
            dtype, count = np.dtype(member["dtype"]).newbyteorder("<"), (1 + inputs) * outputs
            matrix = np.frombuffer(data, dtype, count, start)
            digest.update(matrix.tobytes())
            layers.append(matrix.reshape(1 + inputs, outputs))
            start += matrix.nbytes
        if digest.hexdigest() != member["digest"]:
            raise ValueError(f"The parameters do not have the digest {member['digest']}.")
        networks.append(layers)
    return networks


def main() -> None:
    """Print the class of each image in the .npy file that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("Usage: python model.py IMAGES.npy")
    try:
        images = np.lib.format.open_memmap(sys.argv[1], mode="r")
        probabilities = predict_proba(images)
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {sys.argv[1]}: {error}")
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end without an error if head has enough
    output = csv.writer(sys.stdout, lineterminator="\n")
    output.writerow(("row", "predicted", "probability"))
    for row, best in enumerate(probabilities.argmax(axis=1)):
        name = DESCRIPTION["class_names"][best]
        output.writerow((row, name, f"{probabilities[row, best]:.9g}"))


# The parameters of all networks, layer by layer, row by row: little-endian, in base64.
PARAMETERS = """
"""
LAYERS = load(PARAMETERS)

if __name__ == "__main__":
    main()
