"""Export a model to a file of its own, checked before it is written; read such a file back."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import PurePath

from jobs.choices import EXPORT_ENDINGS
from jobs.exports.check import Comparison, compare, predict_onnx, predict_python
from jobs.exports.contents import Content
from jobs.exports.tensor_files import (
    read_python,
    read_safetensors,
    write_python,
    write_safetensors,
)
from jobs.training.model import Model
from jobs.training.select_checkpoint import open_chosen_dataset
from jobs.training.signature import check_images
from storage.checkpoints import MANIFEST, STATE
from storage.documents import read_sealed
from storage.errors import (
    BadDataError,
    ConflictError,
    MissingExtraError,
    UnreachableError,
    UsageError,
    did_you_mean,
)
from storage.files import file_to_write
from storage.local import LocalLocation
from storage.location import Location
from storage.places import Place, open_location


@dataclass(frozen=True)
class Export:
    """A model that was exported to a file."""

    file: Location
    model_digest: str
    size: int
    """The length of the file in bytes."""
    sha256: str
    """The digest of the file."""
    comparison: Comparison | str
    """How its predictions differ from the model's, or why they were not compared."""


def export(
    model: Model,
    to: Place,
    *,
    dataset: Place | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, str] | None = None,
) -> Export:
    """Export a model to a file that other programs can use.

    The file is read back, and its predictions are compared with the model's on up to 10,000 rows
    before it is written.

    Parameters
    ----------
    model
        The model, as `Model.load` returns it.
    to
        The file. Its ending chooses the format: `.onnx`, `.safetensors` or `.py`.
    dataset
        The dataset with the rows for the comparison. None: the one that the model was trained on,
        if it can be opened.
    overwrite
        Replace an existing file.
    storage_options
        Options of an S3 store, for a file or a dataset given by its URL.

    Raises
    ------
    UsageError
        If the file has another ending, or needs a library that is not installed.
    ConflictError
        If the file exists and `overwrite` is false.
    BadDataError
        If the exported model predicts something else than the model; no file is written.
    """
    file, ending = export_file(to, storage_options), checked_ending(str(to))
    if file.is_object() and not overwrite:
        raise ConflictError(f"{file} exists. Pass --overwrite to replace it, or choose another.")
    data = written(model, ending)
    parse_export(data, str(file))
    comparison = _compared(model, data, ending, dataset, storage_options)
    file.write_object(data)
    digest = hashlib.sha256(data).hexdigest()
    return Export(file, model.digest, len(data), digest, comparison)


def checked_ending(name: str) -> str:
    """Return the ending of a file's name; raise `UsageError` if no format has it."""
    ending = PurePath(name).suffix
    if ending not in EXPORT_ENDINGS:
        hint = did_you_mean(ending, EXPORT_ENDINGS, name.removesuffix(ending))
        endings = f"{', '.join(EXPORT_ENDINGS[:-1])} or {EXPORT_ENDINGS[-1]}"
        raise UsageError(f"--to is {name!r}; expected a name that ends in {endings}.{hint}")
    return ending


def export_file(to: Place, storage_options: Mapping[str, str] | None) -> Location:
    """Return the file to write; raise `UsageError` if it can never be a regular file."""
    file = open_location(to, storage_options)
    return (
        LocalLocation(file_to_write(file.path, "--to")) if isinstance(file, LocalLocation) else file
    )


def written(model: Model, ending: str) -> bytes:
    """Return the bytes of an exported file; raise `UsageError` without its library."""
    if ending == ".onnx":
        _need_onnx("--to")
        from jobs.exports.onnx_file import write_onnx

        return write_onnx(model)
    return write_safetensors(model) if ending == ".safetensors" else write_python(model)


def read_export(file: Location) -> Content:
    """Return the content of an export or a checkpoint; raise `BadDataError` if it is damaged."""
    parent, key = file.split()
    data = parent.get(key)
    if key != STATE or not parent.holds(MANIFEST):
        return parse_export(data, str(file))
    recorded = read_sealed(parent, MANIFEST).get("state_sha256")
    if hashlib.sha256(data).hexdigest() != recorded:
        raise BadDataError(f"{file} does not have the digest in its {MANIFEST}: it is damaged.")
    return read_safetensors(data, str(file), is_checkpoint=True)


def parse_export(data: bytes, place: str) -> Content:
    """Return the content of a file's bytes; raise `BadDataError` if it is damaged."""
    ending = PurePath(place).suffix
    if ending == ".onnx":
        _need_onnx(place)
        from jobs.exports.onnx_file import read_onnx

        return read_onnx(data, place)
    return read_safetensors(data, place) if ending == ".safetensors" else read_python(data, place)


def _need_onnx(what: str) -> None:
    if find_spec("onnx") is None:
        raise MissingExtraError(what, "onnx", "onnx")


def _compared(
    model: Model,
    data: bytes,
    ending: str,
    place: Place | None,
    storage_options: Mapping[str, str] | None,
) -> Comparison | str:
    """Return how predictions differ, or why they were not compared.

    A dataset that is named must fit the model; the one of the training may have been removed.
    """
    if ending == ".safetensors":
        return "The parameters were read back; the file computes nothing to compare."
    try:
        predict = predict_onnx(data) if ending == ".onnx" else predict_python(data)
    except ImportError:
        return "Predictions were not compared: onnxruntime is not installed."
    try:
        dataset = open_chosen_dataset(model.members[0].run, place, storage_options)
        split = "test" if "test" in dataset.splits else list(dataset.splits)[-1]
        dtype = dataset.split(split).schema.dtype
        check_images(model, str(dataset.location), dataset.image_shape, dtype)
    except (BadDataError, UnreachableError) as error:
        if place is not None:
            raise
        return f"Predictions were not compared: {error}"
    return compare(model, predict, dataset, split)
