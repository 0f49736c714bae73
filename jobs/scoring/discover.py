"""What lies in an inbox: files of images, with their labels if there are any, and datasets.

Nothing is opened but the documents of datasets.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from jobs.output import one_line
from pipeline.sources.idx_names import (
    UNFINISHED,
    IdxName,
    by_stem,
    choose_one,
    is_company,
    read_name,
    tidied,
)
from storage import documents
from storage.errors import BadDataError, PipelineError
from storage.location import Location
from storage.schema import METADATA_NAME

OTHER_DIRECTORIES = ("lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir")
"""What file systems and servers keep beside the data."""


@dataclass(frozen=True)
class Item:
    """Something to score: a file of images, perhaps with labels, or a split of a dataset.

    All paths are relative to the inbox.
    """

    name: str
    """As it is told and recorded: see `one_line`."""
    images: PurePosixPath
    """The file, or the dataset's directory."""
    labels: PurePosixPath | None = None
    split: str | None = None
    """The split, where it is a dataset's."""
    trouble: str | None = None
    """Why its name alone rules out scoring it."""

    @property
    def keys(self) -> list[str]:
        """The objects that must have settled."""
        if self.split is not None:
            return [str(self.images / METADATA_NAME)]
        return [str(path) for path in (self.images, self.labels) if path is not None]


@dataclass
class Found:
    """What lies in an inbox."""

    items: list[Item] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    """What is not ready, and why."""
    skipped: list[str] = field(default_factory=list)
    """What is not data by its name, such as checksums and notes."""
    unreachable: dict[str, PipelineError] = field(default_factory=dict)
    """Directories that cannot be looked into, and keys of a store that no path can be."""


@dataclass(frozen=True)
class Selection:
    """Globs that select the files of an inbox.

    A glob with a slash is compared with the whole path, another with the name of each of its parts.
    """

    include: tuple[str, ...] = ()
    """If any are given, only images and datasets that match one are taken."""
    exclude: tuple[str, ...] = ()

    def leaves_out(self, path: PurePosixPath) -> bool:
        """Return whether a path does not count: hidden, a file system's own, or excluded."""
        hidden = any(
            part in OTHER_DIRECTORIES or (part.startswith(".") and part not in (".", ".."))
            for part in path.parts
        )
        return hidden or _matches(path, self.exclude)

    def takes(self, path: PurePosixPath) -> bool:
        """Return whether images or a dataset at a path are to be scored."""
        return not self.include or self.names(path)

    def names(self, path: PurePosixPath) -> bool:
        """Return whether a path is included by a glob."""
        return _matches(path, self.include)


def _matches(path: PurePosixPath, globs: Iterable[str]) -> bool:
    return any(
        fnmatchcase(name, glob.strip("/"))
        for glob in globs
        for name in ((str(path),) if "/" in glob.strip("/") else path.parts)
    )


def find_items(inbox: Location, selection: Selection | None = None) -> Found:
    """Return what lies in a directory or prefix and below it, in the order of the names."""
    selection = selection or Selection()
    found = Found()
    linked: list[PurePosixPath] = []

    def refused(directory: str, error: PipelineError | None) -> None:
        path = PurePosixPath(directory)
        if selection.leaves_out(path):
            return
        if error is None:
            linked.append(path)
        else:
            found.unreachable[directory] = error

    directories = _by_directory(inbox.objects(refused), selection)
    datasets = {place for place, paths in directories.items() if place / METADATA_NAME in paths}
    for place, paths in sorted(directories.items()):
        if datasets.intersection(place.parents):
            continue  # the inside of a dataset
        if place not in datasets:
            _add_files(inbox, paths, selection, found)
        elif selection.takes(place):
            _add_dataset(inbox, place, found)
    for path in linked:
        if not datasets.intersection(path.parents):
            found.left[one_line(str(path))] = "it is a link to a directory; put that here"
    return found


def _by_directory(
    keys: Iterable[str], selection: Selection
) -> dict[PurePosixPath, list[PurePosixPath]]:
    directories: dict[PurePosixPath, list[PurePosixPath]] = {}
    for path in map(PurePosixPath, keys):
        if not selection.leaves_out(path):
            directories.setdefault(path.parent, []).append(path)
    return directories


def is_text(name: str) -> bool:
    """Return whether a name can be written into a document: on a disk it may be any bytes."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _add_dataset(inbox: Location, place: PurePosixPath, found: Found) -> None:
    try:
        tree = inbox.child(str(place)).current(METADATA_NAME)
        attributes = documents.parse(documents.read(tree, METADATA_NAME), str(tree))["attributes"]
        splits = sorted(attributes["splits"]) if attributes.get("complete") is True else None
    except (BadDataError, KeyError, TypeError, AttributeError):
        splits = [""]  # opening it will say what is wrong
    except FileNotFoundError:
        splits = None
    if splits is None:
        found.left[one_line(str(place))] = "the dataset is not complete"
        return
    found.items += [Item(one_line(str(place / split)), place, None, split) for split in splits]


Groups = dict[str, dict[str, list[IdxName]]]
"""The names of a directory, by stem and kind."""


def _add_files(
    inbox: Location, paths: list[PurePosixPath], selection: Selection, found: Found
) -> None:
    """Add the files of one directory, images with the labels that go with them."""
    ready: dict[str, PurePosixPath] = {}
    missing: list[str] = []
    for path in paths:
        shown = one_line(str(path))
        if match := UNFINISHED.fullmatch(path.name):
            missing.append(path.name[: match.start(1)])
            found.left[shown] = "its name marks it as unfinished"
        elif is_company(path.name) and not selection.names(path):
            found.skipped.append(shown)
        elif reason := _unreadable(inbox, path):
            missing.append(path.name)
            found.left[shown] = reason
        elif read_name(path.name).kind == "labels" or selection.takes(path):
            ready[path.name] = path
    _add_ready(ready, by_stem(missing), selection, found)


def _add_ready(
    ready: dict[str, PurePosixPath], missing: Groups, selection: Selection, found: Found
) -> None:
    groups = by_stem(ready)
    for name, path in ready.items():
        idx_name, shown = read_name(name), one_line(str(path))
        labels, trouble = None, _near_miss(idx_name, groups)
        if idx_name.kind == "images" and trouble is None:
            labels, trouble = _labels_of(idx_name, groups[idx_name.stem])
        if labels is None and trouble is None and missing[idx_name.stem]["labels"]:
            found.left[shown] = "its labels are not finished, or cannot be read"
        elif idx_name.kind == "images" or trouble is not None:
            beside = None if labels is None else ready[labels]
            found.items.append(Item(shown, path, beside, trouble=trouble))
        elif not groups[idx_name.stem]["images"] and not selection.include:
            found.left[shown] = "its images are not there"


def _unreadable(inbox: Location, path: PurePosixPath) -> str | None:
    try:
        return None if inbox.holds(str(path)) else "it is not a regular file, or is gone"
    except BadDataError:
        return "it is a link that leads out of the inbox"


def _labels_of(images: IdxName, group: dict[str, list[IdxName]]) -> tuple[str | None, str | None]:
    """Return the name of the labels of images, if there are any; and what keeps from knowing it.

    Of a group of one stem, those belong together whose names have the same words (`t10k`, and not
    `test`), or else those that are left.
    """
    rivals = [one for one in group["images"] if one.says_kind] or group["images"]
    if images not in rivals:
        return None, None
    labelled = {one.words for one in group["labels"]} & {one.words for one in rivals}
    if images.words in labelled:
        rivals = [one for one in rivals if one.words == images.words]
        labels = [one for one in group["labels"] if one.words == images.words]
    else:
        rivals = [one for one in rivals if one.words not in labelled]
        labels = [one for one in group["labels"] if one.words not in labelled]
    if not labels:
        return None, None
    chosen = choose_one(labels)
    if chosen is not None and len({one.base for one in rivals}) == 1:
        return chosen.name, None
    listed = ", ".join(one_line(one.name) for one in [*rivals, *labels])
    return None, (
        f"{one_line(images.name)}: it is not known which labels go with which images ({listed}). "
        "Give each pair a name of its own, such as a-images-idx3-ubyte and a-labels-idx1-ubyte."
    )


def _near_miss(name: IdxName, groups: Groups) -> str | None:
    """Return how to rename a second copy so that it pairs with its partner; None where it does."""
    right = read_name(tidied(name.name))
    other = "images" if name.kind == "labels" else "labels"
    if groups[name.stem][other] or right.stem == name.stem:
        return None
    if groups[right.stem][name.kind] or not groups[right.stem][other]:
        return None  # a second copy of one that has its right name, or nothing to go with
    partner = groups[right.stem][other][0].name
    return (
        f"{one_line(name.name)}: it seems to belong to {one_line(partner)}. "
        f"Rename it to {one_line(right.name)}, or move it away."
    )
