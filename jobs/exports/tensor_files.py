"""Models in safetensors files, and in Python files that need NumPy alone."""

import base64
import json
from importlib.resources import files

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from jobs.exports.contents import (
    Content,
    check_description,
    check_parameters,
    description_of,
    with_file_digest,
)
from jobs.nn.architecture import count_parameters
from jobs.nn.parameters import Floats, views
from jobs.nn.parameters import names as layer_names
from jobs.training.description import METADATA, prefix_of, tensor_metadata
from jobs.training.model import Model
from storage.errors import BadDataError

TEMPLATE = "standalone.py"
"""The module, beside this one, that becomes a model's file."""
DESCRIPTION = ('json.loads(r"""', '""")\n')
PARAMETERS = ('\nPARAMETERS = """', '"""\n')
"""What precedes and follows the two texts in it."""
LINE = 100
"""Characters of a line of parameters."""


def write_safetensors(model: Model) -> bytes:
    """Return a model as a file with a tensor for each layer."""
    metadata = tensor_metadata(description_of(model))
    tensors = {}
    for number, member in enumerate(model.members):
        layers = member.network.layers
        prefix = prefix_of(number, len(model.members))
        for name, matrix in zip(layer_names(layers), views(member.parameters, layers), strict=True):
            tensors[f"{prefix}{name}"] = np.asarray(matrix, order="C")
    return with_file_digest(save_safetensors(tensors, metadata))


def read_safetensors(data: bytes, place: str, *, is_checkpoint: bool = False) -> Content:
    """Return the content of a file or a checkpoint; raise `BadDataError` if it is damaged."""
    try:
        tensors = load_safetensors(data)  # checks the header too
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        description = json.loads(header.get("__metadata__", {}).get(METADATA, "{}"))
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadDataError(f"{place} is not in safetensors format ({error}).") from error
    parameters = []
    networks = check_description(description, data, place, is_checkpoint=is_checkpoint)
    for number, layers in enumerate(networks):
        names = [f"{prefix_of(number, len(networks))}{name}" for name in layer_names(layers)]
        if missing := [name for name in names if name not in tensors]:
            raise BadDataError(f"{place} lacks the tensor {missing[0]}. Export it again.")
        parameters.append(np.concatenate([tensors[name].reshape(-1) for name in names]))
    return check_parameters(description, parameters, place)


def write_python(model: Model) -> bytes:
    """Return a model as a Python file: the template with its description and parameters."""
    parts = [
        member.parameters.astype(member.parameters.dtype.newbyteorder("<"), copy=False).tobytes()
        for member in model.members
    ]
    text = base64.b64encode(b"".join(parts)).decode()
    lines = [text[start : start + LINE] for start in range(0, len(text), LINE)]
    source = files(__package__).joinpath(TEMPLATE).read_text()
    entries = description_of(model).items()
    fields = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in entries)
    source = _replaced(source, DESCRIPTION, f"{{\n{fields}\n}}")
    return with_file_digest(_replaced(source, PARAMETERS, "\n".join(["", *lines, ""])).encode())


def read_python(data: bytes, place: str) -> Content:
    """Return the content of a file without running it; raise `BadDataError` if it is damaged."""
    try:
        source = data.decode()
        description = json.loads(_text_between(source, DESCRIPTION))
        values = base64.b64decode(_text_between(source, PARAMETERS))
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"{place} is not a model exported to Python ({error}).") from error
    networks = check_description(description, data, place)
    parameters: list[Floats] = []
    start = 0
    for member, layers in zip(description["members"], networks, strict=True):
        dtype, count = np.dtype(member["dtype"]).newbyteorder("<"), count_parameters(layers)
        if len(values) - start < count * dtype.itemsize:
            raise BadDataError(f"{place} lacks some of its parameters. Export it again.")
        parameters.append(np.frombuffer(values, dtype, count, start))
        start += count * dtype.itemsize
    return check_parameters(description, parameters, place)


def _replaced(source: str, ends: tuple[str, str], text: str) -> str:
    """Return source code with another text between two ends, of which it has one pair."""
    before, _, rest = source.partition(ends[0])
    return "".join([before, ends[0], text, ends[1], rest.partition(ends[1])[2]])


def _text_between(source: str, ends: tuple[str, str]) -> str:
    _, start, rest = source.partition(ends[0])
    text, stop, _ = rest.partition(ends[1])
    if not start or not stop:
        raise ValueError(f"it has no line {ends[0].strip()!r}")
    return text
