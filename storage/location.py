"""A location: a place for whole objects and trees of them, and its writer's lock.

A local directory (`storage/local.py`) and a prefix of a bucket (`storage/s3.py`) implement it; the
rest of the project knows only this interface.
"""

import json
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import ClassVar, Self

from storage.errors import BadDataError, ConflictError, PipelineError


class Closing(ABC):
    """A context manager whose end is `close`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held; harmless when called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


Write = Callable[[bytes | memoryview], None]

TakeOver = Callable[[str], None]
"""Leave to take over an abandoned lock; called with a sentence that says whose the lock was."""

Refused = Callable[[str, PipelineError | None], None]
"""Called with the key of what is not listed, and the reason, or None for a link to a directory."""

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
"""The name of what `put` has not finished."""
REPLACED = ".replaced"
"""The suffix of the sibling that is there while a published tree is being replaced."""
FOREIGN = re.compile(
    r"\..+|.+~|~.+|#.+#|.+\.(bak|orig|rej|swp)|Icon\r|@eaDir|__MACOSX|lost\+found"
    r"|(eh)?thumbs\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information",
    re.IGNORECASE,
)
"""Names such as .DS_Store, ._x, .nfs0001, Thumbs.db, desktop.ini, x~ and #x#."""
LEFTOVER = re.compile(r"\.(.+)\.(ingest-[0-9a-f]{12}|replaced|old|tmp)")
"""The hidden name of what is being made, replaced or removed; its own name, and the suffix."""
VERSION = re.compile(r"version-[0-9a-f]{32}")
"""The name, inside a tree's place in a store, of one version of the tree."""
VERSIONED = "mnist-stream versions"
"""The format of the root object of a place that has versions of a tree."""
ROOT_BYTES = 2**20
"""No such root object is longer, even with what other Zarr programs add to it."""
REMOVED_BYTES = 32
"""The length of a root object that says that the tree was removed; no document is so short."""


@dataclass(frozen=True)
class Status:
    """What is known of an object without reading it."""

    size: int
    """Length in bytes."""
    version: str
    """Changes whenever the object is written."""
    modified: float
    """When it was last written, in seconds since 1970 by the holder's clock."""


class Lock(ABC):
    """The right to write somewhere, while it is held."""

    @abstractmethod
    def check(self) -> None:
        """Raise `ConflictError` where it is not held any more."""

    def retire(self) -> None:  # noqa: B027 - a store may keep it
        """Say that nobody will want it again: where that is safe, it leaves nothing behind."""


@dataclass(frozen=True, repr=False)
class Location(ABC):
    """Whole objects below a place, each named by a relative key with `/` between its parts.

    What `put` has returned from is whole and there for good; a reader sees the old object or the
    new one. A key that leads outside is refused with `BadDataError`. A location can be pickled, and
    opened so on another machine. Where a place cannot be reached, `UnreachableError` is raised.
    """

    path: PurePath
    """The path of a directory, or a bucket's prefix."""
    lock: Lock | None = field(default=None, compare=False, repr=False, kw_only=True)
    """The one under which its holder writes here: each write looks whether it is still held."""

    renames: ClassVar[bool]
    """Whether a tree takes its place by a rename, or as a version that its root object names."""

    @abstractmethod
    def __str__(self) -> str:
        """Return the path or URL."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    @abstractmethod
    def _at(self, key: str) -> PurePath:
        """Return the path of `key` below this one; a key that leads outside is refused."""

    def _resolved(self) -> PurePath:
        """Return the path that has no links in it."""
        return self.path

    @property
    def name(self) -> str:
        """The last part of the path, for people."""
        return self._resolved().name

    def child(self, key: str) -> Self:
        """Return the location at `key` below this one; a key that leads outside is refused."""
        return replace(self, path=self._at(key))

    def sibling(self, suffix: str) -> Self:
        """Return a hidden neighbour of this location, on the same disk."""
        path = self._resolved()
        return replace(self, path=path.with_name(f".{path.name}{suffix}"))

    def split(self) -> tuple[Self, str]:
        """Return the location that holds this one, which is to be an object, and its key there."""
        return replace(self, path=self.path.parent, lock=None), self.path.name

    # Objects.

    @abstractmethod
    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return an object's bytes from `start`, before `stop`; for `start < 0` its last ones.

        Raises `FileNotFoundError` where there is no such object.
        """

    @abstractmethod
    def put(self, key: str, data: bytes | memoryview, *, new: bool = False) -> None:
        """Make `key` hold `data`: wholly or, whatever happens, not at all.

        With `new` raises `ConflictError` where it holds something already.
        """

    @abstractmethod
    def open_for_writing(self, key: str) -> AbstractContextManager[Write]:
        """Like `put`, for what comes piece by piece: gives the function that takes the pieces."""

    @abstractmethod
    def append(self, key: str, data: bytes, before: bytes | None = None) -> None:
        """Add `data` to the end of a small object; the caller tells a torn end apart.

        A caller that knows what the object holds passes it as `before`: nothing else stays in a
        store.
        """

    @abstractmethod
    def look(self, key: str) -> Status:
        """Return an object's size, version and time; `FileNotFoundError` where there is none."""

    @abstractmethod
    def as_file(
        self, key: str, count: int | None = None, check: Callable[[], None] = lambda: None
    ) -> AbstractContextManager[Path]:
        """Give an object as a file of this machine, for those who read files.

        With `count` its first bytes are enough. `check` is called while it is copied, and may
        raise to stop.
        """

    @abstractmethod
    def exists(self, key: str = "") -> bool:
        """Return whether there is an object or a directory at `key`."""

    @abstractmethod
    def is_free(self) -> bool:
        """Return whether nothing is here yet: no object, and no directory but an empty one."""

    @abstractmethod
    def names(self, key: str = "") -> list[str]:
        """Return the names directly below `key`, sorted; none where there is no such directory."""

    @abstractmethod
    def objects(self, refused: Refused | None = None) -> list[str]:
        """Return the keys of every object below this location, sorted.

        Links to directories are not followed. `refused` is called with each of those below it, and
        with directories that cannot be listed. Without `refused`, or where it is the location
        itself, a directory that cannot be listed raises `UnreachableError`.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove one object; nothing happens where there is none."""

    @abstractmethod
    def delete_tree(self) -> None:
        """Remove this location and all below it."""

    def size(self, key: str) -> int:
        """Return an object's length in bytes; `FileNotFoundError` where there is none."""
        return self.look(key).size

    def holds(self, key: str) -> bool:
        """Return whether there is an object at `key`, which can be read."""
        try:
            self.look(key)
        except FileNotFoundError:
            return False
        return True

    def sizes(self) -> dict[str, int]:
        """Return the length in bytes of every object below this location that can be read."""
        sizes = {}
        for key in self.objects():
            with suppress(FileNotFoundError, BadDataError):
                sizes[key] = self.size(key)
        return sizes

    def discard(self) -> None:
        """Remove all of it after a failure, which is what matters: another one is ignored."""
        with suppress(OSError, PipelineError):
            self.delete_tree()

    def sweep(self, key: str = "") -> None:
        """Remove what dead writers left unfinished directly below `key`.

        The caller holds the lock of all who write there: a live one's is no different.
        """
        for name in self.names(key):
            if TEMPORARY.fullmatch(name):
                self.delete(f"{key}/{name}" if key else name)

    def sweep_partial(self, key: str) -> None:  # noqa: B027 - a store leaves nothing
        """Remove what writers of one object that died have left; a live one's stays."""

    # Locks.

    @abstractmethod
    def writer_lock(
        self, what: str, take_over: TakeOver | None = None
    ) -> AbstractContextManager[Lock]:
        """Hold the only right to write `what` while the block runs; never waits for it.

        This location is the lock's own. On a local disk the kernel holds it and frees it when its
        holder dies; in a store it is an object, which stays after a death, and which `take_over`
        gives leave to take. Raises `ConflictError` that names the holder where another has it.
        """

    def under(self, lock: Lock) -> Self:
        """Return this location for one who writes here under a lock."""
        return replace(self, lock=lock)

    def check_held(self) -> None:
        """Raise `ConflictError` where the lock that this is `under` is not held any more."""
        if self.lock is not None:
            self.lock.check()

    # Trees: several objects that are seen all together or not at all. The last object of a tree to
    # be written, its `root`, makes the others valid.

    @abstractmethod
    def staging(self) -> Self:
        """Return an empty place to make a tree that will be published here.

        It has a name that no other has or had: a worker that outlives its job writes into nothing
        that a later one publishes. The caller holds the lock.
        """

    @abstractmethod
    def _install(self, staged: "Location", root: str) -> None:
        """Put a finished tree in the place of whatever is here; see `publish`."""

    @abstractmethod
    def remove_tree(self, root: str) -> None:
        """Remove the tree here; a death half-way leaves nothing that `trees` lists."""

    @abstractmethod
    def recover(self, root: str) -> None:
        """Finish, one way or the other, a `publish` that died, and remove what was staged.

        The caller holds the lock.
        """

    @abstractmethod
    def sweep_trees(self, key: str, root: str) -> None:
        """Remove what dead writers left of the trees directly below `key`."""

    def publish(self, staged: "Location", root: str) -> None:
        """Put the finished tree at `staged` in the place of whatever is here.

        At every moment of death a reader finds the old tree, the new one, or (at the sibling with
        the suffix `REPLACED`) that one is being replaced; `recover` then brings about one or the
        other. Raises `ConflictError`, and discards what was staged, where the lock was lost.
        """
        try:
            self._install(staged, root)
        except ConflictError:
            staged.discard()
            raise

    @contextmanager
    def atomic_tree(self, key: str, root: str) -> Iterator["Location"]:
        """Give a place to put objects in, which are the tree at `key` once the block ends well.

        A tree that was at `key` is replaced. Until then, and after a failure or a death, readers
        find that one, or none.
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
        """Return the place of the tree that is published here.

        In a store, it is one of the versions below this place, which the root object names. Raises
        `FileNotFoundError` where the tree was removed.
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
        """Return the names of the trees directly below `key`, sorted."""
        sizes = self.child(key).sizes_by_tree()
        return [name for name in self.names(key) if is_published(sizes.get(name, {}), root)]

    def sizes_by_tree(self) -> dict[str, dict[str, int]]:
        """Return the lengths of the objects below each name directly below this location."""
        trees: dict[str, dict[str, int]] = {}
        for path, size in self.sizes().items():
            name, _, rest = path.partition("/")
            trees.setdefault(name, {})[rest] = size
        return trees

    def draft(self) -> Self:
        """Return the place to make a tree that another job continues after a crash."""
        return self if self.renames else self.staging()

    def drafts(self) -> list[Self]:
        """Return the places where former writers may have left such a tree unfinished.

        Those are all versions, and the place itself, where former releases wrote to stores too.
        """
        versions = [] if self.renames else filter(VERSION.fullmatch, self.names())
        return [replace(self, lock=None), *map(self.child, versions)]


def named_version(content: bytes) -> str | None:
    """Return the version that a root object names; None where it is no such object."""
    if VERSIONED.encode() not in content:
        return None
    try:
        attributes = json.loads(content)["attributes"]
        version = attributes["version"] if attributes["format"] == VERSIONED else ""
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if isinstance(version, str) and VERSION.fullmatch(version) else None


def root_object(version: str | None) -> bytes:
    """Return a root object, unlike any other, that names a version, or that there is none.

    It is the document of a Zarr group, so that Zarr shows where the version is.
    """
    moved = uuid.uuid4().hex
    if version is None:
        return moved.encode()
    attributes = {"format": VERSIONED, "version": version, "moved": moved}
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}).encode()


def is_published(sizes: dict[str, int], root: str) -> bool:
    """Return whether a tree with objects of these sizes is there: not removed, nor only staged.

    One that is damaged may have lost its root.
    """
    if root in sizes or not sizes:
        return sizes.get(root) != REMOVED_BYTES
    return not all(VERSION.match(key) for key in sizes)


def is_foreign(key: str) -> bool:
    """Return whether a file is by its name one that a system, file manager or editor leaves.

    Nothing of ours has such a name, save what `is_leftover` knows.
    """
    return any(FOREIGN.fullmatch(part) for part in key.split("/"))


def is_leftover(name: str) -> bool:
    """Return whether a file or directory of this name is what a writer that died left behind."""
    return bool(LEFTOVER.fullmatch(name))
