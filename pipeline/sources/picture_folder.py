"""The format of a folder of pictures, with a folder for each split and each class."""

import logging
import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.sources.formats import Format, Source, SourceOptions
from pipeline.sources.idx_names import accompanies_data, nearest_role
from pipeline.sources.picture_split import PictureFiles, open_pictures
from pipeline.sources.pictures import is_picture_name
from pipeline.sources.splits import in_natural_order, natural_key, split_named
from storage.errors import BadDataError, translate_os_errors

MOST_FOLDERS = 1_000
"""Folders to search for a picture before a folder is assumed to have none."""
IGNORED = {"__macosx", "thumbs.db", "desktop.ini", "@eadir"}
"""Names that systems add to folders, in lower case."""
LAYOUT = (
    "expected SPLIT/CLASS/FILE such as train/7/1.png, CLASS/FILE, or FILE without classes, with "
    "splits train, validation and test"
)

Classes = dict[str | None, list[str]]
"""The names of a split's pictures by class; None for pictures without classes."""
logger = logging.getLogger(__name__)


@dataclass
class Listing:
    """The content of a folder, without hidden files."""

    folders: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Other files, and symlinked directories."""


def open_folder(folder: Path, options: SourceOptions) -> Source:
    """Open the pictures in a folder, whose rows are in natural order of the file names.

    Numbers in names are compared by value; files of equal names are in the order of their classes.
    A warning counts the files that are skipped. Raises `BadDataError` if the layout is not the
    expected one.
    """
    scan = _Scan(folder)
    splits = scan.splits()
    scan.warn()
    labelled = {name for classes in splits.values() for name in classes if name is not None}
    class_names = in_natural_order(labelled)
    if len(class_names) == 1:
        raise BadDataError(
            f"{folder} has pictures of a single class, {class_names[0]!r}; {LAYOUT}. Add a folder "
            "for each other class, or give the folder of the pictures if they have no classes."
        )
    ranks: dict[str | None, int] = {name: rank for rank, name in enumerate(class_names)}
    files = {split: _in_order(classes, ranks) for split, classes in splits.items()}
    return open_pictures(folder, files, tuple(class_names), options, f"pictures in {folder}")


def _in_order(classes: Classes, ranks: dict[str | None, int]) -> PictureFiles:
    """Return a split's files in the order of their rows."""
    names = [name for files in classes.values() for name in files]
    labels = np.repeat(
        np.array([ranks.get(name, 0) for name in classes], np.int32),
        [len(files) for files in classes.values()],
    )
    keys = [
        f"{natural_key(os.path.basename(name))}\0{chr(label)}{name}"
        for name, label in zip(names, labels.tolist(), strict=True)
    ]
    order = sorted(range(len(names)), key=keys.__getitem__)
    return PictureFiles(names, None if None in classes else labels).take(order)


class _Scan:
    """The search of a folder for its splits and classes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._skipped: list[str] = []
        self._empty: list[str] = []

    def splits(self) -> dict[str, Classes]:
        """Return the classes of each split; raise `BadDataError` for another layout."""
        listing, folders = self._list("")
        if listing.pictures:
            return {split_named(self._folder.name) or "train": {None: listing.pictures}}
        named = {name: split for name in folders if (split := split_named(name))}
        others = [name for name in folders if name not in named]
        if named and not (len(named) == 1 and others and self._are_classes(folders)):
            return self._named_splits(named, others)
        return {"train": self._classes(folders)}

    def warn(self) -> None:
        """Warn about what is skipped: files that are not pictures, and empty folders."""
        for names, what in (
            (self._skipped, "Files other than PNG, JPEG, BMP, TIFF and WebP pictures"),
            (self._empty, "Folders without pictures"),
        ):
            if names:
                logger.warning(
                    "%s in %s are skipped: %s, such as %s.",
                    what,
                    self._folder,
                    f"{len(names):,}",
                    min(names),
                )

    def _named_splits(self, named: dict[str, str], others: list[str]) -> dict[str, Classes]:
        if others:
            raise BadDataError(
                f"{self._folder} has the folder {others[0]} beside that of a split, "
                f"{next(iter(named))}; {LAYOUT}. Move it to another place."
            )
        splits: dict[str, Classes] = {}
        for name, split in named.items():
            if split in splits:
                raise BadDataError(
                    f"{self._folder} has several folders of the {split} split: "
                    f"{', '.join(other for other in named if named[other] == split)}. Keep one."
                )
            listing, classes = self._list(name)
            splits[split] = {None: listing.pictures} if listing.pictures else self._classes(classes)
        return splits

    def _classes(self, folders: list[str]) -> Classes:
        """Return the pictures in the folders of classes."""
        classes: Classes = {}
        for folder in folders:
            listing, nested = self._list(folder)
            if nested:
                hint = (
                    f" Give {self._folder / folder} if it is the set." if len(folders) == 1 else ""
                )
                raise BadDataError(
                    f"{self._folder / nested[0]} has pictures in a folder too deep; {LAYOUT}.{hint}"
                )
            name = os.path.basename(folder)
            if not name.isprintable() or not name.strip():
                raise BadDataError(
                    f"{self._folder} has a folder named {name!r}, which cannot be the name of a "
                    "class; expected printable UTF-8. Rename it."
                )
            classes[name] = listing.pictures
        return classes

    def _are_classes(self, folders: list[str]) -> bool:
        """Return whether all folders have pictures themselves: a class may be a train."""
        return all(_listing(self._folder / name).pictures for name in folders)

    def _list(self, folder: str) -> tuple[Listing, list[str]]:
        """Return a folder's content, and the folders with pictures in it; all with its path.

        Raises `BadDataError` if it has pictures beside folders with pictures.
        """
        listing = _listing(self._folder / folder)
        for names in (listing.folders, listing.pictures, listing.skipped):
            names[:] = [os.path.join(folder, name) for name in names]
        folders = sorted(name for name in listing.folders if has_pictures(self._folder / name))
        self._skipped += listing.skipped
        self._empty += [name for name in listing.folders if name not in folders]
        if listing.pictures and folders:
            raise BadDataError(
                f"{self._folder / folder} has pictures, such as "
                f"{os.path.basename(min(listing.pictures))}, beside the folder "
                f"{os.path.basename(folders[0])} of pictures; {LAYOUT}. Move either of them."
            )
        return listing, folders


def has_pictures(folder: Path) -> bool:
    """Return whether a folder has a picture, at any depth that a limited search reaches."""
    pending = deque([str(folder)])
    for _ in range(MOST_FOLDERS):
        if not pending:
            return False
        with suppress(OSError), os.scandir(pending.popleft()) as entries:
            for entry in entries:
                if _is_ignored(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif is_picture_name(entry.name):
                    return True
    return False


def _listing(folder: Path) -> Listing:
    listing = Listing()
    with translate_os_errors("list", folder), os.scandir(folder) as entries:
        for entry in entries:
            if _is_ignored(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                listing.folders.append(entry.name)
            elif not is_picture_name(entry.name) or entry.is_dir():
                listing.skipped.append(entry.name)
            elif entry.is_file():
                listing.pictures.append(entry.name)
            else:
                raise BadDataError(
                    f"{entry.path} is a link to a missing file, or not a file. Fetch the file "
                    "(with `git annex get` if git-annex manages it), or remove it."
                )
    return listing


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED


def is_almost_idx(path: Path) -> bool:
    """Return whether a directory has files that are almost named as those of IDX sets."""
    if not path.is_dir():
        return False
    with translate_os_errors("list", path), os.scandir(path) as entries:
        names = [entry.name for entry in entries if entry.is_file()]
    return any(
        nearest_role(name, None) and not accompanies_data(name)
        for name in names
        if not _is_ignored(name) and not is_picture_name(name)
    )


FORMAT = Format(
    name="a folder of pictures",
    recognises=lambda path, start: path.is_dir() and not is_almost_idx(path) and has_pictures(path),
    open=lambda path, options, progress: open_folder(path, options),
    options=frozenset({"seed", "resize", "channels", "holdout", "shuffle"}),
)
