"""BatchStream: the rows that it yields, the chunks that it reads and keeps, and its failures."""

import math
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import windows
from pipeline.order import CHAIN_START, EpochOrder, Window
from pipeline.stream import chunks_per_window
from pipeline.windows import DEFAULT_THREADS, Scratch, Timing, WindowLoader, threads_beside
from storage import local
from storage.dataset import Block, Split
from storage.errors import BadDataError, UsageError
from storage.schema import SplitSchema
from tests.pipeline.datasets import Known, load_at_once, watched_windows, write_known
from tests.pipeline.streams import (
    CHUNK_ROWS,
    CHUNKS,
    SETTINGS,
    assert_contents,
    link,
    open_stream,
    row_lists,
    stream_settings,
)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """1,003 chunks of one row, in shards of 8."""
    return write_known(tmp_path_factory.mktemp("sharded") / "set", 1003, 1)


def expected_batches(options: dict[str, Any], epoch: int) -> list[list[int]]:
    """The row numbers of each mini-batch, cut from the order's windows."""
    order = EpochOrder(
        seed=options["seed"],
        epoch=epoch,
        rows=options["rows"],
        chunk_rows=CHUNK_ROWS,
        window_chunks=options["window_chunks"],
        shuffle=options["shuffle"],
        first_row=options["first_row"],
    )
    rows = [row for n in range(order.windows) for row in order.window(n).row_numbers.tolist()]
    size = options["batch_size"] or len(rows)
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    return batches[:-1] if options["drop_last"] and len(batches[-1]) < size else batches


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Count the reads of each chunk from now on."""
    reads: Counter[int] = Counter()
    lock = threading.Lock()
    read_chunk = Split.read_chunk

    def counted(split: Split, number: int, *out: Block) -> Block:
        with lock:
            reads[number] += 1
        return read_chunk(split, number, *out)

    monkeypatch.setattr(Split, "read_chunk", counted)
    return reads


@pytest.mark.slow
@SETTINGS
@given(options=stream_settings())
def test_batches(known: Known, options: dict[str, Any]) -> None:
    """Two epochs yield the order's rows, cut into mini-batches, with the right contents.

    The state's digest covers all mini-batches so far.
    """
    digest = CHAIN_START
    with open_stream(known, **options) as stream:
        for epoch in range(2):
            batches = []
            for batch in stream:
                assert_contents(known, batch)
                batches.append(batch)
                digest = link(digest, batch.rows)
                assert digest.hex() == stream.state.order_digest
            assert expected_batches(options, epoch) == row_lists(batches)
            assert len(stream) == len(batches)


@SETTINGS
@given(options=stream_settings(), parts=st.integers(1, 9))
def test_micro_batches(known: Known, options: dict[str, Any], parts: int) -> None:
    """The parts of a mini-batch are those of `numpy.array_split`, and lead to the same state."""
    with open_stream(known, **options) as whole, open_stream(known, **options) as cut:
        for batch, micro_batches in zip(whole, cut.micro_batches(parts), strict=True):
            pieces = list(micro_batches)
            expected = [rows.tolist() for rows in np.array_split(batch.rows, parts) if rows.size]
            assert expected == row_lists(pieces)
            assert whole.state == cut.state
            for piece in pieces:
                assert_contents(known, piece)


def test_a_mini_batch_counts_with_its_last_part(known: Known) -> None:
    """The state changes with the last part of a mini-batch."""
    with open_stream(known, batch_size=20) as stream:
        before = stream.state
        micro_batches = next(stream.micro_batches(3))
        next(micro_batches)
        next(micro_batches)
        assert before == stream.state
        next(micro_batches)
        assert 1 == stream.state.next_batch


def test_reprs(known: Known) -> None:
    """A stream and a batch describe themselves in one line, without their rows."""
    with open_stream(known, batch_size=20) as stream:
        batch = next(iter(stream))
        place = known.dataset.location
        described = f"<BatchStream of {place}, split train: 4 batches of 20 rows"
        assert f"{described}, next is 1 of epoch 0>" == repr(stream)
    assert f"{described}, closed, next is 1 of epoch 0>" == repr(stream)
    assert "<Batch: inputs (20, 6) uint8, targets (20, 4) uint8>" == repr(batch)


def test_unlabelled(tmp_path: Path) -> None:
    """A split without labels yields inputs only, even if a mini-batch spans windows."""
    known = write_known(tmp_path / "set", 20, 3, labelled=False)
    with open_stream(known, batch_size=7, window_chunks=2) as stream:
        for batch in stream:
            assert_contents(known, batch)


@pytest.mark.slow
def test_shards(sharded: Known) -> None:
    """More than a thousand chunks are stored in shards, and yield the same rows."""
    assert 8 == sharded.dataset.split("train").schema.chunks_per_shard
    with open_stream(sharded, batch_size=100, window_chunks=300) as stream:
        batches = list(stream)
    assert list(range(1003)) == sorted(row for rows in row_lists(batches) for row in rows)
    for batch in batches:
        assert_contents(sharded, batch)


@pytest.mark.parametrize("window_chunks", [1, 2, 4, 9, 50])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_chunk_is_read_once_per_epoch(
    known: Known, monkeypatch: pytest.MonkeyPatch, window_chunks: int, shuffle: bool
) -> None:
    """Three epochs read each chunk three times, and nothing is read past the last epoch."""
    reads = count_reads(monkeypatch)
    with open_stream(
        known, batch_size=4, window_chunks=window_chunks, shuffle=shuffle, epochs=3
    ) as stream:
        for _ in range(3):
            list(stream)
    assert dict.fromkeys(range(CHUNKS), 3) == dict(reads)


def test_a_range_reads_its_own_chunks_only(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 20..33 are in chunks 2 to 4; no other chunk is read."""
    reads = count_reads(monkeypatch)
    with open_stream(known, batch_size=5, first_row=20, rows=14, epochs=1) as stream:
        list(stream)
    assert {2: 1, 3: 1, 4: 1} == dict(reads)


def test_seeking_reads_two_windows(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    """Continuing in the middle of an epoch reads the next row's window and the one after it."""
    options: dict[str, Any] = {"batch_size": 7, "window_chunks": 2, "shuffle": False}
    with open_stream(known, **options) as stream:
        batches = iter(stream)
        for _ in range(4):
            next(batches)
        state = stream.state
    reads = count_reads(monkeypatch)
    with open_stream(known, **options, state=state) as stream:
        batch = next(iter(stream))
    assert list(range(28, 35)) == batch.rows.tolist()
    assert {4, 5} <= set(reads) <= {4, 5, 6, 7}  # closing may cut off the last window
    assert 1 == max(reads.values())


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 5, 14, 40, 0])
def test_two_windows_are_held(
    known: Known, monkeypatch: pytest.MonkeyPatch, batch_size: int, parts: int
) -> None:
    """Only the window in use and the next are in memory, however fast loading is."""
    load_at_once(monkeypatch)
    others = watched_windows(monkeypatch)
    with open_stream(known, batch_size=batch_size, window_chunks=2, epochs=3) as stream:
        while stream.state.epoch < 3:
            for micro_batches in stream.micro_batches(parts):
                for batch in micro_batches:
                    assert len(batch.rows)
                    del batch
    assert 15 == len(others)
    assert 1 == max(others)


def threads_used(
    split: Split, busy_cores: int, timings: list[Timing], monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """The threads that load each of four windows for given timings; the last two are late."""
    used: list[int] = []
    load_window = windows.load_window

    def counting(
        split: Split,
        window: Window,
        block: Block,
        pool: ThreadPoolExecutor | None,
        scratch: Scratch,
    ) -> Timing:
        used.append(pool._max_workers if pool else 1)
        load_window(split, window, block, pool, scratch)
        return timings[window.number]

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
    monkeypatch.setattr(windows, "load_window", counting)
    rows, chunk_rows = split.schema.rows, split.schema.chunk_rows
    order = EpochOrder(seed=0, epoch=0, rows=rows, chunk_rows=chunk_rows, window_chunks=2)
    with WindowLoader(split, 4, busy_cores=busy_cores) as loader:
        for number in range(4):
            # Taking a window starts the next one; the last two count as late.
            monkeypatch.setattr(windows, "LATE_SECONDS", -1.0 if number > 1 else math.inf)
            loader.take(order, number)
    return used


@pytest.mark.parametrize(
    ("busy_cores", "timings", "expected"),
    [
        (0, [(0.3, 0.29)] * 4, [4, 4, 4, 4]),
        (3, [(0.3, 0.29)] * 4, [4, 1, 1, 4]),
        (3, [(0.3, 0.01)] * 4, [4, 16, 16, 16]),
        (3, [(0.3, 0.29), *[(0.3, 0.01)] * 3], [4, 1, 1, 4]),
        (3, [(0.003, 0.0)] * 4, [4, 1, 1, 4]),
    ],
)
def test_threads_that_load(
    known: Known,
    busy_cores: int,
    timings: list[Timing],
    expected: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fewer threads load if the consumer is busy, and all for the window after a late one.

    More load after a late window that mostly waited, as for a slow store, unless the wait was
    short, as that of small chunks for one another.
    """
    split = known.dataset.split("train")
    assert expected == threads_used(split, busy_cores, timings, monkeypatch)


def test_threads_beside_a_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer keeps its cores free, unless it uses all: then one thread loads."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
    assert [4, 3, 1, 1, 1] == [threads_beside(busy, 4) for busy in (0, 1, 3, 4, 9)]


def test_the_window_fits_the_shuffle_memory() -> None:
    """A window takes half of the memory, at most all chunks."""
    schema = SplitSchema.plan(rows=1000, features=99, dtype="uint8", classes=10, chunk_rows=10)
    for memory, expected in [(2200, 1), (6599, 2), (6600, 3), (2**40, 100)]:
        assert expected == chunks_per_window(schema, memory)
    assert DEFAULT_THREADS == chunks_per_window(schema, 2**40, shuffle=False)


def test_too_little_shuffle_memory(known: Known) -> None:
    """A memory smaller than two chunks is refused, with both sizes."""
    with pytest.raises(UsageError, match=r"100 bytes, but two chunks of this dataset need 140\."):
        open_stream(known, batch_size=1, shuffle_memory=100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 62}, "The batch size is 62; expected 1 to the 61 rows"),
        ({"batch_size": -1}, "The batch size is -1"),
        ({"batch_size": 1, "first_row": 61}, r"split train has rows 0\.\.60"),
        ({"batch_size": 1, "first_row": -1}, r"Rows -1\.\.60 were requested"),
        ({"batch_size": 1, "first_row": 60, "rows": 2}, r"Rows 60\.\.61 were requested"),
        ({"batch_size": 1, "rows": 0}, "were requested"),
        ({"batch_size": 1, "window_chunks": 0}, "The window is 0 chunks; expected at least 1"),
        ({"batch_size": 1, "window_chunks": -2}, "The window is -2 chunks"),
    ],
)
def test_settings_out_of_range(known: Known, options: dict[str, Any], message: str) -> None:
    """Rows and sizes outside the split are refused before anything is read."""
    with pytest.raises(UsageError, match=message):
        open_stream(known, **options)


def flip_a_bit(chunk: Path) -> None:
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)


def take_another(chunk: Path) -> None:
    chunk.write_bytes(chunk.with_name("c.3.0").read_bytes())


@pytest.mark.parametrize("harm", [Path.unlink, flip_a_bit, take_another])
@pytest.mark.parametrize("array", ["inputs", "targets"])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_damaged_chunk(tmp_path: Path, array: str, harm: Any, threads: int) -> None:
    """A damaged, missing or exchanged chunk ends the iteration; closing ends the threads."""
    known = write_known(tmp_path / "set", 40, 4)
    harm(known.path / "train" / array / "c.7.0")
    taken = []
    with open_stream(
        known, batch_size=4, window_chunks=2, shuffle=False, threads=threads
    ) as stream:
        with pytest.raises(BadDataError, match="Chunk 7 "):
            for batch in stream:
                taken.append(batch.rows.tolist())
        assert [list(range(n, n + 4)) for n in range(0, 24, 4)] == taken
        assert 6 == stream.state.next_batch
    assert [] == [thread.name for thread in threading.enumerate() if "load-" in thread.name]


@pytest.mark.parametrize("harm", [flip_a_bit, take_another])
@pytest.mark.parametrize("array", ["inputs", "targets"])
def test_damage_between_epochs(
    tmp_path: Path, array: str, harm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that changes after it was read is found, even if its size and time are the same."""
    monkeypatch.setattr(local, "SETTLED_SECONDS", -1.0)
    known = write_known(tmp_path / "set", 40, 4)
    chunk = known.path / "train" / array / "c.7.0"
    with open_stream(known, batch_size=4, window_chunks=2, shuffle=False) as stream:
        list(stream)
        time.sleep(0.02)  # the clock of a file system may advance in such steps
        status = chunk.stat()
        harm(chunk)
        os.utime(chunk, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert status.st_size == chunk.stat().st_size
        with pytest.raises(BadDataError, match="Chunk 7 "):
            list(stream)


def test_continuing_after_a_repair(tmp_path: Path) -> None:
    """After a chunk is restored, iterating continues at the batch that failed."""
    known = write_known(tmp_path / "set", 40, 4)
    chunk = known.path / "train" / "inputs" / "c.7.0"
    sound = chunk.read_bytes()
    chunk.unlink()
    with open_stream(known, batch_size=4, window_chunks=2, shuffle=False) as stream:
        with pytest.raises(BadDataError):
            list(stream)
        chunk.write_bytes(sound)
        assert [list(range(n, n + 4)) for n in range(24, 40, 4)] == row_lists(list(stream))
