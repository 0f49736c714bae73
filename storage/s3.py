"""A prefix of a bucket as a place for bytes, over an S3 API.

A store has no rename, and its locks are not freed by a death, so that a writer may go on after
another has taken over its lock. Whatever it still does, it touches nothing that the other
publishes:

- **Names of one's own.** A tree (a dataset, a checkpoint, a scoring) is written below its place as
  a version, `version-HEX`, to which no other writer writes. A version is a complete tree in itself.
- **A root object.** What is at a place is said by one small object, `zarr.json` or
  `manifest.json`, which names a version, or says that the tree was removed. Its content is never
  the same twice. A place without such an object has the tree itself, as former releases wrote it.
- **Conditional writes.** A write to a name that others write to reads the object, then looks at the
  lock, then writes on condition that the object is still the one that was read. So a writer that
  lost its lock before the look stops there, and one that lost it afterwards fails as soon as the
  new holder has written that object. A holder whose condition fails looks again. This goes for root
  objects, metrics, the ledger and the names of models. What is written only once (`run.json`) is
  written on condition that nothing is there.
- **Removal.** A shared name is never removed; a removed checkpoint leaves its root object. Objects
  of versions are listed before the lock is looked at, and removed once a conditional write of the
  root has succeeded. The versions that were listed belong to this writer or to former ones, who
  read the root before that write, so that they cannot publish them any more. A version of a later
  holder was not listed. Readers of a version that is removed learn that it was replaced.
- **Journals and chunks of a scoring** lie in its version. A job that continues a scoring
  copies what is sound into a version of its own.

What is not under a lock is written whole, and the last one wins: files for `--out`, pins and the
documents of what failed in an inbox, which each say the same whoever writes them. For locks
themselves see `storage/s3_lock.py`.
"""

import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Self

from storage import files
from storage.errors import BadDataError, ConflictError, UnreachableError, UsageError
from storage.location import (
    NOTES_LIMIT,
    REMOVED_BYTES,
    VERSION,
    Location,
    Lock,
    Refused,
    TakeOver,
    Write,
    named_version,
    root_object,
)
from storage.s3_client import S3Client
from storage.s3_listing import can_be_named
from storage.s3_lock import s3_lock
from storage.s3_options import check_bucket, store_settings

READS_AT_ONCE = 16
"""Reads of one journal that are under way together."""
PIECE_BYTES = 16 * 2**20
"""What is read at once of an object that is copied to this machine."""
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
        """One request, for what is not large; under a lock a conditional write."""
        if self.lock is None:
            self.client.put(self._at(key), data)
        else:
            self._change(key, lambda _: bytes(data))

    def _change(self, key: str, change: Callable[[bytes], bytes]) -> bytes:
        """Write what `change` makes of an object, and return it.

        The lock is looked at after the object was read. Raises `ConflictError` where it was lost
        or, without a lock, where the object was changed in between.
        """
        at = self._at(key)
        while True:
            content, tag = self.client.get_tagged(at) or (b"", None)
            self.check_held()
            changed = change(content)
            if self.client.put_if(at, changed, tag):
                return changed
            if self.lock is None:
                raise ConflictError(
                    f"{self}/{key} was changed by another writer. Stop one of the two."
                )

    def put_new(self, key: str, data: bytes) -> None:
        """A conditional write."""
        self.check_held()
        if not self.client.put_if(self._at(key), data, None):
            raise ConflictError(
                f"{self.client.url(self._at(key))} exists already: another writer was first."
            )

    @contextmanager
    def open_for_writing(self, key: str) -> Iterator[Write]:
        """The pieces wait on this machine's disk, so that the upload can be tried again."""
        with _temporary_space():
            pieces = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        with pieces:

            def write(data: bytes | memoryview) -> None:
                with _temporary_space():
                    files.write(pieces.fileno(), data)

            yield write
            self.client.put(self._at(key), pieces)

    def append(self, key: str, data: bytes, before: bytes | None = None) -> None:
        """Write the object anew, unless it has changed since it was read."""
        self._change(key, lambda content: (content if before is None else before) + data)

    def exists(self, key: str = "") -> bool:
        """Whether there is an object here or below."""
        at = self._at(key)
        return bool(at and self.client.holds(at)) or self.client.holds_below(at)

    def is_free(self) -> bool:
        """Whether no object is here or below, but for versions that were never published."""
        if self.client.holds(self.prefix):
            return False
        start = len(self.prefix) + 1 if self.prefix else 0
        unusable: list[str] = []
        keys = self.client.list_all(self.prefix, unusable.append)
        return not unusable and all(VERSION.match(key, start) for key in keys)

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
        """The names one level below."""
        objects, prefixes = self.client.list_level(self._at(key))
        return sorted({_last_part(found) for found in (*objects, *prefixes)})

    def objects(self, refused: Refused | None = None) -> list[str]:
        """The keys of every object below this location, sorted.

        `refused` is called for names that cannot be used; any other refusal is raised.
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

    def trees(self, key: str, root: str) -> list[str]:
        """By one listing of what is below `key`: those whose root objects say that they are."""
        return sorted(
            name
            for name, sizes in self._sizes_by_tree(key).items()
            if sizes.get(root, REMOVED_BYTES) != REMOVED_BYTES
        )

    def _sizes_by_tree(self, key: str) -> dict[str, dict[str, int]]:
        """The lengths of the objects below each name directly below `key`."""
        found: dict[str, dict[str, int]] = {}
        for path, size in self.child(key).sizes().items():
            name, _, rest = path.partition("/")
            found.setdefault(name, {})[rest] = size
        return found

    @contextmanager
    def atomic_tree(self, key: str, root: str) -> Iterator[Location]:
        """Gives a new version, which the root object names at the end."""
        tree = self.child(key)
        version = tree.staging()
        try:
            yield version
        except BaseException:
            version.discard()
            raise
        tree.publish(version, root)

    def remove_whole(self, key: str, root: str) -> None:
        """Rewrite the root object, then remove the rest."""
        self.child(key)._move(root, lambda _: None)

    def sweep_trees(self, key: str, root: str) -> None:
        """Remove versions that were never published, or are not any more."""
        for name, sizes in self._sizes_by_tree(key).items():
            if root in sizes and sizes[root] != REMOVED_BYTES:
                self.child(f"{key}/{name}").recover(root)
            elif sizes.keys() != {root}:
                self.remove_whole(f"{key}/{name}", root)

    def staging(self) -> "S3Location":
        """A version of its own below this place, which needs no lock."""
        return replace(self.child(f"version-{uuid.uuid4().hex}"), lock=None)

    def draft(self) -> "S3Location":
        """The same."""
        return self.staging()

    def drafts(self) -> list[Location]:
        """Every version, and the place itself, where former releases wrote."""
        names = [name for name in self.names() if VERSION.fullmatch(name)]
        return [replace(self, lock=None), *map(self.child, names)]

    def publish(self, staged: Location, root: str) -> None:
        """Let the root object name the version that was staged, and remove those before it."""
        try:
            self._move(root, lambda _: staged.name)
        except ConflictError:
            staged.discard()
            raise

    def recover(self, root: str) -> None:
        """Remove all but the current version, once no writer can publish another one of them.

        Where there is no root object that names one, they wait for the next `publish`.
        """
        found = self.client.get_tagged(self._at(root))
        version = found and named_version(found[0])
        if version and _besides(self.client.list_all(self.prefix), self._at(root), version):
            self._move(root, named_version)

    def _move(self, root: str, choose: Callable[[bytes], str | None]) -> None:
        """Let the root object name the version that `choose` gives, and remove all others."""
        listed = self.client.list_all(self.prefix)
        written = self._change(root, lambda content: root_object(choose(content)))
        self.client.delete(_besides(listed, self._at(root), named_version(written)))

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
        with ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="notes") as pool:
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


def _besides(keys: Iterable[str], root: str, version: str | None) -> list[str]:
    """Return the objects of a place that belong neither to its root nor to a version."""
    kept = f"{root.rpartition('/')[0]}/{version}/"
    return [key for key in keys if key != root and not key.startswith(kept)]


def _last_part(key: str) -> str:
    return key.rstrip("/").rpartition("/")[2]


def _hidden(journal: str) -> str:
    """The hidden prefix for a journal's notes; by its name it is what a dead writer left."""
    return f".{journal}.tmp"
