"""What lies in an inbox, told by names: some are made by careless programs."""

import errno
import os
from pathlib import Path

import pytest

from jobs.scoring.arrivals import Found, find_items
from storage.location import open_location

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
        if path.endswith("lost+found"):  # as another user's; the superuser may list all
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return listed(path)

    for name in ("lost+found", ".hidden/lost+found"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(os, "scandir", scandir)
    found = found_in(tmp_path, "images.idx")
    assert ["images.idx"] == [item.name for item in found.items]
    assert ["lost+found"] == list(found.unreachable)
    assert f"Cannot list {tmp_path}/lost+found: " in str(found.unreachable["lost+found"])


def test_names_are_told_on_one_line(tmp_path: Path) -> None:
    """What no terminal and no document can hold is escaped; the file is found all the same."""
    found = found_in(tmp_path, "two\nlines.idx", NO_TEXT, "half\nmade.part")
    assert {
        "two\\nlines.idx": "two\nlines.idx",
        "caf\\xe9-images.idx": NO_TEXT,
    } == {item.name: str(item.images) for item in found.items}
    assert ["half\\nmade.part"] == list(found.left)
