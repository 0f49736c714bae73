"""Scores as one plain file, CSV, Parquet or npz, written whole or not at all, chunk by chunk.

Each has a row's number, the predicted class, its name and its probability, on request every
class's probability, and says which model, dataset and scores they are of: Parquet in the schema's
metadata, npz in arrays of their own, CSV in a document beside it, `FILE-metadata.json`, as "Model
for Tabular Data and Metadata on the Web" (W3C Recommendation, 2015, section 5.3) has it.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import MissingExtraError, PipelineError
from storage.files import check_regular, file_to_write
from storage.local import LocalLocation
from storage.location import Location, Write

if TYPE_CHECKING:
    from storage.predictions import Scores

PARQUET_MEMORY = 100_000_000
"""Bytes of pyarrow itself."""
CSV_BUFFER = 2**20
"""Characters that are written at a time."""
CSV_METADATA = "-metadata.json"


@dataclass(frozen=True)
class Wanted:
    """What a file is to hold besides the predictions."""

    all_probabilities: bool
    checkpoint: str
    """The name of the checkpoint that scored."""


@dataclass(frozen=True)
class _Rows:
    """Some rows of a file, column by column."""

    row: NDArray[np.int64]
    predicted: NDArray[np.int32]
    names: list[str]
    probability: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    """`(rows, classes)`"""


def output_memory(place: str) -> int:
    """Return the bytes that writing a file needs in addition to a chunk of scores."""
    return PARQUET_MEMORY if place.endswith(".parquet") else 2 * CSV_BUFFER


def check_kind(place: str) -> None:
    """Raise `UsageError` where a file of this kind cannot be written here."""
    if place.endswith(".parquet") and find_spec("pyarrow") is None:
        raise MissingExtraError(f"--out {place!r}", "pyarrow", "parquet")


def check_place(file: Location) -> Location:
    """Return the file to write, which is what a link leads to.

    Raises `UsageError` where no file can ever be: at a directory or a pipe, below a file.
    """
    if not isinstance(file, LocalLocation):
        return file
    path = file_to_write(file.path, "--out")
    if path.suffix == ".csv":
        beside = path.with_name(path.name + CSV_METADATA)
        check_regular(beside, f"The file beside --out is {beside}")
    return LocalLocation(path)


def output_exists(file: Location) -> bool:
    """Whether the file is there already."""
    directory, name = file.split()
    return directory.holds(name)


def write_output(file: Location, scores: "Scores", wanted: Wanted) -> None:
    """Write all predictions to a .csv, .npz or .parquet file.

    Raises `UsageError` where no file can be there.
    """
    directory, name = check_place(file).split()
    directory.sweep_partial(name)
    if name.endswith(".csv"):
        directory.sweep_partial(name + CSV_METADATA)
        _write_csv(directory, name, scores, wanted)
        return
    with directory.open_for_writing(name) as write:
        if name.endswith(".npz"):
            _write_npz(scores, wanted, write)
        else:
            _write_parquet(scores, wanted, write)


def _facts(scores: "Scores", wanted: Wanted) -> dict[str, str]:
    """What the scores are of."""
    schema = scores.schema
    return {
        "model_digest": schema.model_digest,
        "checkpoint": wanted.checkpoint,
        "dataset_digest": schema.dataset_digest,
        "split": schema.split,
        "scores_digest": scores.digest,
    }


def _columns(scores: "Scores", wanted: Wanted) -> list[tuple[str, str]]:
    """The columns' names, and their types as CSV's metadata calls them."""
    columns = [("row", "long"), ("predicted", "int"), ("name", "string"), ("probability", "float")]
    if wanted.all_probabilities:
        columns += [(f"probability_{name}", "float") for name in scores.schema.class_names]
    return columns


def _blocks(scores: "Scores") -> Iterator[_Rows]:
    """All rows in order, a chunk at a time."""
    names = scores.schema.class_names
    for number in range(scores.schema.chunks):
        start, stop = scores.schema.chunk_bounds(number)
        probabilities, predicted = scores.read_chunk(number)
        yield _Rows(
            np.arange(start, stop),
            predicted,
            [names[index] for index in predicted.tolist()],
            probabilities[np.arange(len(predicted)), predicted],
            probabilities,
        )


def _write_csv(directory: Location, name: str, scores: "Scores", wanted: Wanted) -> None:
    """The file and, right before it takes its name, what says what it is."""
    content = hashlib.sha256()
    try:
        with directory.open_for_writing(name) as write:
            for text in _csv(scores, wanted):
                data = text.encode()
                content.update(data)
                write(data)
            metadata = _csv_metadata(name, scores, wanted, content.hexdigest())
            directory.put(name + CSV_METADATA, (json.dumps(metadata, indent=2) + "\n").encode())
    except BaseException:
        with suppress(OSError, PipelineError):
            if not directory.holds(name):  # of what it tells there is nothing
                directory.delete(name + CSV_METADATA)
        raise


def _csv(scores: "Scores", wanted: Wanted) -> Iterator[str]:
    yield ",".join(_quoted(name) for name, _ in _columns(scores, wanted)) + "\n"
    quoted = {name: _quoted(name) for name in scores.schema.class_names}
    for rows in _blocks(scores):
        lines: list[str] = []
        characters = 0
        for place, name in enumerate(rows.names):
            figures = rows.probability[place : place + 1].tolist()
            if wanted.all_probabilities:
                figures += rows.probabilities[place].tolist()
            # Nine digits bring a float32 back to the bit (IEEE 754, 5.12.2).
            told = ",".join(f"{value:.9g}" for value in figures)
            lines.append(f"{rows.row[place]},{rows.predicted[place]},{quoted[name]},{told}\n")
            characters += len(lines[-1])
            if characters > CSV_BUFFER:
                yield "".join(lines)
                lines, characters = [], 0
        yield "".join(lines)


def _quoted(text: str) -> str:
    """A field as RFC 4180 has it."""
    if any(character in text for character in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def _csv_metadata(name: str, scores: "Scores", wanted: Wanted, digest: str) -> dict[str, Any]:
    columns = [{"name": name, "datatype": kind} for name, kind in _columns(scores, wanted)]
    return {
        "@context": "http://www.w3.org/ns/csvw",
        "url": name,
        "tableSchema": {"columns": columns, "primaryKey": "row"},
        "notes": [_facts(scores, wanted) | {"csv_sha256": digest}],
    }


def _write_npz(scores: "Scores", wanted: Wanted, write: Write) -> None:
    """Arrays by the columns' names, `class_names`, and a text for each fact."""
    schema = scores.schema
    rows = (schema.rows,)
    names = np.array(schema.class_names)
    with zipfile.ZipFile(_Pipe(write), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        _write_npy(archive, "row", "<i8", rows, (block.row for block in _blocks(scores)))
        classes = (block.predicted for block in _blocks(scores))
        _write_npy(archive, "predicted", "<i4", rows, classes)
        told = (np.array(block.names, names.dtype) for block in _blocks(scores))
        _write_npy(archive, "name", names.dtype.str, rows, told)
        highest = (block.probability for block in _blocks(scores))
        _write_npy(archive, "probability", "<f4", rows, highest)
        if wanted.all_probabilities:
            shape = (schema.rows, schema.classes)
            every = (block.probabilities for block in _blocks(scores))
            _write_npy(archive, "probabilities", "<f4", shape, every)
        facts = {name: np.array(text) for name, text in _facts(scores, wanted).items()}
        for name, values in ({"class_names": names} | facts).items():
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


def _write_parquet(scores: "Scores", wanted: Wanted, write: Write) -> None:
    """A row group per chunk; the facts are key-value metadata of the schema."""
    import pyarrow
    from pyarrow import parquet

    kinds = {
        "long": pyarrow.int64(),
        "int": pyarrow.int32(),
        "string": pyarrow.string(),
        "float": pyarrow.float32(),
    }
    schema = pyarrow.schema(
        [(name, kinds[kind]) for name, kind in _columns(scores, wanted)],
        metadata=_facts(scores, wanted),
    )
    with parquet.ParquetWriter(pyarrow.PythonFile(_Pipe(write), "w"), schema) as file:
        for rows in _blocks(scores):
            columns: list[Any] = [rows.row, rows.predicted, rows.names, rows.probability]
            if wanted.all_probabilities:
                columns += [np.ascontiguousarray(column) for column in rows.probabilities.T]
            file.write_table(pyarrow.table(columns, schema=schema))


class _Pipe(io.RawIOBase):
    """A file that can only be written to, from start to end."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        content = bytes(data)
        self._write(content)
        self._written += len(content)
        return len(content)

    def tell(self) -> int:
        """Bytes so far; Parquet's footer refers to them."""
        return self._written
