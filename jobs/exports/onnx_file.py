"""A model as an ONNX graph: raw images in, probabilities and class out."""

import json
from importlib.metadata import version
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, checker, helper, numpy_helper

from jobs.exports.contents import (
    Content,
    check_description,
    check_parameters,
    description_of,
    with_file_digest,
)
from jobs.nn.architecture import OUTPUT_ACTIVATION, count_parameters
from jobs.nn.parameters import names as layer_names
from jobs.nn.parameters import views
from jobs.training.description import prefix_of
from jobs.training.evaluate import DIRECTIONS
from jobs.training.model import Member, Model
from pipeline.transforms import background, scale
from storage.errors import BadDataError, UsageError
from storage.preparation import BYTES

OPSET, IR_VERSION = 13, 7
"""The oldest versions that have all operators; runtimes since 2020 read them."""
LARGEST = 2**31 - 2**20
"""The most bytes of parameters: protobuf's limit, with room for the rest."""
PARTS = ("bias", "weight")
"""The two constants of a layer, in the order of the parameters."""
OPERATORS = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softmax": "Softmax"}
TEXTS = {"format", "model_digest", "file_digest", "element_type"}
"""Entries of the metadata that are text as it is; the others are JSON."""


def write_onnx(model: Model) -> bytes:
    """Return the file of a model; raise `UsageError` if it would be too large."""
    size = sum(member.parameters.nbytes for member in model.members)
    if size > LARGEST:
        raise UsageError(
            f"The model has {size:,} bytes of parameters; ONNX files hold at most {LARGEST:,}. "
            "Export it to .safetensors."
        )
    exported = helper.make_model(
        _Graph(model).build(),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="mnist-stream",
        producer_version=version("mnist-stream"),
    )
    entries = description_of(model).items()
    texts = {name: value if name in TEXTS else json.dumps(value) for name, value in entries}
    helper.set_model_props(exported, texts)
    checker.check_model(exported, full_check=True)
    return with_file_digest(exported.SerializeToString(deterministic=True))


def read_onnx(data: bytes, place: str) -> Content:
    """Return the content of a file; raise `BadDataError` if it is damaged or not an export."""
    try:
        exported = ModelProto.FromString(data)
        texts = {entry.key: entry.value for entry in exported.metadata_props}
        description = {
            name: value if name in TEXTS else json.loads(value) for name, value in texts.items()
        }
    except (DecodeError, ValueError, RecursionError) as error:
        raise BadDataError(f"{place} is not an exported ONNX model ({error}).") from error
    networks = check_description(description, data, place)
    constants = {constant.name: constant for constant in exported.graph.initializer}
    parameters = []
    for number, (member, layers) in enumerate(zip(description["members"], networks, strict=True)):
        prefix = prefix_of(number, len(networks))
        names = [f"{prefix}{name}.{part}" for name in layer_names(layers) for part in PARTS]
        if missing := [name for name in names if name not in constants]:
            raise BadDataError(f"{place} lacks the constant {missing[0]}. Export it again.")
        # Without numpy_helper.to_array, which would open files that a constant names.
        values = b"".join(constants[name].raw_data for name in names)
        dtype = np.dtype(member["dtype"]).newbyteorder("<")
        if len(values) != count_parameters(layers) * dtype.itemsize:
            raise BadDataError(f"{place} has constants of another size. Export it again.")
        parameters.append(np.frombuffer(values, dtype))
    return check_parameters(description, parameters, place)


class _Graph:
    """Collects the nodes and constants of a model's graph."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._scaling = model.preparation.scaling
        self._shape = model.image_shape or (model.features,)
        self._stored = np.dtype(model.element_type or "float32")
        self._graph = GraphProto(name=f"model_{model.digest[:12]}")

    def build(self) -> GraphProto:
        """Return the graph: scaling, shifts, the layers of each member, their mean, the class."""
        members, terms = self._model.members, []
        prefixes = [prefix_of(number, len(members)) for number in range(len(members))]
        for member, prefix in zip(members, prefixes, strict=True):
            self._add_parameters(member, prefix)
        dtypes = dict.fromkeys(member.network.dtype for member in members)
        rows = {dtype: self._rows(dtype) for dtype in dtypes}
        for shift in range(1 + len(DIRECTIONS) * self._model.average_shifts):
            for member, prefix in zip(members, prefixes, strict=True):
                scope = f"shift_{shift}.{prefix}" if shift else prefix
                terms.append(
                    self._add_network(member, prefix, rows[member.network.dtype][shift], scope)
                )
        self._add("Cast", [self._add_mean(terms)], "probabilities", to=TensorProto.FLOAT)
        self._add("ArgMax", ["probabilities"], "class", axis=1, keepdims=0)
        stored = helper.np_dtype_to_tensor_dtype(self._stored)
        classes: list[str | int | None] = ["batch", len(self._model.class_names)]
        describe = helper.make_tensor_value_info
        self._graph.input.append(describe("images", stored, ["batch", *self._shape]))
        self._graph.output.append(describe("probabilities", TensorProto.FLOAT, classes))
        self._graph.output.append(describe("class", TensorProto.INT64, classes[:1]))
        return self._graph

    def _rows(self, dtype: np.dtype[Any]) -> list[str]:
        """Add the scaled images as rows, then those of each shift; return their names."""
        scaled, most = self._add_scaling(dtype), self._model.average_shifts
        images = [scaled]
        if most:
            border = self._constant(f"border_{dtype}", np.array([0, most, most] * 2))
            value = self._constant(f"vacated_{dtype}", self._vacated(dtype))
            padded = self._add("Pad", [scaled, border, value], f"padded_{dtype}")
            axes = self._constant(f"axes_{dtype}", np.array([1, 2]))
        for pixels in range(1, most + 1):
            for down, right in DIRECTIONS:
                name = f"shift_{len(images)}.{dtype}"
                start = np.array([most - pixels * down, most - pixels * right])
                first = self._constant(f"{name}.start", start)
                last = self._constant(f"{name}.stop", start + np.array(self._shape))
                images.append(self._add("Slice", [padded, first, last, axes], name))
        return [self._add("Flatten", [image], f"{image}.rows", axis=1) for image in images]

    def _vacated(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the scaled value of pixels that a shift vacates."""
        stored = np.full((1, 2), background(self._scaling, self._stored), self._stored)
        value: NDArray[Any] = scale(stored, dtype, self._scaling)[0, 1]
        return value

    def _add_scaling(self, dtype: np.dtype[Any]) -> str:
        """Add the scaling of stored values, computed as in training."""
        target, name = helper.np_dtype_to_tensor_dtype(dtype), f"scaled_{dtype}"
        if self._scaling is None:
            return self._add("Cast", ["images"], name, to=target)
        if self._stored == np.uint8 and self._scaling == BYTES:
            values = self._add("Cast", ["images"], f"values_{dtype}", to=target)
            factor = self._constant(f"factor_{dtype}", dtype.type(1 / 255))
            return self._add("Mul", [values, factor], name)
        low, high = self._scaling.low, self._scaling.high
        values = self._add("Cast", ["images"], f"values_{dtype}", to=TensorProto.DOUBLE)
        above = [values, self._constant(f"low_{dtype}", np.float64(low))]
        width = self._constant(f"width_{dtype}", np.float64(high - low))
        share = self._add(
            "Div", [self._add("Sub", above, f"above_{dtype}"), width], f"share_{dtype}"
        )
        return self._add("Cast", [share], name, to=target)

    def _add_parameters(self, member: Member, prefix: str) -> None:
        layers = member.network.layers
        matrices = views(member.parameters, layers)
        for name, matrix in zip(layer_names(layers), matrices, strict=True):
            for part, values in zip(PARTS, (matrix[0], matrix[1:]), strict=True):
                self._constant(f"{prefix}{name}.{part}", values)

    def _add_network(self, member: Member, prefix: str, rows: str, scope: str) -> str:
        """Add a member's layers; return its probabilities."""
        layers = member.network.layers
        for name, layer in zip(layer_names(layers), layers, strict=True):
            weight, bias = f"{prefix}{name}.weight", f"{prefix}{name}.bias"
            sums = self._add("Gemm", [rows, weight, bias], f"{scope}{name}.sums")
            axis = {"axis": 1} if layer.activation == OUTPUT_ACTIVATION else {}
            rows = self._add(OPERATORS[layer.activation], [sums], f"{scope}{name}", **axis)
        return rows

    def _add_mean(self, terms: list[str]) -> str:
        """Add the mean of probabilities, computed as float64 if there are several."""
        if len(terms) == 1:
            return terms[0]
        wide = [self._add("Cast", [term], f"{term}.64", to=TensorProto.DOUBLE) for term in terms]
        count = self._constant("terms", np.float64(len(terms)))
        return self._add("Div", [self._add("Sum", wide, "sum"), count], "mean")

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        node = helper.make_node(operator, inputs, [output], name=output, **attributes)
        self._graph.node.append(node)
        return output

    def _constant(self, name: str, value: Any) -> str:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name
