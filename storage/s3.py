"""A prefix of a bucket as a place for bytes, over an S3 API.

What a file system gives by rename, append and the kernel's locks, a store must be given otherwise:

- **An object** is put whole or not at all, and is seen by whoever reads after it: the API's
  promise.
- **A tree** (a checkpoint) has no name that could be given to it at the end. So an object beside
  it, `.NAME.tmp`, is there before its first object is put or removed, and goes after the last; a
  tree beside which it lies is not listed. The same marker serves its removal. A death leaves the
  marker, and who writes next, under the lock, removes what it marks.
- **Publishing** a dataset copies, within the store, what was staged under a prefix of its own.
  First `.NAME.replaced` is put, which names what was staged; then the old root `zarr.json` is
  removed, then the rest of the old tree; then all is copied, the complete root last of all; then
  the marker goes, then what was staged. A reader finds, before the root is removed, the old
  dataset; after the new root is there, the new one; and between them no root but the marker,
  which it tells as "being replaced". There is no mixture: the root names every digest, and there
  is one root or none. A death in between is mended forwards by the next writer, for the marker
  says that what was staged is complete. Each staging has a name of its own, so that one whose
  lock was taken over cannot spoil another's.
- **Append** reads the (small) object and writes it anew, conditionally on its not having changed.
- **A journal** is an object per note under a hidden prefix: rewriting one object for each note
  would cost the square of their number.
- **Locks**: see `storage/s3_lock.py`.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Self

from storage import files
from storage.errors import (
    BadDataError,
    ConflictError,
    PipelineError,
    UnreachableError,
    UsageError,
)
from storage.objects import (
    NOTES_LIMIT,
    REPLACED,
    STAGED,
    Location,
    Lock,
    Refused,
    TakeOver,
    Write,
    new_staged,
)
from storage.s3_client import S3Client
from storage.s3_listing import can_be_named
from storage.s3_lock import s3_lock
from storage.s3_options import check_bucket, store_settings

COPIES_AT_ONCE = 16
"""Requests of one publishing, or reads of one journal, that are under way together."""
PIECE_BYTES = 16 * 2**20
"""What is read at once of an object that is copied to this machine."""
UNFINISHED = ".tmp"
"""The suffix of the marker beside a tree that is not whole."""
LIMITLESS = 2**63 - 1
NAME_BYTES = 255
"""The longest name that the usual file systems take."""


def open_s3(url: str, options: Mapping[str, str]) -> "S3Location":
    """The location of an `s3://BUCKET/PREFIX`; nothing is read or made yet.

    `options` are those of obstore's `S3Store` and its client (`endpoint_url`, `region`,
    `access_key_id`, `timeout`, ...), and `retry_seconds`; they come before the environment's
    `AWS_...`, from which the credentials are taken otherwise. Raises `UsageError`.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    parts = prefix.rstrip("/").split("/")
    if not bucket or not all(part and _can_be_named(part) for part in parts):
        raise UsageError(
            f"{url!r} names no place in a bucket; expected s3://BUCKET/PREFIX, the parts of the "
            "prefix divided by single slashes."
        )
    check_bucket(bucket, url)
    client = S3Client(bucket, store_settings(options))
    _ = client.store, client.retry_seconds  # refused here, where the options are wrong
    return S3Location(client, "/".join(parts))


def _can_be_named(part: str) -> bool:
    try:
        part.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
        return False
    return can_be_named(part)


@dataclass(frozen=True)
class S3Location(Location):
    """The objects of a bucket whose keys begin with a prefix."""

    client: S3Client
    prefix: str
    """Without slashes at its ends; empty for the bucket's root."""
    lock: Lock | None = field(default=None, compare=False, repr=False)
    """The one under which its holder writes here."""

    def __str__(self) -> str:
        return self.client.url(self.prefix)

    @property
    def name(self) -> str:
        """The last part of the prefix."""
        return self.prefix.rpartition("/")[2]

    def absolute(self) -> Self:
        """Itself: what it is to be reached by travels along, but for what the environment holds."""
        return self

    def child(self, key: str) -> Self:
        """The location at `key` below this one."""
        return replace(self, prefix=self._at(key))

    def sibling(self, prefix: str, suffix: str) -> Self:
        """The neighbour with a hidden name."""
        parent, _, name = self.prefix.rpartition("/")
        hidden = f".{prefix}{name}{suffix}"
        return replace(self, prefix=f"{parent}/{hidden}" if parent else hidden)

    def split(self) -> tuple[Location, str]:
        """The prefix without its last part, and that."""
        parent, _, name = self.prefix.rpartition("/")
        return replace(self, prefix=parent), name

    def below(self, ancestor: Location) -> str:
        """The rest of the prefix."""
        assert isinstance(ancestor, S3Location)
        return self.prefix.removeprefix(ancestor.prefix).lstrip("/")

    def _at(self, key: str) -> str:
        if not key:
            return self.prefix
        if not all(part and _can_be_named(part) for part in key.split("/")):
            raise BadDataError(f"The name {key!r} leads outside {self}; it is refused.")
        return f"{self.prefix}/{key}" if self.prefix else key

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """One request, from whichever thread; others run meanwhile."""
        return self.client.get(self._at(key), start, stop)

    def put(self, key: str, data: bytes | memoryview) -> None:
        """One request, for what is not large."""
        self.client.put(self._at(key), data)

    def put_new(self, key: str, data: bytes) -> None:
        """A conditional write."""
        if not self.client.put_if(self._at(key), data, None):
            raise ConflictError(
                f"{self.client.url(self._at(key))} exists already: another writer was first."
            )

    @contextmanager
    def writing(self, key: str) -> Iterator[Write]:
        """The pieces wait on this machine's disk, so that the upload can be tried again."""
        with _temporary_space():
            pieces = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        with pieces:

            def write(data: bytes | memoryview) -> None:
                with _temporary_space():
                    files.write(pieces.fileno(), data)

            yield write
            self.client.put(self._at(key), pieces)

    def append(self, key: str, data: bytes) -> None:
        """Write the object anew, unless it has changed since it was read."""
        content, tag = self.client.get_tagged(self._at(key)) or (b"", None)
        if not self.client.put_if(self._at(key), content + data, tag):
            raise ConflictError(f"{self}/{key} was changed by another writer. Stop one of the two.")

    def exists(self, key: str = "") -> bool:
        """Whether there is an object, or a tree that is whole."""
        at = self._at(key)
        if at and self.client.holds(at):
            return True
        there = self.client.holds_below(at)
        return there and not (at and self.client.holds(_marker(at)))

    def is_free(self) -> bool:
        """Whether no object is here or below."""
        return not self.client.holds(self.prefix) and not self.client.holds_below(self.prefix)

    def size(self, key: str) -> int:
        """An object's length in bytes; `FileNotFoundError` where there is none."""
        return self.client.size(self._at(key))

    def version(self, key: str) -> str:
        """The object's entity tag and time."""
        return self.client.version(self._at(key))

    def age(self, key: str) -> float:
        """By the store's word for when it was put; clocks that differ make it wrong by as much."""
        return self.client.age(self._at(key))

    @contextmanager
    def as_file(
        self, key: str, count: int | None = None, check: Callable[[], None] = lambda: None
    ) -> Iterator[Path]:
        """A copy, piece by piece, which goes when the block ends."""
        size = self.size(key) if count is None else min(self.size(key), count)
        with _temporary_space():
            directory = tempfile.TemporaryDirectory()
        with directory as place:
            path = Path(place) / _file_name(PurePosixPath(key).name)
            with _temporary_space():
                descriptor = files.create(path)
            try:
                for start in range(0, size, PIECE_BYTES):
                    check()
                    piece = self.get(key, start, min(start + PIECE_BYTES, size))
                    with _temporary_space():
                        files.write(descriptor, piece)
            finally:
                files.close(descriptor)
            yield path

    def sizes(self) -> dict[str, int]:
        """By one listing."""
        found = self.client.list_all(self.prefix)
        skipped = len(self.prefix) + 1 if self.prefix else 0
        return {key[skipped:]: size for key, size in sorted(found.items())}

    def names(self, key: str = "") -> list[str]:
        """The names one level below, but for those of trees that are not whole."""
        objects, prefixes = self.client.list_level(self._at(key))
        keys = {*objects, *(found.rstrip("/") for found in prefixes)}
        return sorted(found.rpartition("/")[2] for found in keys if _marker(found) not in keys)

    def objects(self, refused: Refused | None = None) -> list[str]:
        """The keys of every object below this location, sorted.

        `refused` is told of those whose names cannot be used; other refusals are of all or nothing.
        """
        unusable: list[str] = []
        found = self.client.list_all(self.prefix, unusable.append)
        skipped = len(self.prefix) + 1 if self.prefix else 0
        if refused is not None:
            for key in sorted(unusable):
                refused(key[skipped:], _unusable(key[skipped:]))
        return sorted(key[skipped:] for key in found)

    def delete(self, key: str) -> None:
        """Remove one object; nothing happens where there is none."""
        self.client.delete([self._at(key)])

    def sweep(self, key: str = "") -> None:
        """Nothing to do: an object that is not whole was never here."""

    def delete_tree(self) -> None:
        """Remove all objects below, and one of this very name."""
        below = list(self.client.list_all(self.prefix))
        self.client.delete(below)
        if self.prefix and self.client.holds(self.prefix):
            self.client.delete([self.prefix])

    def free_bytes(self) -> int:
        """No store says how much it can hold."""
        return LIMITLESS

    @contextmanager
    def making(self, key: str) -> Iterator[Location]:
        """Gives the place itself, marked as unfinished for as long as the block runs."""
        tree, marker = self.child(key), _marker(self._at(key))
        self.check_held()
        self.client.put(marker, b"")
        try:
            tree.delete_tree()
            yield tree
        except BaseException:
            with suppress(PipelineError):
                self.check_held()  # else it may be another's by now
                tree.delete_tree()
                self.client.delete([marker])
            raise
        self.client.delete([marker])

    def remove_whole(self, key: str) -> None:
        """Mark the tree, so that it is not listed while it goes."""
        marker = _marker(self._at(key))
        self.check_held()
        self.client.put(marker, b"")
        self.child(key).delete_tree()
        self.client.delete([marker])

    def sweep_trees(self, key: str) -> None:
        """Remove the trees that are marked, then their markers."""
        directory = self._at(key)
        objects, _ = self.client.list_level(directory)
        for marker in objects:
            name = marker.rpartition("/")[2]
            if name.startswith(".") and name.endswith(UNFINISHED):
                tree = name.removeprefix(".").removesuffix(UNFINISHED)
                self.child(f"{key}/{tree}").delete_tree()
                self.client.delete([marker])

    def staging(self) -> "S3Location":
        """A prefix that no other writer uses; `recover` has emptied those of dead ones."""
        return self.sibling("", new_staged())

    def _is_staged(self, prefix: str) -> bool:
        """Whether trees are staged for this place under such a prefix."""
        hidden = self.sibling("", "").prefix
        return prefix.startswith(hidden) and bool(STAGED.fullmatch(prefix.removeprefix(hidden)))

    def publish(self, staged: Location, last: str) -> None:
        """Mark, remove the old tree, copy the new one, its `last` last, and remove the marker."""
        assert isinstance(staged, S3Location)
        self.check_held()
        self._replaced.put_new("", staged.prefix.encode())
        self._replace_by(staged, last)

    def recover(self, last: str) -> None:
        """Go on copying what was staged, for it is complete; remove what other dead ones staged."""
        found = self.client.get_tagged(self._replaced.prefix)
        if found is not None:
            self._go_on(replace(self, prefix=found[0].decode(errors="replace")), last)
        parent, _, _ = self.prefix.rpartition("/")
        _, prefixes = self.client.list_level(parent)
        for prefix in (found.rstrip("/") for found in prefixes):
            if self._is_staged(prefix):
                replace(self, prefix=prefix).delete_tree()

    def _go_on(self, staged: "S3Location", last: str) -> None:
        if not self._is_staged(staged.prefix) or not staged.holds(last):
            raise BadDataError(
                f"{self._replaced} says that {staged} is to be put in the place of {self}, and it "
                f"is not there. Remove {self._replaced} and {self}, and run again."
            )
        self._replace_by(staged, last)

    def _replace_by(self, staged: "S3Location", last: str) -> None:
        self.delete(last)
        self.delete_tree()
        others = [key for key in staged.objects() if key != last]
        with ThreadPoolExecutor(COPIES_AT_ONCE, thread_name_prefix="copy") as pool:
            copies = [
                pool.submit(self.client.copy, staged._at(key), self._at(key)) for key in others
            ]
            for copy in copies:
                copy.result()
        self.check_held()  # a conditional write besides, so that nobody's root is replaced
        self.put_new(last, staged.get(last))
        self._replaced.delete("")
        staged.discard()

    @property
    def _replaced(self) -> Self:
        return self.sibling("", REPLACED)

    def abandon(self, staged: Location) -> None:
        """Keep it where the replacement has begun; else, or where nobody can tell, remove it."""
        with suppress(PipelineError):
            if not self._replaced.exists():
                staged.delete_tree()

    def note(self, journal: str, number: int, line: bytes) -> None:
        """Put the line as an object of its own."""
        self.put(f"{_hidden(journal)}/{number:08d}", line)

    def notes(self, journal: str) -> bytes:
        """The content of all the objects, read side by side."""
        place = self.child(_hidden(journal))
        kept, total = [], 0
        for key, size in place.sizes().items():
            total += size
            if total <= NOTES_LIMIT:
                kept.append(key)
        with ThreadPoolExecutor(COPIES_AT_ONCE, thread_name_prefix="notes") as pool:
            return b"".join(pool.map(place.get, kept))

    def delete_notes(self, journal: str) -> None:
        """Remove all the objects."""
        self.child(_hidden(journal)).delete_tree()

    def locked(self, what: str, take_over: TakeOver | None) -> AbstractContextManager[Lock]:
        """A lock that is an object of this name."""
        return s3_lock(self.client, self.prefix, what, take_over)

    def under(self, lock: Lock) -> Self:
        """The same place, for the lock's holder."""
        return replace(self, lock=lock)

    def check_held(self) -> None:
        """Look whether the lock still has our signature."""
        if self.lock is not None:
            self.lock.check()


@contextmanager
def _temporary_space() -> Iterator[None]:
    """Say where this machine has no space for what a store's objects need on the way."""
    try:
        yield
    except OSError as error:
        place = tempfile.tempdir or os.environ.get("TMPDIR", "the usual places")
        raise UnreachableError(
            f"Cannot write a temporary file to {place}: {error.strerror or error}. Free some space "
            "there, or set TMPDIR to another directory, and run the same command again."
        ) from error


def _file_name(name: str) -> str:
    """A name that a disk takes for that of an object, which may be longer; its end is kept."""
    if len(os.fsencode(name)) <= NAME_BYTES:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()
    return digest[:16] + "".join(PurePosixPath(name).suffixes[-2:])[-16:]


def _unusable(key: str) -> BadDataError:
    return BadDataError(
        f"The name {key!r} contains an empty part, '.', '..' or a control character, so that no "
        "path can reach the object. Give it another name."
    )


def _marker(at: str) -> str:
    """The key of the object that marks a tree as not whole."""
    parent, slash, name = at.rpartition("/")
    return f"{parent}{slash}.{name}{UNFINISHED}"


def _hidden(journal: str) -> str:
    """The hidden prefix for a journal's notes; by its name it is what a dead writer left."""
    return f".{journal}{UNFINISHED}"
