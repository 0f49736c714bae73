"""The format CSV: an image a line, as values and an optional label, in one file for each split."""

import csv
import logging
import math
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.sources.array_split import narrowest
from pipeline.sources.csv_rows import (
    CsvRows,
    Layout,
    Scan,
    as_number,
    data_members,
    fields_of,
    import_pyarrow,
    line_blocks,
)
from pipeline.sources.file_split import ARROW_MEMORY, LABEL_NAMES, FileSplit, regroup
from pipeline.sources.formats import Format, Source, SourceOptions, directory_name
from pipeline.sources.npy import ZIP_MAGIC
from pipeline.sources.splits import (
    SPLIT_OF,
    Rows,
    changed_error,
    check_same_images,
    in_natural_order,
    in_order,
    split_named,
)
from storage.errors import (
    BadDataError,
    PipelineError,
    UsageError,
    counted,
    did_you_mean,
    listed,
    translate_os_errors,
)
from storage.events import Progress
from storage.preparation import ValueRange

INDEX_NAMES = ("", "index", "id", "imageid", "image_id", "row", "unnamed: 0")
"""Names of columns, in lower case, that number the rows; they are not used."""
DELIMITERS = ",;\t|"

_NAME = re.compile(r"(?P<stem>.+?)\.(?:csv|tsv)(?:\.(?:gz|xz|zst|zip))?", re.IGNORECASE | re.DOTALL)
_NUMBERS = re.compile(rb"[-+\d.eE,;\t| \"\r\n]+")
_FEWEST_COLUMNS = 8
"""Lines of numbers with fewer columns, in a file of another name, are not taken for CSV."""
_FEWEST_ROWS = 10
"""From this number of rows on, labels that are all equal are not taken for labels."""
_COUNTED_HEADER = 16
"""From this number of columns on, a first line 0, 1, 2, ... consists of names."""

logger = logging.getLogger(__name__)


class CsvSplit(FileSplit):
    """The rows of one file, which was scanned."""

    reader_memory = ARROW_MEMORY

    def __init__(self, name: str, path: Path, base: Path, layout: Layout, scan: Scan) -> None:
        super().__init__(name, [path], base)
        self._rows = CsvRows(path, layout)
        self.layout, self.scan = layout, scan
        self.choices["label"] = layout.label
        self.rows, self.image_shape = scan.rows, layout.shape
        self.has_labels = layout.label is not None
        self.dtype = np.dtype(np.uint8)
        self._labels: dict[str, int] = {}

    def set_types(self, dtype: np.dtype[Any], class_names: Sequence[str] | None) -> None:
        """Set the element type of all splits, and the label of each text: its rank or its value."""
        self.dtype, self.may_widen = dtype, dtype.kind in "iu"
        for text in self.scan.labels:
            number = float(text) if class_names is None else class_names.index(text.strip())
            self._labels[text] = int(number)

    def label_values(self, progress: Progress) -> list[int]:
        return sorted(set(self._labels.values()))

    def blocks(self, rows: int) -> Iterator[Rows]:
        return regroup(self._parsed(), rows)

    def _parsed(self) -> Iterator[Rows]:
        arrow = import_pyarrow(self._paths[0])
        texts = arrow.array(list(self._labels), arrow.string())
        values = np.array(list(self._labels.values()), np.int64)
        for pixels, written in self._rows.read(self.scan.value_type):
            with np.errstate(invalid="ignore"):  # of a file that changed, which is found at its end
                images = pixels.astype(self.dtype, copy=False).reshape(-1, *self.image_shape)
            labels = None
            if written is not None:
                places = arrow.compute.index_in(written, value_set=texts).fill_null(-1).to_numpy()
                if places.min() < 0:
                    raise changed_error(self.origin)
                labels = values[places]
            yield images, labels


def open_csv(path: Path, options: SourceOptions, progress: Progress) -> Source:
    """Open a CSV file, or a directory with one for each split; scan all of each file.

    Raises `BadDataError` for a file that is damaged or whose lines do not hold images, and
    `UsageError` for options that do not fit its columns.
    """
    if path.is_dir():
        files, name = _split_files(path), directory_name(path)
        description = f"CSV files in {path}"
    else:
        files, name = {split_named(path.name) or "train": path}, _name_of(path)
        description = f"the CSV file {path}"
    layouts = {split: _layout(file, options) for split, file in files.items()}
    first, layout = next(iter(files.values())), next(iter(layouts.values()))
    if options.label is not None and layout.label is None:
        raise _no_column(first, layout.names, options.label)
    splits = tuple(
        CsvSplit(split, file, path, layouts[split], CsvRows(file, layouts[split]).scan(progress))
        for split, file in files.items()
    )
    check_same_images(splits)
    _check_guess(splits[0], options)
    class_names = _class_names(splits)
    scans = [split.scan for split in splits]
    dtype = _element_type(
        min(scan.low for scan in scans),
        max(scan.high for scan in scans),
        is_whole=all(scan.is_whole for scan in scans),
    )
    for split in splits:
        split.set_types(dtype, class_names)
    ends = (float(dtype.type(end)) for end in (scans[0].low, scans[0].high))
    scaling = None if dtype == np.uint8 else ValueRange.covering(*ends)
    return Source(name, splits, description, class_names, scaling)


def _split_files(directory: Path) -> dict[str, Path]:
    """Return the file of each split; warn about CSV files that are not used."""
    by_split: dict[str, list[str]] = {}
    for name in _csv_names(directory):
        by_split.setdefault(split_named(name) or "", []).append(name)
    others = by_split.pop("", [])
    if not by_split and len(others) == 1:
        by_split, others = {"train": others}, []
    for split, rivals in by_split.items():
        if len(rivals) > 1:
            raise BadDataError(
                f"{directory} has several {split} files ({', '.join(rivals)}); expected one, with "
                "values and labels. Join them, or move the others to another directory."
            )
    if not by_split:
        raise BadDataError(
            f"{directory} has several CSV files ({listed(others)}); expected names such as "
            "train.csv and test.csv. Rename the files, or give one of them."
        )
    if others:
        used = [rivals[0] for rivals in by_split.values()]
        logger.warning(
            "%s has CSV files that are not used: %s. Used: %s.",
            directory,
            listed(others),
            ", ".join(used),
        )
    return {split: directory / names[0] for split, names in in_order(by_split).items()}


def _csv_names(directory: Path) -> list[str]:
    names = sorted(os.listdir(directory))
    return [name for name in names if _NAME.fullmatch(name) and not name.startswith(".")]


def _name_of(path: Path) -> str:
    """Return the part of a file's name before its split, or else the name of its directory."""
    match = _NAME.fullmatch(path.name)
    words = re.split(r"[-_.\s]+", match["stem"] if match else path.stem)
    before = takewhile(lambda word: word.lower() not in SPLIT_OF, words)
    return "-".join(filter(None, before)) or Path(os.path.realpath(path)).parent.name or "csv"


def _layout(path: Path, options: SourceOptions) -> Layout:
    """Return the columns of a file, from its first line and the options."""
    number, line = _first_line(path)
    delimiter = max(DELIMITERS, key=line.count)
    try:
        names = tuple(field.strip() for field in fields_of(line, delimiter))
    except csv.Error:
        raise BadDataError(
            f"{path}: line {number} contains a carriage return that does not end it; expected "
            "lines that end in a line feed. Convert the line endings, for example by dos2unix -c "
            "mac."
        ) from None
    has_header = _is_header(names)
    if has_header:
        _check_names(path, names)
    else:
        names = tuple(map(str, range(len(names))))
    index = INDEX_NAMES if has_header else ()
    columns = [
        column
        for column, name in enumerate(names)
        if name.lower() not in index or name == options.label
    ]
    label = _label(path, names, columns, options, has_header=has_header)
    pixels = tuple(column for column in columns if column != label)
    shape = options.shape or (math.isqrt(len(pixels)),) * 2
    if not _fits(len(pixels), options):
        raise _misfit(path, [names[column] for column in columns], label is not None, options)
    return Layout(delimiter, names, number + has_header, label, pixels, shape)


def _first_line(path: Path) -> tuple[int, str]:
    """Return the number and the text of the first line that is not blank."""
    first, block = next(line_blocks(path))
    if block.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadDataError(f"{path} is UTF-16 text; expected UTF-8. Save the file as UTF-8.")
    for number, line in enumerate(block.removeprefix(b"\xef\xbb\xbf").split(b"\n"), first):
        try:
            text = line.decode().removesuffix("\r")
        except UnicodeDecodeError:
            raise BadDataError(
                f"{path}: line {number} is not UTF-8 text; expected a CSV file. Save the file as "
                "UTF-8."
            ) from None
        if text.strip():
            return number, text
    raise BadDataError(f"{path} is empty; expected one image a line. Give another file.")


def _is_header(fields: Sequence[str]) -> bool:
    """Return whether a first line consists of names, which may be the numbers 0, 1, 2, ..."""
    counted_names = list(filter(None, fields))
    return any(field and as_number(field) is None for field in fields) or (
        len(counted_names) >= _COUNTED_HEADER
        and counted_names == [str(number) for number in range(len(counted_names))]
    )


def _check_names(path: Path, names: Sequence[str]) -> None:
    named = list(filter(None, names))
    if len(set(named)) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise BadDataError(
            f"{path}: the header names column {twice[:40]!r} twice; expected a different name for "
            "each column. Rename one, or add a header if the first line holds an image."
        )


def _fits(count: int, options: SourceOptions) -> bool:
    """Return whether a row of `count` values is an image: of the given shape, or a square."""
    if options.shape is not None:
        return count == math.prod(options.shape)
    return count >= 4 and math.isqrt(count) ** 2 == count


def _label(
    path: Path,
    names: Sequence[str],
    columns: list[int],
    options: SourceOptions,
    *,
    has_header: bool,
) -> int | None:
    """Return the column of the labels: the given one, a usual name, or the first of one too many.

    A file of which all columns are values has no labels.
    """
    if has_header:
        wanted = LABEL_NAMES if options.label is None else (options.label,)
        by_name = {names[n].lower() if options.label is None else names[n]: n for n in columns}
        return next((by_name[name] for name in wanted if name in by_name), None)
    if options.label is not None and options.label not in names:
        raise UsageError(
            f"--label is {options.label!r}, but {path} has no header; expected the number of a "
            f"column, from 0 to {len(names) - 1}."
        )
    if _fits(len(columns), options) or not (options.label or _fits(len(columns) - 1, options)):
        return None
    return int(options.label or 0)


def _misfit(path: Path, names: list[str], has_label: bool, options: SourceOptions) -> PipelineError:
    """Return the error for columns of values that are no image."""
    count = len(names) - has_label
    values = f"{path} has {counted(count, 'column')} of values" + " and one of labels" * has_label
    if not has_label and options.label is not None:
        return _no_column(path, names, options.label)
    if not has_label and _fits(count - 1, options):
        return BadDataError(
            f"{path} has {counted(count, 'column')}, of which one must hold the labels; none is "
            f"named {' or '.join(LABEL_NAMES[:3])}. Pass --label COLUMN, such as {names[0][:40]!r} "
            f"or {names[-1][:40]!r}."
        )
    if options.shape is not None:
        shape = "x".join(map(str, options.shape))
        return UsageError(
            f"{values}; --shape {shape} needs {math.prod(options.shape):,} of values. Correct "
            "--shape, or name the column of the labels by --label."
        )
    return BadDataError(
        f"{values}; expected those of a square image, such as 784. Pass --shape HxW (HxWxC for "
        "several channels), and --label if another column holds the labels."
    )


def _no_column(path: Path, names: Sequence[str], label: str) -> UsageError:
    return UsageError(
        f"{path} has no column {label!r}, which --label names.{did_you_mean(label, names)} Its "
        f"columns are {', '.join(names[:3])}, ..., {names[-1]}."
    )


def _check_guess(split: CsvSplit, options: SourceOptions) -> None:
    """Log that a first column is taken for the labels; raise `BadDataError` if it never changes."""
    label, names = split.layout.label, split.layout.names
    if options.label is not None or label is None or names[label] != "0":
        return
    if len(split.scan.labels) == 1 and split.rows >= _FEWEST_ROWS:
        raise BadDataError(
            f"{split.origin} has no header, and its first column is always "
            f"{split.scan.labels[0]}; expected the labels there. Pass --label COLUMN with the "
            f"number of their column, such as {len(split.layout.names) - 1} for the last one."
        )
    logger.info(
        "%s has no header; its first column is taken for the labels: %s.",
        split.origin,
        counted(len(split.scan.labels), "distinct value"),
    )


def _class_names(splits: Sequence[CsvSplit]) -> tuple[str, ...] | None:
    """Return the names of the classes in natural order; None if all labels are numbers."""
    texts = {text.strip() for split in splits for text in split.scan.labels}
    names = sorted(text for text in texts if as_number(text) is None)
    if names and len(names) < len(texts):
        logger.warning(
            "%s has labels that are numbers and others that are not: %s. All are taken as names of "
            "classes.",
            splits[0].origin,
            listed(names),
        )
    return tuple(in_natural_order(texts)) if names else None


def _element_type(low: float, high: float, *, is_whole: bool) -> np.dtype[Any]:
    """Return the smallest type of whole numbers that holds a range; float32 for fractions.

    Whole numbers beyond 32 bits are float64, which holds those up to 2**53 exactly.
    """
    if not is_whole:
        return np.dtype(np.float32)
    dtype = narrowest(low, high)
    return np.dtype(np.float64) if dtype is None else dtype


def _recognises(path: Path, start: bytes) -> bool:
    if path.is_dir():
        with translate_os_errors("list", path):
            return bool(_csv_names(path))
    if start.startswith(ZIP_MAGIC) and path.suffix.lower() == ".zip":
        with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            return any(_NAME.fullmatch(member.filename) for member in data_members(archive))
    lines = start.rpartition(b"\n")[0] or start
    looks_like_rows = (
        _NUMBERS.fullmatch(lines) and len(re.findall(rb"[,;\t|]", lines)) > _FEWEST_COLUMNS
    )
    return bool(_NAME.fullmatch(path.name) or looks_like_rows)


FORMAT = Format(
    name="a CSV file",
    recognises=_recognises,
    open=open_csv,
    options=frozenset({"label", "shape"}),
)
