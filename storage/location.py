"""A location: a place for whole objects, its writer's lock, and what closes with a block.

A local directory (`storage/local.py`) and a prefix of a bucket (`storage/s3.py`) implement it; the
rest of the project knows only this interface.
"""

import json
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Self

from storage.errors import PipelineError


class Closing(ABC):
    """A context manager whose end is `close`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held; harmless when called again."""

    def __enter__(self) -> Self:
        """Itself, already open."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close, whatever happened."""
        self.close()


Write = Callable[[bytes | memoryview], None]

TakeOver = Callable[[str], None]
"""Leave to take over an abandoned lock; it is told, in a sentence, whose the lock was."""

Refused = Callable[[str, PipelineError | None], None]
"""Called with the key of what is not listed, and the reason, or None for a link to a directory."""

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
"""The name of what `put` has not finished."""
REPLACED = ".replaced"
"""The suffix of the sibling that is there while a published tree is being replaced."""
NOTES_LIMIT = 256 * 2**20
"""The most bytes of a journal that are read; no journal of ours is longer."""
FOREIGN = re.compile(
    r"\..+|.+~|~.+|#.+#|.+\.(bak|orig|rej|swp)|Icon\r|@eaDir|__MACOSX|lost\+found"
    r"|(eh)?thumbs\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information",
    re.IGNORECASE,
)
"""Names such as .DS_Store, ._x, .nfs0001, Thumbs.db, desktop.ini, x~ and #x#."""
STAGED = re.compile(r"\.ingest-[0-9a-f]{12}")
"""The suffix of a sibling in which a tree is made before it is published."""
VERSION = re.compile(r"version-[0-9a-f]{32}")
"""The name, inside a tree's place in a store, of one version of the tree."""
VERSIONED = "mnist-stream versions"
"""The format of the root object of a place that has versions of a tree."""
ROOT_BYTES = 2**20
"""No such root object is longer, even with what other Zarr programs add to it."""
REMOVED_BYTES = 32
"""The length of a root object that says that the tree was removed; no document is so short."""


class Location(ABC):
    """Whole objects below a place, each named by a relative key with `/` between its parts.

    What `put` has returned from is whole and there for good; a reader sees the old object or the
    new one. A key that leads outside is refused with `BadDataError`. A location can be pickled, and
    opened so on another machine. Where a place is out of reach, `UnreachableError` is raised.
    """

    @abstractmethod
    def __str__(self) -> str:
        """The path or URL."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of the path, for people."""

    @abstractmethod
    def absolute(self) -> Self:
        """The same location by a name that does not depend on the directory a process is in."""

    @abstractmethod
    def child(self, key: str) -> Self:
        """The location at `key` below this one; a key that leads outside is refused."""

    @abstractmethod
    def sibling(self, prefix: str, suffix: str) -> Self:
        """A hidden neighbour of this location."""

    @abstractmethod
    def split(self) -> tuple["Location", str]:
        """The location that holds this one, which is to be an object, and its key there."""

    @abstractmethod
    def below(self, ancestor: "Location") -> str:
        """The key of this location in another one of the same kind that holds it."""

    # Objects.

    @abstractmethod
    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of an object; a negative start counts from its end.

        Raises `FileNotFoundError` where there is no such object.
        """

    @abstractmethod
    def put(self, key: str, data: bytes | memoryview) -> None:
        """Make `key` hold `data`: wholly or, whatever happens, not at all."""

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> None:
        """The same for a key that holds nothing yet; `ConflictError` where it holds something."""

    @abstractmethod
    def open_for_writing(self, key: str) -> AbstractContextManager[Write]:
        """Like `put`, for what comes piece by piece: gives the function that takes the pieces."""

    @abstractmethod
    def append(self, key: str, data: bytes, before: bytes | None = None) -> None:
        """Add `data` to the end of a small object; the caller tells a torn end apart.

        Who knows what the object holds gives it as `before`: nothing else stays in a store.
        """

    @abstractmethod
    def exists(self, key: str = "") -> bool:
        """Whether there is an object or a directory at `key`."""

    def holds(self, key: str) -> bool:
        """Whether there is an object at `key`, which can be read."""
        try:
            self.size(key)
        except FileNotFoundError:
            return False
        return True

    @abstractmethod
    def is_free(self) -> bool:
        """Whether nothing is here yet: no object, and no directory but an empty one."""

    @abstractmethod
    def size(self, key: str) -> int:
        """An object's length in bytes; `FileNotFoundError` where there is none."""

    @abstractmethod
    def version(self, key: str) -> str:
        """What changes when somebody writes to an object; `FileNotFoundError` where none is."""

    @abstractmethod
    def age(self, key: str) -> float:
        """Seconds since somebody wrote to an object, by this machine's clock and the holder's.

        `FileNotFoundError` where there is none.
        """

    @abstractmethod
    def as_file(
        self, key: str, count: int | None = None, check: Callable[[], None] = lambda: None
    ) -> AbstractContextManager[Path]:
        """An object as a file of this machine, for those who read files.

        With `count` its first bytes are enough. `check` is called while it is copied, and may
        raise to stop.
        """

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """The length in bytes of every object below this location that can be read, by key."""

    @abstractmethod
    def names(self, key: str = "") -> list[str]:
        """The names directly below `key`, sorted; none where there is no such directory."""

    @abstractmethod
    def objects(self, refused: Refused | None = None) -> list[str]:
        """The keys of every object below this location, sorted.

        Links to directories are not followed. `refused` is called with each of those below it, with
        directories that cannot be listed, and with names in a store that no path can be. Without
        `refused`, or where it is the location itself, a directory that cannot be listed raises
        `UnreachableError`.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove one object; nothing happens where there is none."""

    def sweep_partial(self, key: str) -> None:  # noqa: B027 - a store leaves nothing
        """Remove what writers of one object that died have left; a live one's stays."""

    @abstractmethod
    def sweep(self, key: str = "") -> None:
        """Remove what dead writers left unfinished directly below `key`.

        The caller holds the lock of all who write there: a live one's is no different.
        """

    @abstractmethod
    def delete_tree(self) -> None:
        """Remove this location and all below it."""

    def discard(self) -> None:
        """The same after a failure, which is what matters: where this fails too, it is let be."""
        with suppress(OSError, PipelineError):
            self.delete_tree()

    @abstractmethod
    def free_bytes(self) -> int:
        """Space left for us at this location."""

    # Trees: several objects that are seen all together or not at all. The last object of a tree to
    # be written, its `root`, makes the others valid.

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

    @abstractmethod
    def trees(self, key: str, root: str) -> list[str]:
        """Return the names of the trees directly below `key`, sorted."""

    @abstractmethod
    def atomic_tree(self, key: str, root: str) -> AbstractContextManager["Location"]:
        """Give a place to put objects in, which are the tree at `key` once the block ends well.

        A tree that was at `key` is replaced. Until then, and after a failure or a death, readers
        find that one, or none.
        """

    @abstractmethod
    def remove_whole(self, key: str, root: str) -> None:
        """Remove the tree at `key`; a death half-way leaves nothing that `trees` lists."""

    @abstractmethod
    def sweep_trees(self, key: str, root: str) -> None:
        """Remove what dead writers left of the trees directly below `key`."""

    @abstractmethod
    def staging(self) -> "Location":
        """Return an empty place to make a tree that will be published here.

        It has a name that no other has or had: a worker that outlives its job writes into nothing
        that a later one publishes. The caller holds the lock.
        """

    @abstractmethod
    def draft(self) -> "Location":
        """Return the place to make a tree that another job continues after a crash."""

    @abstractmethod
    def drafts(self) -> list["Location"]:
        """Return the places where former writers may have left such a tree unfinished."""

    @abstractmethod
    def publish(self, staged: "Location", root: str) -> None:
        """Put the finished tree at `staged` in the place of whatever is here.

        At every moment of death a reader finds the old tree, the new one, or (at the sibling with
        the suffix `REPLACED`) that one is being replaced; `recover` then brings about one or the
        other. Raises `ConflictError`, and discards what was staged, where the lock was lost.
        """

    @abstractmethod
    def recover(self, root: str) -> None:
        """Finish, one way or the other, a `publish` that died, and remove what was staged.

        The caller holds the lock.
        """

    # A journal: notes of what is done, of which any may be lost or torn by a death.

    @abstractmethod
    def note(self, journal: str, number: int, line: bytes) -> None:
        """Add a line, which ends in a newline; `number` is its own among those of the journal."""

    @abstractmethod
    def notes(self, journal: str) -> bytes:
        """All lines, in any order, up to `NOTES_LIMIT` bytes; empty where there is no journal."""

    @abstractmethod
    def delete_notes(self, journal: str) -> None:
        """Remove a journal."""

    # Locks.

    @abstractmethod
    def locked(self, what: str, take_over: TakeOver | None) -> AbstractContextManager["Lock"]:
        """See `storage.location.writer_lock`; this location is the lock's own."""

    @abstractmethod
    def under(self, lock: "Lock") -> Self:
        """This location for one who writes here under a lock, which `check_held` looks at."""

    @abstractmethod
    def check_held(self) -> None:
        """Raise `ConflictError` where the lock that this is `under` is not held any more.

        Every write through a location that is under a lock looks at that by itself.
        """


class Lock(ABC):
    """The right to write somewhere, while it is held."""

    @abstractmethod
    def check(self) -> None:
        """Raise `ConflictError` where it is not held any more."""

    def retire(self) -> None:  # noqa: B027 - a store may keep it
        """Nobody will want it again: where that is safe, nothing stays of it when it is free."""


def named_version(content: bytes) -> str | None:
    """Return the version that a root object names; None where it is no such object."""
    if VERSIONED.encode() not in content:
        return None
    try:
        attributes = json.loads(content)["attributes"]
        found = attributes["version"] if attributes["format"] == VERSIONED else ""
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) and VERSION.fullmatch(found) else None


def root_object(version: str | None) -> bytes:
    """Return a root object, unlike any other, that names a version, or that there is none.

    It is the document of a Zarr group, so that Zarr shows where the version is.
    """
    moved = uuid.uuid4().hex
    if version is None:
        return moved.encode()
    attributes = {"format": VERSIONED, "version": version, "moved": moved}
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}).encode()


def new_staged() -> str:
    """A suffix for what is staged, which nothing else has or had."""
    return f".ingest-{uuid.uuid4().hex[:12]}"


def is_foreign(key: str) -> bool:
    """Return whether a file is by its name one that a system, file manager or editor leaves.

    Nothing of ours has such a name, save what `is_leftover` knows.
    """
    return any(FOREIGN.fullmatch(part) for part in key.split("/"))


def is_leftover(name: str) -> bool:
    """Whether a file or directory of this name is what a writer that died left behind."""
    return name.startswith(".") and name.endswith((".tmp", ".old"))


def writer_lock(
    lock_file: Location, what: str, take_over: TakeOver | None = None
) -> AbstractContextManager[Lock]:
    """Hold the only right to write `what` while the block runs; never waits for it.

    On a local disk the kernel holds the lock and frees it when its holder dies; in an object store
    it is an object, which stays after a death, and which `take_over` gives leave to take. Raises
    `ConflictError` that names the holder where another has it.
    """
    return lock_file.locked(what, take_over)
