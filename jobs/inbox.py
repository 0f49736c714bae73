"""The inbox: a directory where IDX files and datasets arrive, each scored once, by its content.

A file of images is scored as it is, with the labels beside it if there are any. It is converted
chunk by chunk into a dataset that lies with the run's scores until its scoring is published, so
that a scoring that dies goes on where it was. What is still being written is left for the next
time; what is bad is recorded under `scores/failed/`, and the others are scored.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.batch import Batch, ModelError
from jobs.score_listener import now
from jobs.scored import ScoreResult, checked_record, peek_dataset_digest
from jobs.turns import pause
from storage import sealed
from storage.decoding import hash_stored
from storage.errors import (
    BadDataError,
    ConflictError,
    PipelineError,
    StoppedError,
    UnreachableError,
    UsageError,
)
from storage.ledger import FAILED_EVENT, Entry, LedgerError, waiting_lock
from storage.location import Location, open_location
from storage.runs import SCORES
from storage.schema import METADATA_NAME
from storage.scorings import FAILED, is_complete

if TYPE_CHECKING:
    from storage.dataset import Dataset

SPLIT = "inbox"
"""What the split of rows from raw files is called."""
UNFINISHED = re.compile(
    r".*(\.part|\.partial|\.tmp|\.filepart|\.crdownload|\.swp|~)", re.IGNORECASE
)
"""Names that copying and downloading programs give to what they have not finished."""
PACKED = re.compile(r"\.(gz|xz)$", re.IGNORECASE)
KIND = re.compile(r"(image|label)s?", re.IGNORECASE)
DIMENSIONS = re.compile(r"idx\d", re.IGNORECASE)

Stamp = tuple[int, int, int]
"""A file's inode, size and time: what changes when somebody writes to it."""


@dataclass(frozen=True)
class Item:
    """Something to score: a file of images, perhaps with labels, or a split of a dataset."""

    name: str
    """Relative to the inbox."""
    images: Path
    """The file, or the dataset's directory."""
    labels: Path | None = None
    split: str | None = None
    """The split, where it is a dataset's."""

    @property
    def paths(self) -> list[Path]:
        """The files that must have settled."""
        if self.split is not None:
            return [self.images / METADATA_NAME]
        return [path for path in (self.images, self.labels) if path is not None]


@dataclass
class Found:
    """What lies in an inbox."""

    items: list[Item] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    """What is not ready, and why."""


def score_inbox(batch: Batch) -> None:
    """Score everything in the inbox that is whole and new, under the inbox's lock.

    Raises `UnreachableError` where there is no inbox, and `ConflictError` that names the job that
    is at work on it.
    """
    inbox = Path(str(open_location(batch.config.inbox or "")))
    batch.attempt(partial(_check_directory, inbox))
    key = hashlib.sha256(os.path.realpath(inbox).encode()).hexdigest()[:12]
    scores = batch.run.location.child(SCORES)
    lock = waiting_lock(
        scores.child(f".inbox-{key}.lock"),
        f"The inbox {inbox}",
        batch.config.wait,
        partial(pause, 0.2, batch.stop),
    )
    with lock:
        _Inbox(batch, inbox, scores.child(f".inbox-{key}")).score()


def _check_directory(inbox: Path) -> None:
    if not inbox.is_dir():
        raise UnreachableError(
            f"There is no directory {inbox} to take files from. Mount or make it, and try again."
        )


class _Inbox:
    """One pass over an inbox."""

    def __init__(self, batch: Batch, inbox: Path, staging: Location) -> None:
        """`staging` holds the datasets that raw files become, while they are scored."""
        self._batch = batch
        self._place = inbox
        self._staging = staging
        self._bad: list[Entry] = []
        self._stamps: dict[Path, Stamp | None] = {}

    def score(self) -> None:
        """Score what is whole and new, one after the other."""
        batch = self._batch
        first_look = time.monotonic()
        found = find_items(self._place)
        self._stamps = {path: _stamp(path) for item in found.items for path in item.paths}
        self._let_settle(first_look)
        for name, reason in found.left.items():
            self._leave(name, reason)
        for item in found.items:
            batch.stop.check("Stopped between two files. Run the same command to go on.")
            if self._unchanged(item):
                self._score_item(item)
            else:
                self._leave(item.name, "it is still being written")
        self._forget_what_is_bad_no_more()
        self._staging.delete_tree()
        if self._bad:
            names = ", ".join(str(entry["file"]) for entry in self._bad[:10])
            batch.result.errors.append(
                BadDataError(
                    f"{len(self._bad):,} in the inbox could not be scored: {names}. What is wrong "
                    f"with each is in {batch.ledger.location}/{FAILED}; the others are scored."
                )
            )

    def _let_settle(self, first_look: float) -> None:
        """Wait, where something is so young that it takes a second look."""
        settle = self._batch.config.settle
        youngest = max((stamp[2] / 1e9 for stamp in self._stamps.values() if stamp), default=0.0)
        if youngest > time.time() - settle:
            pause(first_look + settle - time.monotonic(), self._batch.stop)

    def _unchanged(self, item: Item) -> bool:
        """Whether its files are there, and nobody has written to them since the first look."""
        stamps = [(_stamp(path), self._stamps[path]) for path in item.paths]
        return all(stamp is not None and stamp == before for stamp, before in stamps)

    def _leave(self, name: str, reason: str) -> None:
        self._batch.result.left.append({"file": name, "reason": reason})
        text = f"{name}: left for the next time; {reason}"
        self._batch.listener.event("left", file=name, reason=reason, text=text)

    def _score_item(self, item: Item) -> None:
        batch, content = self._batch, ""
        try:
            content = _content(item)
            batch.attempt(partial(self._score_content, item, content))
        except (ModelError, LedgerError, StoppedError):
            raise
        except (BadDataError, UsageError) as error:
            if self._unchanged(item):
                self._fail(item, content or item.name, error)
            else:
                self._leave(item.name, "it changed, or went, while it was being read")
        except (ConflictError, UnreachableError) as error:
            batch.result.errors.append(error)
            self._leave(item.name, str(error))

    def _score_content(self, item: Item, content: str) -> None:
        scored = self._scored_before(content)
        if scored is None:
            self._batch.load_model()
            scored = self._make(item, content)
        self._batch.settle(replace(scored, file=item.name), content)
        self._staged(content).delete_tree()

    def _scored_before(self, content: str) -> ScoreResult | None:
        """What the ledger knows of the content, where it is still there."""
        batch = self._batch
        for line in batch.ledger.entries(content):
            home = line.get("result")
            if line["model_digest"] != batch.model_digest or not isinstance(home, str):
                continue
            location = batch.run.location.child(home)
            if is_complete(location):
                return ScoreResult(*checked_record(location), already_done=True)
        return None

    def _make(self, item: Item, content: str) -> ScoreResult:
        """Score what is new."""
        if item.split is not None:
            return self._batch.make(_open_dataset(item.images), item.split)
        return self._batch.make(self._convert(item, content), SPLIT)

    def _convert(self, item: Item, content: str) -> "Dataset":
        """The dataset of a raw file, in memory for a few chunks of it."""
        from pipeline.ingest import ingest
        from pipeline.sources import Source
        from pipeline.splits import IdxSplit

        batch = self._batch

        def report(stage: str, done: int, total: int) -> None:
            batch.listener.progress(f"{stage} {item.name}", done, total)
            batch.stop.check("Stopped; nothing of this file is scored. Run the same command again.")

        source = Source(
            item.images.name,
            (IdxSplit(SPLIT, item.images, item.labels),),
            f"{item.name} of the inbox",
        )
        staged = str(self._staged(content).child("dataset"))
        dataset = ingest(source, staged, report=report, announce=batch.listener.say).dataset
        if content != _digest_of_sources(dataset):
            raise BadDataError(f"{item.images} changed while it was being read.")
        return dataset

    def _staged(self, content: str) -> Location:
        return self._staging.child(content[:16])

    def _fail(self, item: Item, content: str, error: PipelineError) -> None:
        """Record a bad file: as it is now, and in the ledger, there once for each content."""
        batch = self._batch
        entry: Entry = {
            "event": FAILED_EVENT,
            "time": now(),
            "exit": BadDataError.exit_code,
            "status": "failed",
            "model": batch.config.model,
            "model_digest": batch.model_digest,
            "checkpoint": str(batch.checkpoint),
            "inbox": os.path.realpath(self._place),
            "file": item.name,
            "content": content,
            "error": str(error),
        }
        batch.ledger.put_failure(entry)
        batch.ledger.record(entry, partial(_failed_so, entry), json.dumps(content))
        self._bad.append(entry)
        batch.result.failed.append({"file": item.name, "error": str(error)})
        text = f"{item.name} is not scored: {error}"
        batch.listener.event("failed", file=item.name, error=str(error), text=text, warning=True)

    def _forget_what_is_bad_no_more(self) -> None:
        """A bad file that was mended, or taken away, is history: the ledger has it."""
        bad = {(entry["content"], entry["model_digest"]) for entry in self._bad}
        left = {one["file"] for one in self._batch.result.left}
        inbox = os.path.realpath(self._place)
        for entry in self._batch.ledger.failures():
            here = entry.get("inbox") == inbox and entry.get("file") not in left
            if here and (entry["content"], entry["model_digest"]) not in bad:
                self._batch.ledger.delete_failure(entry)


def find_items(inbox: Path) -> Found:
    """All that lies in a directory and those below it, in the order of the names.

    Nothing is opened but the documents of datasets. What is hidden does not count.
    """
    found = Found()
    for directory, names, files in os.walk(inbox, onerror=_raise):
        names[:] = sorted(name for name in names if not name.startswith("."))
        place = Path(directory)
        if METADATA_NAME in files:
            names[:] = []
            _add_dataset(place, inbox, found)
            continue
        visible = sorted(name for name in files if not name.startswith("."))
        _add_files([place / name for name in visible], inbox, found)
    return found


def _raise(error: OSError) -> None:
    raise UnreachableError(
        f"Cannot list {error.filename}: {error.strerror}. See to its permissions or its disk."
    ) from error


def _add_dataset(place: Path, inbox: Path, found: Found) -> None:
    name = place.relative_to(inbox).as_posix()
    try:
        location = open_location(place)
        document = sealed.parse(sealed.read(location, METADATA_NAME), str(place))
        attributes = document["attributes"]
        splits = sorted(attributes["splits"]) if attributes.get("complete") is True else None
    except (BadDataError, KeyError, TypeError, AttributeError):
        splits = [""]  # opening it will say what is wrong
    except FileNotFoundError:
        splits = None
    if splits is None:
        found.left[name] = "the dataset is not complete"
        return
    found.items += [
        Item(f"{name}/{split}" if split else name, place, None, split) for split in splits
    ]


def _add_files(paths: list[Path], inbox: Path, found: Found) -> None:
    labels = {_pairing(path): path for path in paths if _is_labels(path)}
    taken = set()
    for path in paths:
        name = path.relative_to(inbox).as_posix()
        if UNFINISHED.fullmatch(path.name):
            found.left[name] = "its name says that it is not finished"
        elif not path.is_file():
            found.left[name] = "it is no regular file, or is gone"
        elif not _is_labels(path):
            beside = labels.get(_pairing(path))
            taken.add(beside)
            found.items.append(Item(name, path, beside))
    for path in labels.values():
        if path not in taken and not UNFINISHED.fullmatch(path.name):
            found.left[path.relative_to(inbox).as_posix()] = "its images are not there"


def _is_labels(path: Path) -> bool:
    kinds = KIND.findall(path.name)
    return bool(kinds) and kinds[-1].lower() == "label"


def _pairing(path: Path) -> str:
    """What images and their labels have in common: the name without what tells them apart."""
    return DIMENSIONS.sub("idx", KIND.sub("", PACKED.sub("", path.name))).lower()


def _stamp(path: Path) -> Stamp | None:
    """What changes when somebody writes to a file; None where it is not there."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UnreachableError(f"Cannot look at {path}: {error.strerror}.") from error
    return status.st_ino, status.st_size, status.st_mtime_ns


def _content(item: Item) -> str:
    """The digest of what an item holds: of its files as they are stored, or of a dataset's rows."""
    if item.split is None:
        return _digest(hash_stored(path)[1] for path in item.paths)
    digest = peek_dataset_digest(open_location(item.images))
    if digest is None:
        digest = _open_dataset(item.images).digest
    return _digest([digest, item.split])


def _digest_of_sources(dataset: "Dataset") -> str:
    """The same, of the files that a dataset was made from: those that were really read."""
    return _digest(str(source["stored_sha256"]) for source in dataset.sources)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def _open_dataset(place: Path) -> "Dataset":
    from storage.dataset import open_dataset

    return open_dataset(open_location(place))


def _failed_so(entry: Entry, lines: list[Entry]) -> bool:
    same = ("event", "content", "model_digest", "error")
    return any(all(line.get(name) == entry[name] for name in same) for line in lines)
