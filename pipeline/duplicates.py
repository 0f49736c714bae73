"""Find images that occur more than once, by their digests, in bounded memory.

Digests are collected in memory. Above a number of rows they are written to a temporary file, in
sorted runs that are cut into ranges of digests. Equal digests are in the same range of each run, so
that one range after the other can be compared.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.examine import Digests
from storage.errors import temporary_space
from storage.location import Closing

MOST_ROWS = 2**15
"""Rows that are held in memory: with 6 MB, ingest needs about as much for any number of rows."""
ROW_MEMORY = 200
"""Bytes of memory that each of them needs, as measured."""
RECORDED_ROWS = 10
"""Rows that are recorded of each kind."""

Records: TypeAlias = NDArray[Any]
RECORD = np.dtype([(name, "<u8") for name in ("high", "low", "group", "rows", "first", "second")])
"""Images with one digest (`high`, `low`) in one group: their number and the first two rows."""
NONE = np.uint64(2**64 - 1)
"""Instead of a second row."""
CLASS_BITS = np.uint64(17)
"""Bits of a group that hold the class; those above hold the split."""
EDGE = np.dtype("<u8")


@dataclass(frozen=True)
class Rows:
    """A number of rows, and the first of them, each with the row that it is compared with."""

    count: int = 0
    first: tuple[tuple[int, ...], ...] = ()
    """Row numbers in ascending order, at most `RECORDED_ROWS`: `(row,)` or `(row, other row)`."""

    def plus(self, count: int, *columns: NDArray[Any]) -> "Rows":
        """Return the sum with other rows, given as columns of row numbers."""
        order = columns[0].argsort(kind="stable")[:RECORDED_ROWS]
        first = zip(*(column[order].tolist() for column in columns), strict=True)
        return Rows(self.count + count, tuple(sorted([*self.first, *first])[:RECORDED_ROWS]))


class DuplicateFinder(Closing):
    """Collects the digests of numbered splits' images, then finds those that are equal."""

    def __init__(self, splits: int, total_rows: int, most_rows: int) -> None:
        """Expect `total_rows` of all splits; at most `most_rows` are held in memory."""
        self.repeated = [Rows() for _ in range(splits)]
        """For each split, the rows that repeat an earlier one, with that one."""
        self.contradictory = [Rows() for _ in range(splits)]
        """For each split, the images with different labels: the first rows of two of the labels."""
        self.shared = {(a, b): Rows() for b in range(splits) for a in range(b)}
        """For two splits, the rows of the second that are in the first, with their row there."""
        self._most_rows = most_rows
        ranges = 1 + 2 * total_rows // most_rows  # half as many rows as memory holds, on average
        self._bounds = np.array([2**64 * n // ranges for n in range(ranges)], dtype=np.uint64)
        self._pending: list[Records] = []
        self._runs: list[int] = []
        self._file: IO[bytes] | None = None

    def add(self, split: int, start: int, digests: Digests, classes: NDArray[np.int32]) -> None:
        """Add consecutive rows of a split from row `start` on."""
        records = np.empty(len(digests), RECORD)
        records["high"], records["low"] = digests.T
        records["group"] = (np.uint64(split) << CLASS_BITS) + (classes + 1).astype(np.uint64)
        records["rows"], records["second"] = 1, NONE
        records["first"] = np.arange(start, start + len(records), dtype=np.uint64)
        for piece in np.split(records, range(self._most_rows, len(records), self._most_rows)):
            if sum(map(len, self._pending)) + len(piece) > self._most_rows:
                self._write_run()
            self._pending.append(piece)

    def find(self) -> None:
        """Compare all rows that were added."""
        if self._runs:
            self._write_run()
        for records in self._ranges():
            self._count(_combined(records[_may_be_equal(records)]))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write_run(self) -> None:
        """Write the pending records, sorted, after the offsets at which their ranges begin."""
        records = np.concatenate(self._pending)
        self._pending = []
        again = _may_be_equal(records)
        records = np.concatenate([_combined(records[again]), records[~again]])
        records = records[records["high"].argsort()]
        edges = [*np.searchsorted(records["high"], self._bounds), len(records)]
        with temporary_space():
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
            self._runs.append(self._file.seek(0, 2))
            self._file.write(np.array(edges, EDGE).tobytes())
            self._file.write(records.data)

    def _ranges(self) -> Iterator[Records]:
        """Yield all records, those with equal digests together."""
        if not self._runs:
            yield np.concatenate(self._pending)
            return
        for number in range(len(self._bounds)):
            yield np.concatenate([self._read(run, number) for run in self._runs])

    def _read(self, run: int, number: int) -> Records:
        """Return a range of a run."""
        assert self._file is not None
        with temporary_space():
            self._file.seek(run + number * EDGE.itemsize)
            start, stop = np.fromfile(self._file, EDGE, 2).tolist()
            begin = run + (len(self._bounds) + 1) * EDGE.itemsize
            self._file.seek(begin + start * RECORD.itemsize)
            return np.fromfile(self._file, RECORD, stop - start)

    def _count(self, of_classes: Records) -> None:
        """Count the images of combined records, in which a group is a split and a class."""
        of_splits = of_classes.copy()
        of_splits["group"] >>= CLASS_BITS
        of_first_rows = of_splits.copy()
        of_first_rows["second"] = NONE  # so that the second row is one of another class
        of_splits, of_first_rows = _combined(of_splits), _combined(of_first_rows)
        numbers = _group_starts(of_splits, "high", "low").cumsum()
        for split in range(len(self.repeated)):
            rows = of_splits[(of_splits["group"] == split) & (of_splits["rows"] > 1)]
            repeats = int(rows["rows"].sum()) - len(rows)
            self.repeated[split] = self.repeated[split].plus(repeats, rows["second"], rows["first"])
            rows = of_first_rows[
                (of_first_rows["group"] == split) & (of_first_rows["second"] != NONE)
            ]
            self.contradictory[split] = self.contradictory[split].plus(
                len(rows), rows["first"], rows["second"]
            )
        for pair, shared in self.shared.items():
            first, second = (np.flatnonzero(of_splits["group"] == split) for split in pair)
            _, *both = np.intersect1d(
                numbers[first], numbers[second], assume_unique=True, return_indices=True
            )
            earlier, later = of_splits[first[both[0]]], of_splits[second[both[1]]]
            count = int(later["rows"].sum())
            self.shared[pair] = shared.plus(count, later["first"], earlier["first"])


def _may_be_equal(records: Records) -> NDArray[np.bool_]:
    """Return whether half of each record's digest occurs again, which is rare and fast to see."""
    high = np.ascontiguousarray(records["high"])
    order = high.argsort()
    high = high[order]
    same = np.zeros(len(records) + 1, np.bool_)
    same[1:-1] = high[1:] == high[:-1]
    again = np.empty(len(records), np.bool_)
    again[order] = same[1:] | same[:-1]
    return again


def _combined(records: Records) -> Records:
    """Return one record for each digest and group, sorted by both."""
    records = records[np.lexsort([records[name] for name in ("first", "group", "low", "high")])]
    starts = np.flatnonzero(_group_starts(records, "high", "low", "group"))
    if not len(starts):
        return records
    combined = records[starts]
    combined["rows"] = np.add.reduceat(records["rows"], starts)
    second = np.minimum.reduceat(records["second"], starts)
    several = np.flatnonzero(np.diff([*starts, len(records)]) > 1)
    second[several] = np.minimum(second[several], records["first"][starts[several] + 1])
    combined["second"] = second
    return combined


def _group_starts(records: Records, *names: str) -> NDArray[np.bool_]:
    """Return whether each of sorted records is the first one with its values of these fields."""
    starts = np.zeros(len(records), np.bool_)
    starts[:1] = True
    for name in names:
        starts[1:] |= records[name][1:] != records[name][:-1]
    return starts
