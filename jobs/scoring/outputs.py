"""Scores as one plain file, CSV, Parquet or npz, written whole or not at all, chunk by chunk.

Each has a row's number, the predicted class, its name and its probability; on request every class's
probability. Parquet's metadata and further arrays of npz say which model, dataset and scores they
are of.
"""

import csv
import io
import itertools
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import MissingExtraError
from storage.files import file_to_write
from storage.local import LocalLocation
from storage.location import Location, Write
from storage.scores import Scores

PARQUET_MEMORY = 100_000_000
"""Bytes of pyarrow itself."""
CSV_BUFFER = 2**20
"""Bytes that are written at a time."""

Columns = dict[str, NDArray[Any]]
"""Some rows by the names of the columns, `(rows,)` each."""


def output_memory(place: str) -> int:
    """Return the bytes that writing a file needs in addition to a chunk of scores."""
    return PARQUET_MEMORY if place.endswith(".parquet") else 2 * CSV_BUFFER


def check_output(file: Location) -> Location:
    """Return the file to write, which is what a link leads to.

    Raises `UsageError` where a file of this kind cannot be written here, or no file can ever be
    there: at a directory or a pipe, below a file.
    """
    if str(file).endswith(".parquet") and find_spec("pyarrow") is None:
        raise MissingExtraError(f"--out {str(file)!r}", "pyarrow", "parquet")
    if not isinstance(file, LocalLocation):
        return file
    return LocalLocation(file_to_write(file.path, "--out"))


def output_exists(file: Location) -> bool:
    """Return whether the file is there already."""
    directory, name = file.split()
    return directory.holds(name)


def write_output(file: Location, scores: Scores, *, all_probabilities: bool) -> None:
    """Write all predictions to a .csv, .npz or .parquet file.

    Raises `UsageError` where no file can be there.
    """
    directory, name = check_output(file).split()
    directory.sweep_partial(name)
    write_rows = {"csv": _write_csv, "npz": _write_npz, "parquet": _write_parquet}
    with directory.open_for_writing(name) as write:
        write_rows[name.rpartition(".")[2]](_Pipe(write), scores, all_probabilities)


def _facts(scores: Scores) -> dict[str, str]:
    """Return what the scores are of."""
    schema = scores.schema
    return {
        "model_digest": schema.model_digest,
        "checkpoint": str(scores.metrics.get("checkpoint")),
        "dataset_digest": schema.dataset_digest,
        "split": schema.split,
        "scores_digest": scores.digest,
    }


def _chunk(scores: Scores, number: int) -> Columns:
    """Read the rows of a chunk; `probabilities` is `(rows, classes)`."""
    start, stop = scores.schema.chunk_bounds(number)
    probabilities, predicted = scores.read_chunk(number)
    return {
        "row": np.arange(start, stop, dtype=np.int64),
        "predicted": predicted,
        "name": np.array(scores.schema.class_names)[predicted],
        "probability": probabilities[np.arange(len(predicted)), predicted],
        "probabilities": probabilities,
    }


def _tables(scores: Scores, all_probabilities: bool) -> Iterator[Columns]:
    """Yield the rows of each chunk in order, with a column of its own for every class."""
    for number in range(scores.schema.chunks):
        columns = _chunk(scores, number)
        probabilities = columns.pop("probabilities")
        if all_probabilities:
            names = [f"probability_{name}" for name in scores.schema.class_names]
            columns |= dict(zip(names, np.ascontiguousarray(probabilities.T), strict=True))
        yield columns


def _write_csv(pipe: "_Pipe", scores: Scores, all_probabilities: bool) -> None:
    with io.TextIOWrapper(io.BufferedWriter(pipe, CSV_BUFFER), "utf-8", newline="") as text:
        file = csv.writer(text, lineterminator="\n")
        for number, columns in enumerate(_tables(scores, all_probabilities)):
            if not number:
                file.writerow(columns)
            file.writerows(zip(*map(_cells, columns.values()), strict=True))


def _cells(column: NDArray[Any]) -> Iterator[Any]:
    """Yield a column's values; nine digits keep every bit of a float32 (IEEE 754, 5.12.2)."""
    return (f"{value:.9g}" for value in column) if column.dtype.kind == "f" else iter(column)


def _write_npz(pipe: "_Pipe", scores: Scores, all_probabilities: bool) -> None:
    """Write arrays by the columns' names, `class_names`, and a text for each fact."""
    schema = scores.schema
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("row", "predicted", "name", "probability", "probabilities"):
            if name != "probabilities" or all_probabilities:
                parts = (_chunk(scores, number)[name] for number in range(schema.chunks))
                _write_npy(archive, name, schema.rows, parts)
        for name, value in {"class_names": schema.class_names, **_facts(scores)}.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, np.array(value), allow_pickle=False)


def _write_npy(
    archive: zipfile.ZipFile, name: str, rows: int, parts: Iterator[NDArray[Any]]
) -> None:
    """Write one array of the archive, in NumPy's own format (NEP 1), from its parts."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
        for number, part in enumerate(parts):
            if not number:
                shape = (rows, *part.shape[1:])
                header = {"descr": part.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(entry, header)
            entry.write(part.tobytes())


def _write_parquet(pipe: "_Pipe", scores: Scores, all_probabilities: bool) -> None:
    """Write a row group per chunk; the facts are key-value metadata of the schema."""
    import pyarrow
    from pyarrow import parquet

    tables = (
        pyarrow.table(columns, metadata=_facts(scores))
        for columns in _tables(scores, all_probabilities)
    )
    first = next(tables)
    with parquet.ParquetWriter(pyarrow.PythonFile(pipe, "w"), first.schema) as file:
        for table in itertools.chain([first], tables):
            file.write_table(table)


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
        """Return the bytes so far; Parquet's footer refers to them."""
        return self._written
