"""Where IDX files come from: which files are taken, what is refused, and what the parts hold."""

import gzip
import hashlib
import json
import lzma
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.sources.digits import DIGITS_VERSION, draw_digits
from pipeline.sources.source import SourceFile, SplitSource, open_source
from storage.errors import BadDataError, PipelineError, UsageError
from tests.storage.idx_files import write_idx

MNIST_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MNIST_SHA256 = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
"""Of the uncompressed files, in the order of MNIST_NAMES."""


def images(rows: int, *row_shape: int) -> NDArray[Any]:
    shape = (rows, *(row_shape or (4, 3)))
    return np.random.default_rng(rows).integers(0, 256, shape, np.uint8)


def labels(rows: int, classes: int = 10) -> NDArray[Any]:
    return (np.arange(rows) % classes).astype(np.uint8)


def write_set(directory: Path, names: tuple[str, ...] = MNIST_NAMES, ending: str = "") -> None:
    """Write 12 training and 5 test rows under `names`, in the order of MNIST_NAMES."""
    values = (images(12), labels(12), images(5), labels(5))
    for name, value in zip(names, values, strict=True):
        write_idx(directory / (name + ending), value)


def refusal(spec: Path | str, kind: type[PipelineError] = BadDataError) -> str:
    with pytest.raises(kind) as caught:
        open_source(str(spec))
    return str(caught.value)


def read(split: SplitSource, rows_per_part: int = 5) -> tuple[NDArray[Any], NDArray[Any] | None]:
    loaded = [part.load(part.start, part.stop) for part in split.parts(rows_per_part)]
    label_blocks = [block for _, block in loaded if block is not None]
    together = np.concatenate(label_blocks) if label_blocks else None
    return np.concatenate([block for block, _ in loaded]), together


@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
@pytest.mark.parametrize(
    "names",
    [
        MNIST_NAMES,
        tuple(name.replace("-idx", ".idx") for name in MNIST_NAMES),
        tuple(name.replace("-", "_") for name in MNIST_NAMES),
        tuple(f"emnist-letters-{name.replace('t10k', 'test')}" for name in MNIST_NAMES),
        tuple(name.upper() for name in MNIST_NAMES),
    ],
)
def test_names(tmp_path: Path, names: tuple[str, ...], ending: str) -> None:
    """The usual names are understood, with dots, underscores, prefixes and capitals."""
    write_set(tmp_path, names, ending)
    source = open_source(str(tmp_path))
    found = [(split.name, split.rows, split.image_shape) for split in source.splits]
    assert [("train", 12, (4, 3)), ("test", 5, (4, 3))] == found
    assert all(split.has_labels for split in source.splits)


def test_name_of_the_set(tmp_path: Path) -> None:
    """A set is called by its files' prefix, or else by its directory."""
    directory = tmp_path / "handwriting"
    directory.mkdir()
    write_set(directory)
    assert "handwriting" == open_source(str(directory)).name
    for path in directory.iterdir():
        path.rename(directory / f"emnist-digits-{path.name}")
    assert "emnist-digits" == open_source(str(directory)).name


@pytest.mark.parametrize("word", ["val", "valid", "validation", "dev", "VAL"])
def test_validation(tmp_path: Path, word: str) -> None:
    """Files of a validation set are a split of their own, between train and test."""
    write_set(tmp_path)
    write_idx(tmp_path / f"{word}-images-idx3-ubyte", images(4))
    write_idx(tmp_path / f"{word}-labels-idx1-ubyte", labels(4))
    splits = open_source(str(tmp_path)).splits
    assert [("train", 12), ("validation", 4), ("test", 5)] == [(s.name, s.rows) for s in splits]
    assert all(split.has_labels for split in splits)


NEAR_MISSES = {
    "train-labels-idx1-ubyte.gz.1": "train-labels-idx1-ubyte.gz",
    "train-labels-idx1-ubyte (1).gz": "train-labels-idx1-ubyte.gz",
    "train-labels-idx1-ubyte.gz?download=1": "train-labels-idx1-ubyte.gz",
    "Copy of train-labels-idx1-ubyte": "train-labels-idx1-ubyte",
    "train-labels-idx1-ubyte copy 2": "train-labels-idx1-ubyte",
    "trainlabels-idx1-ubyte": "train-labels-idx1-ubyte",
    "train-labels-idx1ubyte.bin": "train-labels-idx1-ubyte",
    "train-labels": "train-labels-idx1-ubyte",
    "y_train.idx": "train-labels-idx1-ubyte",
    "trian-labels-idx1-ubyte": "train-labels-idx1-ubyte",
    "train.txt": "train-labels-idx1-ubyte",
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_miss(tmp_path: Path, name: str) -> None:
    """Labels that nearly have their name are refused with the right one; a second copy is not."""
    write_set(tmp_path)
    found = (tmp_path / MNIST_NAMES[1]).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(found) if ".gz" in name else found)
    warnings: list[str] = []
    assert 2 == len(open_source(str(tmp_path), warn=warnings.append).splits)
    assert name in warnings[0]
    (tmp_path / MNIST_NAMES[1]).unlink()
    assert f"rename {name} to {NEAR_MISSES[name]}." in refusal(tmp_path)


def test_unfinished_download(tmp_path: Path) -> None:
    """A split whose labels are still being downloaded is not taken for one without labels."""
    write_set(tmp_path, ending=".gz")
    (tmp_path / f"{MNIST_NAMES[1]}.gz").rename(tmp_path / f"{MNIST_NAMES[1]}.gz.part")
    message = refusal(tmp_path)
    assert f"{MNIST_NAMES[1]}.gz.part is an unfinished download of {MNIST_NAMES[1]}.gz" in message


def test_archive_in_place_of_labels(tmp_path: Path) -> None:
    """What has nearly the name of missing labels, and is no IDX file, is told by what it is."""
    write_set(tmp_path)
    (tmp_path / MNIST_NAMES[1]).unlink()
    (tmp_path / f"{MNIST_NAMES[1]}.zip").write_bytes(b"PK\x03\x04")
    message = refusal(tmp_path)
    assert f"{MNIST_NAMES[1]}.zip cannot be used as {MNIST_NAMES[1]}: this is not an" in message
    assert "but a ZIP archive (an .npz file is one, too). Unpack it" in message


def test_link_to_nothing(tmp_path: Path) -> None:
    """Labels that git-annex has not fetched are not taken for labels that there are none of."""
    write_set(tmp_path)
    (tmp_path / MNIST_NAMES[1]).rename(tmp_path / "elsewhere.idx")
    (tmp_path / MNIST_NAMES[1]).symlink_to(tmp_path / "nowhere")
    assert f"{MNIST_NAMES[1]} is a link to a file that is not there" in refusal(tmp_path)


def test_what_is_not_used_is_named(tmp_path: Path) -> None:
    """Files that are IDX by content, and whose names tell no split, are warned of."""
    write_set(tmp_path)
    write_idx(tmp_path / "xnist-images-idx3-ubyte.xz", images(7))
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "readme-of-train-images-idx3.md").touch()
    (tmp_path / "train-labels.tsv.gz").write_bytes(gzip.compress(b"5\t0\n"))
    warnings: list[str] = []
    open_source(str(tmp_path), warn=warnings.append)
    (warning,) = warnings
    assert "IDX by content or name: xnist-images-idx3-ubyte.xz. Used:" in warning


def test_qmnist(tmp_path: Path) -> None:
    """QMNIST as it is published: labels of each kind side by side, of which idx1 is read."""
    table = np.zeros((5, 8), np.int32)
    table[:, 0], table[:, 4] = labels(5), 30
    write_idx(tmp_path / "qmnist-test-images-idx3-ubyte.gz", images(5))
    write_idx(tmp_path / "qmnist-test-labels-idx1-ubyte.gz", labels(5))
    write_idx(tmp_path / "qmnist-test-labels-idx2-int.gz", table)
    (tmp_path / "qmnist-test-labels.tsv.gz").write_bytes(gzip.compress(b"7\t4\n"))
    (split,) = open_source(str(tmp_path)).splits
    read(split)
    assert "qmnist-test-labels-idx1-ubyte.gz" == split.files()[1].name
    (tmp_path / "qmnist-test-labels-idx1-ubyte.gz").unlink()
    (split,) = open_source(str(tmp_path)).splits
    np.testing.assert_array_equal(labels(5), read(split)[1])


@pytest.mark.parametrize("place", ["MNIST/raw", "a/raw", "raw"])
def test_directory_above(tmp_path: Path, place: str) -> None:
    """Where the files lie below, as torchvision keeps them, that directory is named."""
    (tmp_path / place).mkdir(parents=True)
    write_set(tmp_path / place)
    assert f"there are some in {tmp_path / place}. Give that directory" in refusal(tmp_path)
    (tmp_path / place).with_name("more").mkdir()
    write_set((tmp_path / place).with_name("more"))
    assert "Give one of these directories" in refusal(tmp_path)


@pytest.mark.parametrize(("kept", "rows"), [("train", 12), ("test", 5)])
def test_one_split_alone(tmp_path: Path, kept: str, rows: int) -> None:
    """A train split alone, or a test split alone, is a source."""
    write_set(tmp_path)
    for path in tmp_path.glob("t10k*" if kept == "train" else "train*"):
        path.unlink()
    assert [(kept, rows)] == [(s.name, s.rows) for s in open_source(str(tmp_path)).splits]


def test_unlabelled(tmp_path: Path) -> None:
    """Images without labels are an unlabelled split."""
    write_idx(tmp_path / MNIST_NAMES[0], images(12))
    (split,) = open_source(str(tmp_path)).splits
    assert not split.has_labels
    assert [] == split.label_values()
    assert read(split)[1] is None
    assert ["images"] == [file.kind for file in split.files()]


@pytest.mark.parametrize("rows_per_part", [1, 5, 12, 100])
def test_parts(tmp_path: Path, rows_per_part: int) -> None:
    """The parts hold every row once, in order, and know which rows they are."""
    write_set(tmp_path)
    train = open_source(str(tmp_path)).splits[0]
    parts = list(train.parts(rows_per_part))
    starts = list(range(0, 12, rows_per_part))
    assert starts == [part.start for part in parts]
    assert [*starts[1:], 12] == [part.stop for part in parts]
    found_images, found_labels = read(train, rows_per_part)
    np.testing.assert_array_equal(images(12), found_images)
    np.testing.assert_array_equal(labels(12), found_labels)


def test_parts_travel(tmp_path: Path) -> None:
    """A part that was pickled holds the same rows."""
    write_set(tmp_path)
    part = next(iter(open_source(str(tmp_path)).splits[0].parts(5)))
    arrived = pickle.loads(pickle.dumps(part)).load(1, 4)
    for expected, actual in zip(part.load(1, 4), arrived, strict=True):
        np.testing.assert_array_equal(expected, actual)


def test_parts_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    """Data that is cut off behind the first part fails after it, not before."""
    write_idx(tmp_path / MNIST_NAMES[0], images(12))
    whole = (tmp_path / MNIST_NAMES[0]).read_bytes()
    (tmp_path / MNIST_NAMES[0]).unlink()
    (tmp_path / f"{MNIST_NAMES[0]}.gz").write_bytes(gzip.compress(whole[:-20]))
    parts = open_source(str(tmp_path)).splits[0].parts(10)
    assert 0 == next(parts).start
    with pytest.raises(BadDataError, match="10 whole rows"):
        next(parts)


@pytest.mark.parametrize("name", [f"{MNIST_NAMES[0]}.gz", f"{MNIST_NAMES[1]}.gz"])
def test_bytes_after_the_last_part(tmp_path: Path, name: str) -> None:
    """What follows the claimed rows of either file is found after the last part."""
    write_set(tmp_path, ending=".gz")
    content = gzip.decompress((tmp_path / name).read_bytes())
    (tmp_path / name).write_bytes(gzip.compress(content + b"x"))
    with pytest.raises(BadDataError, match="1 bytes follow"):
        list(open_source(str(tmp_path)).splits[0].parts(100))


def test_file_that_changes_in_use(tmp_path: Path) -> None:
    """A file that another one replaced since it was opened is refused, not mixed in."""
    write_set(tmp_path)
    split = open_source(str(tmp_path)).splits[0]
    write_idx(tmp_path / MNIST_NAMES[0], images(13))
    with pytest.raises(BadDataError, match="changed while it was in use"):
        list(split.parts(5))


def test_files(tmp_path: Path) -> None:
    """After a whole pass the files' names, sizes and digests are known, and not before."""
    write_set(tmp_path, ending=".xz")
    train = open_source(str(tmp_path)).splits[0]
    with pytest.raises(RuntimeError, match="whole pass"):
        train.files()
    read(train)
    expected = []
    for name, kind in zip(MNIST_NAMES[:2], ("images", "labels"), strict=True):
        stored = (tmp_path / f"{name}.xz").read_bytes()
        decoded = lzma.decompress(stored)
        digests = [hashlib.sha256(content).hexdigest() for content in (stored, decoded)]
        expected.append(
            SourceFile(f"{name}.xz", kind, len(stored), digests[0], len(decoded), digests[1])
        )
    assert expected == train.files()


def test_label_columns(tmp_path: Path) -> None:
    """Of a labels file with more columns, QMNIST's idx2-int, the first is the class."""
    write_idx(tmp_path / "qmnist-test-images-idx3-ubyte.gz", images(6))
    table = np.arange(48, dtype=np.int32).reshape(6, 8)
    write_idx(tmp_path / "qmnist-test-labels-idx2-int.gz", table)
    (split,) = open_source(str(tmp_path)).splits
    assert [0, 8, 16, 24, 32, 40] == split.label_values()
    np.testing.assert_array_equal(table[:, 0], read(split)[1])


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4"])
@pytest.mark.parametrize("classes", [2, 8, 10])
def test_one_hot(tmp_path: Path, dtype: str, classes: int) -> None:
    """Rows of 0 and a single 1 are one-hot labels, in eight columns of int too."""
    expected = labels(70_000, classes)[::-1]
    write_idx(tmp_path / MNIST_NAMES[0], images(70_000, 1))
    write_idx(tmp_path / "train-labels-idx2-ubyte", np.eye(classes, dtype=dtype)[expected])
    (split,) = open_source(str(tmp_path)).splits
    assert list(range(classes)) == split.label_values()
    np.testing.assert_array_equal(expected, read(split, 999)[1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([0, 1, -1, 2], "i1"), "row 2 has label -1"),
        (np.array([0, 1, 2, -5], "i2"), "row 3 has label -5"),
        (np.array([-1, 1, 2, 3], "i4"), "row 0 has label -1"),
        (np.arange(12, dtype="u1").reshape(4, 3), "row 0 holds 0, 1, 2"),
        (np.array([[0, 1], [1, 0], [1, 1], [0, 1]], "u1"), "row 2 holds 1, 1"),
        (np.array([[0, 1], [0, 0], [1, 1], [0, 1]], "u1"), "row 1 holds 0, 0"),
        (np.array([[1, -1], [2, -1], [0, 1], [0, 1]], "i1"), "row 0 holds 1, -1"),
        (np.eye(8, dtype="i4")[[1, 2, 3, 4]] * [[1], [1], [1], [5]], "row 3 holds 0, 0"),
    ],
)
def test_labels_without_a_class(tmp_path: Path, values: NDArray[Any], message: str) -> None:
    """Negative labels, and columns that are neither one-hot nor QMNIST's, are refused by row."""
    write_idx(tmp_path / MNIST_NAMES[0], images(4))
    write_idx(
        tmp_path / MNIST_NAMES[1], values.astype(values.dtype if values.itemsize < 8 else "i4")
    )
    (split,) = open_source(str(tmp_path)).splits
    with pytest.raises(BadDataError, match=message):
        split.label_values()
    with pytest.raises(BadDataError, match=message):
        list(split.parts(100))


def test_label_values(tmp_path: Path) -> None:
    """The classes are the labels found, such as EMNIST's 1 to 26, in ascending order."""
    write_idx(tmp_path / MNIST_NAMES[0], images(100_000, 1))
    write_idx(tmp_path / MNIST_NAMES[1], np.sort(26 - labels(100_000, 26)))
    (split,) = open_source(str(tmp_path)).splits
    assert list(range(1, 27)) == split.label_values()


@pytest.mark.parametrize("dtype", ["i2", "i4"])
def test_labels_in_the_wrong_byte_order(tmp_path: Path, dtype: str) -> None:
    """Labels that were written as little-endian are recognised; others that are large are read."""
    write_idx(tmp_path / MNIST_NAMES[0], images(12))
    write_idx(tmp_path / MNIST_NAMES[1], labels(12).astype(dtype).byteswap())
    (split,) = open_source(str(tmp_path)).splits
    with pytest.raises(BadDataError, match=f"which is 9 if read as .*astype.'>{dtype}'"):
        split.label_values()
    write_idx(tmp_path / MNIST_NAMES[1], labels(12).astype(dtype) + 2047)
    (split,) = open_source(str(tmp_path)).splits
    assert list(range(2047, 2057)) == split.label_values()


@pytest.mark.parametrize("classes", [1000, 1001])
def test_most_classes(tmp_path: Path, classes: int) -> None:
    """1000 distinct labels are classes; one more is refused."""
    write_idx(tmp_path / MNIST_NAMES[0], images(classes, 1))
    write_idx(tmp_path / MNIST_NAMES[1], np.arange(classes, dtype=np.int16))
    (split,) = open_source(str(tmp_path)).splits
    if classes == 1000:
        assert 1000 == len(split.label_values())
        return
    with pytest.raises(BadDataError, match="more than 1,000 distinct labels"):
        split.label_values()


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_element_types(tmp_path: Path, dtype: str) -> None:
    """Images keep their element type, in native byte order, and may be rows of features."""
    values = np.arange(12).reshape(3, 4).astype(dtype)
    write_idx(tmp_path / "train-images-idx2-double", values)
    (split,) = open_source(str(tmp_path)).splits
    assert ((4,), np.dtype(dtype)) == (split.image_shape, split.dtype)
    found, _ = read(split)
    assert np.dtype(dtype) == found.dtype
    np.testing.assert_array_equal(values, found)


def test_counts_that_differ(tmp_path: Path) -> None:
    """Images and labels of different counts are refused when opened, with both of each."""
    write_idx(tmp_path / MNIST_NAMES[0], images(12))
    write_idx(tmp_path / MNIST_NAMES[1], labels(11))
    message = refusal(tmp_path)
    for part in ("11 labels", "12 images", *MNIST_NAMES[:2]):
        assert part in message


@pytest.mark.parametrize(
    ("index", "values", "found"),
    [
        (0, labels(12), "expected images"),
        (1, np.zeros(12, np.float32), "float32 values"),
        (1, np.zeros((12, 2, 2), np.uint8), "(12, 2, 2)"),
    ],
)
def test_shapes_that_are_not_their_role(
    tmp_path: Path, index: int, values: NDArray[Any], found: str
) -> None:
    """Images of one dimension, and labels of floats or three dimensions, are refused."""
    write_set(tmp_path)
    write_idx(tmp_path / MNIST_NAMES[index], values)
    message = refusal(tmp_path)
    assert found in message
    assert MNIST_NAMES[index] in message


def test_splits_that_differ(tmp_path: Path) -> None:
    """Train and test images of different sizes are refused, with both."""
    write_set(tmp_path)
    write_idx(tmp_path / MNIST_NAMES[2], images(5, 7, 7))
    message = refusal(tmp_path)
    assert "train has (4, 3)" in message
    assert "test has (7, 7)" in message


def test_labels_alone(tmp_path: Path) -> None:
    """Labels without their images are refused by name."""
    write_set(tmp_path)
    (tmp_path / MNIST_NAMES[2]).unlink()
    assert f"{MNIST_NAMES[3]}: these test labels have no images" in refusal(tmp_path)


def test_two_sets_in_one_directory(tmp_path: Path) -> None:
    """Files of two sets side by side are refused and listed, with what to do."""
    for prefix in ("emnist-letters", "emnist-digits"):
        write_set(tmp_path, tuple(f"{prefix}-{name}" for name in MNIST_NAMES))
    message = refusal(tmp_path)
    assert f"emnist-letters-{MNIST_NAMES[0]}, " in message
    assert f"emnist-digits-{MNIST_NAMES[0]}, " in message
    assert "directory of its own" in message


def test_images_and_labels_of_two_sets(tmp_path: Path) -> None:
    """The images of one set are never paired with the labels of another."""
    write_idx(tmp_path / "emnist-letters-train-images-idx3-ubyte", images(12))
    write_idx(tmp_path / "emnist-digits-train-labels-idx1-ubyte", labels(12))
    assert "several sets" in refusal(tmp_path)


def test_two_names_of_one_role(tmp_path: Path) -> None:
    """Two files for one role whose names differ by more than compression are refused."""
    write_set(tmp_path)
    write_idx(tmp_path / "test-images-idx3-ubyte", images(5))
    message = refusal(tmp_path)
    assert "several test image files" in message
    assert "t10k-images-idx3-ubyte, test-images-idx3-ubyte" in message


def test_raw_before_compressed(tmp_path: Path) -> None:
    """Of a file and its compressed forms the raw one is read."""
    write_set(tmp_path)
    write_set(tmp_path, ending=".gz")
    write_set(tmp_path, ending=".xz")
    train = open_source(str(tmp_path)).splits[0]
    read(train)
    assert list(MNIST_NAMES[:2]) == [file.name for file in train.files()]


def test_files_beside_the_set(tmp_path: Path) -> None:
    """Checksums, macOS's shadow files, unfinished copies and folders are not candidates."""
    write_set(tmp_path, ending=".gz")
    for name in ("{}.gz.md5", "._{}.gz", "{}.gz.part", "{} (1).gz", "{}.partial"):
        (tmp_path / name.format(MNIST_NAMES[0])).touch()
    (tmp_path / MNIST_NAMES[0]).mkdir()
    assert 2 == len(open_source(str(tmp_path)).splits)


def test_no_idx_file(tmp_path: Path) -> None:
    """A directory without IDX files is refused, with the names that were looked for."""
    (tmp_path / "train.csv").touch()
    message = refusal(tmp_path)
    assert str(tmp_path) in message
    assert "train-images-idx3-ubyte" in message
    assert "t10k-" in message


def test_file_in_place_of_its_directory(tmp_path: Path) -> None:
    """A single file is refused, and its directory is offered."""
    write_set(tmp_path)
    message = refusal(tmp_path / MNIST_NAMES[0], UsageError)
    assert f"Give {str(tmp_path)!r}" in message


@pytest.mark.parametrize(
    ("spec", "nearest"),
    [
        ("mnits", "mnist"),
        ("MNIST", "mnist"),
        ("FashionMNIST", "fashion-mnist"),
        ("fashion_mnist", "fashion-mnist"),
        ("sythetic:60", "synthetic"),
    ],
)
def test_unknown_name(spec: str, nearest: str) -> None:
    """A name that is not known is refused, with the nearest one and what can be given."""
    message = refusal(spec, UsageError)
    assert f"Did you mean {nearest!r}?" in message
    assert "one of mnist, fashion-mnist, kmnist, synthetic" in message


@pytest.mark.parametrize("spec", ["", "/nowhere/at/all"])
def test_no_such_directory(spec: str) -> None:
    """An empty name or a directory that is not there is refused without a guess."""
    message = refusal(spec, UsageError)
    assert "neither a directory nor a known name" in message
    assert "Did you mean" not in message


@pytest.mark.parametrize(
    ("spec", "rows"),
    [
        ("synthetic", {"train": 60_000, "test": 10_000}),
        ("synthetic:6_000_000", {"train": 6_000_000, "test": 1_000_000}),
        ("synthetic:6000", {"train": 6000, "test": 1000}),
        ("synthetic:1", {"train": 1, "test": 1}),
        ("synthetic:7,3", {"train": 7, "test": 3}),
        ("synthetic:7,0", {"train": 7}),
    ],
)
def test_synthetic_counts(spec: str, rows: dict[str, int]) -> None:
    """The counts are taken from the name; a sixth of the training rows is the default test."""
    assert rows == {split.name: split.rows for split in open_source(spec).splits}


@pytest.mark.parametrize(
    "counts", [":", ":0", ":-1", ":1,", ":1,-1", ":1,2,3", ":1.5", ":a", ":1_", ": 1", ":1e3", ":²"]
)
def test_synthetic_counts_out_of_range(counts: str) -> None:
    """Counts that are not plain whole numbers, or no training rows, are refused."""
    assert "synthetic:6000,1000" in refusal(f"synthetic{counts}", UsageError)


def test_synthetic_parts() -> None:
    """A generated part travels as numbers alone and draws the rows it names."""
    test = open_source("synthetic:9,7", seed=3).splits[1]
    parts = [pickle.loads(pickle.dumps(part)) for part in test.parts(4)]
    assert [(0, 4), (4, 7)] == [(part.start, part.stop) for part in parts]
    assert all(len(pickle.dumps(part)) < 300 for part in parts)
    expected_images, expected_labels = draw_digits(3, "test", 0, 7)
    np.testing.assert_array_equal(
        expected_images, np.concatenate([part.load(part.start, part.stop)[0] for part in parts])
    )
    np.testing.assert_array_equal(
        expected_labels, np.concatenate([part.load(part.start, part.stop)[1] for part in parts])
    )
    assert (expected_images.shape[1:], expected_images.dtype) == (test.image_shape, test.dtype)
    assert list(range(10)) == test.label_values()
    assert ["generated"] == [file.kind for file in test.files()]


@pytest.mark.parametrize("spec", ["synthetic:3,0", "directory"])
def test_rows_per_part_is_positive(tmp_path: Path, spec: str) -> None:
    """A part holds one row or more, which is said before the first is asked for."""
    write_set(tmp_path)
    split = open_source(str(tmp_path) if spec == "directory" else spec).splits[0]
    with pytest.raises(ValueError, match="rows_per_part"):
        split.parts(0)


def test_fingerprint_of_files(tmp_path: Path) -> None:
    """The fingerprint follows the files' bytes, wherever they lie, and is JSON."""
    directories = [tmp_path / name for name in ("a", "b")]
    for directory in directories:
        directory.mkdir()
        write_set(directory)
    first, second = (open_source(str(directory)).fingerprint() for directory in directories)
    assert first == second
    assert first == json.loads(json.dumps(first))
    stored = (tmp_path / "a" / MNIST_NAMES[0]).read_bytes()
    assert hashlib.sha256(stored).hexdigest() == first["train"]["images"]["stored_sha256"]
    write_idx(tmp_path / "b" / MNIST_NAMES[3], labels(5)[::-1])
    assert first != open_source(str(tmp_path / "b")).fingerprint()


def test_fingerprint_of_generated_digits() -> None:
    """The fingerprint of generated digits is what they are drawn from."""
    expected = {"train": {"digits_version": DIGITS_VERSION, "seed": 4, "rows": 9}}
    assert expected == open_source("synthetic:9,0", seed=4).fingerprint()


def test_mnist_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST_DIR takes the place of the download of `mnist`, and the description says so."""
    write_set(tmp_path)
    monkeypatch.setenv("MNIST_DIR", str(tmp_path))
    source = open_source("mnist")
    assert "mnist" == source.name
    assert "MNIST_DIR" in source.description
    assert str(tmp_path) in source.description


def test_mnist_dir_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A MNIST_DIR that is no directory is refused by its name."""
    monkeypatch.setenv("MNIST_DIR", str(tmp_path / "missing"))
    assert "MNIST_DIR names" in refusal("mnist", UsageError)


def test_real_mnist(mnist_dir: Path) -> None:
    """MNIST is 60,000 and 10,000 labelled images of ten classes, to the published byte."""
    source = open_source(str(mnist_dir))
    assert [("train", 60_000), ("test", 10_000)] == [(s.name, s.rows) for s in source.splits]
    assert [list(range(10))] * 2 == [split.label_values() for split in source.splits]
    digests = []
    for split in source.splits:
        read(split, 2000)
        digests += [file.decoded_sha256 for file in split.files()]
    assert list(MNIST_SHA256) == digests
