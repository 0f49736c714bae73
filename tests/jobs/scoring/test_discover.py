"""Listing an inbox by file names, including names that careless programs produce."""

import errno
import os
from pathlib import Path

import pytest

from jobs.output import one_line
from jobs.scoring.discover import Listing, Selection, find_items
from storage.places import open_location

NOT_UTF8 = os.fsdecode(b"caf\xe9-images.idx")
"""A name in Latin-1, as old archives unpack it."""


def listing_of(place: Path, *names: str) -> Listing:
    """Create empty files with these names, and list the inbox."""
    for name in names:
        (place / name).write_bytes(b"")
    return find_items(open_location(place))


@pytest.mark.parametrize(
    "name",
    ["unlabelled.idx", "images-unlabeled.gz", "labelled-images.idx", "IMAGES-Unlabelled.idx"],
)
def test_labelled_is_not_labels(tmp_path: Path, name: str) -> None:
    """A word such as `labelled` in a name does not mark a file of labels."""
    listing = listing_of(tmp_path, name)
    assert ([name], {}) == ([item.name for item in listing.items], listing.left)


@pytest.mark.parametrize("name", ["train-labels.idx1", "trainLabels.gz", "Label-7.idx"])
def test_labels_wait_for_their_images(tmp_path: Path, name: str) -> None:
    """Labels without images are left."""
    listing = listing_of(tmp_path, name)
    assert ([], [name]) == (listing.items, list(listing.left))


def test_link_to_itself(tmp_path: Path) -> None:
    """A link to itself is left, and the other files are listed."""
    (tmp_path / "circle.idx").symlink_to("circle.idx")
    listing = listing_of(tmp_path, "images.idx")
    assert (["images.idx"], ["circle.idx"]) == (
        [one.name for one in listing.items],
        list(listing.left),
    )


@pytest.mark.parametrize("outside", [True, False])
def test_link_to_a_directory(outside: bool, tmp_path: Path) -> None:
    """A link to a directory is reported as left; a target inside the inbox is listed there."""
    inbox = tmp_path / "inbox"
    for name in ("monday", ".hidden"):
        (inbox / name).mkdir(parents=True)
    listing_of(inbox / "monday", "images.idx")
    for name in ("today", ".hidden/today"):
        (inbox / name).symlink_to(tmp_path if outside else inbox / "monday")
    listing = listing_of(inbox)
    assert ["monday/images.idx"] == [item.name for item in listing.items]
    assert {"today": "it is a link to a directory; move it here"} == listing.left


def test_directory_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable directory is reported, and the other files are listed; hidden ones are not."""
    listed = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("private"):  # chmod does not restrict the superuser
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return listed(path)

    for name in ("private", ".hidden/private", "lost+found/private"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(os, "scandir", scandir)
    listing = listing_of(tmp_path, "images.idx")
    assert ["images.idx"] == [item.name for item in listing.items]
    assert ["private"] == list(listing.unreachable)
    assert f"Cannot list {tmp_path}/private: " in str(listing.unreachable["private"])
    assert {} == find_items(open_location(tmp_path), Selection(exclude=("priv*",))).unreachable


def test_names_are_shown_on_one_line(tmp_path: Path) -> None:
    """Line breaks and invalid UTF-8 are escaped in the shown names."""
    listing = listing_of(tmp_path, "two\nlines.idx", NOT_UTF8, "half\nmade.part")
    assert {
        "two\\nlines.idx": "two\nlines.idx",
        "caf\\xe9-images.idx": NOT_UTF8,
    } == {item.name: str(item.images) for item in listing.items}
    assert ["half\\nmade.part"] == list(listing.left)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("qmnist-test-images-idx3-ubyte", "qmnist-test-labels-idx2-int.gz"),
        ("a-images-idx3-double", "a-labels-idx1-ubyte"),
        ("a_images.idx3-ubyte.xz", "a-labels-idx1"),
        ("t10k-images-idx3-ubyte", "test-labels-idx1-ubyte"),
        ("monday-images.float32", "monday-labels.int8"),
        ("a-images-idx3-f32", "a-labels-idx1-int64"),
        ("images.idx3-ubyte", "labels.idx1-ubyte"),
        ("x_train.npy", "y_train.npy"),
        ("images.npy", "labels.npy"),
    ],
)
def test_labels_go_with_their_images(tmp_path: Path, images: str, labels: str) -> None:
    """Images and labels form pairs in any format and compression, with any word for the split."""
    listing = listing_of(tmp_path, images, labels, "b-images-idx3-ubyte")
    items = {item.name: item for item in listing.items}
    assert [images, labels] == items[images].keys
    assert None is items["b-images-idx3-ubyte"].labels
    assert [None, None] == [item.trouble for item in listing.items]


def test_which_labels(tmp_path: Path) -> None:
    """Labels with one column are preferred to a table, and equal words to an equal split."""
    listing = listing_of(
        tmp_path,
        *("q-test-images-idx3-ubyte", "q-test-labels-idx1-ubyte.gz", "q-test-labels-idx2-int.gz"),
        *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "t10k-labels-idx1-ubyte.gz"),
        *("test-images-idx3-ubyte", "test-labels-idx1-ubyte", "q-test-labels.tsv.gz"),
    )
    assert [
        ["q-test-images-idx3-ubyte", "q-test-labels-idx1-ubyte.gz"],
        ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"],
        ["test-images-idx3-ubyte", "test-labels-idx1-ubyte"],
    ] == [item.keys for item in listing.items]
    assert ({}, ["q-test-labels.tsv.gz"]) == (listing.left, listing.skipped)


@pytest.mark.parametrize(
    "names",
    [
        ("a-images-idx3-ubyte", "a-images-idx3-double", "a-labels-idx1-ubyte"),
        ("a-images-idx3-ubyte", "a-labels-idx1-ubyte", "a-labels.idx1-ubyte"),
    ],
)
def test_ambiguous_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Ambiguous names are an error that lists the files."""
    for item in listing_of(tmp_path, *names).items:
        assert "it is ambiguous which labels belong to which images" in str(item.trouble)
        assert all(name in str(item.trouble) for name in names)


@pytest.mark.parametrize("added", ["{}.gz.1", "{} (1).gz", "{} copy", "Copy of {}"])
def test_second_copies(tmp_path: Path, added: str) -> None:
    """A copy whose name nearly pairs is an error that gives the right name."""
    images, labels = "a-images-idx3-ubyte", "a-labels-idx1-ubyte"
    listing = listing_of(tmp_path, images, added.format(labels))
    troubles = {item.name: item.trouble for item in listing.items}
    assert troubles.pop(images) is None
    assert f"Rename it to {labels}" in str(troubles[added.format(labels)])
    assert [] == find_items(open_location(tmp_path), Selection(include=("b*",))).items
    listing = listing_of(tmp_path, labels)
    assert [[images, labels]] == [item.keys for item in listing.items]


def test_unfinished_labels(tmp_path: Path) -> None:
    """Images are not scored as unlabelled while their labels are being copied."""
    listing = listing_of(tmp_path, "a-images-idx3-ubyte.gz", "a-labels-idx1-ubyte.gz.part")
    assert [] == listing.items
    assert (
        "its labels are not finished, or cannot be read" == listing.left["a-images-idx3-ubyte.gz"]
    )


NOT_DATA = (
    *("_SUCCESS", "SHA256SUMS", "a-images-idx3-ubyte.md5", "a-images.gz.sha256", "README"),
    *("SUCCESS", "AUTHORS", "SHA512SUMS.gpg", "film.mkv", "my_submission.csv", "Icon\r"),
    *("readme.md.gz", "photo.JPG", "labels.csv", "Thumbs.db", "desktop.ini", "manifest.json"),
)


def test_files_that_are_not_data(tmp_path: Path) -> None:
    """Files that are not image data by their names are skipped, unless a glob includes them."""
    listing = listing_of(tmp_path, *NOT_DATA, "night-1", "scan.bin", "part-00000.idx")
    assert ["night-1", "part-00000.idx", "scan.bin"] == [item.name for item in listing.items]
    assert sorted(map(one_line, NOT_DATA)) == sorted(listing.skipped)
    assert {} == listing.left
    (item,) = find_items(open_location(tmp_path), Selection(include=("photo.*",))).items
    assert "photo.JPG" == item.name


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), ("old",), ["a-images.idx", "new/b.idx", "new/c.gz"]),
        ((), ("old", "*.gz"), ["a-images.idx", "new/b.idx"]),
        (("*.idx",), ("new/*",), ["a-images.idx", "old/b.idx"]),
        (("new/*", "a-*"), (), ["a-images.idx", "new/b.idx", "new/c.gz"]),
        (("old/",), (), ["old/b.idx"]),
    ],
)
def test_selection(
    tmp_path: Path, include: tuple[str, ...], exclude: tuple[str, ...], expected: list[str]
) -> None:
    """Globs select files and directories; labels follow the images that are included."""
    for directory in ("new", "old"):
        (tmp_path / directory).mkdir()
    listing_of(tmp_path, "a-images.idx", "a-labels.idx", "new/b.idx", "new/c.gz", "old/b.idx")
    listing = find_items(open_location(tmp_path), Selection(include, exclude))
    assert expected == [item.name for item in listing.items]
    if "a-images.idx" in expected:
        assert ["a-images.idx", "a-labels.idx"] == listing.items[0].keys


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("monday/a.png", "monday/labels.csv"), {"monday": ["monday/a.png", "monday/labels.csv"]}),
        (
            ("tuesday/1/a.png", "tuesday/2/b.JPG"),
            {"tuesday": ["tuesday/1/a.png", "tuesday/2/b.JPG"]},
        ),
        (("2/1/a.png", "2/2/b.jpeg"), {"2": ["2/1/a.png", "2/2/b.jpeg"]}),
        (("t/1/a.png", "t/x/b.bmp"), {"t/1": ["t/1/a.png"], "t/x": ["t/x/b.bmp"]}),
        (("t/a.png", "t/1/b.webp"), {"t": ["t/a.png"], "t/1": ["t/1/b.webp"]}),
        (("1/a.png", "2/b.tiff"), {"1": ["1/a.png"], "2": ["2/b.tiff"]}),
        (("a.png", "b.png"), {"a.png": ["a.png"], "b.png": ["b.png"]}),
        (("m/a.png", "m/images.idx"), {"m/images.idx": ["m/images.idx"]}),
        (("a.png", "a.npz"), {"a.npz": ["a.npz"]}),
        (("m/a.png", "m/b.png.part"), {}),
        (("t/1/a.png", "t/2/b.png.part"), {}),
        (("a.png", "b.png.part"), {"a.png": ["a.png"]}),
        (("t.csv", "labels.csv", "metadata.parquet"), {"t.csv": ["t.csv"]}),
    ],
)
def test_pictures(tmp_path: Path, names: tuple[str, ...], expected: dict[str, list[str]]) -> None:
    """Pictures form batches by folder; folders with names of classes are labels of one batch."""
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        (tmp_path / name).write_bytes(b"")
    listing = find_items(open_location(tmp_path), class_names=("1", "2", "3"))
    assert expected == {item.name: item.keys for item in listing.items}
