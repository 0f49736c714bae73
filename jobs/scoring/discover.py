"""List an inbox: files of images with their labels, folders of pictures, and datasets.

Only the metadata of datasets is opened; files are judged by their names.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
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
from pipeline.sources.numpy_files import read_array_name
from storage import documents
from storage.errors import BadDataError, PipelineError
from storage.location import Location
from storage.schema import METADATA_NAME

OTHER_DIRECTORIES = ("lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir")
"""Directories that file systems and servers create beside the data."""

_PICTURE = re.compile(r".+\.(png|jpe?g|bmp|tiff?|webp)", re.IGNORECASE | re.DOTALL)
_TABLE = re.compile(r".+\.[ct]sv", re.IGNORECASE | re.DOTALL)
_ARRAYS = re.compile(
    r".+\.(npz|npy|parquet|pq|(csv|tsv|pkl|pickle)(\.(gz|xz|zst|zip))?)", re.IGNORECASE | re.DOTALL
)
_NO_IMAGES = re.compile(
    r"(_.*|(readme|manifest|metadata)\b.*|(.*[-_. ])?labels?|.*submission.*)"
    r"\.(csv|tsv|parquet|pq)(\..*)?",
    re.IGNORECASE | re.DOTALL,
)
"""Names of tables that accompany images, and of answers to a competition."""
_ROOT = PurePosixPath()


@dataclass(frozen=True)
class Item:
    """Something to score: a file of images, perhaps with labels, a folder, or a dataset's split.

    All paths are relative to the inbox.
    """

    name: str
    """The name in messages and records, on one line."""
    images: PurePosixPath
    """The file, or the directory of a dataset or of pictures."""
    labels: PurePosixPath | None = None
    members: tuple[PurePosixPath, ...] = ()
    """The files of a folder of pictures; empty for anything else."""
    split: str | None = None
    """The split of a dataset; None for a file."""
    trouble: str | None = None
    """An error in the names, such as ambiguous labels; None if it can be scored."""

    @property
    def keys(self) -> list[str]:
        """The files that must be complete before the item is scored."""
        if self.split is not None:
            return [str(self.images / METADATA_NAME)]
        if self.members:
            return list(map(str, self.members))
        return [str(path) for path in (self.images, self.labels) if path is not None]

    @property
    def directory(self) -> PurePosixPath:
        """The directory of its files."""
        return self.images if self.members else self.images.parent

    @property
    def names(self) -> list[str]:
        """The names of its files, in the same order, relative to its directory."""
        return [str(PurePosixPath(key).relative_to(self.directory)) for key in self.keys]

    @property
    def has_only_pictures(self) -> bool:
        """Whether its files are pictures, without a table."""
        return all(map(_PICTURE.fullmatch, self.names))

    @property
    def is_idx(self) -> bool:
        """Whether its files are read as IDX, as all files are that do not name another format."""
        is_file = self.split is None and not self.members
        return is_file and not is_named_format(self.images.name)


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


def find_items(
    inbox: Location, selection: Selection | None = None, class_names: Collection[str] = ()
) -> Listing:
    """List a directory or prefix recursively, in the order of the names; folders of pictures last.

    Folders with the `class_names` of the model label the pictures in them.
    """
    selection = selection or Selection()
    listing = Listing()
    linked: list[PurePosixPath] = []
    folders: dict[PurePosixPath, _Folder] = {}

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
            folders[place] = _add_files(inbox, paths, selection, listing)
        elif selection.takes(place):
            _add_dataset(inbox, place, listing)
    _add_folders(folders, class_names, listing)
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
    listing.items += [Item(one_line(str(place / split)), place, split=split) for split in splits]


Groups = dict[str, dict[str, list[IdxName]]]
"""The names of a directory, by stem and kind."""


@dataclass
class _Folder:
    """The pictures directly in a directory, and tables beside them."""

    members: list[PurePosixPath]
    is_complete: bool
    """Whether all of its files can be read, and none is named like an unfinished one."""


def _add_files(
    inbox: Location, paths: list[PurePosixPath], selection: Selection, listing: Listing
) -> _Folder:
    """Add the files of one directory, images together with their labels; return its pictures.

    Pictures in the inbox's root are items of their own.
    """
    ready: dict[str, PurePosixPath] = {}
    missing: list[str] = []
    is_folder = paths[0].parent != _ROOT
    has_pictures = is_folder and any(_PICTURE.fullmatch(path.name) for path in paths)
    for path in paths:
        shown = one_line(str(path))
        is_table = has_pictures and _TABLE.fullmatch(path.name)
        if match := UNFINISHED.fullmatch(path.name):
            missing.append(path.name[: match.start(1)])
            listing.left[shown] = "its name marks it as unfinished"
        elif not is_table and _accompanies_data(path.name) and not selection.names(path):
            listing.skipped.append(shown)
        elif reason := _unreadable(inbox, path):
            missing.append(path.name)
            listing.left[shown] = reason
        elif is_table or _read_name(path.name).content == "labels" or selection.takes(path):
            ready[path.name] = path
    ready, members = _separate_pictures(ready, is_folder, selection, listing)
    _add_ready(ready, by_stem(map(_read_name, missing)), selection, listing)
    incomplete = is_folder and any(map(_PICTURE.fullmatch, missing)) and not ready
    return _Folder(members, not incomplete)


def _separate_pictures(
    ready: dict[str, PurePosixPath], is_folder: bool, selection: Selection, listing: Listing
) -> tuple[dict[str, PurePosixPath], list[PurePosixPath]]:
    """Return the files that are items of their own, and the members of a folder of pictures.

    Beside other data, pictures are previews: they are skipped unless a glob includes them.
    """
    pictures = {name: path for name, path in ready.items() if _PICTURE.fullmatch(name)}
    may_be_tables = is_folder and bool(pictures)
    tables = {n: path for n, path in ready.items() if may_be_tables and _TABLE.fullmatch(n)}
    others = {name: path for name, path in ready.items() if name not in pictures | tables}
    if others:
        previews = {name: path for name, path in pictures.items() if not selection.names(path)}
        listing.skipped += map(one_line, map(str, previews.values()))
        pictures = {name: path for name, path in pictures.items() if name not in previews}
    if not is_folder:
        return others | pictures, []
    if not pictures:
        return others | tables, []
    return others, sorted([*pictures.values(), *tables.values()])


def _add_folders(
    folders: dict[PurePosixPath, _Folder], class_names: Collection[str], listing: Listing
) -> None:
    """Add each folder of pictures, or the folder above those that are named like classes."""
    batches: dict[PurePosixPath, list[_Folder]] = defaultdict(list)
    below: dict[PurePosixPath, list[PurePosixPath]] = defaultdict(list)
    for place, folder in folders.items():
        if folder.members or not folder.is_complete:
            below[place.parent].append(place)
    for parent, places in below.items():
        is_batch = parent != _ROOT and parent not in below.get(parent.parent, ())
        labelled = is_batch and all(place.name in class_names for place in places)
        for place in places:
            batches[parent if labelled else place].append(folders[place])
    for place, parts in sorted(batches.items()):
        shown = one_line(str(place))
        if not all(part.is_complete for part in parts):
            listing.left[shown] = "a picture in it is not finished, or cannot be read"
        elif members := tuple(path for part in parts for path in part.members):
            listing.items.append(Item(shown, place, members=members))


def _add_ready(
    ready: dict[str, PurePosixPath], missing: Groups, selection: Selection, listing: Listing
) -> None:
    """Add files that are complete; IDX files, and .npy files, together with their labels."""
    groups = by_stem(map(_read_name, ready))
    for name, path in ready.items():
        idx_name, shown = _read_name(name), one_line(str(path))
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


def is_named_format(name: str) -> bool:
    """Return whether a file's name says that it is a picture, arrays or a table, and not IDX."""
    return bool(_PICTURE.fullmatch(name) or _ARRAYS.fullmatch(name))


def _accompanies_data(name: str) -> bool:
    """Return whether a file is not to be scored, by its name."""
    if _ARRAYS.fullmatch(name):
        return _NO_IMAGES.fullmatch(name) is not None
    return not _PICTURE.fullmatch(name) and accompanies_data(name)


def _read_name(name: str) -> IdxName:
    """Parse the name of a file that may have its labels beside it, as .npy and IDX files do.

    Files of other formats have no labels beside them. Names of .npy files are read as those of the
    arrays of a set.
    """
    if not is_named_format(name):
        return read_name(name)
    content, words = None, [name]
    if name.lower().endswith(".npy"):
        content, words = read_array_name(name[:-4])
    stem = name if content is None else f"{' '.join(words)}.npy"
    content = content or "images"
    return IdxName(name, name, "", None, content, True, 0, stem, stem)


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
