"""The column of labels of a Parquet file: whole numbers, or texts."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.file_split import MAX_CLASSES
from pipeline.sources.splits import in_natural_order
from storage.errors import BadDataError

NO_LABEL = -1
"""The label that the library datasets gives to rows without one."""
LARGEST_WHOLE = 2**53
"""Floats up to this represent whole numbers exactly."""
_SHOWN = 40
"""Characters of a label that a message shows."""


class LabelColumn:
    """The labels of one split. A pass that scans all of them comes before those that read them."""

    def __init__(self, arrow: Any, name: str, class_names: Sequence[str] | None) -> None:
        """`class_names` are those of the file's metadata, if it has any."""
        self._arrow, self.name, self._class_names = arrow, name, class_names
        self.distinct: dict[Any, None] = {}
        """The distinct labels, whole numbers or texts, that were scanned."""
        self._without: str | None = None
        self.numbers: dict[str, int] = {}
        """The number of each text, which `number_texts` sets; empty for a column of numbers."""

    def scan(self, column: Any, path: Path, row: int) -> None:
        """Add labels to `distinct`; `row` is the number of the first one in the file.

        Raises `BadDataError` that names the first row whose label is no class, or missing although
        others have one.
        """
        labels, absent = self._normalised(column, path, row)
        if absent.any() and self._without is None:
            self._without = self._place(path, row + int(np.argmax(absent)))
        present = labels.filter(self._arrow.array(~absent))
        new = set(self._arrow.compute.unique(present).to_pylist()) - self.distinct.keys()
        for label in sorted(new):
            if problem := self._problem(label):
                first = self._arrow.compute.index(labels, label).as_py()
                raise BadDataError(f"{self._place(path, row + first)} has {problem}")
        self.distinct.update(dict.fromkeys(new))
        if len(self.distinct) > MAX_CLASSES:
            raise BadDataError(
                f"{path}: column {self.name!r} has more than {MAX_CLASSES:,} distinct labels; "
                "expected classes. Name the column of the classes by --label."
            )
        if self.distinct and self._without is not None:
            raise BadDataError(
                f"{self._without} has no label, but other rows have one. Add the label, or remove "
                "the row."
            )

    def values(self) -> list[int]:
        """Return the distinct labels in ascending order."""
        return sorted(self.numbers.get(label, label) for label in self.distinct)

    def read(self, column: Any, path: Path, row: int) -> NDArray[np.int64]:
        """Return labels as numbers; those of a file that has changed may be wrong."""
        labels, _ = self._normalised(column, path, row)
        if self.numbers:
            texts = self._arrow.array(self.numbers, labels.type)
            labels = self._arrow.compute.index_in(labels, value_set=texts)
            numbers = np.array([*self.numbers.values(), NO_LABEL], np.int64)
            ranks: NDArray[np.int32] = labels.fill_null(-1).to_numpy(zero_copy_only=False)
            return numbers[ranks]
        values: NDArray[np.int64] = labels.fill_null(NO_LABEL).to_numpy(zero_copy_only=False)
        return values

    def _normalised(self, column: Any, path: Path, row: int) -> tuple[Any, NDArray[np.bool_]]:
        """Return labels as 64-bit integers or texts, and which are absent."""
        arrow = self._arrow
        if arrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        absent = arrow.compute.is_null(column, nan_is_null=True)
        if arrow.types.is_floating(column.type):
            values = column.to_numpy(zero_copy_only=False)
            wrong = ~(np.abs(values) <= LARGEST_WHOLE) | (np.trunc(values) != values)
            wrong &= ~absent.to_numpy(zero_copy_only=False)
            if wrong.any():
                first = int(np.argmax(wrong))
                raise BadDataError(
                    f"{self._place(path, row + first)} has label {values[first]}; expected whole "
                    "numbers, the classes. Name the column of the classes by --label."
                )
            column = arrow.compute.if_else(absent, None, column)
        if not is_text(arrow, column.type):
            column = column.cast(arrow.int64(), safe=False)
            absent = arrow.compute.or_(
                absent, arrow.compute.equal(column, NO_LABEL).fill_null(True)
            )
        return column, absent.to_numpy(zero_copy_only=False)

    def _problem(self, label: Any) -> str | None:
        """Return why a label is no class, and what was expected; None if it is one."""
        if isinstance(label, str):
            if label.strip() and label.isprintable():
                return None
            return f"label {label[:_SHOWN]!r}; expected the name of a class. Correct the label."
        if label < 0:
            return f"label {label}; expected 0 or more. Remove the rows without a class."
        if self._class_names is not None and label >= len(self._class_names):
            return (
                f"label {label}, but the file names {len(self._class_names):,} classes. Correct "
                "the label, or write the file with the names of all classes."
            )
        return None

    def _place(self, path: Path, row: int) -> str:
        return f"{path}: row {row}, column {self.name!r},"


def number_texts(columns: Sequence[LabelColumn]) -> tuple[str, ...] | None:
    """Give each text one number in all splits, and return the names of the classes.

    Texts that are all whole numbers, of at most 18 digits, stand for these numbers, and give no
    names; others are numbered in natural order.
    """
    labels = {label for column in columns for label in column.distinct}
    if not any(isinstance(label, str) for label in labels):
        return None
    texts = in_natural_order(labels)
    are_numbers = all(re.fullmatch("[0-9]{1,18}", text) for text in texts)
    numbers = {text: int(text) if are_numbers else rank for rank, text in enumerate(texts)}
    for column in columns:
        column.numbers = numbers
    return None if are_numbers else tuple(texts)


def is_text(arrow: Any, column_type: Any) -> bool:
    """Return whether a type is that of texts."""
    types = arrow.types
    return bool(types.is_string(column_type) or types.is_large_string(column_type))


def is_label(arrow: Any, column_type: Any) -> bool:
    """Return whether a column can hold labels: numbers or texts, or a dictionary of them."""
    types = arrow.types
    if types.is_dictionary(column_type):
        column_type = column_type.value_type
    is_number = types.is_integer(column_type) or types.is_floating(column_type)
    return bool(is_number or types.is_boolean(column_type) or is_text(arrow, column_type))
