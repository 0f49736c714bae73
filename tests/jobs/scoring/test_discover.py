"""What lies in an inbox, told by names: some are made by careless programs."""

import errno
import os
from pathlib import Path

import pytest

from jobs.output import one_line
from jobs.scoring.discover import Found, Selection, find_items
from storage.places import open_location

NO_TEXT = os.fsdecode(b"caf\xe9-images.idx")
"""A name in Latin-1, as old archives unpack it."""


def found_in(place: Path, *names: str) -> Found:
    """What is found where files of these names lie."""
    for name in names:
        (place / name).write_bytes(b"")
    return find_items(open_location(place))


@pytest.mark.parametrize(
    "name",
    ["unlabelled.idx", "images-unlabeled.gz", "labelled-images.idx", "IMAGES-Unlabelled.idx"],
)
def test_labelled_is_not_labels(tmp_path: Path, name: str) -> None:
    """A name that says that images are labelled, or are not, is one of images."""
    found = found_in(tmp_path, name)
    assert ([name], {}) == ([item.name for item in found.items], found.left)


@pytest.mark.parametrize("name", ["train-labels.idx1", "trainLabels.gz", "Label-7.idx"])
def test_labels_wait_for_their_images(tmp_path: Path, name: str) -> None:
    """Labels alone are nothing to score."""
    found = found_in(tmp_path, name)
    assert ([], [name]) == (found.items, list(found.left))


def test_link_to_itself(tmp_path: Path) -> None:
    """Links that lead in a circle are left, and what lies beside them is found."""
    (tmp_path / "circle.idx").symlink_to("circle.idx")
    found = found_in(tmp_path, "images.idx")
    assert (["images.idx"], ["circle.idx"]) == ([one.name for one in found.items], list(found.left))


@pytest.mark.parametrize("outside", [True, False])
def test_link_to_a_directory(outside: bool, tmp_path: Path) -> None:
    """It is left, and that is told; what it leads to counts where it lies, if that is within."""
    inbox = tmp_path / "inbox"
    for name in ("monday", ".hidden"):
        (inbox / name).mkdir(parents=True)
    found_in(inbox / "monday", "images.idx")
    for name in ("today", ".hidden/today"):
        (inbox / name).symlink_to(tmp_path if outside else inbox / "monday")
    found = found_in(inbox)
    assert ["monday/images.idx"] == [item.name for item in found.items]
    assert {"today": "it is a link to a directory; put that here"} == found.left


def test_directory_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told by its name, and what lies beside it is found; hidden ones do not count."""
    listed = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("private"):  # as another user's; the superuser may list all
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return listed(path)

    for name in ("private", ".hidden/private", "lost+found/private"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(os, "scandir", scandir)
    found = found_in(tmp_path, "images.idx")
    assert ["images.idx"] == [item.name for item in found.items]
    assert ["private"] == list(found.unreachable)
    assert f"Cannot list {tmp_path}/private: " in str(found.unreachable["private"])
    assert {} == find_items(open_location(tmp_path), Selection(exclude=("priv*",))).unreachable


def test_names_are_told_on_one_line(tmp_path: Path) -> None:
    """What no terminal and no document can hold is escaped; the file is found all the same."""
    found = found_in(tmp_path, "two\nlines.idx", NO_TEXT, "half\nmade.part")
    assert {
        "two\\nlines.idx": "two\nlines.idx",
        "caf\\xe9-images.idx": NO_TEXT,
    } == {item.name: str(item.images) for item in found.items}
    assert ["half\\nmade.part"] == list(found.left)


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
    ],
)
def test_labels_go_with_their_images(tmp_path: Path, images: str, labels: str) -> None:
    """Format, compression and the word for the split do not matter; ingest pairs by the same."""
    found = found_in(tmp_path, images, labels, "b-images-idx3-ubyte")
    items = {item.name: item for item in found.items}
    assert [images, labels] == items[images].keys
    assert None is items["b-images-idx3-ubyte"].labels
    assert [None, None] == [item.trouble for item in found.items]


def test_which_labels(tmp_path: Path) -> None:
    """One label a row comes before a table; the same words before the same split."""
    found = found_in(
        tmp_path,
        *("q-test-images-idx3-ubyte", "q-test-labels-idx1-ubyte.gz", "q-test-labels-idx2-int.gz"),
        *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "t10k-labels-idx1-ubyte.gz"),
        *("test-images-idx3-ubyte", "test-labels-idx1-ubyte", "q-test-labels.tsv.gz"),
    )
    assert [
        ["q-test-images-idx3-ubyte", "q-test-labels-idx1-ubyte.gz"],
        ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"],
        ["test-images-idx3-ubyte", "test-labels-idx1-ubyte"],
    ] == [item.keys for item in found.items]
    assert ({}, ["q-test-labels.tsv.gz"]) == (found.left, found.skipped)


@pytest.mark.parametrize(
    "names",
    [
        ("a-images-idx3-ubyte", "a-images-idx3-double", "a-labels-idx1-ubyte"),
        ("a-images-idx3-ubyte", "a-labels-idx1-ubyte", "a-labels.idx1-ubyte"),
    ],
)
def test_labels_that_may_be_of_either(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Where names leave open what goes together nothing is guessed."""
    for item in found_in(tmp_path, *names).items:
        assert "it is not known which labels go with which images" in str(item.trouble)
        assert all(name in str(item.trouble) for name in names)


@pytest.mark.parametrize("added", ["{}.gz.1", "{} (1).gz", "{} copy", "Copy of {}"])
def test_second_copies(tmp_path: Path, added: str) -> None:
    """A name that nearly pairs is told with the right one, and is none of labels that wait."""
    images, labels = "a-images-idx3-ubyte", "a-labels-idx1-ubyte"
    found = found_in(tmp_path, images, added.format(labels))
    troubles = {item.name: item.trouble for item in found.items}
    assert troubles.pop(images) is None
    assert f"Rename it to {labels}" in str(troubles[added.format(labels)])
    assert [] == find_items(open_location(tmp_path), Selection(include=("b*",))).items
    found = found_in(tmp_path, labels)
    assert [[images, labels]] == [item.keys for item in found.items]


def test_labels_that_are_coming(tmp_path: Path) -> None:
    """Images are not scored as if unlabelled while their labels are being copied."""
    found = found_in(tmp_path, "a-images-idx3-ubyte.gz", "a-labels-idx1-ubyte.gz.part")
    assert [] == found.items
    assert "its labels are not finished, or cannot be read" == found.left["a-images-idx3-ubyte.gz"]


COMPANY = (
    *("_SUCCESS", "SHA256SUMS", "a-images-idx3-ubyte.md5", "a-images.gz.sha256", "README"),
    *("SUCCESS", "AUTHORS", "SHA512SUMS.gpg", "film.mkv", "table.parquet", "Icon\r"),
    *("readme.md.gz", "photo.JPG", "labels.csv", "Thumbs.db", "desktop.ini", "manifest.json"),
)


def test_company(tmp_path: Path) -> None:
    """What is not data by its name is skipped, unless a glob names it."""
    found = found_in(tmp_path, *COMPANY, "night-1", "scan.bin", "part-00000.idx")
    assert ["night-1", "part-00000.idx", "scan.bin"] == [item.name for item in found.items]
    assert sorted(map(one_line, COMPANY)) == sorted(found.skipped)
    assert {} == found.left
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
    """Globs name files and directories; labels come with the images that are included."""
    for directory in ("new", "old"):
        (tmp_path / directory).mkdir()
    found_in(tmp_path, "a-images.idx", "a-labels.idx", "new/b.idx", "new/c.gz", "old/b.idx")
    found = find_items(open_location(tmp_path), Selection(include, exclude))
    assert expected == [item.name for item in found.items]
    if "a-images.idx" in expected:
        assert ["a-images.idx", "a-labels.idx"] == found.items[0].keys
