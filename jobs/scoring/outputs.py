"""Predictions as one CSV, Parquet or npz file, written chunk by chunk and renamed when complete.

The columns are `row`, `predicted` and `probability`, for rows with labels `true` and `correct`, on
request `p_NAME` for each class, and for rows from an inbox `file`; or those that are asked for,
also `ImageId` and `Label`, which Kaggle's submissions have: the row counted from 1, and the
predicted class. Parquet's metadata and further arrays of npz name the model, the dataset, the
scores and the inbox's file.
"""

import csv
import io
import itertools
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.dataset import Dataset
from storage.errors import MissingExtraError, UsageError, did_you_mean
from storage.files import file_to_write
from storage.local import LocalLocation
from storage.location import Location, Write
from storage.scores import Scores, ScoresSchema

PARQUET_MEMORY = 100_000_000
"""Bytes that pyarrow allocates for itself."""
CSV_BUFFER = 2**20
"""Size of the write buffer in bytes."""

PREDICTED = ("row", "predicted", "probability")
"""Columns that all rows have."""
FROM_LABELS = ("true", "correct")
"""Columns that only rows with labels have."""
FILE = "file"
"""The column that only rows from an inbox have: the file that they came from."""
KAGGLE = ("ImageId", "Label")
"""Columns of a submission to Kaggle: the row counted from 1, and the predicted class."""

Columns = dict[str, NDArray[Any]]
"""Consecutive rows by column name, `(rows,)` each."""


def output_memory(place: str) -> int:
    """Return the bytes that writing a file needs in addition to a chunk of scores."""
    return PARQUET_MEMORY if place.endswith(".parquet") else 2 * CSV_BUFFER


def check_output(file: Location, option: str = "--out") -> Location:
    """Return the file to write, with links resolved.

    Raises `UsageError`, naming the option, if its format needs an extra that is not installed, or
    if it can never be a regular file.
    """
    if str(file).endswith(".parquet") and find_spec("pyarrow") is None:
        raise MissingExtraError(f"{option} {str(file)!r}", "pyarrow", "parquet")
    if not isinstance(file, LocalLocation):
        return file
    return LocalLocation(file_to_write(file.path, option))


class Labels:
    """The true classes of the scored rows, numbered like the predicted ones."""

    def __init__(self, dataset: Dataset, schema: ScoresSchema) -> None:
        """Read nothing yet. The dataset may lack some of the model's classes."""
        self._split = dataset.split(schema.split)
        numbers = [schema.class_names.index(name) for name in dataset.class_names]
        self._numbers: NDArray[np.int32] = np.array(numbers, dtype=np.int32)

    def read_chunk(self, number: int) -> NDArray[np.int32]:
        """Return the classes of a chunk, `(rows,)`; scores have the chunks of their dataset."""
        targets = self._split.read_chunk(number).targets
        assert targets is not None
        classes: NDArray[np.int32] = self._numbers[targets.argmax(axis=1)]
        return classes


def labels_of(dataset: Dataset, schema: ScoresSchema) -> Labels | None:
    """Return the labels of the scored split; None if it has none."""
    return Labels(dataset, schema) if dataset.split(schema.split).schema.classes else None


def check_columns(
    columns: Sequence[str], class_names: Sequence[str], *, labelled: bool, from_inbox: bool
) -> None:
    """Raise `UsageError` for a column that predictions with these classes do not have."""
    named = (*PREDICTED, *FROM_LABELS, FILE, *KAGGLE)
    known = (*named, *_of_classes(class_names))
    for column in columns:
        if column not in known:
            raise UsageError(
                f"--columns contains {column!r}; expected names from "
                f"{', '.join(named)}, and p_CLASS for the probability of a "
                f"class.{did_you_mean(column, known)}"
            )
        if column in FROM_LABELS and not labelled:
            raise UsageError(
                f"--columns contains {column!r}, but the rows to score have no labels. Leave it "
                "out."
            )
        if column == FILE and not from_inbox:
            raise UsageError(
                f"--columns contains {column!r}, but the rows of a split have no file of their "
                "own. Leave it out, or score an --inbox."
            )


def _of_classes(class_names: Sequence[str]) -> list[str]:
    return [f"p_{name}" for name in class_names]


def write_output(
    file: Location,
    scores: Scores,
    labels: Labels | None,
    *,
    all_probabilities: bool,
    columns: Sequence[str] = (),
    source: str | None = None,
) -> None:
    """Write all predictions to a .csv, .npz or .parquet file, by default in the usual columns.

    `source` is the inbox's file that the rows came from.

    Raises `UsageError` as `check_output` and `check_columns` do.
    """
    of_classes = _of_classes(scores.schema.class_names)
    check_columns(
        columns,
        scores.schema.class_names,
        labelled=labels is not None,
        from_inbox=source is not None,
    )
    usual = (
        *PREDICTED,
        *(FROM_LABELS if labels else ()),
        *(of_classes if all_probabilities else ()),
        *([FILE] if source is not None else ()),
    )
    table = _Table(scores, labels, columns or usual, source)
    directory, name = check_output(file).split()
    directory.sweep_partial(name)
    write_rows = {"csv": _write_csv, "npz": _write_npz, "parquet": _write_parquet}
    with directory.open_for_writing(name) as write:
        write_rows[name.rpartition(".")[2]](_Pipe(write), table)


@dataclass(frozen=True)
class _Table:
    """Predictions with the columns to write."""

    scores: Scores
    labels: Labels | None
    columns: Sequence[str]
    source: str | None

    @property
    def facts(self) -> dict[str, str]:
        """The digests and names that identify the scores, and the inbox's file."""
        schema = self.scores.schema
        return {
            "model_digest": schema.model_digest,
            "checkpoint": str(self.scores.metrics.get("checkpoint")),
            "average_shifts": str(schema.average_shifts),
            "dataset_digest": schema.dataset_digest,
            "split": schema.split,
            "scores_digest": self.scores.digest,
            **({} if self.source is None else {"file": self.source}),
        }

    def chunk(self, number: int) -> Columns:
        """Return the rows of a chunk, classes as numbers; `probabilities` is `(rows, classes)`.

        Labels are read only if a column needs them.
        """
        start, stop = self.scores.schema.chunk_bounds(number)
        probabilities, predicted = self.scores.read_chunk(number)
        rows: Columns = {
            "row": np.arange(start, stop, dtype=np.int64),
            "predicted": predicted,
            "probability": probabilities[np.arange(len(predicted)), predicted],
            "probabilities": probabilities,
        }
        if self.labels is not None and not set(FROM_LABELS).isdisjoint(self.columns):
            true = self.labels.read_chunk(number)
            rows |= {"true": true, "correct": predicted == true}
        return rows

    def chunks(self) -> Iterator[Columns]:
        """Yield the columns of each chunk, with classes by name."""
        schema = self.scores.schema
        names = np.array(schema.class_names)
        for number in range(schema.chunks):
            rows = self.chunk(number)
            rows |= {name: names[rows[name]] for name in ("predicted", "true") if name in rows}
            rows |= {FILE: np.full(len(rows["row"]), self.source or "")}
            rows |= {"ImageId": rows["row"] + 1, "Label": rows["predicted"]}
            rows |= zip(_of_classes(schema.class_names), rows["probabilities"].T, strict=True)
            yield {name: rows[name] for name in self.columns}


def _write_csv(pipe: "_Pipe", table: _Table) -> None:
    with io.TextIOWrapper(io.BufferedWriter(pipe, CSV_BUFFER), "utf-8", newline="") as text:
        file = csv.writer(text, lineterminator="\n")
        file.writerow(table.columns)
        for rows in table.chunks():
            file.writerows(zip(*map(_cells, rows.values()), strict=True))


def _cells(column: NDArray[Any]) -> Iterator[Any]:
    """Yield a column's values; nine digits preserve a float32 exactly (IEEE 754, 5.12.2)."""
    return (f"{value:.9g}" for value in column) if column.dtype.kind == "f" else iter(column)


def _write_npz(pipe: "_Pipe", table: _Table) -> None:
    """Write an array for each column, classes as indices into `class_names`, and the facts."""
    schema = table.scores.schema
    names = [name for name in table.columns if name in (*PREDICTED, *FROM_LABELS)]
    with_probabilities = any(name.startswith("p_") for name in table.columns)
    names += ["probabilities"] if with_probabilities else []
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in names:  # each array is a pass over the chunks
            column = replace(table, columns=(name,))
            chunks = (column.chunk(number)[name] for number in range(schema.chunks))
            _write_npy(archive, name, schema.rows, chunks)
        for name, value in {"class_names": schema.class_names, **table.facts}.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, np.array(value), allow_pickle=False)


def _write_npy(
    archive: zipfile.ZipFile, name: str, rows: int, parts: Iterator[NDArray[Any]]
) -> None:
    """Write one array of the archive in the NPY format (NEP 1), chunk by chunk."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
        for number, part in enumerate(parts):
            if not number:
                shape = (rows, *part.shape[1:])
                header = {"descr": part.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(entry, header)
            entry.write(part.tobytes())


def _write_parquet(pipe: "_Pipe", table: _Table) -> None:
    """Write a row group per chunk; the facts become the schema's key-value metadata."""
    import pyarrow
    from pyarrow import parquet

    groups = (pyarrow.table(rows, metadata=table.facts) for rows in table.chunks())
    first = next(groups)
    with parquet.ParquetWriter(pyarrow.PythonFile(pipe, "w"), first.schema) as file:
        for group in itertools.chain([first], groups):
            file.write_table(group)


class _Pipe(io.RawIOBase):
    """A write-only, sequential file object."""

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
        """Return the number of bytes written; Parquet's footer needs it."""
        return self._written
