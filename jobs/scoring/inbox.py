"""The inbox: where IDX files and datasets arrive, each scored once, by its content.

A file of images is scored as it is, with the labels beside it if there are any. It is converted
chunk by chunk into a dataset that lies with the run's scores until its scoring is published, so
that a scoring that dies continues where it was. What is still being written is left for the next
run.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from jobs.output import one_line
from jobs.scoring.discover import Found, Item, Selection, find_items, is_text
from jobs.scoring.retry import pause
from jobs.signals import StopSignal
from jobs.training.model import Model, check_images
from storage.dataset import Dataset, open_dataset
from storage.decoding import START_BYTES, hash_stored
from storage.errors import BadDataError, UnreachableError, UsageError
from storage.events import Progress
from storage.idx import read_header
from storage.local import LocalLocation
from storage.location import Location, Lock, Status, TakeOver

LARGE_FILE = 64 * 2**20
"""The header of a file with more bytes is checked before it is copied and hashed."""
SPLIT = "inbox"
"""What the split of rows from raw files is called."""


@dataclass
class Arrival:
    """An item that is being read, with what is known of it where it turns out to be bad."""

    item: Item
    files: list[Path] = field(default_factory=list)
    """Its raw files, on this machine; none of a dataset."""
    content: str = ""
    """Its digest: of its files as they are stored, or of a dataset's rows."""


def real_place(location: Location) -> str:
    """Return the one name of a place, whichever way leads there."""
    if isinstance(location, LocalLocation):
        return os.path.realpath(location.path)
    return str(location)


def check_directory(inbox: Location) -> None:
    """Raise `UnreachableError` where there is no inbox."""
    if isinstance(inbox, LocalLocation) and not inbox.path.is_dir():
        raise UnreachableError(
            f"There is no directory {inbox} to take files from. Mount or make it, and try again."
        )


def check_apart(inbox: Location, written: Mapping[str, Location | None]) -> None:
    """Raise `UsageError` where the job writes into the inbox: each night would find more."""
    for what, location in written.items():
        if location is not None and real_place(location).startswith(
            real_place(inbox).rstrip("/") + "/"
        ):
            raise UsageError(
                f"{what} is {location}, which lies in the inbox: what is written there would "
                "arrive to be scored. Keep the two apart."
            )


class Inbox:
    """One pass over an inbox, for the holder of its lock."""

    def __init__(
        self, location: Location, staging: Location, lock: Lock, stop: Callable[[], None]
    ) -> None:
        """Remove what earlier passes staged; `stop` is called often, and may raise.

        The datasets that raw files become lie below `staging` while they are scored: in a store,
        where a former holder of the lock may still be at work, under a name of this pass alone.
        """
        self._location = location
        self._lock = lock
        self._stop = stop
        former = staging.drafts()
        lock.check()  # after the look: what a later holder makes is not among them
        self._staging = staging.draft()
        for place_of_dead in former:
            if place_of_dead not in (staging, self._staging):
                place_of_dead.discard()
        self._first_look: dict[str, Status | None] = {}
        self._settled: set[Item] = set()

    @property
    def name(self) -> str:
        """The inbox as the ledger names it."""
        return one_line(real_place(self._location))

    def look(self, selection: Selection, settle: float, stop: StopSignal) -> Found:
        """Return what lies in the inbox.

        Where a file is younger than `settle` seconds, wait as long and look again, at the files and
        at what goes with them: see `reason_to_leave`.
        """
        began = time.monotonic()
        found = find_items(self._location, selection)
        keys = {key for item in found.items for key in item.keys}
        self._first_look = {key: self._look(key) for key in keys}
        self._settled = set(found.items)
        now = time.time()
        if any(look and now - look.modified < settle for look in self._first_look.values()):
            pause(began + settle - time.monotonic(), stop)
            self._settled = set(find_items(self._location, selection).items)
        return found

    def reason_to_leave(self, item: Item) -> str | None:
        """Return why an item is left for the next run; None where it has settled."""
        if item in self._settled and self._is_unchanged(item):
            return None
        return "it is gone" if self._look(item.keys[0]) is None else "it is still being written"

    def _is_unchanged(self, item: Item) -> bool:
        """Return whether an item's files are those of the first look."""
        looks = [(self._look(key), self._first_look[key]) for key in item.keys]
        return all(now and first and now.version == first.version for now, first in looks)

    def has_changed(self, item: Item) -> bool:
        """Return whether an item changed while it was read; raise where the lock was lost."""
        self._lock.check()  # else what went wrong may be the work of the lock's new holder
        return not self._is_unchanged(item)

    def _look(self, key: str) -> Status | None:
        """Return when and how an object was last written; None where it is gone."""
        try:
            return self._location.look(key)
        except (FileNotFoundError, BadDataError):
            return None

    def read(self, arrival: Arrival, opened: ExitStack) -> None:
        """Take the digest of an item; its raw files are on this machine for as long as `opened` is.

        Raises `BadDataError` where its name, or the header of a large file, rules it out.
        """
        item = arrival.item
        if not is_text(str(item.images)):
            raise BadDataError(f"{item.name}: the name is not valid UTF-8. Rename the file.")
        if item.trouble is not None:
            raise BadDataError(item.trouble)
        if item.split is not None:
            dataset = open_dataset(self._location.child(str(item.images)))
            arrival.content = digest_of([dataset.digest, item.split])
            return
        try:
            for key in item.keys:
                self._check_header(key, arrival)
            arrival.files = [
                opened.enter_context(self._location.as_file(key, check=self._stop))
                for key in item.keys
            ]
        except FileNotFoundError as error:
            raise BadDataError(f"{item.name} is gone: {error}.") from error
        arrival.content = digest_of(hash_stored(path, self._stop)[1] for path in arrival.files)

    def _check_header(self, key: str, arrival: Arrival) -> None:
        """Refuse a large file by header and size, before all of it is copied and hashed."""
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

    def dataset(
        self, arrival: Arrival, model: Model, progress: Progress, take_over: TakeOver | None
    ) -> Dataset:
        """Return an item's rows as a dataset: raw files are converted as the model's were."""
        item = arrival.item
        if item.split is not None:
            return open_dataset(self._location.child(str(item.images)))
        from pipeline.ingest import ingest
        from pipeline.sources.idx_split import IdxSplit
        from pipeline.sources.source import Source

        images, labels = arrival.files[0], arrival.files[1] if len(arrival.files) > 1 else None
        rows = IdxSplit(SPLIT, images, labels)
        preparation = model.preparation
        shape = preparation.image_shape(rows.image_shape)
        check_images(model, str(images), shape, str(rows.dtype))
        dataset = ingest(
            Source(item.images.name, (rows,), f"{item.name} of the inbox"),
            self._staged(arrival).child("dataset"),
            scale=preparation.scaling or "none",
            transpose=preparation.transposed,
            take_over=take_over,
            progress=lambda stage, *done: progress(f"{stage} {item.name}", *done),
        ).dataset
        read = digest_of(str(source["stored_sha256"]) for source in dataset.sources)
        if read != arrival.content:
            raise BadDataError(f"{item.name} changed while it was being read.")
        return dataset

    def message(self, arrival: Arrival, text: str) -> str:
        """Return an error with names in the inbox in place of those of copies and staged datasets.

        So it reads the same in each pass, wherever the inbox was copied to or is reached from.
        """
        images = one_line(str(arrival.item.images))
        keys = map(one_line, arrival.item.keys)
        names = dict(zip(map(str, arrival.files), keys, strict=False))
        names[str(self._staged(arrival).child("dataset"))] = images
        names[f"{str(self._location).rstrip('/')}/{arrival.item.images}"] = images
        for place, name in names.items():
            text = text.replace(place, name)
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
    """Return what the names of an inbox's lock and staged datasets begin with."""
    place = real_place(location).encode(errors="surrogateescape")
    return f".inbox-{hashlib.sha256(place).hexdigest()[:12]}"


def digest_of(parts: Iterable[str]) -> str:
    """Return the SHA-256, in hex, of several texts."""
    return hashlib.sha256("|".join(parts).encode()).hexdigest()
