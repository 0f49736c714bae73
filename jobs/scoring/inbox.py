"""The inbox: where IDX files and datasets arrive, each scored once, by its content.

A file of images is scored as it is, with the labels beside it if there are any. It is converted
chunk by chunk into a dataset that lies with the run's scores until its scoring is published, so
that a scoring that dies goes on where it was. What is still being written is left for the next
time; what is bad is recorded under `scores/failed/`, and the others are scored.
"""

import hashlib
import math
import os
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.scoring.batch import ModelError, ScoringJob
from jobs.scoring.discover import Found, Item, Selection, find_items, is_text, shown_name
from jobs.scoring.failed_items import INTERNAL_ERROR, SHOWN_NAMES, Failures
from jobs.scoring.result import ScoreResult, open_scored
from jobs.scoring.retry import pause
from storage.decoding import START_BYTES, hash_stored
from storage.errors import (
    BadDataError,
    StoppedError,
    UnreachableError,
    UsageError,
)
from storage.files import as_pipeline_error
from storage.ledger import LedgerError, waiting_lock
from storage.local import LocalLocation
from storage.location import Location, Lock
from storage.runs import SCORES
from storage.scores import is_complete

if TYPE_CHECKING:
    from storage.dataset import Dataset

LARGE_FILE = 64 * 2**20
"""The header of a file with more bytes is checked before it is copied and hashed."""
SPLIT = "inbox"
"""What the split of rows from raw files is called."""


def score_inbox(batch: ScoringJob) -> None:
    """Score everything in the inbox that is whole and new, under the inbox's lock.

    Raises `UnreachableError` where there is no inbox, `UsageError` where what the job itself
    writes would arrive in it, and `ConflictError` that names the job that is at work on it.
    """
    inbox = batch.config.open(batch.config.inbox or "")
    batch.attempt(partial(_check_directory, inbox))
    place = _real_place(inbox)
    _check_apart(batch, place)
    key = hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:12]
    scores = batch.run.location.child(SCORES)
    lock = waiting_lock(
        scores.child(f".inbox-{key}.lock"),
        f"The scoring of inbox {inbox}",
        batch.config.wait,
        partial(pause, 0.2, batch.stop),
        batch.config.take_over,
    )
    with lock as held:
        _Inbox(batch, inbox, place, held, scores.child(f".inbox-{key}")).score()


def _check_directory(inbox: Location) -> None:
    if isinstance(inbox, LocalLocation) and not inbox.path.is_dir():
        raise UnreachableError(
            f"There is no directory {inbox} to take files from. Mount or make it, and try again."
        )


def _check_apart(batch: ScoringJob, inbox: str) -> None:
    """Refuse an inbox in which the run lies, or is to be written to: each night would find more."""
    own = {"the run": batch.run.location, "--out": batch.config.output(SPLIT, SPLIT)}
    for what, location in own.items():
        if location is not None and _real_place(location).startswith(inbox.rstrip("/") + "/"):
            raise UsageError(
                f"{what[0].upper()}{what[1:]} is {location}, which lies in the inbox: what is "
                "written there would arrive to be scored. Keep the two apart."
            )


def _real_place(location: Location) -> str:
    """The one name of a place, whichever way leads there."""
    if isinstance(location, LocalLocation):
        return os.path.realpath(location.path)
    return str(location)


class _Inbox:
    """One pass over an inbox."""

    def __init__(
        self, batch: ScoringJob, inbox: Location, place: str, lock: Lock, staging: Location
    ) -> None:
        """`place` names the inbox in the ledger.

        The datasets that raw files become lie below `staging` while they are scored: in a store,
        where a former holder of the lock may still be at work, under a name of this pass alone.
        """
        self._batch = batch
        self._inbox = inbox
        self._lock = lock
        former = staging.drafts()
        lock.check()  # after the look: what a later holder makes is not among them
        self._staging = staging.draft()
        for place_of_dead in former:
            if place_of_dead not in (staging, self._staging):
                place_of_dead.discard()
        self._failures = Failures(batch, shown_name(place))
        self._versions: dict[str, str | None] = {}

    def score(self) -> None:
        """Score what is whole and new, one after the other."""
        batch = self._batch
        first_look = time.monotonic()
        found = batch.attempt(self._look)
        keys = {key for item in found.items for key in item.keys}
        self._versions = {key: _version(self._inbox, key) for key in keys}
        settled = set(self._let_settle(found, first_look).items)
        for name, reason in found.left.items():
            self._leave(name, reason)
        if found.skipped:
            text = f"skipped, not data by name: {', '.join(found.skipped[:SHOWN_NAMES])}"
            more = len(found.skipped) - SHOWN_NAMES
            text += f" and {more:,} more" if more > 0 else ""
            batch.listener.event("skipped", files=found.skipped, text=text)
        for name, error in found.unreachable.items():
            batch.result.errors.append(error)
            self._leave(shown_name(name), str(error))
        for item in found.items:
            batch.stop.check("Stopped between two files. Run the same command to go on.")
            if item in settled and self._unchanged(item):
                self._score_item(item)
            elif _version(self._inbox, item.keys[0]) is None:
                self._leave(item.name, "it is gone")
            else:
                self._leave(item.name, "it is still being written")
        self._staging.delete_tree()
        self._check_it_is_still_there()
        self._lock.check()
        self._failures.sum_up()

    def _look(self) -> Found:
        config = self._batch.config
        return find_items(self._inbox, Selection(config.include, config.exclude))

    def _check_it_is_still_there(self) -> None:
        """A mount that went meanwhile took its files along, which nobody took away."""
        try:
            _check_directory(self._inbox)
        except UnreachableError as error:
            self._batch.result.errors.append(error)

    def _let_settle(self, found: Found, first_look: float) -> Found:
        """Wait and look again, where something is so young: its labels may come after it, too."""
        settle = self._batch.config.settle
        if not any(_age(self._inbox, key) < settle for key in self._versions):
            return found
        pause(first_look + settle - time.monotonic(), self._batch.stop)
        return self._batch.attempt(self._look)

    def _unchanged(self, item: Item) -> bool:
        """Whether its files are there, and nobody has written to them since the first look."""
        versions = [(_version(self._inbox, key), self._versions[key]) for key in item.keys]
        return all(now is not None and now == before for now, before in versions)

    def _leave(self, name: str, reason: str) -> None:
        self._batch.result.left.append({"file": name, "reason": reason})
        text = f"{name}: left for the next time; {reason}"
        self._batch.listener.event("left", file=name, reason=reason, text=text)

    def _score_item(self, item: Item) -> None:
        batch, content = self._batch, ""
        files: list[Path] = []
        try:
            if not is_text(str(item.images)):
                raise BadDataError(f"{item.name}: the name is no text in UTF-8. Give it another.")
            if item.trouble is not None:
                raise BadDataError(item.trouble)
            with ExitStack() as opened:
                batch.attempt(partial(self._check_headers, item))
                files = batch.attempt(partial(self._files, item, opened))
                content = batch.attempt(partial(self._content, item, files))
                batch.attempt(partial(self._score_content, item, files, content))
        except (ModelError, LedgerError, StoppedError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - Rust's panics too keep no other waiting
            match as_pipeline_error(error):
                case BadDataError() | UsageError() as known:
                    content = known.content if isinstance(known, _BadHeaderError) else content
                    self._fail(item, files, content, str(known))
                case None:
                    text = f"{INTERNAL_ERROR}: {type(error).__name__}: {error}"
                    self._fail(item, files, content, text, error)
                case known:
                    batch.result.errors.append(known)
                    self._leave(item.name, str(known))

    def _fail(
        self,
        item: Item,
        files: list[Path],
        content: str,
        text: str,
        bug: BaseException | None = None,
    ) -> None:
        """Record that an item could not be scored, unless it changed while it was being read."""
        self._lock.check()  # else what went wrong may be the new holder's work
        if self._unchanged(item):
            self._failures.record(
                item.name, content, self._message(item, files, content, text), bug
            )
        else:
            self._leave(item.name, "it changed or disappeared while it was being read")

    def _message(self, item: Item, files: list[Path], content: str, text: str) -> str:
        """An error with the names in the inbox in place of those of copies and of what is staged.

        So it reads the same in each pass, wherever the inbox was copied to or is reached from.
        """
        images = shown_name(str(item.images))
        names = dict(zip(map(str, files), map(shown_name, item.keys), strict=False))
        names[str(self._staged(content).child("dataset"))] = images
        names[f"{str(self._inbox).rstrip('/')}/{item.images}"] = images
        for place, name in names.items():
            text = text.replace(place, name)
        return text

    def _files(self, item: Item, opened: ExitStack) -> list[Path]:
        """An item's raw files on this machine for as long as `opened` is; none of a dataset."""
        if item.split is not None:
            return []
        try:
            return [
                opened.enter_context(self._inbox.as_file(key, check=self._check_stop))
                for key in item.keys
            ]
        except FileNotFoundError as error:
            raise BadDataError(f"{item.name} is gone: {error}.") from error

    def _check_headers(self, item: Item) -> None:
        """Refuse large files by header and size, before all of them is copied and hashed.

        Raises `_BadHeaderError`.
        """
        for key in item.keys if item.split is None else []:
            try:
                size = self._inbox.size(key)
                if size > LARGE_FILE:
                    with self._inbox.as_file(key, START_BYTES) as start:
                        _check_header(start, size, shown_name(key))
            except FileNotFoundError as error:
                raise BadDataError(f"{item.name} is gone: {error}.") from error

    def _content(self, item: Item, files: list[Path]) -> str:
        """The digest of an item: of its files as they are stored, or of a dataset's rows."""
        if item.split is None:
            return _digest(hash_stored(path, self._check_stop)[1] for path in files)
        location = self._inbox.child(str(item.images))
        return _digest([_open_dataset(location).digest, item.split])

    def _score_content(self, item: Item, files: list[Path], content: str) -> None:
        scored = self._scored_before(content)
        if scored is None:
            self._batch.load_model()
            scored = self._make(item, files, content)
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
                return ScoreResult(open_scored(location), already_done=True)
        return None

    def _make(self, item: Item, files: list[Path], content: str) -> ScoreResult:
        """Score what is new."""
        if item.split is not None:
            dataset = _open_dataset(self._inbox.child(str(item.images)))
            return self._batch.make(dataset, item.split)
        return self._batch.make(self._convert(item, files, content), SPLIT)

    def _convert(self, item: Item, files: list[Path], content: str) -> "Dataset":
        """The dataset of a raw file, in memory for a few chunks of it."""
        from jobs.training.model import check_images
        from pipeline.ingest import ingest
        from pipeline.sources.idx_split import IdxSplit
        from pipeline.sources.source import Source

        batch = self._batch
        model = batch.load_model()

        def progress(stage: str, done: int, total: int, note: str = "") -> None:
            batch.listener.progress(f"{stage} {item.name}{note}", done, total)
            self._check_stop()

        images, labels = files[0], files[1] if len(files) > 1 else None
        rows = IdxSplit(SPLIT, images, labels)
        preparation = model.preparation
        shape = preparation.image_shape(rows.image_shape)
        check_images(model, str(images), shape, str(rows.dtype))
        dataset = ingest(
            Source(item.images.name, (rows,), f"{item.name} of the inbox"),
            self._staged(content).child("dataset"),
            scale=preparation.scaling or "none",
            transpose=preparation.transposed,
            take_over=batch.config.take_over,
            progress=progress,
        ).dataset
        if content != _digest_of_sources(dataset):
            raise BadDataError(f"{item.name} changed while it was being read.")
        return dataset

    def _check_stop(self) -> None:
        self._batch.stop.check(
            "Stopped; nothing of this file is scored. Run the same command again."
        )

    def _staged(self, content: str) -> Location:
        return self._staging.child(content[:16])


class _BadHeaderError(BadDataError):
    """A file is refused by its header and size."""

    def __init__(self, text: str, content: str) -> None:
        """`content` tells such a file from others, whatever its name."""
        super().__init__(text)
        self.content = content


def _check_header(start: Path, size: int, name: str) -> None:
    """Read the header of a file of that size whose first bytes are in `start`."""
    from storage.idx import read_header

    try:
        read_header(start, size)
    except BadDataError as error:
        with start.open("rb") as file:
            first = hashlib.sha256(file.read(START_BYTES)).hexdigest()
        content = _digest([str(size), first])
        raise _BadHeaderError(str(error).replace(str(start), name), content) from error


def _version(inbox: Location, key: str) -> str | None:
    """What changes when somebody writes to an object; None where it is not there."""
    try:
        return inbox.look(key).version
    except (FileNotFoundError, BadDataError):
        return None


def _age(inbox: Location, key: str) -> float:
    """Seconds since somebody wrote to an object; without end where it is gone."""
    try:
        return time.time() - inbox.look(key).modified
    except (FileNotFoundError, BadDataError):
        return math.inf


def _digest_of_sources(dataset: "Dataset") -> str:
    """The digest of the files that a dataset was made from: those that were really read."""
    return _digest(str(source["stored_sha256"]) for source in dataset.sources)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def _open_dataset(location: Location) -> "Dataset":
    from storage.dataset import open_dataset

    return open_dataset(location)
