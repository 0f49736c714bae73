"""Streams over the dataset `known`: random settings, and comparisons."""

import hashlib
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from pipeline.order import RowNumbers
from pipeline.stream import Batch, BatchStream
from tests.pipeline.datasets import Known

SETTINGS = settings(max_examples=30, deadline=None, derandomize=True, database=None)

ROWS, CHUNK_ROWS, CHUNKS = 61, 7, 9


@st.composite
def stream_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Random settings of a stream over a range of the 61 rows, with windows of one chunk to all."""
    first_row = draw(st.integers(0, ROWS - 1) | st.just(0))
    rows = draw(st.integers(1, ROWS - first_row) | st.just(ROWS - first_row))
    return {
        "first_row": first_row,
        "rows": rows,
        "batch_size": draw(st.integers(0, rows)),
        "window_chunks": draw(st.integers(1, CHUNKS)),
        "seed": draw(st.integers(0, 2**40)),
        "shuffle": draw(st.booleans()),
        "drop_last": draw(st.booleans()),
        "threads": draw(st.integers(1, 3)),
    }


def link(digest: bytes, row_numbers: RowNumbers) -> bytes:
    """Return the order digest after one more mini-batch, by its definition."""
    return hashlib.sha256(digest + row_numbers.astype("<u8").tobytes()).digest()


def open_stream(known: Known, **options: Any) -> BatchStream:
    return BatchStream(known.dataset, "train", **options)


def row_lists(batches: list[Batch]) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches]


def assert_contents(known: Known, batch: Batch) -> None:
    """Assert that a batch has the contents of the rows that it names."""
    assert known.inputs[batch.rows].tolist() == batch.inputs.tolist()
    assert known.inputs.dtype == batch.inputs.dtype
    if known.targets is None:
        assert batch.targets is None
    else:
        assert batch.targets is not None
        assert known.targets[batch.rows].tolist() == batch.targets.tolist()
