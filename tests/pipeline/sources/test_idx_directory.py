"""Directories of IDX files: the files that are used, what is refused, and the rows of the parts."""

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

from pipeline.sources.source import open_source
from pipeline.sources.splits import SourceFile
from storage.errors import BadDataError
from storage.events import no_progress
from tests.pipeline.sources.small_sets import (
    images,
    labels,
    read,
    refusal,
    splits_of,
    write_set,
)
from tests.storage.idx_files import MNIST_NAMES, write_idx

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = MNIST_NAMES


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
    """The usual names are recognised, with dots, underscores, prefixes and capitals."""
    write_set(tmp_path, names, ending)
    source = open_source(str(tmp_path))
    splits = [(split.name, split.rows, split.image_shape) for split in source.splits]
    assert [("train", 12, (4, 3)), ("test", 5, (4, 3))] == splits
    assert all(split.has_labels for split in source.splits)
    assert ("emnist-letters" if "emnist" in names[0] else tmp_path.name) == source.name


@pytest.mark.parametrize("word", ["val", "valid", "validation", "dev", "VAL"])
def test_validation(tmp_path: Path, word: str) -> None:
    """Files of a validation set form a split of their own, between train and test."""
    write_set(tmp_path)
    write_idx(tmp_path / f"{word}-images-idx3-ubyte", images(4))
    write_idx(tmp_path / f"{word}-labels-idx1-ubyte", labels(4))
    splits = [(split.name, split.rows, split.has_labels) for split in splits_of(tmp_path)]
    assert [("train", 12, True), ("validation", 4, True), ("test", 5, True)] == splits


@pytest.mark.parametrize(
    "name",
    [
        "train-labels-idx1-ubyte.gz.1",
        "train-labels-idx1-ubyte (1).gz",
        "train-labels-idx1-ubyte.gz?download=1",
        "Copy of train-labels-idx1-ubyte",
        "train-labels-idx1-ubyte copy 2",
        "trainlabels-idx1-ubyte",
        "train-labels-idx1ubyte.bin",
        "train-labels",
        "y_train.idx",
        "trian-labels-idx1-ubyte",
        "train.txt",
    ],
)
def test_near_miss(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Misnamed labels are refused with the right name; a second copy is not."""
    write_set(tmp_path)
    content = (tmp_path / LABELS).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if ".gz" in name else content)
    assert 2 == len(splits_of(tmp_path))
    assert name in caplog.messages[0]
    (tmp_path / LABELS).unlink()
    message = refusal(tmp_path)
    assert f"{name} (train labels)" in message
    assert f"Rename each like {LABELS}" in message


def test_near_miss_of_images(tmp_path: Path) -> None:
    """Misnamed images are not mistaken for labels."""
    write_set(tmp_path)
    (tmp_path / IMAGES).rename(tmp_path / "trian-images-idx3-ubyte")
    assert f"Rename each like {IMAGES}" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            f"{LABELS}.gz.part",
            gzip.compress(bytes(9), mtime=0),
            "train labels: its element type code is 0x00",
        ),
        (f"{LABELS}.zip", b"PK\x03\x04", "train labels: this is not an IDX file but a ZIP"),
    ],
)
def test_not_yet_labels(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """A split whose labels have another format is not taken for an unlabelled one."""
    write_set(tmp_path)
    (tmp_path / LABELS).unlink()
    (tmp_path / name).write_bytes(content)
    assert f"{name} ({message}" in refusal(tmp_path)


def test_link_to_nothing(tmp_path: Path) -> None:
    """Labels that git-annex has not fetched are not treated as missing labels."""
    write_set(tmp_path)
    (tmp_path / LABELS).rename(tmp_path / "elsewhere.idx")
    (tmp_path / LABELS).symlink_to(tmp_path / "nowhere")
    assert f"{LABELS} is a link to a missing file" in refusal(tmp_path)


def test_what_is_not_used_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning names IDX files whose names do not say the split."""
    write_set(tmp_path)
    write_idx(tmp_path / "xnist-images-idx3-ubyte.xz", images(7))
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "readme-of-train-images-idx3.md").touch()
    (tmp_path / "train-labels.tsv.gz").write_bytes(gzip.compress(b"5\t0\n"))
    splits_of(tmp_path)
    (warning,) = caplog.messages
    assert "IDX files that are not used: xnist-images-idx3-ubyte.xz. Used:" in warning
    assert "Images without labels are scored with `pipeline score --inbox DIRECTORY`." in warning


def test_qmnist(tmp_path: Path) -> None:
    """QMNIST as published: idx1 labels are preferred; of a table, column 1 is read."""
    table = np.zeros((5, 8), np.int32)
    table[:, 0], table[:, 4] = labels(5), 30
    write_idx(tmp_path / "qmnist-test-images-idx3-ubyte.gz", images(5))
    write_idx(tmp_path / "qmnist-test-labels-idx1-ubyte.gz", labels(5))
    write_idx(tmp_path / "qmnist-test-labels-idx2-int.gz", table)
    (tmp_path / "qmnist-test-labels.tsv.gz").write_bytes(gzip.compress(b"7\t4\n"))
    (split,) = splits_of(tmp_path)
    read(split)
    assert "qmnist-test-labels-idx1-ubyte.gz" == split.files()[1].name
    (tmp_path / "qmnist-test-labels-idx1-ubyte.gz").unlink()
    (split,) = splits_of(tmp_path)
    assert [0, 1, 2, 3, 4] == split.label_values(no_progress)
    np.testing.assert_array_equal(labels(5), read(split)[1])


@pytest.mark.parametrize("place", ["MNIST/raw", "raw"])
def test_directory_above(tmp_path: Path, place: str) -> None:
    """A directory whose subdirectory has the files, as in torchvision, is refused with its name."""
    (tmp_path / place).mkdir(parents=True)
    write_set(tmp_path / place)
    assert f"there are some in {tmp_path / place}. Give" in refusal(tmp_path)


@pytest.mark.parametrize(("kept", "rows"), [("train", 12), ("test", 5)])
def test_one_split_alone(tmp_path: Path, kept: str, rows: int) -> None:
    """A train split alone, or a test split alone, is a source."""
    write_set(tmp_path)
    for path in tmp_path.glob("t10k*" if kept == "train" else "train*"):
        path.unlink()
    assert [(kept, rows)] == [(split.name, split.rows) for split in splits_of(tmp_path)]


def test_unlabelled(tmp_path: Path) -> None:
    """Images without labels form an unlabelled split."""
    write_idx(tmp_path / IMAGES, images(12))
    (split,) = splits_of(tmp_path)
    assert not split.has_labels
    assert [] == split.label_values(no_progress)
    assert read(split)[1] is None
    assert ["images"] == [file.content for file in split.files()]


@pytest.mark.parametrize("rows_per_part", [1, 5, 12, 100])
def test_parts(tmp_path: Path, rows_per_part: int) -> None:
    """The parts have every row once, in order, know their bounds, and can be pickled."""
    write_set(tmp_path)
    train = splits_of(tmp_path)[0]
    parts = pickle.loads(pickle.dumps(list(train.parts(rows_per_part))))
    starts = list(range(0, 12, rows_per_part))
    assert starts == [part.start for part in parts]
    assert [*starts[1:], 12] == [part.stop for part in parts]
    actual_images, actual_labels = read(train, rows_per_part)
    np.testing.assert_array_equal(images(12), actual_images)
    np.testing.assert_array_equal(labels(12), actual_labels)
    middle = range(parts[0].start + 1, parts[0].stop)
    np.testing.assert_array_equal(images(12)[middle], parts[0].load(1, parts[0].stop)[0])


def test_parts_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    """Data that is cut off after the first part fails after it, not before."""
    write_idx(tmp_path / IMAGES, images(12))
    whole = (tmp_path / IMAGES).read_bytes()
    (tmp_path / IMAGES).unlink()
    (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(whole[:-20]))
    parts = splits_of(tmp_path)[0].parts(10)
    assert 0 == next(parts).start
    with pytest.raises(BadDataError, match="10 whole rows"):
        next(parts)


@pytest.mark.parametrize("name", [f"{IMAGES}.gz", f"{LABELS}.gz"])
def test_bytes_after_the_last_part(tmp_path: Path, name: str) -> None:
    """Extra bytes of either file are found after the last part."""
    write_set(tmp_path, ending=".gz")
    content = gzip.decompress((tmp_path / name).read_bytes())
    (tmp_path / name).write_bytes(gzip.compress(content + b"x"))
    with pytest.raises(BadDataError, match="1 byte follows"):
        list(splits_of(tmp_path)[0].parts(100))


@pytest.mark.parametrize(("name", "other"), [(IMAGES, images(13)), (LABELS, labels(13))])
def test_file_that_changes_in_use(tmp_path: Path, name: str, other: NDArray[Any]) -> None:
    """A file that is replaced after opening is refused."""
    write_set(tmp_path)
    split = splits_of(tmp_path)[0]
    write_idx(tmp_path / name, other)
    with pytest.raises(BadDataError, match=f"{name} changed while it was being read"):
        list(split.parts(5))


def test_files(tmp_path: Path) -> None:
    """After a complete pass, the files' names, sizes and digests are known."""
    write_set(tmp_path, ending=".xz")
    train = splits_of(tmp_path)[0]
    read(train)
    expected = []
    for name, content in zip(MNIST_NAMES[:2], ("images", "labels"), strict=True):
        stored = (tmp_path / f"{name}.xz").read_bytes()
        decoded = lzma.decompress(stored)
        digests = [hashlib.sha256(content).hexdigest() for content in (stored, decoded)]
        expected.append(
            SourceFile(f"{name}.xz", content, len(stored), digests[0], len(decoded), digests[1])
        )
    assert expected == train.files()


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4"])
@pytest.mark.parametrize("classes", [2, 8, 10])
def test_one_hot(tmp_path: Path, dtype: str, classes: int) -> None:
    """Rows with a single 1 and otherwise 0 are one-hot labels, even eight columns of int."""
    expected = labels(70_000, classes)[::-1]
    write_idx(tmp_path / IMAGES, images(70_000, 1))
    write_idx(tmp_path / "train-labels-idx2-ubyte", np.eye(classes, dtype=dtype)[expected])
    (split,) = splits_of(tmp_path)
    assert list(range(classes)) == split.label_values(no_progress)
    np.testing.assert_array_equal(expected, read(split, 999)[1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([0, 1, -1, 2], "i1"), "row 2 has label -1"),
        (np.array([-1, 1, 2, 3], "i4"), "row 0 has label -1"),
        (np.arange(12, dtype="u1").reshape(4, 3), r"row 0 holds \[0, 1, 2\]"),
        (np.array([[0, 1], [1, 0], [1, 1], [0, 1]], "u1"), r"row 2 holds \[1, 1\]"),
        (np.array([[0, 1], [0, 0], [1, 1], [0, 1]], "u1"), r"row 1 holds \[0, 0\]"),
        (np.array([[1, -1], [2, -1], [0, 1], [0, 1]], "i1"), r"row 0 holds \[ 1, -1\]"),
        (np.eye(8, dtype="i4")[[1, 2, 3, 4]] * [[1], [1], [1], [5]], r"row 3 holds \[0, 0"),
    ],
)
def test_labels_without_a_class(tmp_path: Path, values: NDArray[Any], message: str) -> None:
    """Negative labels, and columns that are neither one-hot nor QMNIST's, are refused by row."""
    write_idx(tmp_path / IMAGES, images(4))
    write_idx(tmp_path / LABELS, values.astype(values.dtype if values.itemsize < 8 else "i4"))
    (split,) = splits_of(tmp_path)
    with pytest.raises(BadDataError, match=message):
        split.label_values(no_progress)
    with pytest.raises(BadDataError, match=message):
        list(split.parts(100))


@pytest.mark.parametrize("dtype", ["i2", "i4"])
def test_labels_in_the_wrong_byte_order(tmp_path: Path, dtype: str) -> None:
    """Little-endian labels are recognised; other large labels are read."""
    write_idx(tmp_path / IMAGES, images(12))
    write_idx(tmp_path / LABELS, labels(12).astype(dtype).byteswap())
    (split,) = splits_of(tmp_path)
    with pytest.raises(BadDataError, match=f"which is 9 if read as .*astype.'>{dtype}'"):
        split.label_values(no_progress)
    write_idx(tmp_path / LABELS, labels(12).astype(dtype) + 2047)
    (split,) = splits_of(tmp_path)
    assert list(range(2047, 2057)) == split.label_values(no_progress)


@pytest.mark.parametrize("classes", [1000, 1001])
def test_most_classes(tmp_path: Path, classes: int) -> None:
    """1000 distinct labels are classes in ascending order; one more is refused."""
    write_idx(tmp_path / IMAGES, images(70_000, 1))
    write_idx(tmp_path / LABELS, np.sort(classes - np.arange(70_000) % classes).astype(np.int16))
    (split,) = splits_of(tmp_path)
    if classes == 1000:
        assert list(range(1, 1001)) == split.label_values(no_progress)
        return
    with pytest.raises(BadDataError, match="more than 1,000 distinct labels"):
        split.label_values(no_progress)


def test_counts_that_differ(tmp_path: Path) -> None:
    """Different numbers of images and labels are refused on opening, with both numbers."""
    write_set(tmp_path)
    write_idx(tmp_path / LABELS, labels(11))
    message = refusal(tmp_path)
    assert all(part in message for part in ("11 labels", "12 images", IMAGES, LABELS))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (IMAGES, labels(12), "has values of shape (12,); expected images"),
        (LABELS, np.zeros(12, np.float32), "float32 values"),
        (LABELS, np.zeros((12, 2, 2), np.uint8), "(12, 2, 2)"),
        (LABELS, np.zeros((12, 1001), np.uint8), "(12, 1001)"),
        (TEST_IMAGES, images(5, 7, 7), "train has (4, 3) of uint8, test has (7, 7) of uint8"),
    ],
)
def test_shapes_that_do_not_fit(
    tmp_path: Path, name: str, values: NDArray[Any], message: str
) -> None:
    """Images without columns, malformed labels, and splits of two sizes are refused."""
    write_set(tmp_path)
    write_idx(tmp_path / name, values)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [TEST_LABELS],
            f"{TEST_LABELS} has labels, but there is no file of images for the test split",
        ),
        ([IMAGES, TEST_IMAGES, "test-images-idx3-ubyte"], "several test image files"),
        ([IMAGES, f"emnist-{IMAGES}"], f"several sets (emnist-{IMAGES}, {IMAGES})"),
        ([f"emnist-letters-{IMAGES}", f"emnist-digits-{LABELS}"], "files of several sets"),
        (["digits.idx"], "has no IDX files; expected names such as train-images-idx3-ubyte"),
    ],
)
def test_sets_that_are_none(tmp_path: Path, names: list[str], message: str) -> None:
    """Labels alone, two sets, two files for one role, and a missing set are refused by name."""
    for name in names:
        write_idx(tmp_path / name, labels(5) if "labels" in name else images(5))
    assert message in refusal(tmp_path)


def test_raw_before_compressed(tmp_path: Path) -> None:
    """A raw file is preferred to its compressed forms."""
    for ending in ("", ".gz", ".xz"):
        write_set(tmp_path, ending=ending)
    train = splits_of(tmp_path)[0]
    read(train)
    assert [IMAGES, LABELS] == [file.name for file in train.files()]


def test_files_beside_the_set(tmp_path: Path) -> None:
    """Checksums, macOS's shadow files, unfinished copies and folders are ignored."""
    write_set(tmp_path, ending=".gz")
    for name in ("{}.gz.md5", "._{}.gz", "{}.gz.part", "{} (1).gz", "{}.partial"):
        (tmp_path / name.format(IMAGES)).touch()
    (tmp_path / IMAGES).mkdir()
    assert 2 == len(splits_of(tmp_path))


def test_fingerprint_of_files(tmp_path: Path) -> None:
    """The fingerprint is JSON and depends on the files' bytes, not on their location."""
    directories = [tmp_path / name for name in ("a", "b")]
    for directory in directories:
        directory.mkdir()
        write_set(directory)
    first, second = (open_source(str(directory)).fingerprint() for directory in directories)
    assert first == second
    assert first == json.loads(json.dumps(first))
    stored = (tmp_path / "a" / IMAGES).read_bytes()
    assert hashlib.sha256(stored).hexdigest() == first["train"]["images"]["stored_sha256"]
    write_idx(tmp_path / "b" / TEST_LABELS, labels(5)[::-1])
    assert first != open_source(str(tmp_path / "b")).fingerprint()
