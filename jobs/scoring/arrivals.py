"""What lies in an inbox: files of images, with their labels if there are any, and datasets.

Nothing is opened but the documents of datasets.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from storage import sealed
from storage.errors import BadDataError, PipelineError
from storage.objects import Location
from storage.schema import METADATA_NAME

UNFINISHED = re.compile(
    r".*(\.part|\.partial|\.tmp|\.filepart|\.crdownload|\.swp|~)", re.IGNORECASE | re.DOTALL
)
"""Names that copying and downloading programs give to what they have not finished."""
PACKED = re.compile(r"\.(gz|xz)$", re.IGNORECASE)
KIND = re.compile(r"(image|label)s?(?!l?ed)", re.IGNORECASE)
"""What a name says that a file holds; what is labelled, or is not, holds images."""
DIMENSIONS = re.compile(r"idx\d", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """Something to score: a file of images, perhaps with labels, or a split of a dataset.

    All paths are relative to the inbox.
    """

    name: str
    """As it is told and recorded: see `shown_name`."""
    images: PurePosixPath
    """The file, or the dataset's directory."""
    labels: PurePosixPath | None = None
    split: str | None = None
    """The split, where it is a dataset's."""

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
    unreachable: dict[str, PipelineError] = field(default_factory=dict)
    """Directories that cannot be looked into, and keys of a store that no path can be."""


def find_items(inbox: Location) -> Found:
    """All that lies in a directory or prefix and below it, in the order of the names.

    What is hidden does not count.
    """
    found = Found()

    linked: list[PurePosixPath] = []

    def refused(directory: str, error: PipelineError | None) -> None:
        if _is_hidden(PurePosixPath(directory)):
            return
        if error is None:
            linked.append(PurePosixPath(directory))
        else:
            found.unreachable[directory] = error

    directories = _visible(inbox.objects(refused))
    datasets = {place for place, paths in directories.items() if place / METADATA_NAME in paths}
    for place, paths in sorted(directories.items()):
        if datasets.intersection(place.parents):
            continue  # the inside of a dataset
        if place in datasets:
            _add_dataset(inbox, place, found)
        else:
            _add_files(inbox, paths, found)
    for path in linked:
        if not datasets.intersection(path.parents):
            found.left[shown_name(str(path))] = "it is a link to a directory; put that here"
    return found


def is_text(name: str) -> bool:
    """Whether a name can be written into a document: on a disk it may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown_name(name: str) -> str:
    """A name on one line, whatever it is; what is no text or cannot be printed is escaped."""
    text = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def _visible(keys: Iterable[str]) -> dict[PurePosixPath, list[PurePosixPath]]:
    """The objects of each directory, but for hidden ones."""
    directories: dict[PurePosixPath, list[PurePosixPath]] = {}
    for path in map(PurePosixPath, keys):
        if not _is_hidden(path):
            directories.setdefault(path.parent, []).append(path)
    return directories


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in path.parts)


def _add_dataset(inbox: Location, place: PurePosixPath, found: Found) -> None:
    try:
        key = str(place / METADATA_NAME)
        attributes = sealed.parse(sealed.read(inbox, key), f"{inbox}/{key}")["attributes"]
        splits = sorted(attributes["splits"]) if attributes.get("complete") is True else None
    except (BadDataError, KeyError, TypeError, AttributeError):
        splits = [""]  # opening it will say what is wrong
    except FileNotFoundError:
        splits = None
    if splits is None:
        found.left[shown_name(str(place))] = "the dataset is not complete"
        return
    found.items += [Item(shown_name(str(place / split)), place, None, split) for split in splits]


def _add_files(inbox: Location, paths: list[PurePosixPath], found: Found) -> None:
    labels = {_pairing(path): path for path in paths if _is_labels(path)}
    taken = set()
    for path in paths:
        if UNFINISHED.fullmatch(path.name):
            found.left[shown_name(str(path))] = "its name says that it is not finished"
        elif reason := _unreadable(inbox, path):
            found.left[shown_name(str(path))] = reason
        elif not _is_labels(path):
            beside = labels.get(_pairing(path))
            taken.add(beside)
            found.items.append(Item(shown_name(str(path)), path, beside))
    for path in labels.values():
        if path not in taken and not UNFINISHED.fullmatch(path.name):
            found.left[shown_name(str(path))] = "its images are not there"


def _unreadable(inbox: Location, path: PurePosixPath) -> str | None:
    try:
        return None if inbox.holds(str(path)) else "it is no regular file, or is gone"
    except BadDataError:
        return "it is a link that leads out of the inbox"


def _is_labels(path: PurePosixPath) -> bool:
    kinds = KIND.findall(path.name)
    return bool(kinds) and kinds[-1].lower() == "label"


def _pairing(path: PurePosixPath) -> str:
    """What images and their labels have in common: the name without what tells them apart."""
    return DIMENSIONS.sub("idx", KIND.sub("", PACKED.sub("", path.name))).lower()
