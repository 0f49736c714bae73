"""NumPy files: the arrays that are used, their rows, and what is refused."""

import io
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.ingest import ingest
from pipeline.sources.formats import SourceOptions
from pipeline.sources.idx_directory import open_directory
from pipeline.sources.source import open_source
from storage.errors import BadDataError, ConflictError, UsageError
from storage.events import no_progress
from storage.preparation import BYTES, ValueRange
from tests.pipeline.sources import small_sets
from tests.pipeline.sources.small_sets import images, labels, read, splits_of, write_set
from tests.storage.idx_files import write_idx

MNIST_DIGEST = "7100e1c1"
"""The start of the digest of MNIST, from any format."""


def arrays(x: str = "x_{}", y: str = "y_{}", splits: str = "train test") -> dict[str, Any]:
    """Arrays of 12 training rows, and of 5 for other splits."""
    both = {}
    for split in splits.split():
        rows = 12 if split == "train" else 5
        both |= {x.format(split): images(rows), y.format(split): labels(rows)}
    return both


def write_npz(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy_bytes(values: NDArray[Any], extra: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue() + extra


def header_bytes(header: str, version: tuple[int, int] = (1, 0)) -> bytes:
    length = len(header).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + header.encode("latin1")


refusal = partial(small_sets.refusal, reading=True)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("values", "names"),
    [
        (arrays(), ["train", "test"]),
        (arrays("{}_images", "{}_labels", "test train val"), ["train", "validation", "test"]),
        (arrays("{}X", "{}Y"), ["train", "test"]),
        (arrays("mnist-{}-imgs", "mnist-{}-targets"), ["train", "test"]),
        ({"data": images(12), "target": labels(12)}, ["train"]),
        ({"X": images(12)}, ["train"]),
        ({"note": np.array(["a"]), "x": images(12), "y": labels(12)}, ["train"]),
    ],
)
def test_names(tmp_path: Path, save: Any, values: dict[str, Any], names: list[str]) -> None:
    """Usual names of arrays are recognised; every row is read, in order."""
    save(tmp_path / "set.npz", **values)
    splits = splits_of(tmp_path / "set.npz")
    assert names == [split.name for split in splits]
    for split in splits:
        rows, classes = read(split, 7)
        np.testing.assert_array_equal(images(12 if split.name == "train" else 5), rows)
        if split.has_labels:
            np.testing.assert_array_equal(labels(len(rows)), classes)
            assert sorted(set(labels(len(rows)).tolist())) == split.label_values(no_progress)
    assert "set" == open_source(str(tmp_path / "set.npz")).name


@pytest.mark.parametrize("form", ["{}_train", "{}-test", "train-{}s"])
def test_directory(tmp_path: Path, form: str) -> None:
    """A directory of .npy files is a source, but not if it has IDX files."""
    names = ("image", "label") if form.endswith("s") else ("x", "y")
    for name, values in zip(names, (images(12), labels(12)), strict=True):
        np.save(tmp_path / f"{form.format(name)}.npy", values)
    (tmp_path / "._x_train.npy").write_bytes(b"shadow")
    (split,) = splits_of(tmp_path)
    assert ("test" if "test" in form else "train") == split.name
    np.testing.assert_array_equal(labels(12), read(split)[1])
    split.fingerprint(no_progress)
    assert sorted(f"{form.format(name)}.npy" for name in names) == sorted(
        file.name for file in split.files()
    )
    write_set(tmp_path)
    assert "train-images-idx3-ubyte" in splits_of(tmp_path)[0].origin


@pytest.mark.parametrize(
    ("name", "split"),
    [("digits.npy", "train"), ("mnist_test.npy", "test"), ("Val.NPY", "validation")],
)
def test_one_file(tmp_path: Path, name: str, split: str) -> None:
    """A single .npy file is an unlabelled split, named by the file."""
    (tmp_path / name).write_bytes(npy_bytes(images(12)))
    (opened,) = splits_of(tmp_path / name)
    assert (split, False) == (opened.name, opened.has_labels)
    np.testing.assert_array_equal(images(12), read(opened)[0])


def test_named_arrays(tmp_path: Path) -> None:
    """--arrays names the arrays of each split; a name that is not there is refused."""
    np.savez(tmp_path / "set.npz", images(12), labels(12), images(5))
    train, test = splits_of(
        tmp_path / "set.npz", arrays={"test": ("arr_2",), "train": ("arr_0", "arr_1")}
    )
    assert (12, True, 5, False) == (train.rows, train.has_labels, test.rows, test.has_labels)
    message = refusal(tmp_path / "set.npz", UsageError, arrays={"train": ("arr", "arr_1")})
    assert "--arrays names 'arr'" in message
    assert "Did you mean 'arr_0'?" in message
    assert "--arrays train=arr_0,arr_1" in refusal(tmp_path / "set.npz")


@pytest.mark.parametrize(
    ("given", "dtype", "scaling"),
    [
        *[(name, name, None) for name in ("int8", "int16", "int32", "float32", "float64")],
        ("uint8", "uint8", BYTES),
        *[(f">{name}", name, None) for name in ("i2", "i4", "f4", "f8")],
        ("bool", "uint8", ValueRange(0, 1)),
        ("float16", "float32", None),
        (">u2", "int32", None),
        *[(name, "uint8", BYTES) for name in ("int64", "uint32", ">u8")],
    ],
)
def test_element_types(tmp_path: Path, given: str, dtype: str, scaling: ValueRange | None) -> None:
    """All numeric types are read exactly, in either byte order."""
    values = (images(12) // 2).astype(given)
    np.savez(tmp_path / "set.npz", x=values, y=labels(12))
    dataset = ingest(str(tmp_path / "set.npz"), tmp_path / "data").dataset
    inputs = dataset.split("train").read_chunk(0).inputs
    assert np.dtype(dtype) == inputs.dtype
    np.testing.assert_array_equal(values.reshape(12, -1), inputs[:, 1:])
    if scaling is not None:
        assert scaling == dataset.preparation.scaling


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 255, "uint8"), (-1, 127, "int8"), (0, 256, "int16"), (-1, 2**31 - 1, "int32")],
)
def test_wide_integers(tmp_path: Path, low: int, high: int, dtype: str) -> None:
    """64-bit integers take the smallest type that holds the values of all splits."""
    values = images(12).astype(np.int64) % 2
    values[3, 2, 1], values[11, 3, 2] = low, high
    np.savez(tmp_path / "set.npz", x_train=values, x_test=values[:3] % 2)
    for split in splits_of(tmp_path / "set.npz"):
        assert np.dtype(dtype) == split.dtype
        assert (low if split.name == "train" else 0) == read(split)[0].min()


@pytest.mark.parametrize(
    ("shape", "asked", "image_shape"),
    [
        ((12, 16), None, (4, 4)),
        ((12, 16), (2, 8), (2, 8)),
        ((12, 16), (16,), (16,)),
        ((12, 15), None, (15,)),
        ((12, 4, 3, 1), None, (4, 3)),
        ((12, 1, 4, 3), None, (4, 3)),
        ((12, 4, 3, 3), None, (4, 3, 3)),
    ],
)
def test_shapes(
    tmp_path: Path, shape: tuple[int, ...], asked: Any, image_shape: tuple[int, ...]
) -> None:
    """Rows of values become squares or the asked shape; a single channel is no dimension."""
    values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    np.save(tmp_path / "x.npy", values)
    (split,) = splits_of(tmp_path / "x.npy", shape=asked)
    np.testing.assert_array_equal(values.reshape(12, *image_shape), read(split)[0])
    assert image_shape == split.image_shape


@pytest.mark.parametrize(
    "given",
    [
        labels(12)[:, None].astype("u8"),
        labels(12).astype("f4"),
        labels(12).astype(">i2"),
        np.eye(10, dtype="f8")[labels(12)],
        np.eye(10, dtype=bool)[labels(12)],
    ],
)
def test_labels(tmp_path: Path, given: NDArray[Any]) -> None:
    """Labels may be a column, whole floats, or one-hot."""
    np.savez(tmp_path / "set.npz", x=images(12), y=given)
    (split,) = splits_of(tmp_path / "set.npz")
    np.testing.assert_array_equal(labels(12), read(split)[1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.array([0, 1, 2, 0.5] * 3), "array y: row 3 has label 0.5; expected whole numbers"),
        (np.array([0, np.nan] * 6), "row 1 has label nan"),
        (np.array([0, 2**64 - 1] * 6, "u8"), "row 1 has label 18446744073709551615; expected"),
        (np.array([0, 1, -1] * 4), "row 2 has label -1; expected 0 or more"),
        (np.ones((12, 3), "u1"), "row 0 holds [1, 1, 1]; expected one-hot"),
        (np.zeros((12, 2, 2), "u1"), "of shape (12, 2, 2); expected labels"),
        (np.array(["cat"] * 12), "has <U3 values"),
        (np.array([{}] * 12), "array y has Python objects, which are pickled and could run"),
        (labels(11), "array y has 11 labels, but"),
    ],
)
def test_bad_labels(tmp_path: Path, given: NDArray[Any], message: str) -> None:
    """Labels that are not classes are refused by array and row."""
    np.savez(tmp_path / "set.npz", x=images(12), y=given)
    assert message in refusal(tmp_path / "set.npz")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.array([[1j]]), "values of type complex128; expected integers, floats"),
        (np.array([["a"]]), "values of type <U1"),
        (np.array([[None]]), "array x has Python objects"),
        (np.zeros((2, 2), np.longdouble), "values of type float128"),
        (np.zeros((2, 2), "M8[s]"), "values of type datetime64[s]"),
        (np.zeros(2, [("a", "u1")]), "has values of shape (2,); expected images"),
        (np.asfortranarray(images(3)), "in Fortran order: its rows are not contiguous"),
        (np.zeros((0, 4, 4), "u1"), "shape (0, 4, 4)"),
        (np.zeros((4, 0), "u1"), "shape (4, 0)"),
        (np.array(5), "shape ()"),
        (np.full((2, 2), 2**40), "int64 values from 1,099,511,627,776 to 1,099,511,627,776"),
        (np.zeros((1, 2**26 + 1), "u1"), "images of 67,108,865 bytes"),
    ],
)
def test_bad_images(tmp_path: Path, given: NDArray[Any], message: str) -> None:
    """Arrays that are not images are refused, with the type or shape."""
    np.savez(tmp_path / "set.npz", x=given)
    assert message in refusal(tmp_path / "set.npz")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": images(3), "b": labels(3)}, "images and labels. Expected names such as x_train"),
        ({"x": images(3), "images": images(3)}, "train split's images and labels are unclear"),
        ({"x": images(3), "y_test": labels(3)}, "test split's images and labels are unclear"),
        ({"x_train": images(3), "x_test": images(3, 2, 2)}, "The splits' images differ"),
        ({"x_train": images(3) > 9, "x_test": images(4)}, "some are bool, others bytes"),
        ({}, "has no arrays. Save images"),
    ],
)
def test_sets_that_are_none(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    """Arrays with unclear names, or that do not belong together, are refused."""
    np.savez(tmp_path / "set.npz", **values)
    assert message in refusal(tmp_path / "set.npz")


def test_shape_that_does_not_fit(tmp_path: Path) -> None:
    """--shape must have as many values as a row; it is not for images with height and width."""
    np.save(tmp_path / "rows.npy", np.zeros((3, 12), "u1"))
    assert "have 12 values" in refusal(tmp_path / "rows.npy", UsageError, shape=(5, 5))
    np.save(tmp_path / "images.npy", np.zeros((3, 4, 3), "u1"))
    assert "4 x 3 values" in refusal(tmp_path / "images.npy", UsageError, shape=(3, 4))


def test_other_choices(tmp_path: Path) -> None:
    """Other arrays of a file, and another shape, are not taken for the dataset made before."""
    path = tmp_path / "set.npz"
    np.savez(
        path, a=np.zeros((12, 16), "u1"), b=labels(12), c=np.ones((12, 16), "u1"), d=labels(12)
    )
    made = partial(ingest, str(path), tmp_path / "set")
    first = SourceOptions(arrays={"train": ("a", "b")})
    made(options=first)
    assert made(options=first).already_done
    with pytest.raises(ConflictError, match=r"these differ: train arrays\. "):
        made(options=SourceOptions(arrays={"train": ("c", "d")}))
    with pytest.raises(ConflictError, match=r"these differ: train shape\. "):
        made(options=replace(first, shape=(2, 8)))


CLAIM = "{'descr': '|u1', 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy_bytes(images(12), b"more"), "array x has bytes after its last value"),
        (npy_bytes(images(12))[:-20], "cut off after 10 whole rows"),
        (header_bytes(CLAIM % "(1000000000000, 28, 28)"), "cut off after 0 whole rows"),
        (header_bytes(CLAIM % "(-1, 28)"), "the shape (-1, 28)"),
        (header_bytes(CLAIM % "(True, 28)"), "the shape (True, 28)"),
        (header_bytes(CLAIM % ("(" + "1," * 70 + ")")), "the shape (1, 1"),
        (header_bytes("(" * 5000), "header that cannot be used"),
        (header_bytes("-" * 9000 + "1"), "header that cannot be used (too deep)"),
        (header_bytes("__import__('os').system('touch ran')"), "used (malformed node or string);"),
        (header_bytes("{}", (3, 0)), "version 3.0"),
        (header_bytes("{}" + " " * 10_000, (2, 0)), "version 2.0, 10,002 bytes"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "4,294,967,295 bytes"),
        (b"\x93NUM", "not a NumPy array: it starts with"),
        (b"cposix\nsystem\n", "not a NumPy array: it starts with"),
        (b"", "not a NumPy array"),
    ],
)
def test_damaged_members(tmp_path: Path, content: bytes, message: str) -> None:
    """Headers and sizes are checked before any row is read, in archives and files alike."""
    write_npz(tmp_path / "set.npz", {"x.npy": content})
    assert message in refusal(tmp_path / "set.npz")
    (tmp_path / "x.npy").write_bytes(content)
    assert message.removeprefix("array x ") in refusal(tmp_path / "x.npy")


def test_damaged_archives(tmp_path: Path) -> None:
    """Cut-off, altered, encrypted and other archives are refused with a remedy."""
    path = tmp_path / "set.npz"
    whole = write_npz(path, {"x.npy": npy_bytes(images(12))}, zipfile.ZIP_STORED).read_bytes()
    path.write_bytes(whole[:-30])
    assert "is damaged" in refusal(path)
    place = whole.index(images(12).tobytes())
    path.write_bytes(whole[:place] + b"\0\0\0" + whole[place + 3 :])
    assert "array x is damaged (Bad CRC-32" in refusal(path)
    directory = whole.index(b"PK\x01\x02")
    path.write_bytes(whole[: directory + 8] + b"\1" + whole[directory + 9 :])
    assert "array x is encrypted; expected an archive as numpy.savez" in refusal(path)
    write_npz(path, {"x.npy": npy_bytes(images(12))}, zipfile.ZIP_LZMA)
    assert "compressed by another method" in refusal(path)
    path.write_bytes(b"<!DOCTYPE html>")
    assert "set.npz is damaged (no ZIP directory at its end)" in refusal(path)
    write_npz(path, {f"{number:0300}.npy": b"" for number in range(4000)})
    assert "its directory has" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy_bytes(images(12)))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", npy_bytes(images(5)))
    assert "two arrays named x; expected one" in refusal(path)


def test_member_names_lead_nowhere(tmp_path: Path) -> None:
    """Nothing is extracted, whatever the names of members are."""
    (tmp_path / "in").mkdir()
    path = write_npz(
        tmp_path / "in" / "set.npz",
        {"../../x_train.npy": npy_bytes(images(12)), "/etc/readme": b"text"},
    )
    (split,) = splits_of(path)
    assert 12 == len(read(split)[0])
    assert ["in"] == [entry.name for entry in tmp_path.iterdir()]
    assert [path] == list((tmp_path / "in").iterdir())


def test_archive_that_changes_in_use(tmp_path: Path) -> None:
    """An archive that is replaced while it is read is refused."""
    np.savez(tmp_path / "set.npz", **arrays())
    split = splits_of(tmp_path / "set.npz")[0]
    split.fingerprint(no_progress)
    np.savez(tmp_path / "set.npz", **arrays() | {"x_train": images(12)[::-1].copy()})
    with pytest.raises(BadDataError, match=r"set\.npz changed while it was being read"):
        read(split)
    np.savez(tmp_path / "set.npz", x_train=images(11), y_train=labels(11))
    with pytest.raises(BadDataError, match=r"set\.npz changed while it was being read"):
        read(split)


def test_options_of_other_formats(tmp_path: Path) -> None:
    """Options for pictures and columns are refused."""
    np.save(tmp_path / "x.npy", images(3))
    message = refusal(tmp_path / "x.npy", UsageError, label="y")
    assert "--label does not apply to" in message
    assert "NumPy arrays" in message


@pytest.mark.slow
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_random_damage(tmp_path: Path, save: Any) -> None:
    """Altered bytes give the same rows or an error of the pipeline, nothing else."""
    path, random = tmp_path / "set.npz", np.random.default_rng(4)
    save(path, **arrays())
    whole = path.read_bytes()
    expected = [read(split) for split in splits_of(path)]
    for _ in range(600):
        content = bytearray(whole)
        for place in random.integers(0, len(whole), random.integers(1, 4)):
            content[place] = random.integers(0, 256)
        if random.random() < 0.1:
            del content[random.integers(len(whole)) :]
        path.write_bytes(content)
        try:
            actual = [read(split) for split in splits_of(path)]
        except BadDataError:
            continue
        if len(actual) < len(expected):
            continue  # a member whose name was altered is not one of the set
        for (rows, classes), (other_rows, other_classes) in zip(expected, actual, strict=True):
            np.testing.assert_array_equal(rows, other_rows)
            assert other_classes is None or classes.tolist() == other_classes.tolist()  # type: ignore[union-attr]


BOUNDED = """
import resource, sys
from pipeline.sources.source import open_source
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 48 * 2**20,) * 2)
for split in open_source(sys.argv[1]).splits:
    rows = sum(part.stop - part.start for part in split.parts(2000))
    print(split.dtype, rows, split.label_values(lambda *facts: None)[-1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory(tmp_path: Path, save: Any) -> None:
    """An archive of 375 MB is read within 48 MiB, to choose its element type as well."""
    values = np.zeros((60_000, 784), np.int64)
    save(tmp_path / "set.npz", x=values, y=np.arange(60_000) % 10)
    command = [sys.executable, "-c", BOUNDED, str(tmp_path / "set.npz")]
    reading = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3]
    )
    assert ("uint8 60000 9\n", "") == (reading.stdout, reading.stderr)


@pytest.mark.slow
def test_mnist(tmp_path: Path, mnist: dict[str, NDArray[Any]]) -> None:
    """Keras' archive of MNIST gives the dataset digest of its IDX files."""
    np.savez_compressed(tmp_path / "mnist.npz", **mnist)
    dataset = ingest(str(tmp_path / "mnist.npz"), tmp_path / "data").dataset
    assert dataset.digest.startswith(MNIST_DIGEST)


def test_same_digest_as_idx(tmp_path: Path) -> None:
    """The same images and labels give the same dataset digest as in IDX files."""
    write_set(tmp_path)
    np.savez(tmp_path / "set.npz", **arrays())
    expected = ingest(open_directory(tmp_path), tmp_path / "idx").dataset.digest
    assert expected == ingest(str(tmp_path / "set.npz"), tmp_path / "npz").dataset.digest
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels(12)[::-1])
    assert expected != ingest(open_directory(tmp_path), tmp_path / "other").dataset.digest
