"""Order version 1: pinned test vectors, and a second implementation from its definition."""

import hashlib
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.order import CHAIN_START, ORDER_VERSION, EpochOrder, permutation, raw_numbers
from tests.pipeline.streams import link

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)

WORD = 2**64


def philox_block(counter: int, key: tuple[int, int]) -> list[int]:
    """Philox4x64-10 in Python integers, from the paper (Salmon et al., SC 2011, section 3.3)."""
    words = [counter >> 64 * place & WORD - 1 for place in range(4)]
    first, second = key
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        words = [
            right // WORD ^ words[1] ^ first,
            right % WORD,
            left // WORD ^ words[3] ^ second,
            left % WORD,
        ]
        first = (first + 0x9E3779B97F4A7C15) % WORD
        second = (second + 0xBB67AE8584CAA73B) % WORD
    return words


def expected_numbers(count: int, seed: int, epoch: int, level: str, window: int = 0) -> list[int]:
    text = f"mnist-stream order 1|{seed}|{epoch}|{level}|{window}"
    digest = hashlib.sha256(text.encode()).digest()
    key = (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little"))
    # NumPy increments its counter before it draws, so counter 0 gives block 1 first.
    blocks = (philox_block(counter, key) for counter in itertools.count(1))
    return list(itertools.islice(itertools.chain.from_iterable(blocks), count))


def expected_permutation(
    count: int, seed: int, epoch: int, level: str, window: int = 0
) -> list[int]:
    numbers = expected_numbers(count, seed, epoch, level, window)
    return sorted(range(count), key=numbers.__getitem__)


def expected_windows(order: EpochOrder) -> list[list[int]]:
    """Return each window's rows in visiting order, as docs/explanation/order.md defines."""
    rows = range(order.first_row, order.first_row + order.rows)
    chunks = sorted({row // order.chunk_rows for row in rows})
    if order.shuffle:
        shuffled = expected_permutation(len(chunks), order.seed, order.epoch, "chunks")
        chunks = [chunks[place] for place in shuffled]
    windows = []
    for first in range(0, len(chunks), order.window_chunks):
        group = chunks[first : first + order.window_chunks]
        listed = [row for chunk in group for row in rows if row // order.chunk_rows == chunk]
        if order.shuffle:
            window = first // order.window_chunks
            places = expected_permutation(len(listed), order.seed, order.epoch, "rows", window)
            listed = [listed[place] for place in places]
        windows.append(listed)
    return windows


def visited(order: EpochOrder) -> list[int]:
    windows = (order.window(number).row_numbers for number in range(order.windows))
    return [row for window in windows for row in window.tolist()]


def chained(rows: list[int], batch_size: int, digest: bytes = CHAIN_START) -> bytes:
    for start in range(0, len(rows), batch_size):
        digest = link(digest, np.array(rows[start : start + batch_size]))
    return digest


orders = st.builds(
    EpochOrder,
    seed=st.integers(0, 2**70),
    epoch=st.integers(0, 1000),
    rows=st.integers(1, 60),
    chunk_rows=st.integers(1, 20),
    window_chunks=st.integers(1, 8),
    shuffle=st.booleans(),
    first_row=st.integers(0, 30),
)


def test_the_generator_of_the_paper() -> None:
    """The Philox of this file gives the known answer that was published with the paper's code."""
    expected = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert expected == philox_block(0, (0, 0))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            (0, 0, "chunks", 0),
            [0xF035DD5CC74A9965, 0xB5FC718DBCA310CD, 0x37D1C0CF06F5BBC4, 0x9572AE66B291BEEC]
            + [0x79EF2173C12D78AF],
        ),
        (
            (1, 2, "rows", 3),
            [0x58EF08F21FA26865, 0xDF5124EE5B47A834, 0x3BD231F57D207385, 0xE346AD215138FBE8]
            + [0x1C0420FCAED697F2],
        ),
    ],
)
def test_pinned_raw_numbers(arguments: tuple[int, int, str, int], expected: list[int]) -> None:
    """Order version 1 uses these raw numbers forever."""
    assert 1 == ORDER_VERSION
    assert expected == raw_numbers(5, *arguments).tolist()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 0, "chunks", 0), [2, 7, 8, 4, 3, 9, 1, 5, 6, 0]),
        ((1, 2, "rows", 3), [4, 6, 9, 5, 2, 0, 8, 7, 1, 3]),
        ((2**64, 10**6, "rows", 1), [0, 3, 9, 2, 8, 1, 4, 6, 5, 7]),
    ],
)
def test_pinned_permutations(arguments: tuple[int, int, str, int], expected: list[int]) -> None:
    """Order version 1 permutes ten items like this forever."""
    assert expected == permutation(10, *arguments).tolist()


def test_a_pinned_epoch() -> None:
    """Epoch 2 of seed 7 visits 23 rows, in chunks of 5 and windows of 2 chunks, in this order."""
    order = EpochOrder(seed=7, epoch=2, rows=23, chunk_rows=5, window_chunks=2)
    assert [3, 1, 0, 2, 4] == order.chunk_order.tolist()
    assert [0, 10, 20, 23] == order.window_starts.tolist()
    expected = [7, 8, 5, 17, 15, 19, 18, 9, 6, 16]  # of chunks 3 and 1
    expected += [2, 4, 12, 10, 0, 3, 14, 11, 1, 13]  # of chunks 0 and 2
    expected += [20, 22, 21]  # of chunk 4
    assert expected == visited(order)


def test_pinned_order_digests() -> None:
    """Order digests over that epoch's mini-batches of 4, and over the next epoch's after it."""
    epochs = [
        visited(EpochOrder(seed=7, epoch=epoch, rows=23, chunk_rows=5, window_chunks=2))
        for epoch in (2, 3)
    ]
    after_one = chained(epochs[0], 4)
    after_two = chained(epochs[1], 4, after_one)
    assert "61da6c06ba70c287e0df63040b4f1b0b22144b581eb324b1e1188e33f3827739" == after_one.hex()
    assert "8ade7810c996ff7e0859900893097cade37d7769313dfdd738c1a0bed3c867f9" == after_two.hex()


def test_the_pinned_first_epoch_of_mnist() -> None:
    """60,000 rows in chunks of 2,000, shuffled together: the first rows and the digest."""
    order = EpochOrder(seed=0, epoch=0, rows=60_000, chunk_rows=2_000, window_chunks=30)
    rows = visited(order)
    assert [2359, 58294, 32359, 15878, 4714] == rows[:5]
    expected = "89b4b28a1cbfba4452cdb527b1c591da391fda9818a5488ad4ec9c9e57c94779"
    assert expected == chained(rows, 128).hex()


def test_the_published_definition() -> None:
    """The code of docs/explanation/order.md gives the order of any part of a split."""
    page = Path(__file__).parents[2] / "docs" / "explanation" / "order.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    published: dict[str, Any] = {}
    exec("".join(block for block in blocks if "print(" not in block), published)
    for case in itertools.product((1, 23, 60), (5, 7), (1, 2, 9), (0, 2**70), (0, 3), (0, 12)):
        rows, chunk_rows, window_chunks, seed, epoch, first_row = case
        order = EpochOrder(seed, epoch, rows, chunk_rows, window_chunks, first_row=first_row)
        expected = published["visited_rows"](
            rows, chunk_rows, window_chunks, seed, epoch, first_row
        )
        assert expected.tolist() == visited(order)
    assert chained(visited(order), 7) == published["order_digest"](expected, 7)


def test_the_order_digest_by_hand() -> None:
    """A digest is the SHA-256 of the previous one and the row numbers as little-endian uint64."""
    expected = hashlib.sha256(bytes(32) + b"\x05" + bytes(7) + b"\x00\x01" + bytes(6)).digest()
    assert expected == link(CHAIN_START, np.array([5, 256]))


@pytest.mark.slow
@SETTINGS
@given(
    count=st.integers(0, 200),
    seed=st.integers(-(2**70), 2**70),
    epoch=st.integers(0, 10**6),
    level=st.sampled_from(["chunks", "rows"]),
    window=st.integers(0, 1000),
)
def test_permutations_as_defined(
    count: int, seed: int, epoch: int, level: str, window: int
) -> None:
    """Raw numbers and permutations match the definition for any arguments."""
    arguments = (count, seed, epoch, level, window)
    assert expected_numbers(*arguments) == raw_numbers(*arguments).tolist()
    result = permutation(*arguments).tolist()
    assert expected_permutation(*arguments) == result
    assert list(range(count)) == sorted(result)


@pytest.mark.parametrize("shift", [0, 16, 32, 48])
@pytest.mark.parametrize("divisor", [1, 100])
def test_close_raw_numbers(divisor: int, shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw numbers that differ in some bits only are sorted; equal ones keep their order."""
    numbers = np.arange(500, dtype=np.uint64)[::-1] // np.uint64(divisor) << np.uint64(shift)
    monkeypatch.setattr("pipeline.order.raw_numbers", lambda *_: numbers)
    expected = sorted(range(500), key=numbers.tolist().__getitem__)
    assert expected == permutation(500, 0, 0, "rows").tolist()


def test_only_radix_sorts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order does not depend on the vector instructions of NumPy's other sorts."""
    argsort, sorted_types = np.argsort, []

    def recorded(numbers: NDArray[Any], **how: Any) -> NDArray[np.int64]:
        sorted_types.append((numbers.dtype.name, how))
        return argsort(numbers, **how)

    monkeypatch.setattr(np, "argsort", recorded)
    permutation(10, 0, 0, "rows")
    assert [("uint16", {"kind": "stable"})] * 4 == sorted_types


def test_every_argument_matters() -> None:
    """No two of (seed, epoch, level, window) share an order, not even 1|11 and 11|1."""
    values = (0, 1, 2, 11, 12, 111)
    cases = list(itertools.product(values, values, ("chunks", "rows"), values))
    assert len(cases) == len({raw_numbers(2, *case).tobytes() for case in cases})


@SETTINGS
@given(order=orders)
def test_epochs_as_defined(order: EpochOrder) -> None:
    """Every window of any epoch has the rows of the definition, in its order, each row once."""
    expected = expected_windows(order)
    windows = [order.window(number) for number in range(order.windows)]
    assert expected == [window.row_numbers.tolist() for window in windows]
    starts = np.cumsum([0, *map(len, expected)]).tolist()
    assert starts == order.window_starts.tolist()
    holders = [number for number, rows in enumerate(expected) for _ in rows]
    assert holders == [order.window_at(place) for place in range(order.rows)]
    for window in windows:
        listed = np.arange(len(window.places))
        assert listed.tolist() == window.places[window.destinations].tolist()
    rows = [row for window in expected for row in window]
    assert list(range(order.first_row, order.first_row + order.rows)) == sorted(rows)
