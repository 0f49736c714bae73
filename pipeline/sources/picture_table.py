"""The format of a CSV table that names pictures in its folder, and their labels."""

import codecs
import csv
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.sources.formats import Format, Source, SourceOptions
from pipeline.sources.picture_folder import has_pictures, is_almost_idx
from pipeline.sources.picture_split import PictureFiles, open_pictures
from pipeline.sources.pictures import ENDINGS, is_picture_name
from pipeline.sources.splits import SPLITS, in_natural_order, split_named
from storage.errors import BadDataError, UsageError, counted, did_you_mean, translate_os_errors
from storage.events import Progress

PATH_COLUMNS = [
    "file_name",
    "filename",
    "file",
    "path",
    "file_path",
    "filepath",
    "image_path",
    "image_name",
    "image_file",
    "image",
    "img_path",
    "img",
    "picture",
    "image_id",
    "id",
]
"""Usual names of the column with the paths, in order of preference."""
LABEL_COLUMNS = ["label", "labels", "class", "class_name", "category", "target", "digit"]
"""Usual names of the column with the labels, likewise."""
SPLIT_COLUMN = "split"
TABLE_ENDINGS = (".csv", ".tsv")
DELIMITERS = ",;\t"
MOST_BYTES = 2**16
"""The longest line of a table."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """A table that names pictures: its columns, by their positions, and where the pictures are."""

    path: Path
    header: tuple[str, ...] | None
    """The names of the columns as written; None for a table without a header."""
    columns: int
    path_column: int
    folder: str
    """Folder of the pictures, relative to that of the table; empty for the same."""
    ending: str
    """Added to each name; empty if they have it already."""

    def position(self, *names: str) -> int | None:
        """Return the position of the first of these columns, without regard to case, or None."""
        folded = [_folded(name) for name in self.header or ()]
        return next((folded.index(name) for name in map(_folded, names) if name in folded), None)

    def label_column(self, label: str | None) -> int | None:
        """Return the position of the labels; of two columns without a header, the other one."""
        if self.header is None:
            return 1 - self.path_column if self.columns == 2 and label is None else None
        return self.position(label) if label else self.position(*LABEL_COLUMNS)


class _Splits:
    """The paths and the texts of labels by split, collected from all tables."""

    def __init__(self, base: Path, label: str | None) -> None:
        self._base, self._label = base, label
        self.names: dict[str, list[str]] = {}
        self.labels: dict[str, list[str]] = {}
        self._is_inside = cache(self._contains)

    def add(self, table: Table, default: str | None, progress: Progress) -> None:
        """Read a table; raise `BadDataError` naming the line of a bad row.

        Rows are of the split `default` or, if it is None, of the one that each row says.
        """
        label_column = table.label_column(self._label)
        split_column = None if default else table.position(SPLIT_COLUMN)
        folder = os.path.relpath(table.path.parent, self._base)
        prefix = os.path.join("" if folder == "." else folder, table.folder)
        rows = _rows(table.path)
        if table.header is not None:
            next(rows)
        for line, row in rows:
            place = f"{table.path}, line {line}"
            if len(row) != table.columns:
                raise BadDataError(
                    f"{place} has {counted(len(row), 'column')}; expected {table.columns}. "
                    "Correct the line: a value with a delimiter must be in quotation marks."
                )
            name = row[table.path_column].strip() + table.ending
            self._check(table, name, place)
            split = default or split_named(name.partition("/")[0]) or "train"
            if split_column is not None:
                split = _named_split(row[split_column], place)
            names = self.names.setdefault(split, [])
            names.append(os.path.join(prefix, name))
            progress(f"ingest {split}", 0, len(names), f"{len(names):,} names")
            if label_column is not None:
                self._add_label(split, row[label_column].strip(), place)

    def _add_label(self, split: str, label: str, place: str) -> None:
        if not label or not label.isprintable():
            raise BadDataError(
                f"{place} has the label {label!r}; expected a class. Add it, or remove the line."
            )
        self.labels.setdefault(split, []).append(label)

    def _check(self, table: Table, name: str, place: str) -> None:
        """Raise `BadDataError` for a picture that is missing or outside the table's folder."""
        is_outside = name.startswith("/") or ".." in name.split("/")
        if is_outside or not name or not name.isprintable() or "\\" in name:
            raise BadDataError(
                f"{place} names the picture {name!r}; expected a path that stays within "
                f"{table.path.parent}, with / between folders. Correct the path."
            )
        path = table.path.parent / table.folder / name
        try:
            mode = os.lstat(path).st_mode
        except (OSError, ValueError):
            mode = 0
        if not self._is_inside(str(path if stat.S_ISLNK(mode) else path.parent)):
            raise BadDataError(
                f"{place} names {path}, a link that leads outside {self._base}. Copy the picture "
                "into the folder."
            )
        if not stat.S_ISREG(mode) and not path.is_file():
            raise BadDataError(
                f"{place} names {path}, which is missing. Add the picture, or remove the line."
            )

    def _contains(self, path: str) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self._base))


def open_tables(path: Path, options: SourceOptions, progress: Progress) -> Source:
    """Open a table of pictures, or all tables in a folder, one for each split.

    Rows are in the order of the table. A table's split is that of its name or, if that has none,
    of its column `split`, of the first folder of each path, or of the table's folder. Raises
    `BadDataError` for a bad row, and `UsageError` if no table has the column `options.label`.
    """
    base = path if path.is_dir() else path.parent
    tables = find_tables(path)
    _check_label(tables, options.label)
    collected = _Splits(base, options.label)
    by_split: dict[str | None, Path] = {}
    for table in tables:
        split = _split_of(table.path, base) or ("train" if len(tables) > 1 else None)
        if split in by_split:
            raise BadDataError(
                f"{by_split[split]} and {table.path} are tables of the same split. Give one of "
                "them, or move the other."
            )
        by_split[split] = table.path
        collected.add(table, split, progress)
    class_names = in_natural_order(
        {label for labels in collected.labels.values() for label in labels}
    )
    ranks = {name: rank for rank, name in enumerate(class_names)}
    files = {}
    for split, names in collected.names.items():
        labels = collected.labels.get(split)
        ranked = None if labels is None else np.array([ranks[label] for label in labels], np.int32)
        files[split] = PictureFiles(names, ranked)
    if not files:
        raise BadDataError(f"{path} names no pictures; expected a row for each. Add them.")
    named = ", ".join(str(table.path) for table in tables)
    return open_pictures(base, files, tuple(class_names), options, f"pictures named in {named}")


def find_tables(path: Path) -> list[Table]:
    """Return the table at a path; or those in a folder, or in the folders of splits below it.

    Raises `BadDataError` if one split has pictures, but no table.
    """
    if not path.is_dir():
        return [table] if (table := read_table(path)) else []
    tables = _tables_in(path)
    if tables:
        return tables
    splits = [name for name in _folders_in(path) if split_named(name)]
    by_folder = {name: _tables_in(path / name) for name in splits}
    for name, tables_below in by_folder.items():
        if not tables_below and any(by_folder.values()) and has_pictures(path / name):
            raise BadDataError(
                f"{path / name} has pictures, but no table that names them, as other splits "
                "have. Add it, or move the folder to another place."
            )
    return [table for tables_below in by_folder.values() for table in tables_below]


def read_table(path: Path) -> Table | None:
    """Return the table at a path; None if its first row does not name a picture."""
    rows: list[list[str]] = []
    if path.name.lower().endswith(TABLE_ENDINGS) and path.is_file():
        try:
            for _, row in islice(_rows(path), 2):
                rows.append(row)
        except BadDataError:
            if rows and any(_folded(name) in PATH_COLUMNS for name in rows[0]):
                raise
    if not rows:
        return None
    header, first = rows[0], rows[-1]
    column = next((at for at, cell in enumerate(header) if is_picture_name(cell.strip())), None)
    if column is not None:
        return _located(path, None, header, column)
    folded = [_folded(name) for name in header]
    columns = [folded.index(name) for name in PATH_COLUMNS if name in folded]
    if len(rows) < 2:
        return None
    columns = [column for column in columns if column < len(first)]
    tables = (_located(path, tuple(header), first, column) for column in columns)
    return next((table for table in tables if table is not None), None)


def _located(
    path: Path, header: tuple[str, ...] | None, first: list[str], column: int
) -> Table | None:
    """Return the table whose first row names a picture; None if it does not.

    The picture is beside the table, or in a folder beside it: one of the table's name, of its
    split, or any other, in this order.
    """
    name = first[column].strip()
    folders, stem = _folders_in(path.parent), path.stem.lower()
    split = split_named(stem)
    same_name = [folder for folder in folders if folder.lower() == stem]
    same_split = [folder for folder in folders if split and split_named(folder) == split]
    endings = ("",) if is_picture_name(name) else (*map(str.upper, ENDINGS), *ENDINGS)
    for places in ([""], same_name, same_split, folders):
        by_lower_case = {  # file systems of macOS and Windows ignore case
            (folder, ending.lower()): (folder, ending)
            for folder in places
            for ending in endings
            if name and (path.parent / folder / (name + ending)).is_file()
        }
        matches = list(by_lower_case.values())
        if len(matches) > 1 and endings != ("",):
            return None
        if len(matches) > 1:
            both = " and ".join(folder + "/" + name + ending for folder, ending in matches[:2])
            raise BadDataError(
                f"{path} names the picture {name}, which may be {both}. Write the paths with their "
                "folder in the table."
            )
        if matches:
            return Table(path, header, len(header or first), column, *matches[0])
    if endings != ("",):
        return None
    return Table(path, header, len(header or first), column, "", "")


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number, from 1, and the cells of each row that is not empty."""
    try:
        with translate_os_errors("read", path), open(path, "rb") as file:
            start = file.readline(MOST_BYTES)
            delimiter = max(DELIMITERS, key=lambda character: start.count(character.encode()))
            file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
            reader = csv.reader(_lines(path, file), delimiter=delimiter, strict=True)
            yield from ((reader.line_num, row) for row in reader if any(map(str.strip, row)))
    except csv.Error as error:
        raise BadDataError(f"{path} is not a valid CSV table: {error}. Save it again.") from None


def _lines(path: Path, file: BinaryIO) -> Iterator[str]:
    """Yield the lines of a file, which are decoded one by one so that an error names its line."""
    for number, line in enumerate(iter(lambda: file.readline(MOST_BYTES + 1), b""), 1):
        if len(line) > MOST_BYTES:
            raise BadDataError(
                f"{path}, line {number} has more than {MOST_BYTES:,} bytes; expected a path and a "
                "label. Check that this is the right file."
            )
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise BadDataError(
                f"{path}, line {number} is not UTF-8 text ({error.reason}). Save the table as "
                "UTF-8."
            ) from None


def _tables_in(folder: Path) -> list[Table]:
    with translate_os_errors("list", folder):
        names = sorted(
            name
            for name in os.listdir(folder)
            if name.lower().endswith(TABLE_ENDINGS) and not name.startswith(".")
        )
    # Kaggle's sample_submission.csv has a row for each picture of the test split.
    tables = (read_table(folder / name) for name in names if "submission" not in name.lower())
    return [table for table in tables if table is not None]


def _folders_in(folder: Path) -> list[str]:
    with translate_os_errors("list", folder), os.scandir(folder or ".") as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        )


def _split_of(path: Path, base: Path) -> str | None:
    """Return the split that a table's name says or, below the base, its folder's name."""
    return split_named(path.stem) or (
        split_named(path.parent.name) if path.parent != base else None
    )


def _named_split(text: str, place: str) -> str:
    split = split_named(text)
    if split is None:
        raise BadDataError(
            f"{place} has the split {text!r}; expected {', '.join(SPLITS)}. Correct the line."
        )
    return split


def _check_label(tables: list[Table], label: str | None) -> None:
    """Raise `UsageError` if no table has the column `label`; warn if none has a usual one."""
    if any(table.label_column(label) is not None for table in tables):
        return
    columns = list(dict.fromkeys(name for table in tables for name in table.header or ()))
    if label is not None:
        names = f"the columns {', '.join(columns)}" if columns else "no names of columns"
        raise UsageError(
            f"--label is {label!r}, but {tables[0].path} has {names}."
            f"{did_you_mean(label, columns)} Give the column with the labels."
        )
    if len(columns) > 1:
        logger.warning(
            "%s has no column of labels, such as label or class: its columns are %s. Pass --label "
            "COLUMN if one of them has the classes.",
            tables[0].path,
            ", ".join(columns),
        )


def _folded(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


FORMAT = Format(
    name="a table of pictures",
    recognises=lambda path, start: not is_almost_idx(path) and bool(find_tables(path)),
    open=open_tables,
    options=frozenset({"seed", "resize", "channels", "holdout", "shuffle", "label"}),
)
