"""Pickles of arrays: what is read, exactly, and that nothing in a pickle is ever executed."""

import builtins
import bz2
import gzip
import io
import lzma
import os
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.ingest import ingest
from pipeline.sources import pickled_arrays
from pipeline.sources.source import open_source
from storage.errors import BadDataError, PipelineError
from storage.preparation import BYTES, ValueRange
from tests.pipeline.sources.small_sets import images, labels, read, refusal, splits_of, write_set

Pairs = list[tuple[NDArray[Any], NDArray[Any]]]


def pairs(convert: Callable[[NDArray[Any]], NDArray[Any]], rows: tuple[int, ...]) -> Pairs:
    """Pairs of flat images, converted, and int64 labels, as in the book's file."""
    return [
        (convert(images(count, 4, 4).reshape(count, 16)), labels(count).astype(np.int64))
        for count in rows
    ]


def python2(content: Pairs, protocol: int) -> bytes:
    """Return what Python 2 and its NumPy write: byte strings, where Python 3 writes bytes."""

    def string(data: bytes) -> bytes:
        if protocol == 0:
            return b"S" + repr(data)[1:].encode() + b"\n"
        return b"T" + len(data).to_bytes(4, "little") + data

    def number(value: int) -> bytes:
        return b"I%d\n" % value if protocol == 0 else b"J" + value.to_bytes(4, "little")

    def array(values: NDArray[Any]) -> bytes:
        core = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0)
        start = core + b"t" + string(b"b") + b"tR"
        dtype = b"cnumpy\ndtype\n(" + string(values.dtype.str[1:].encode()) + number(0) + number(1)
        dtype += b"tR(" + number(3) + string(b"<") + b"NNN" + (number(0) * 3) + b"tb"
        shape = b"(" + b"".join(map(number, values.shape)) + b"t"
        in_fortran_order = b"I00\n"
        state = number(1) + shape + dtype + in_fortran_order + string(values.tobytes())
        return start + b"(" + state + b"tb"

    pickled = (b"(" + array(first) + array(second) + b"t" for first, second in content)
    return (b"\x80\x02" if protocol == 2 else b"") + b"(" + b"".join(pickled) + b"t."


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def assert_rows(path: Path, rows: dict[str, int]) -> None:
    splits = splits_of(path)
    assert rows == {split.name: split.rows for split in splits}
    for split in splits:
        values, classes = read(split)
        np.testing.assert_array_equal(images(split.rows, 4, 4), values)
        np.testing.assert_array_equal(labels(split.rows), classes)


THREE = {"train": 12, "validation": 5, "test": 7}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind_of_sequence", [tuple, list])
def test_python3(tmp_path: Path, protocol: int, kind_of_sequence: type) -> None:
    """All protocols of Python 3 are read."""
    content = kind_of_sequence(pairs(lambda values: values, (12, 5, 7)))
    assert_rows(write(tmp_path / "set.pkl", pickle.dumps(content, protocol)), THREE)


@pytest.mark.parametrize("protocol", range(3))
def test_python2(tmp_path: Path, protocol: int) -> None:
    """All protocols of Python 2 are read; its strings hold any byte."""
    content = pairs(lambda values: (values / np.float32(256)).astype("f4"), (12, 5, 7))
    pickled = python2(content, protocol)
    reference = pickle.loads(pickled, encoding="latin1")
    np.testing.assert_array_equal(content[0][0], reference[0][0])
    assert_rows(write(tmp_path / "set", pickled), THREE)


@pytest.mark.parametrize(
    ("name", "compress"),
    [("set.pkl.gz", gzip.compress), ("data", gzip.compress), ("a.pkl.xz", lzma.compress)],
)
def test_compressed(tmp_path: Path, name: str, compress: Any) -> None:
    """Compressed pickles are recognised by content or name."""
    content = compress(pickle.dumps(pairs(lambda values: values, (12, 5, 7)), 2))
    path = write(tmp_path / name, content)
    assert_rows(path, THREE)
    assert name.partition(".")[0] == open_source(str(path)).name


def test_one_or_two_pairs(tmp_path: Path) -> None:
    """Two pairs are train and test; one is named by the file."""
    two = pairs(lambda values: values, (12, 7))
    assert_rows(write(tmp_path / "a.pkl", pickle.dumps(two)), {"train": 12, "test": 7})
    assert_rows(write(tmp_path / "b.pkl", pickle.dumps(two[0])), {"train": 12})
    assert_rows(write(tmp_path / "test.pkl", pickle.dumps(two[1:])), {"test": 7})


def test_shapes(tmp_path: Path) -> None:
    """Rows of values become squares, or the asked shape; Fortran order is read."""
    values = np.asfortranarray(images(12, 2, 8))
    path = write(tmp_path / "set.pkl", pickle.dumps((values, labels(12))))
    np.testing.assert_array_equal(values, read(splits_of(path)[0])[0])
    flat = pairs(lambda rows: rows, (12,))
    path = write(tmp_path / "set.pkl", pickle.dumps(flat))
    assert (2, 8) == splits_of(path, shape=(2, 8))[0].image_shape


@pytest.mark.parametrize(
    ("convert", "scaling"),
    [
        (lambda values: values / np.float32(255), BYTES),
        (lambda values: (values / 255).astype("f4"), BYTES),
        (lambda values: values * np.float32(1 / 255), BYTES),
        (lambda values: values / 255, BYTES),
        (lambda values: (values / 255).astype(">f4"), BYTES),
        (lambda values: values / np.float32(256), ValueRange(0, 256)),
        (lambda values: values / 256, ValueRange(0, 256)),
    ],
)
def test_fractions_of_bytes(tmp_path: Path, convert: Any, scaling: ValueRange) -> None:
    """Values that are all k/255, or all k/256, in any rounding, are stored as the bytes k."""
    every_byte = np.arange(256, dtype=np.uint8).reshape(16, 16)
    content = (convert(every_byte), labels(16))
    path = write(tmp_path / "set.pkl", pickle.dumps(content))
    np.testing.assert_array_equal(every_byte, read(splits_of(path)[0])[0].reshape(16, 16))
    dataset = ingest(str(path), tmp_path / "data").dataset
    assert scaling == dataset.preparation.scaling
    assert 1 / scaling.high == dataset.preparation.attributes["scale_factor"]


@pytest.mark.parametrize("other", [1.5, -0.25, np.nan, np.inf, 100.5 / 255, 0.1, 256 / 256 + 1e-7])
def test_other_floats(tmp_path: Path, other: float) -> None:
    """A single value that is no such fraction keeps all splits as they are."""
    content = pairs(lambda values: values / np.float32(256), (12, 5, 7))
    content[2][0][6, 15] = other
    splits = splits_of(write(tmp_path / "set.pkl", pickle.dumps(content)))
    assert {np.dtype(np.float32)} == {split.dtype for split in splits}
    np.testing.assert_array_equal(content[2][0], read(splits[2])[0].reshape(7, 16))


class Calls:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Persistent(pickle.Pickler):
    """Refers to paths by an identifier outside the pickle."""

    def persistent_id(self, value: Any) -> Any:
        return "id" if isinstance(value, Path) else None


def persistent() -> bytes:
    buffer = io.BytesIO()
    Persistent(buffer, 2).dump(Path("elsewhere"))
    return buffer.getvalue()


def with_objects() -> Any:
    return (np.array([Calls(os.system, "touch ran")], dtype=object), labels(1))


FIRST = pickle.dumps(pairs(lambda values: values, (12,))[0], 2)
NDARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
U1 = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"


def array_with(shape: bytes, dtype: bytes = U1, data: bytes = b"U\x04abcd") -> bytes:
    array = NDARRAY + b"(K\x01" + shape + dtype + b"I00\n" + data + b"tb"
    return b"\x80\x02(" + array + array + b"t."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pickle.dumps(Calls(os.system, "touch ran")),
            "refers to posix.system, which could run",
        ),
        (pickle.dumps(Calls(os.system, "touch ran"), 0), "refers to posix.system"),
        (b"cos\nsystem\n(S'touch ran'\ntR.", "refers to os.system, which could run a program"),
        (pickle.dumps(Calls(eval, "open('ran', 'w')")), "refers to builtins.eval"),
        (pickle.dumps(Calls(builtins.exec, "1"), 2), "refers to __builtin__.exec"),
        (pickle.dumps([Calls(getattr, "", "join"), *FIRST]), "refers to builtins.getattr"),
        (pickle.dumps(Calls(subprocess.Popen, "touch ran")), "refers to subprocess.Popen"),
        (b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR.", "utils.runstring"),
        (
            b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
            "refers to numpy.dtype.__init__",
        ),
        (b"\x80\x04\x8c\x05numpy\x8c\x08__file__\x93.", "refers to numpy.__file__"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\ttouch ran\x85R.", "refers to os.system"),
        (b"(S'touch ran'\nios\nsystem\n.", "INST operations"),
        (b"(cos\nsystem\nS'touch ran'\no.", "refers to os.system"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "NEWOBJ operations"),
        (b"\x80\x02cnumpy\ndtype\n}(U\x01aU\x01bub.", "a dictionary"),
        (b"\x80\x02\x82\x01.", "EXT1 operations"),
        (persistent(), "BINPERSID operations"),
        (b"Pid\n.", "PERSID operations"),
        (pickle.dumps({"data": images(3)}), "a dictionary"),
        (pickle.dumps(with_objects()), "refers to posix.system"),
        (pickle.dumps((np.array([None]), labels(1))), "an array of Python objects"),
        (array_with(b"K\x04\x85", b"cnumpy\ndtype\n(U\x02O8tR"), "an array of type 'O8'"),
        (array_with(b"K\x04\x85", b"cnumpy\ndtype\n(U\x02V4tR"), "an array of type 'V4'"),
        (array_with(b"K\x05\x85"), "4 bytes for an array of (5,) uint8"),
        (array_with(b"J\xff\xff\xff\x7f\x85"), "4 bytes for an array of (2147483647,)"),
        (array_with(b"J\xff\xff\xff\xff\x85"), "not a tuple of sizes"),
        (array_with(b"\x88\x85"), "not a tuple of sizes"),
        (array_with(b"K\x04"), "not a complete pickle"),
        (array_with(b"K\x04\x85", U1, b"X\x04\0\0\0abcd"), "an array of Python objects"),
        (pickle.dumps(Calls(bytes, 10**12)), "refers to builtins.bytes"),
        (b"\x80\x05\x8e" + (10**12).to_bytes(8, "little"), "not a complete pickle"),
        (b"\x80\x05\x96" + (10**12).to_bytes(8, "little"), "not a complete pickle"),
        (b"\x80\x04\x95" + (10**12).to_bytes(8, "little") + b"N.", "not a complete pickle"),
        (b"\x80\x02Nr\xff\xff\xff\xff.", "more than 2,000 operations"),
        (b"Np4294967295\n.", "more than 2,000 operations"),
        (b"\x80\x02" + b"N0" * 2000 + b"N.", "more than 2,000 operations"),
        (b"\x80\x02N" + b"q\x00h\x00\x86" * 450 + b".", "objects other than"),
        (b"\x80\x02(N" + b"2\x86" * 500 + b"t.", "DUP operations"),
        (b"\x80\x02]q\x00h\x00a.", "objects other than"),
        (b"\x80\x02N.", "objects other than"),
        (pickle.dumps((images(3), 5)), "objects other than"),
        (pickle.dumps([[1, 2], [3, 4]]), "objects other than"),
        (FIRST + b"N.", "not a complete pickle (bytes follow its end)"),
        (FIRST[:-30], "not a complete pickle"),
        (gzip.compress(FIRST)[:-4], "its compressed data are cut off"),
        (gzip.compress(FIRST)[:-40], "not a complete pickle"),
        (gzip.compress(FIRST)[:-8] + bytes(8), "gzip data is damaged"),
        (b"", "not a complete pickle"),
        (b"<!DOCTYPE html>", "not a complete pickle"),
        (bz2.compress(FIRST), "not a complete pickle"),
    ],
)
def test_hostile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    """Programs, bombs, other content and damage are refused, and nothing is executed."""
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "set.pkl", content)
    assert message in refusal(path)
    assert [path] == list(tmp_path.iterdir())


def test_text_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One text cannot be encoded again and again until memory is full."""
    monkeypatch.setattr(pickled_arrays, "MOST_BYTES", 1000)
    text = b"X\x64\0\0\0" + b"a" * 100
    encode = b"c_codecs\nencode\n(h\x00X\x06\0\0\0latin1tR"
    path = write(tmp_path / "set.pkl", b"\x80\x02" + text + b"q\x000(" + encode * 11 + b"t.")
    assert "encoded text" in refusal(path)


@pytest.mark.slow
@pytest.mark.parametrize("operation", [b"I", b"L", b"c", b"p", b"g"])
def test_long_line(tmp_path: Path, operation: bytes) -> None:
    """Names and numbers in text are not read until memory is full."""
    path = write(tmp_path / "set.pkl", b"\x80\x02" + operation + b"1" * 2**25 + b"\n.")
    tracemalloc.start()
    assert "a line has more than 200 bytes" in refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 2**24 > peak


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle that decodes to more than the limit is refused with another way."""
    monkeypatch.setattr(pickled_arrays, "MOST_BYTES", 10_000)
    content = pickle.dumps((np.zeros((1000, 16), "u1"), labels(1000)))
    path = write(tmp_path / "set.pkl.gz", gzip.compress(content))
    assert "more than 10,000 bytes" in refusal(path)
    assert "Save its arrays with numpy.savez" in refusal(path)


def test_labels_are_checked(tmp_path: Path) -> None:
    """Errors name the split and the row."""
    path = write(tmp_path / "set.pkl", pickle.dumps((images(3), np.array([0, -1, 2]))))
    (split,) = splits_of(path)
    with pytest.raises(BadDataError, match=r"set\.pkl: train labels: row 1 has label -1"):
        read(split)
    path = write(tmp_path / "set.pkl", pickle.dumps((images(3), labels(2))))
    assert "set.pkl: train labels has 2 labels" in refusal(path)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_random_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    """Altered bytes give arrays or an error of the pipeline, and call nothing."""
    monkeypatch.chdir(tmp_path)
    whole = pickle.dumps(pairs(lambda values: values, (4, 2, 3)), protocol)
    random, opened = np.random.default_rng(protocol), 0
    for _ in range(600):
        content = bytearray(whole)
        for place in random.integers(0, len(whole), random.integers(1, 4)):
            content[place] = random.integers(0, 256)
        if random.random() < 0.1:
            del content[random.integers(len(whole)) :]
        path = write(tmp_path / "set.pkl", bytes(content))
        try:
            for split in splits_of(path):
                read(split)
            opened += 1
        except PipelineError:
            continue
    assert opened
    assert [tmp_path / "set.pkl"] == list(tmp_path.iterdir())


def mnist_pairs(mnist: dict[str, NDArray[Any]], divisor: int) -> Pairs:
    """The book's splits of MNIST, from its images / `divisor` as float32."""
    x, y = mnist["x_train"].reshape(-1, 784), mnist["y_train"].astype(np.int64)
    content = [(x[:50_000], y[:50_000]), (x[50_000:], y[50_000:])]
    content.append((mnist["x_test"].reshape(-1, 784), mnist["y_test"].astype(np.int64)))
    return [(images / np.float32(divisor), classes) for images, classes in content]


@pytest.mark.slow
def test_mnist(tmp_path: Path, mnist: dict[str, NDArray[Any]]) -> None:
    """The book's file gives the digest of IDX files with its splits; with k/256 the same bytes."""
    book = python2(mnist_pairs(mnist, 256), 2)
    path = write(tmp_path / "mnist.pkl.gz", gzip.compress(book, 1))
    by_256 = ingest(str(path), tmp_path / "by_256").dataset
    path = write(tmp_path / "mnist.pkl", pickle.dumps(mnist_pairs(mnist, 255)))
    by_255 = ingest(str(path), tmp_path / "by_255").dataset
    x, y = mnist["x_train"], mnist["y_train"]
    np.savez(
        tmp_path / "mnist.npz",
        x_train=x[:50_000],
        y_train=y[:50_000],
        x_val=x[50_000:],
        y_val=y[50_000:],
        x_test=mnist["x_test"],
        y_test=mnist["y_test"],
    )
    expected = ingest(str(tmp_path / "mnist.npz"), tmp_path / "npz").dataset
    assert expected.digest == by_255.digest
    for split in ("train", "validation", "test"):
        theirs, ours = (data.split(split).read_chunk(0).inputs for data in (expected, by_256))
        np.testing.assert_array_equal(theirs[:, 1:], ours[:, 1:])


PEAK = r"""
import re, sys
from pipeline.sources.source import open_source
for split in open_source(sys.argv[1]).splits:
    rows = sum(part.stop - part.start for part in split.parts(2000))
    print(split.name, rows)
print(int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) < 440_000)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory(tmp_path: Path) -> None:
    """The book's 220 MB need at most twice as much."""
    rows = np.random.default_rng(0).integers(0, 256, (50_000, 784), np.uint8) / np.float32(256)
    content = python2(
        [
            (values, labels(len(values)).astype("i8"))
            for values in (rows, rows[:10_000], rows[:10_000])
        ],
        2,
    )
    path = write(tmp_path / "mnist.pkl", content)
    command = [sys.executable, "-c", PEAK, str(path)]
    reading = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3]
    )
    assert ("train 50000\nvalidation 10000\ntest 10000\nTrue\n", "") == (
        reading.stdout,
        reading.stderr,
    )


def test_same_digest_as_idx(tmp_path: Path) -> None:
    """The same images and labels give the same dataset digest as in IDX files."""
    write_set(tmp_path)
    content = [(images(12), labels(12)), (images(5), labels(5))]
    path = write(tmp_path / "set.pkl", pickle.dumps(content))
    expected = ingest(str(tmp_path), tmp_path / "idx").dataset.digest
    assert expected == ingest(str(path), tmp_path / "data").dataset.digest
