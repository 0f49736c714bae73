"""The inbox: a directory or prefix whose files and datasets are scored once each, by content.

Images are converted, together with their labels, into a temporary dataset beside the run's scores.
It exists until the scores are published, so an interrupted scoring can continue. Files that are
still being written are left for the next run.
"""

import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.output import one_line
from jobs.scoring.discover import Item, Listing, Selection, find_items, is_text
from jobs.scoring.retry import pause
from jobs.signals import StopSignal
from jobs.training.model import Model
from jobs.training.signature import check_images
from storage.dataset import Dataset, open_dataset
from storage.decoding import START_BYTES, hash_stored
from storage.errors import (
    BadDataError,
    UnreachableError,
    UsageError,
    nearest_place,
    translate_os_errors,
)
from storage.events import Progress, event
from storage.idx import read_header
from storage.local import LocalLocation
from storage.location import Location, Lock, Status, TakeOver
from storage.preparation import ValueRange

if TYPE_CHECKING:
    from pipeline.sources.formats import Source
    from pipeline.sources.splits import SplitSource

logger = logging.getLogger(__name__)

LARGE_FILE = 64 * 2**20
"""Files with more bytes have their header checked before they are copied and hashed."""
SPLIT = "inbox"
"""The split's name for rows from files other than datasets."""
BLACK_OR_WHITE = ValueRange(0.0, 1.0)
"""The range of bool, which is stored as bytes."""
INGEST_ADVICE = "For options, put a dataset that `pipeline ingest` made into the inbox instead."
_ANOTHER_SIZE = "the run was trained on images of"
_INGEST_OPTION = re.compile(r"--(arrays|channels|holdout|label|resize|shape)\b")


@dataclass
class Arrival:
    """An item that is being scored."""

    item: Item
    files: list[Path] = field(default_factory=list)
    """Local copies of its files; empty for a dataset."""
    content: str = ""
    """The digest of its stored files, or of a dataset's rows; empty until it is known."""
    directory: Path | None = None
    """A temporary directory with links to the files, by their names in the inbox; None for IDX."""
    source: "Source | None" = None
    """Its rows, in one split; None for a dataset, and until the files are opened."""


def real_place(location: Location) -> str:
    """Return the canonical name of a place, with symlinks resolved."""
    if isinstance(location, LocalLocation):
        return os.path.realpath(location.path)
    return str(location)


def check_directory(inbox: Location) -> None:
    """Raise `UnreachableError` if the inbox does not exist, `UsageError` if it is a file."""
    if isinstance(inbox, LocalLocation) and not inbox.path.is_dir():
        if inbox.path.exists():
            raise UsageError(f"The inbox {inbox} is a file; give the directory that contains it.")
        raise UnreachableError(
            f"The inbox {inbox} does not exist.{nearest_place(str(inbox))} Create or mount the "
            "directory, and try again."
        )


def check_apart(inbox: Location, written: Mapping[str, Location | None]) -> None:
    """Raise `UsageError` if the job writes into its own inbox."""
    for name, location in written.items():
        if location is not None and real_place(location).startswith(
            real_place(inbox).rstrip("/") + "/"
        ):
            raise UsageError(
                f"{name} is {location}, which is inside the inbox: output there would be scored by "
                "the next run. Choose a place outside the inbox."
            )


class Inbox:
    """One pass over an inbox, for the holder of its lock."""

    def __init__(
        self, location: Location, staging: Location, lock: Lock, stop: Callable[[], None]
    ) -> None:
        """Remove the temporary datasets of earlier passes; `stop` is called repeatedly.

        Raw files are converted into datasets below `staging`. In an object store each pass uses its
        own name there, because a former holder of the lock may still be writing.
        """
        self._location = location
        self._lock = lock
        self._stop = stop
        former = staging.drafts()
        lock.check()  # still held, so no listed draft belongs to a later holder
        self._staging = staging.draft()
        for draft in former:
            if draft not in (staging, self._staging):
                draft.discard()
        self._first_look: dict[str, Status | None] = {}
        self._settled: set[Item] = set()

    @property
    def name(self) -> str:
        """The inbox's name in the ledger."""
        return one_line(real_place(self._location))

    def look(
        self,
        selection: Selection,
        class_names: Collection[str],
        settle: float,
        stop: StopSignal,
    ) -> Listing:
        """List the inbox; folders with the model's `class_names` label their pictures.

        If a file is younger than `settle` seconds, wait that long and list the inbox again:
        `reason_to_leave` compares the two listings.
        """
        began = time.monotonic()
        listing = find_items(self._location, selection, class_names)
        keys = {key for item in listing.items for key in item.keys}
        self._first_look = {key: self._look(key) for key in keys}
        self._settled = set(listing.items)
        now = time.time()
        if any(look and now - look.modified < settle for look in self._first_look.values()):
            text = f"Waiting {settle:g} s for files that are still changing"
            event(logger, "settling", text, seconds=settle)
            pause(began + settle - time.monotonic(), stop)
            self._settled = set(find_items(self._location, selection, class_names).items)
        return listing

    def reason_to_leave(self, item: Item) -> str | None:
        """Return why an item is left for the next run; None if it can be scored."""
        if item in self._settled and self._is_unchanged(item):
            return None
        return "it was removed" if self._look(item.keys[0]) is None else "it is still being written"

    def _is_unchanged(self, item: Item) -> bool:
        """Return whether an item's files are unchanged since the first listing."""
        looks = [(self._look(key), self._first_look[key]) for key in item.keys]
        return all(now and first and now.version == first.version for now, first in looks)

    def has_changed(self, item: Item) -> bool:
        """Return whether an item changed while it was read; raise if the lock was lost."""
        self._lock.check()  # otherwise the error may be caused by the lock's new holder
        return not self._is_unchanged(item)

    def _look(self, key: str) -> Status | None:
        """Return an object's status; None if it was removed."""
        try:
            return self._location.status(key)
        except (FileNotFoundError, BadDataError):
            return None

    def read(self, arrival: Arrival, opened: ExitStack) -> None:
        """Set the item's digest and local files, which exist until `opened` is closed.

        Raises `BadDataError` if its name, or the header of a large file, cannot be used.
        """
        item = arrival.item
        if not all(map(is_text, item.keys)):
            raise BadDataError(f"{item.name}: the name is not valid UTF-8. Rename the file.")
        if item.trouble is not None:
            raise BadDataError(item.trouble)
        if item.split is not None:
            dataset = open_dataset(self._location.child(str(item.images)))
            arrival.content = digest_of([dataset.digest, item.split])
            return
        try:
            if item.is_idx:
                for key in item.keys:
                    self._check_header(key, arrival)
            arrival.files = [
                opened.enter_context(self._location.as_file(key, check=self._stop))
                for key in item.keys
            ]
        except FileNotFoundError as error:
            raise BadDataError(f"{item.name} was removed: {error}.") from error
        digests = [hash_stored(path, self._stop)[1] for path in arrival.files]
        if item.members:  # their order and classes follow from their names
            digests = [f"{digest} {name}" for digest, name in zip(digests, item.names, strict=True)]
        arrival.content = digest_of(digests)
        if not item.is_idx:
            arrival.directory = opened.enter_context(_directory_of_links(item, arrival.files))

    def _check_header(self, key: str, arrival: Arrival) -> None:
        """Check the header and size of a large file before it is copied and hashed."""
        size = self._location.size(key)
        if size <= LARGE_FILE:
            return
        with self._location.as_file(key, START_BYTES) as start:
            try:
                read_header(start, size)
            except BadDataError as error:
                with open(start, "rb") as file:
                    head = hashlib.sha256(file.read(START_BYTES)).hexdigest()
                arrival.content = digest_of([str(size), head])
                raise BadDataError(str(error).replace(str(start), one_line(key))) from error

    def open(self, arrival: Arrival, model: Model, progress: Progress) -> list[Arrival]:
        """Open an item's files; return the item, or one for each split of a file with several.

        Raises `BadDataError` or `UsageError` if they are damaged, or cannot be read as images.
        """
        if arrival.item.split is not None:
            return [arrival]
        with self._shown(arrival):
            source = self._source(arrival, model, progress)
        item = arrival.item
        parts = []
        for split in source.splits:
            one = arrival
            if len(source.splits) > 1:
                part = replace(item, name=f"{item.name}/{split.name}")
                content = digest_of([arrival.content, split.name])
                one = replace(arrival, item=part, content=content)
            split.name = SPLIT
            one.source = replace(source, name=item.images.name, splits=(split,))
            parts.append(one)
        return parts

    def _source(self, arrival: Arrival, model: Model, progress: Progress) -> "Source":
        from pipeline.sources.formats import Source, SourceOptions
        from pipeline.sources.idx_split import IdxSplit
        from pipeline.sources.source import format_of, open_path

        item, directory = arrival.item, arrival.directory
        if directory is None:
            return Source("", (IdxSplit(SPLIT, *arrival.files),), "")
        if item.has_only_pictures:
            return _pictures(directory, item.names, model)
        path = directory if item.labels or item.members else directory / item.images.name
        known = format_of(path)
        if known is None:
            raise BadDataError(f"{item.name} is not in the format that its name says.")
        given = _options_of(model)
        options = {name: given[name] for name in given if name in known.options}
        return open_path(path, SourceOptions(**options), progress)

    def _shown(self, arrival: Arrival) -> AbstractContextManager[None]:
        """Name the inbox's files in place of the links to them in errors and log messages."""
        if arrival.directory is None:
            return nullcontext()
        from pipeline.sources.remote import shown_as

        base = str(arrival.item.directory)
        place = self._location if base == "." else self._location.child(base)
        return shown_as(arrival.directory, str(place))

    def dataset(
        self, arrival: Arrival, model: Model, progress: Progress, take_over: TakeOver | None
    ) -> Dataset:
        """Return an item's rows as a dataset, prepared like the model's training rows."""
        item = arrival.item
        if item.split is not None:
            return open_dataset(self._location.child(str(item.images)))
        from pipeline.ingest import ingest

        if arrival.source is None:
            self.open(arrival, model, progress)
        source = arrival.source
        assert source is not None
        (rows,) = source.splits
        preparation = model.preparation
        _check_values(item.name, rows, source, model)
        with self._shown(arrival):
            dataset = ingest(
                source,
                self._staged(arrival).child("dataset"),
                scale=preparation.scaling or "none",
                transpose=preparation.transposed,
                class_names=_class_names(source, model, progress),
                take_over=take_over,
                progress=lambda stage, *done: progress(f"{stage} {item.name}", *done),
            ).dataset
        if item.is_idx:
            read = digest_of(str(file["stored_sha256"]) for file in dataset.sources)
            changed = read != arrival.content
        else:
            changed = not self._is_unchanged(item)
        if changed:
            raise BadDataError(f"{item.name} changed while it was being read.")
        return dataset

    def message(self, arrival: Arrival, text: str) -> str:
        """Return an error message with the paths of copies replaced by names in the inbox.

        The message is then the same in each pass, at any mount point of the inbox.
        """
        item = arrival.item
        images = one_line(str(item.images))
        keys = map(one_line, item.keys)
        names = dict(zip(map(str, arrival.files), keys, strict=False))
        names[str(self._staged(arrival).child("dataset"))] = images
        names[f"{str(self._location).rstrip('/')}/{item.images}"] = images
        for place, name in names.items():
            text = text.replace(place, name)
        if _INGEST_OPTION.search(text):
            text += f" {INGEST_ADVICE}"
        elif item.has_only_pictures and _ANOTHER_SIZE in text:
            text += " `pipeline predict` takes pictures of any size."
        return text

    def _staged(self, arrival: Arrival) -> Location:
        return self._staging.child(arrival.content[:16])

    def remove_staged(self, arrival: Arrival) -> None:
        """Remove the dataset that an item's files were converted to."""
        self._staged(arrival).delete_tree()

    def end(self) -> None:
        """End the pass; raise `UnreachableError` if the inbox was unmounted during it."""
        self._staging.delete_tree()
        self._lock.check()
        check_directory(self._location)


def inbox_key(location: Location) -> str:
    """Return the prefix of the names of an inbox's lock and temporary datasets."""
    place = real_place(location).encode(errors="surrogateescape")
    return f".inbox-{hashlib.sha256(place).hexdigest()[:12]}"


def digest_of(parts: Iterable[str]) -> str:
    """Return the SHA-256 of several texts, in hex."""
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


@contextmanager
def _directory_of_links(item: Item, files: list[Path]) -> Iterator[Path]:
    """Yield a temporary directory with links to the files, named as in the inbox.

    A table must not name pictures that links lead to, so it and its pictures are no symlinks.
    """
    has_table = bool(item.members) and not item.has_only_pictures
    with TemporaryDirectory() as place:
        with translate_os_errors("write", Path(place)):
            for name, file in zip(item.names, files, strict=True):
                link = Path(place, name)
                link.parent.mkdir(parents=True, exist_ok=True)
                if has_table:
                    _link_or_copy(file, link)
                else:
                    link.symlink_to(file.absolute())
        yield Path(place)


def _link_or_copy(file: Path, link: Path) -> None:
    try:
        os.link(os.path.realpath(file), link)
    except OSError:  # on another file system, or of another user
        shutil.copyfile(file, link)


def _pictures(directory: Path, names: list[str], model: Model) -> "Source":
    """Open pictures; those in folders are labelled with the class that the folder names."""
    from pipeline.sources.formats import SourceOptions
    from pipeline.sources.picture_split import PictureFiles, open_pictures
    from pipeline.sources.splits import natural_key

    ordered = sorted(names, key=lambda name: (natural_key(PurePosixPath(name).name), name))
    classes = [PurePosixPath(name).parent.name for name in ordered]
    labels = None
    if all(classes):
        labels = np.array([model.class_names.index(name) for name in classes], np.int32)
    files = {"test": PictureFiles(ordered, labels)}
    channels = _options_of(model).get("channels")
    return open_pictures(directory, files, model.class_names, SourceOptions(channels=channels), "")


def _options_of(model: Model) -> dict[str, Any]:
    """Return options for reading images of the model's shape; squares of grey are the default."""
    shape = model.preparation.image_shape(model.image_shape or ())
    is_square = len(shape) == 2 and shape[0] == shape[1]
    options: dict[str, Any] = {} if is_square or not shape else {"shape": shape}
    return options | ({"channels": "rgb"} if shape[2:] == (3,) else {})


def _check_values(name: str, rows: "SplitSource", source: "Source", model: Model) -> None:
    """Raise `BadDataError` if images differ from the model's in shape, type or range.

    Bytes, and bytes that were divided by 255 or 256, have the same values: the run's scaling
    applies. Integers without a declared type get the model's.
    """
    expected = np.dtype(model.element_type or rows.dtype)
    if rows.may_widen and expected.kind == "i" and np.can_cast(rows.dtype, expected):
        rows.dtype = expected
    shape = model.preparation.image_shape(rows.image_shape)
    check_images(model, name, shape, str(rows.dtype))
    ranges = (source.scaling, model.preparation.scaling)
    one_is_bool = BLACK_OR_WHITE in ranges and ranges[0] != ranges[1]
    if rows.dtype == np.uint8 and one_is_bool and None not in ranges:
        raise BadDataError(
            f"{name} has values from {ranges[0]}; the run was trained on values from {ranges[1]}. "
            "Convert them to that range."
        )


def _class_names(source: "Source", model: Model, progress: Progress) -> tuple[str, ...] | None:
    """Return names for a file's labels: the model's if labels are numbers and its names are not."""
    names, known = source.class_names, model.class_names
    if all(map(str.isdecimal, known)) or not all(map(str.isdecimal, names or ())):
        return names
    if names is None:
        from pipeline.plan import labels_of

        names = tuple(map(str, labels_of(source, progress)))
    by_label = dict(zip(model.labels or range(len(known)), known, strict=True))
    return tuple(by_label.get(int(name), name) for name in names)
