"""Scores as one plain file, CSV or npz, written whole or not at all, chunk by chunk."""

import io
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import UsageError
from storage.location import Location, Place, Write, open_location
from storage.predictions import Scores


def checked_output(place: Place) -> Location:
    """Where predictions are to be written; `UsageError` where the name has another suffix."""
    location = open_location(place)
    if location.split()[1][-4:] not in (".csv", ".npz"):
        raise UsageError(f"--out is '{place}'; expected a name that ends in .csv or .npz.")
    return location


def write_output(file: Location, scores: Scores) -> None:
    """Write all predictions to `file`, by its suffix .csv or .npz."""
    location, name = file.split()
    with location.writing(name) as write:
        if name.endswith(".csv"):
            for text in _csv(scores):
                write(text.encode())
        else:
            _write_npz(scores, write)


def _csv(scores: Scores) -> Iterator[str]:
    """A line per row: its number, the predicted class's name, its probability, and all others."""
    names = scores.schema.class_names
    header = ["row", "predicted", "probability", *(f"probability_{name}" for name in names)]
    yield ",".join(header) + "\n"
    for number in range(scores.schema.chunks):
        start, _ = scores.schema.chunk_bounds(number)
        probabilities, predicted = scores.read_chunk(number)
        lines = []
        for row, (values, index) in enumerate(
            zip(probabilities.tolist(), predicted.tolist(), strict=True), start
        ):
            figures = ",".join(f"{value:.9g}" for value in (values[index], *values))
            lines.append(f"{row},{names[index]},{figures}\n")
        yield "".join(lines)


def _write_npz(scores: Scores, write: Write) -> None:
    """Arrays `predicted`, `probabilities`, `class_names`, and the digests of what was scored."""
    schema = scores.schema
    chunks = range(schema.chunks)
    small = {
        "class_names": np.array(schema.class_names),
        "model_digest": np.array(schema.model_digest),
        "dataset_digest": np.array(schema.dataset_digest),
    }
    with zipfile.ZipFile(_Pipe(write), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        shape: tuple[int, ...] = (schema.rows, schema.classes)
        parts = (scores.read_chunk(number)[0] for number in chunks)
        _write_npy(archive, "probabilities", "<f4", shape, parts)
        rows = (scores.read_chunk(number)[1] for number in chunks)
        _write_npy(archive, "predicted", "<i4", (schema.rows,), rows)
        for name, values in small.items():
            _write_npy(archive, name, values.dtype.str, values.shape, iter([values]))


def _write_npy(
    archive: zipfile.ZipFile,
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    parts: Iterator[NDArray[Any]],
) -> None:
    """One array of the archive, in NumPy's own format (NEP 1), from its parts."""
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array_header_1_0(entry, header)
        for part in parts:
            entry.write(np.ascontiguousarray(part, dtype=dtype).tobytes())


class _Pipe(io.RawIOBase):
    """A file that can only be written to, from start to end."""

    def __init__(self, write: Write) -> None:
        self._write = write

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._write(bytes(data))
        return len(data)
