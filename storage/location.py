"""The interface to a local directory or an S3 prefix: objects, trees of objects, locks.

`storage/local.py` and `storage/s3.py` implement it; the rest of the project uses nothing else.
"""

import json
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import ClassVar, Self

from storage.errors import BadDataError, ConflictError, PipelineError


class Closing(ABC):
    """A context manager that calls `close` at its end."""

    @abstractmethod
    def close(self) -> None:
        """Release all resources; calling it again does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


Write = Callable[[bytes | memoryview], None]

Version = tuple[int, ...]
"""Identifies an object and its last change within a process."""

TakeOver = Callable[[str], None]
"""Permission to take over a dead writer's lock; called with a sentence that names its holder."""

Refused = Callable[[str, PipelineError | None], None]
"""Called with a key that is not listed and the reason, or None for a link to a directory."""

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
"""Names of partial files."""
REPLACED = ".replaced"
"""Suffix of the sibling that holds the old tree while a new one takes its place."""
FOREIGN = re.compile(
    r"\..+|.+~|~.+|#.+#|.+\.(bak|orig|rej|swp)|Icon\r|@eaDir|__MACOSX|lost\+found"
    r"|(eh)?thumbs\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information",
    re.IGNORECASE,
)
"""Names such as .DS_Store, ._x, .nfs0001, Thumbs.db, desktop.ini, x~ and #x#."""
LEFTOVER = re.compile(r"\.(.+)\.(ingest-[0-9a-f]{12}|replaced|old|tmp)")
"""Hidden names of trees that are being written, replaced or removed: the tree's name, a suffix."""
VERSION = re.compile(r"version-[0-9a-f]{32}")
"""Names of a tree's versions in a store, below the tree's place."""
VERSIONED = "mnist-stream versions"
"""The format of a root object that names a version."""
ROOT_BYTES = 2**20
"""Upper bound of the size of such an object, with the fields that other Zarr programs add."""
REMOVED_BYTES = 32
"""Size of the root object of a removed tree; every document is longer."""


@dataclass(frozen=True)
class Status:
    """An object's metadata."""

    size: int
    """Length in bytes."""
    version: str
    """Changes whenever the object is written."""
    modified: float
    """When it was last written, in seconds since 1970 by the store's clock."""


class Lock(ABC):
    """A writer's lock that is held."""

    @abstractmethod
    def check(self) -> None:
        """Raise `ConflictError` if the lock was lost."""

    def retire(self) -> None:  # noqa: B027 - a store keeps the object
        """Remove the lock's file on release, because no process will need it again."""


@dataclass(frozen=True, repr=False)
class Location(ABC):
    """A directory or prefix of objects, each named by a relative key such as `train/zarr.json`.

    Writes are atomic, and durable unless `durable` is false: a reader sees the old object or the
    new one. A key that leads outside raises `BadDataError`, an unreachable place
    `UnreachableError`. A location can be pickled and used on another machine.
    """

    path: PurePath
    """The path of a directory, or a bucket's prefix."""
    lock: Lock | None = field(default=None, compare=False, kw_only=True)
    """The writer's lock, checked before each write."""
    durable: bool = field(default=True, compare=False, kw_only=True)
    """Whether each write survives a loss of power at once, or only after `sync`."""

    renames: ClassVar[bool]
    """Whether a tree is published by a rename, or by a root object that names its version."""

    @abstractmethod
    def __str__(self) -> str:
        """Return the path or URL."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    @abstractmethod
    def _at(self, key: str) -> PurePath:
        """Return the path of `key`; raise `BadDataError` for a key that leads outside."""

    def _resolved(self) -> PurePath:
        """Return the path with all symbolic links resolved."""
        return self.path

    @property
    def name(self) -> str:
        return self._resolved().name

    def child(self, key: str) -> Self:
        return replace(self, path=self._at(key))

    def sibling(self, suffix: str) -> Self:
        """Return the location `.NAME` + `suffix` beside this one, on the same disk."""
        path = self._resolved()
        return replace(self, path=path.with_name(f".{path.name}{suffix}"))

    def split(self) -> tuple[Self, str]:
        """Return this location's parent and its key there."""
        return replace(self, path=self.path.parent, lock=None), self.path.name

    def is_object(self) -> bool:
        """Return whether there is an object at this location."""
        parent, key = self.split()
        return parent.holds(key)

    def write_object(self, data: bytes) -> None:
        """Write this location's object like `put`; remove partial files that dead writers left."""
        parent, key = self.split()
        parent.sweep_partial(key)
        parent.put(key, data)

    # Objects.

    @abstractmethod
    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return an object's bytes in [start, stop), or its last `-start` bytes for `start < 0`.

        Raises `FileNotFoundError` if there is no such object.
        """

    def get_with_version(
        self, key: str, start: int = 0, stop: int | None = None
    ) -> tuple[bytes, Version | None]:
        """Return an object's bytes as `get` does, and its version.

        While its version is the same, an object has not been written. The version is None if the
        store has none, or if a write could leave it as it is.
        """
        return self.get(key, start, stop), None

    @abstractmethod
    def put(self, key: str, data: bytes | memoryview, *, new: bool = False) -> None:
        """Write an object atomically; with `new`, raise `ConflictError` if it exists."""

    @abstractmethod
    def open_for_writing(self, key: str) -> AbstractContextManager[Write]:
        """Write an object piece by piece, as atomically as `put`: yield a `write` function."""

    @abstractmethod
    def append(self, key: str, data: bytes, before: bytes | None = None) -> None:
        """Append to a small object; on a disk, a crash may leave part of `data` at its end.

        A store's object becomes `before + data` if `before` is given.
        """

    @abstractmethod
    def status(self, key: str) -> Status:
        """Return an object's metadata; raise `FileNotFoundError` if there is no such object."""

    @abstractmethod
    def as_file(
        self, key: str, count: int | None = None, check: Callable[[], None] = lambda: None
    ) -> AbstractContextManager[Path]:
        """Yield the path of a local file with an object's bytes, the first `count` if given.

        `check` is called while the object is copied, and may raise to stop.
        """

    @abstractmethod
    def exists(self, key: str = "") -> bool:
        """Return whether there is an object or a directory at `key`."""

    @abstractmethod
    def is_free(self) -> bool:
        """Return whether this location is absent, or an empty directory."""

    @abstractmethod
    def names(self, key: str = "") -> list[str]:
        """Return the sorted names directly below `key`; an empty list if it is not a directory."""

    @abstractmethod
    def objects(self, refused: Refused | None = None) -> list[str]:
        """Return the sorted keys of all objects below this location.

        Links to directories are not followed: `refused` is called for each, and for directories
        that cannot be listed. Without `refused`, or if it is this location itself, such a directory
        raises `UnreachableError`.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object if it exists."""

    @abstractmethod
    def delete_tree(self) -> None:
        """Remove this location and everything below it."""

    def size(self, key: str) -> int:
        """Return an object's size in bytes; raise `FileNotFoundError` if there is none."""
        return self.status(key).size

    def holds(self, key: str) -> bool:
        """Return whether there is an object at `key`."""
        try:
            self.status(key)
        except FileNotFoundError:
            return False
        return True

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each readable object below this location, by key."""
        sizes = {}
        for key in self.objects():
            with suppress(FileNotFoundError, BadDataError):
                sizes[key] = self.size(key)
        return sizes

    def discard(self) -> None:
        """Remove everything here after a failure; a second failure is ignored."""
        with suppress(OSError, PipelineError):
            self.delete_tree()

    def sweep(self, key: str = "") -> None:
        """Remove all partial files directly below `key`; the caller holds their writers' lock."""
        for name in self.names(key):
            if TEMPORARY.fullmatch(name):
                self.delete(f"{key}/{name}" if key else name)

    def unsynced(self) -> Self:
        """Return this location for a writer of many objects that calls `sync` at the end."""
        return replace(self, durable=False)

    def sync(self, keys: Collection[str]) -> None:  # noqa: B027 - a store's writes are durable
        """Make objects, written by any process, survive a loss of power, and their names too."""

    def sweep_partial(self, key: str) -> None:  # noqa: B027 - a store has no partial objects
        """Remove the partial files that dead writers of one object left, but no live writer's."""

    # Locks.

    @abstractmethod
    def writer_lock(
        self, subject: str, take_over: TakeOver | None = None
    ) -> AbstractContextManager[Lock]:
        """Hold the exclusive right to write `subject`, without waiting; the lock is located here.

        On a local disk the kernel frees the lock when its holder dies. In a store it is an object
        that remains; `take_over` permits to take it. Raises `ConflictError` that names the holder
        of a lock that is not free.
        """

    @abstractmethod
    def lock_holder(self) -> str | None:
        """Return the description of the holder of the lock located here; None if it is free.

        Nothing is created or changed. In a store, the holder may have died.
        """

    def under(self, lock: Lock) -> Self:
        """Return this location for a writer that holds `lock`."""
        return replace(self, lock=lock)

    def check_held(self) -> None:
        """Raise `ConflictError` if this location's lock was lost."""
        if self.lock is not None:
            self.lock.check()

    # Trees: groups of objects that become visible together. The `root` object of a tree is written
    # last and makes the others valid.

    @abstractmethod
    def staging(self) -> Self:
        """Return an empty location for a tree that will be published here.

        Its name is unique, so that a worker that outlives its job cannot write into a later job's
        tree. The caller holds the lock.
        """

    @abstractmethod
    def _install(self, staged: "Location", root: str) -> None:
        """Replace the tree here by a finished one; see `publish`."""

    @abstractmethod
    def remove_tree(self, root: str) -> None:
        """Remove the tree here; after a crash during removal, `trees` does not list the rest."""

    @abstractmethod
    def recover(self, root: str) -> None:
        """Complete or undo an interrupted `publish`, and remove staged trees.

        The caller holds the lock.
        """

    @abstractmethod
    def sweep_trees(self, key: str, root: str) -> None:
        """Remove the incomplete trees of dead writers directly below `key`."""

    def publish(self, staged: "Location", root: str) -> None:
        """Replace any tree here by the finished one at `staged`.

        After a crash at any moment, a reader finds the old tree, the new one, or a sibling with the
        suffix `REPLACED`, and `recover` completes or undoes the replacement. If the lock was lost,
        discards the staged tree and raises `ConflictError`.
        """
        try:
            self._install(staged, root)
        except ConflictError:
            staged.discard()
            raise

    @contextmanager
    def atomic_tree(self, key: str, root: str) -> Iterator["Location"]:
        """Yield a location whose objects become the tree at `key` when the block succeeds.

        Until then, and after a failure, readers find the former tree, if any.
        """
        tree = self.child(key)
        staged = tree.staging()
        try:
            yield staged
        except BaseException:
            staged.discard()
            raise
        tree.publish(staged, root)

    def current(self, root: str) -> Self:
        """Return the location of the published tree: in a store, the version that the root names.

        Raises `FileNotFoundError` if the tree was removed.
        """
        try:
            content = self.get(root, 0, ROOT_BYTES)
        except FileNotFoundError:
            return self
        if len(content) == REMOVED_BYTES:
            raise FileNotFoundError(f"{self}/{root}")
        version = named_version(content)
        return self.child(version) if version else self

    def trees(self, key: str, root: str) -> list[str]:
        """Return the sorted names of the trees directly below `key`."""
        sizes = self.child(key).sizes_by_tree()
        return [name for name in self.names(key) if is_published(sizes.get(name, {}), root)]

    def sizes_by_tree(self) -> dict[str, dict[str, int]]:
        """Return the sizes of the objects below each name directly below this location."""
        trees: dict[str, dict[str, int]] = {}
        for path, size in self.sizes().items():
            name, _, rest = path.partition("/")
            trees.setdefault(name, {})[rest] = size
        return trees

    def draft(self) -> Self:
        """Return the location for a tree that another job can continue after a crash."""
        return self if self.renames else self.staging()

    def drafts(self) -> list[Self]:
        """Return the locations of such trees of earlier jobs: this one, or any version.

        Earlier releases wrote here in stores too.
        """
        versions = [] if self.renames else filter(VERSION.fullmatch, self.names())
        return [replace(self, lock=None), *map(self.child, versions)]


def named_version(content: bytes) -> str | None:
    """Return the version that a root object names; None for any other content."""
    if VERSIONED.encode() not in content:
        return None
    try:
        attributes = json.loads(content)["attributes"]
        version = attributes["version"] if attributes["format"] == VERSIONED else ""
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if isinstance(version, str) and VERSION.fullmatch(version) else None


def root_object(version: str | None) -> bytes:
    """Return the content of a root object that names a version, or of a removed tree's.

    It is never the same twice. It is a Zarr group's document, so that Zarr shows the version.
    """
    moved = uuid.uuid4().hex
    if version is None:
        return moved.encode()
    attributes = {"format": VERSIONED, "version": version, "moved": moved}
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}).encode()


def is_published(sizes: dict[str, int], root: str) -> bool:
    """Return whether objects of these sizes are a tree that was published and not removed.

    A damaged tree may have lost its root.
    """
    if root in sizes or not sizes:
        return sizes.get(root) != REMOVED_BYTES
    return not all(VERSION.match(key) for key in sizes)


def is_foreign(key: str) -> bool:
    """Return whether operating systems, file managers or editors create files of this name."""
    return any(FOREIGN.fullmatch(part) for part in key.split("/"))


def is_leftover(name: str) -> bool:
    """Return whether a name marks a partial tree or file of a dead writer."""
    return bool(LEFTOVER.fullmatch(name))
