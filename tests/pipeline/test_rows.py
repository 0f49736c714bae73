"""RowReader: the rows of a part of the order, reading only the chunks that it needs."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pipeline.order import EpochOrder
from pipeline.rows import OrderedRows, RowReader
from storage.dataset import Block, Split
from storage.errors import ConflictError
from tests.pipeline.datasets import Known, load_at_once, watched_windows
from tests.pipeline.streams import CHUNK_ROWS, ROWS, assert_contents

EPOCHS = 3


def ordered(known: Known, window_chunks: int) -> OrderedRows:
    """All rows but the last two, shuffled."""
    return OrderedRows(
        dataset=known.dataset.location,
        dataset_digest=known.dataset.digest,
        split="train",
        order=EpochOrder(
            seed=3, epoch=0, rows=ROWS - 2, chunk_rows=CHUNK_ROWS, window_chunks=window_chunks
        ),
        epochs=EPOCHS,
    )


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """The number of reads of each chunk."""
    counts: Counter[int] = Counter()
    read_chunk = Split.read_chunk

    def counted(split: Split, number: int, *out: Block) -> Block:
        counts[number] += 1
        return read_chunk(split, number, *out)

    monkeypatch.setattr(Split, "read_chunk", counted)
    return counts


def windows_of(order: EpochOrder, start: int, stop: int) -> Counter[int]:
    """The chunks of the windows that contain positions [start, stop)."""
    numbers = range(order.window_at(start), order.window_at(stop - 1) + 1)
    return Counter(chunk for number in numbers for chunk in order.window(number).chunks.tolist())


@pytest.mark.parametrize("reads_ahead", [True, False])
@pytest.mark.parametrize("window_chunks", [1, 2, 4])
@pytest.mark.parametrize("part", [(0, ROWS - 2), (0, 20), (13, 37), (40, 59)])
def test_a_part_of_each_epoch(
    part: tuple[int, int],
    window_chunks: int,
    reads_ahead: bool,
    known: Known,
    read: Counter[int],
) -> None:
    """Rows follow the order; each chunk of their windows is read once per epoch, no other."""
    rows = ordered(known, window_chunks)
    expected: Counter[int] = Counter()
    with RowReader(rows, part) as reader:
        reader.reads_ahead = reads_ahead
        for epoch in range(EPOCHS):
            order = replace(rows.order, epoch=epoch)
            visited = np.concatenate([order.window(n).row_numbers for n in range(order.windows)])
            for start in range(part[0], part[1], 9):
                batch = reader.take(epoch, start, min(start + 9, part[1]))
                assert visited[start : start + len(batch.rows)].tolist() == batch.rows.tolist()
                assert_contents(known, batch)
            expected += windows_of(order, *part)
    assert expected == read


def test_all_in_one_window(known: Known, read: Counter[int]) -> None:
    """Rows of a single window are read once for all epochs, whatever the part."""
    rows = ordered(known, 9)
    with RowReader(rows, (5, 30)) as reader:
        assert reader.holds_all
        for epoch in range(EPOCHS):
            numbers = replace(rows.order, epoch=epoch).window(0).row_numbers
            batch = reader.take(epoch, 31, 48)
            assert numbers[31:48].tolist() == batch.rows.tolist()
            assert_contents(known, batch)
    assert Counter(range(9)) == read


@pytest.mark.parametrize("size", [4, 20])
def test_two_windows_at_most(known: Known, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Only the window in use and the next are in memory, even if rows are in several windows."""
    load_at_once(monkeypatch)
    others = watched_windows(monkeypatch)
    with RowReader(ordered(known, 2)) as reader:
        for epoch in range(EPOCHS):
            for start in range(0, ROWS - 2, size):
                assert len(reader.take(epoch, start, min(start + size, ROWS - 2)).rows)
    assert 15 == len(others)
    assert 1 == max(others)


def test_going_back(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier windows can be read again, as after a worker's loss, without a third in memory."""
    load_at_once(monkeypatch)
    others = watched_windows(monkeypatch)
    rows = ordered(known, 2)
    with RowReader(rows) as reader:
        for epoch, start in ((1, 40), (0, 3), (2, 58), (0, 20), (0, 3)):
            order = replace(rows.order, epoch=epoch)
            visited = np.concatenate([order.window(n).row_numbers for n in range(order.windows)])
            assert visited[start] == reader.take(epoch, start, start + 1).rows.item()
    assert 1 == max(others)


def test_another_dataset(known: Known) -> None:
    """A dataset that has been replaced is refused."""
    with pytest.raises(ConflictError, match="the job began with 00"):
        RowReader(replace(ordered(known, 2), dataset_digest="00"))
