"""What an ingest noticed about the images, as a dataset stores it and as sentences.

Such as images that occur in two splits or twice in one, images and pixels that are constant.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from pipeline.duplicates import MOST_ROWS, ROW_MEMORY, DuplicateFinder, Rows
from pipeline.examine import Examination
from pipeline.sources.splits import SPLITS
from storage.dataset import Dataset
from storage.documents import check_fields
from storage.errors import counted, listed
from storage.location import Closing
from storage.schema import DatasetSchema, SplitSchema

PAIR = ("first", "second")
"""Names of the two rows, or of the two splits, that are compared."""
BITMAP_LIMIT = 2**15
"""Images of more values are recorded without a bitmap of their constant columns."""
SHOWN_ROWS = 5
"""Rows that a sentence names."""
SHOWN_CLASSES = 10
"""Absent classes that a sentence names."""


@dataclass(frozen=True)
class SplitFindings:
    """Findings about the images of one split."""

    rows: int
    features: int
    repeated: Rows
    """Images that repeat an earlier one, each with that one."""
    contradictory: Rows
    """Images that occur with different labels, each as two of its rows."""
    constant: Rows
    """Images whose values are all the same."""
    constant_columns: int
    """Number of columns that have the same value in all images."""
    bitmap: str | None
    """These columns as hexadecimal digits, the first column in the highest bit; None if there are
    more than `BITMAP_LIMIT` columns."""

    def to_json(self) -> dict[str, Any]:
        """Return the split's entry in the dataset's attribute."""
        kinds = ("repeated", "contradictory", "constant")
        rows = {f"{name}_images": _rows_to_json(getattr(self, name)) for name in kinds}
        return rows | {"constant_columns": self.constant_columns, "constant_bitmap": self.bitmap}

    @classmethod
    def from_json(cls, entry: Any, schema: SplitSchema, place: str) -> Self:
        """Return the inverse of `to_json`; raise `BadDataError` that names `place`."""
        check_fields(entry, {"constant_columns": int}, place)
        bitmap = entry.get("constant_bitmap")
        if bitmap is not None:
            check_fields(entry, {"constant_bitmap": str}, place)
        repeated, contradictory, constant = (
            _rows_from_json(entry.get(f"{name}_images"), f"{place}: {name}_images", names)
            for name, names in (("repeated", PAIR), ("contradictory", PAIR), ("constant", PAIR[:1]))
        )
        return cls(
            schema.rows,
            schema.features,
            repeated,
            contradictory,
            constant,
            entry["constant_columns"],
            bitmap,
        )

    def sentences(self, name: str) -> list[str]:
        """Return a line for each finding about the split of this name."""
        texts = []
        if self.contradictory.count:
            texts.append(_contradictory_text(name, self.contradictory))
        if self.repeated.count:
            verb = "repeats" if self.repeated.count == 1 else "repeat"
            listed = _listed(self.repeated, "{:,} (as {:,})")
            texts.append(f"{_images(self.repeated, name)} {verb} an earlier one: {listed}")
        if self.constant.count:
            verb = "has" if self.constant.count == 1 else "have"
            listed = _listed(self.constant, "{:,}")
            texts.append(f"{_images(self.constant, name)} {verb} one value everywhere: {listed}")
        if self.constant_columns:
            texts.append(
                f"{self.constant_columns:,} of {self.features:,} pixel values are the same in all "
                f"{name} images"
            )
        return texts


@dataclass(frozen=True)
class Findings:
    """Findings about the images of a dataset."""

    splits: Mapping[str, SplitFindings]
    shared: Mapping[tuple[str, str], Rows]
    """For two splits, the images of the second that are in the first too, each with its row there.
    """

    def to_json(self) -> dict[str, Any]:
        """Return the findings as a dataset's attribute."""
        return {
            "splits": {name: split.to_json() for name, split in self.splits.items()},
            "shared_images": [
                {"splits": list(pair)} | _rows_to_json(rows) for pair, rows in self.shared.items()
            ],
        }

    @classmethod
    def of(cls, dataset: Dataset) -> Self | None:
        """Return the findings that a dataset stores; None if an earlier release made it.

        Raises `BadDataError` if they are malformed.
        """
        if dataset.findings is None:
            return None
        place = f"The attribute findings of {dataset.location}"
        check_fields(dataset.findings, {"splits": dict, "shared_images": list}, place)
        check_fields(dataset.findings["splits"], dict.fromkeys(dataset.splits, dict), place)
        splits = {
            name: SplitFindings.from_json(
                dataset.findings["splits"][name], split.schema, f"{place}, split {name}"
            )
            for name, split in dataset.splits.items()
        }
        shared = {}
        for entry in dataset.findings["shared_images"]:
            check_fields(entry, {"splits": list}, f"{place}, shared_images")
            pair = dict(zip(PAIR, entry["splits"], strict=False))
            check_fields(pair, dict.fromkeys(PAIR, str), f"{place}, splits")
            shared[pair["first"], pair["second"]] = _rows_from_json(entry, place)
        return cls(splits, shared)

    def warnings(self) -> list[str]:
        """Return sentences about images that make an accuracy too high, or a training worse."""
        texts = [
            f"{_shared_text(pair, rows)}. Accuracy on {pair[1]} is too high if the network has "
            "learned them by heart: remove them from one of the splits."
            for pair, rows in self.shared.items()
            if rows.count and pair[0] == SPLITS[0]
        ]
        train = self.splits.get(SPLITS[0])
        if train is not None and train.contradictory.count:
            text = _contradictory_text(SPLITS[0], train.contradictory)
            texts.append(f"{text}. At most one of an image's labels is right: correct them.")
        return texts

    def sentences(
        self, class_names: Sequence[str], class_counts: Mapping[str, Sequence[int]]
    ) -> list[str]:
        """Return a line for each finding; none if nothing was noticed.

        `class_counts` has for each split the rows of each class, none without labels.
        """
        texts = [_shared_text(pair, rows) for pair, rows in self.shared.items() if rows.count]
        for name, split in self.splits.items():
            texts += split.sentences(name)
            counts = zip(class_names, class_counts[name], strict=False)
            if absent := [label for label, count in counts if not count]:
                texts.append(f"{name} has no images of {_named(absent)}")
        return texts


class FindingsCollector(Closing):
    """Merges the examinations of all chunks, in any number, in bounded memory."""

    def __init__(self, schema: DatasetSchema) -> None:
        """Expect the splits of a dataset."""
        self._schema = schema
        self._names = sorted(schema.splits, key=_rank)  # later ones are looked up in earlier ones
        total_rows = sum(split.rows for split in schema.splits.values())
        self._duplicates = DuplicateFinder(len(self._names), total_rows, MOST_ROWS)
        self._constant = dict.fromkeys(self._names, Rows())
        self._columns: dict[str, tuple[Any, Any]] = {}

    def add(self, split: str, examinations: Iterable[Examination]) -> None:
        """Add the examinations of chunks of a split."""
        number = self._names.index(split)
        for chunk in examinations:
            self._duplicates.add(number, chunk.start, chunk.digests, chunk.classes)
            rows = chunk.constant_rows + chunk.start
            self._constant[split] = self._constant[split].plus(len(rows), rows)
            constant, values = self._columns.get(split, (True, chunk.values))
            constant = constant & chunk.constant_columns & (values == chunk.values)
            self._columns[split] = constant, values

    def result(self) -> Findings:
        """Return the findings about all rows that were added."""
        duplicates = self._duplicates
        duplicates.find()
        splits = {}
        for name, schema in self._schema.splits.items():
            number, (mask, _) = self._names.index(name), self._columns[name]
            splits[name] = SplitFindings(
                schema.rows,
                schema.features,
                duplicates.repeated[number],
                duplicates.contradictory[number],
                self._constant[name],
                int(np.count_nonzero(mask)),
                np.packbits(mask).tobytes().hex() if len(mask) <= BITMAP_LIMIT else None,
            )
        shared = {
            (self._names[first], self._names[second]): rows
            for (first, second), rows in duplicates.shared.items()
        }
        return Findings(splits, shared)

    def close(self) -> None:
        self._duplicates.close()


def findings_memory(schema: DatasetSchema, results: int) -> int:
    """Return the bytes that a collector needs, with the examinations of `results` chunks."""
    rows = sum(split.rows for split in schema.splits.values())
    columns = max(
        split.features * (1 + np.dtype(split.dtype).itemsize) for split in schema.splits.values()
    )
    return min(rows, MOST_ROWS) * ROW_MEMORY + (results + 1) * columns


def _rank(split: str) -> int:
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)


def _rows_to_json(rows: Rows) -> dict[str, Any]:
    return {"count": rows.count, "first": [list(row) for row in rows.first]}


def _rows_from_json(entry: Any, place: str, names: tuple[str, ...] = PAIR) -> Rows:
    check_fields(entry, {"count": int, "first": list}, place)
    for row in entry["first"]:
        numbered = dict(zip(names, row, strict=False)) if isinstance(row, list) else row
        check_fields(numbered, dict.fromkeys(names, int), f"{place}, first")
    return Rows(entry["count"], tuple(map(tuple, entry["first"])))


def _named(classes: Sequence[str]) -> str:
    """Return the names of one or more classes."""
    noun = "class" if len(classes) == 1 else "the classes"
    return f"{noun} {listed(classes, SHOWN_CLASSES)}"


def _images(rows: Rows, split: str) -> str:
    return counted(rows.count, f"{split} image")


def _listed(rows: Rows, text: str) -> str:
    """Return the first rows, such as `rows 3, 17, 20 and 5 more`."""
    shown = rows.first[:SHOWN_ROWS]
    more = f" and {rows.count - len(shown):,} more" if rows.count > len(shown) else ""
    noun = "row" if rows.count == 1 else "rows"
    return f"{noun} {', '.join(text.format(*row) for row in shown)}{more}"


def _shared_text(pair: tuple[str, str], rows: Rows) -> str:
    first, second = pair
    verb = "is" if rows.count == 1 else "are"
    listed = _listed(rows, f"{{:,}} ({first} {{:,}})")
    return f"{_images(rows, second)} {verb} also in {first}: {listed}"


def _contradictory_text(split: str, rows: Rows) -> str:
    verb = "occurs" if rows.count == 1 else "occur"
    listed = _listed(rows, "{:,} and {:,}").replace("row ", "rows ")
    return f"{_images(rows, split)} {verb} with different labels: {listed}"
