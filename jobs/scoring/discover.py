"""List an inbox: image files with their labels, and datasets.

Only the metadata of datasets is opened; files are judged by their names.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from jobs.output import one_line
from pipeline.sources.idx_names import (
    UNFINISHED,
    IdxName,
    accompanies_data,
    by_stem,
    choose_one,
    read_name,
    without_copy_marks,
)
from storage import documents
from storage.errors import BadDataError, PipelineError
from storage.location import Location
from storage.schema import METADATA_NAME

OTHER_DIRECTORIES = ("lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir")
"""Directories that file systems and servers create beside the data."""


@dataclass(frozen=True)
class Item:
    """Something to score: a file of images, perhaps with labels, or a split of a dataset.

    All paths are relative to the inbox.
    """

    name: str
    """The name in messages and records, on one line."""
    images: PurePosixPath
    """The file, or the dataset's directory."""
    labels: PurePosixPath | None = None
    split: str | None = None
    """The split of a dataset; None for a file."""
    trouble: str | None = None
    """An error in the names, such as ambiguous labels; None if it can be scored."""

    @property
    def keys(self) -> list[str]:
        """The files that must be complete before the item is scored."""
        if self.split is not None:
            return [str(self.images / METADATA_NAME)]
        return [str(path) for path in (self.images, self.labels) if path is not None]


@dataclass
class Listing:
    """The contents of an inbox."""

    items: list[Item] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    """The reason why each of these files is left for the next run."""
    skipped: list[str] = field(default_factory=list)
    """Files that are not image data by their names, such as checksums and notes."""
    unreachable: dict[str, PipelineError] = field(default_factory=dict)
    """Directories that cannot be listed, and keys of a store that are not valid paths."""


@dataclass(frozen=True)
class Selection:
    """Globs that select the files of an inbox.

    A glob with a slash is matched against the whole path, any other against each part of the path.
    """

    include: tuple[str, ...] = ()
    """If given, only images and datasets that match one are scored."""
    exclude: tuple[str, ...] = ()

    def leaves_out(self, path: PurePosixPath) -> bool:
        """Return whether a path is ignored: hidden, a file system's own, or excluded."""
        hidden = any(
            part in OTHER_DIRECTORIES or (part.startswith(".") and part not in (".", ".."))
            for part in path.parts
        )
        return hidden or _matches(path, self.exclude)

    def takes(self, path: PurePosixPath) -> bool:
        """Return whether images or a dataset at a path are scored."""
        return not self.include or self.names(path)

    def names(self, path: PurePosixPath) -> bool:
        """Return whether a path matches a glob of `include`."""
        return _matches(path, self.include)


def _matches(path: PurePosixPath, globs: Iterable[str]) -> bool:
    return any(
        fnmatchcase(name, glob.strip("/"))
        for glob in globs
        for name in ((str(path),) if "/" in glob.strip("/") else path.parts)
    )


def find_items(inbox: Location, selection: Selection | None = None) -> Listing:
    """List a directory or prefix recursively, in the order of the names."""
    selection = selection or Selection()
    listing = Listing()
    linked: list[PurePosixPath] = []

    def refused(directory: str, error: PipelineError | None) -> None:
        path = PurePosixPath(directory)
        if selection.leaves_out(path):
            return
        if error is None:
            linked.append(path)
        else:
            listing.unreachable[directory] = error

    directories = _by_directory(inbox.objects(refused), selection)
    datasets = {place for place, paths in directories.items() if place / METADATA_NAME in paths}
    for place, paths in sorted(directories.items()):
        if datasets.intersection(place.parents):
            continue  # a dataset's own files
        if place not in datasets:
            _add_files(inbox, paths, selection, listing)
        elif selection.takes(place):
            _add_dataset(inbox, place, listing)
    for path in linked:
        if not datasets.intersection(path.parents):
            listing.left[one_line(str(path))] = "it is a link to a directory; move it here"
    return listing


def _by_directory(
    keys: Iterable[str], selection: Selection
) -> dict[PurePosixPath, list[PurePosixPath]]:
    directories: dict[PurePosixPath, list[PurePosixPath]] = {}
    for path in map(PurePosixPath, keys):
        if not selection.leaves_out(path):
            directories.setdefault(path.parent, []).append(path)
    return directories


def is_text(name: str) -> bool:
    """Return whether a file name is valid Unicode; on a disk it may be any bytes."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _add_dataset(inbox: Location, place: PurePosixPath, listing: Listing) -> None:
    try:
        tree = inbox.child(str(place)).current(METADATA_NAME)
        attributes = documents.parse(documents.read(tree, METADATA_NAME), str(tree))["attributes"]
        splits = sorted(attributes["splits"]) if attributes.get("complete") is True else None
    except (BadDataError, KeyError, TypeError, AttributeError):
        splits = [""]  # opening it later raises a more precise error
    except FileNotFoundError:
        splits = None
    if splits is None:
        listing.left[one_line(str(place))] = "the dataset is not complete"
        return
    listing.items += [Item(one_line(str(place / split)), place, None, split) for split in splits]


Groups = dict[str, dict[str, list[IdxName]]]
"""The names of a directory, by stem and kind."""


def _add_files(
    inbox: Location, paths: list[PurePosixPath], selection: Selection, listing: Listing
) -> None:
    """Add the files of one directory, images together with their labels."""
    ready: dict[str, PurePosixPath] = {}
    missing: list[str] = []
    for path in paths:
        shown = one_line(str(path))
        if match := UNFINISHED.fullmatch(path.name):
            missing.append(path.name[: match.start(1)])
            listing.left[shown] = "its name marks it as unfinished"
        elif accompanies_data(path.name) and not selection.names(path):
            listing.skipped.append(shown)
        elif reason := _unreadable(inbox, path):
            missing.append(path.name)
            listing.left[shown] = reason
        elif read_name(path.name).content == "labels" or selection.takes(path):
            ready[path.name] = path
    _add_ready(ready, by_stem(missing), selection, listing)


def _add_ready(
    ready: dict[str, PurePosixPath], missing: Groups, selection: Selection, listing: Listing
) -> None:
    groups = by_stem(ready)
    for name, path in ready.items():
        idx_name, shown = read_name(name), one_line(str(path))
        labels, trouble = None, _near_miss(idx_name, groups)
        if idx_name.content == "images" and trouble is None:
            labels, trouble = _labels_of(idx_name, groups[idx_name.stem])
        if labels is None and trouble is None and missing[idx_name.stem]["labels"]:
            listing.left[shown] = "its labels are not finished, or cannot be read"
        elif idx_name.content == "images" or trouble is not None:
            labels_path = None if labels is None else ready[labels]
            listing.items.append(Item(shown, path, labels_path, trouble=trouble))
        elif not groups[idx_name.stem]["images"] and not selection.include:
            listing.left[shown] = "its images are missing"


def _unreadable(inbox: Location, path: PurePosixPath) -> str | None:
    try:
        return None if inbox.holds(str(path)) else "it is not a regular file, or was removed"
    except BadDataError:
        return "it is a link that leads out of the inbox"


def _labels_of(images: IdxName, group: dict[str, list[IdxName]]) -> tuple[str | None, str | None]:
    """Return the name of the labels for some images, if any, and an error if it is ambiguous.

    Within a group of one stem, names with the same words (`t10k`, but not `test`) form pairs; the
    remaining images and labels belong together.
    """
    rivals = [file for file in group["images"] if file.says_content] or group["images"]
    if images not in rivals:
        return None, None
    labelled = {file.words for file in group["labels"]} & {file.words for file in rivals}
    if images.words in labelled:
        rivals = [file for file in rivals if file.words == images.words]
        labels = [file for file in group["labels"] if file.words == images.words]
    else:
        rivals = [file for file in rivals if file.words not in labelled]
        labels = [file for file in group["labels"] if file.words not in labelled]
    if not labels:
        return None, None
    chosen = choose_one(labels)
    if chosen is not None and len({file.base for file in rivals}) == 1:
        return chosen.name, None
    listed = ", ".join(one_line(file.name) for file in [*rivals, *labels])
    return None, (
        f"{one_line(images.name)}: it is ambiguous which labels belong to which images ({listed}). "
        "Give each pair its own name, such as a-images-idx3-ubyte and a-labels-idx1-ubyte."
    )


def _near_miss(name: IdxName, groups: Groups) -> str | None:
    """Return how to rename a copy, such as `a-labels (1)`, so that it pairs; None if it does."""
    right = read_name(without_copy_marks(name.name))
    other = "images" if name.content == "labels" else "labels"
    if groups[name.stem][other] or right.stem == name.stem:
        return None
    if groups[right.stem][name.content] or not groups[right.stem][other]:
        return None  # the properly named file exists as well, or there is no partner
    partner = groups[right.stem][other][0].name
    return (
        f"{one_line(name.name)} seems to belong to {one_line(partner)}. "
        f"Rename it to {one_line(right.name)}, or move it away."
    )
