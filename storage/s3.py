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
- **Chunks of a scoring** lie in its version. A job that continues a scoring
  copies what is sound into a version of its own.

What is not under a lock is written whole, and the last one wins: files for `--out`, pins and the
documents of what failed in an inbox, which each say the same whoever writes them. For locks
themselves see `storage/s3_lock.py`.
"""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import ClassVar, Self

from storage import files
from storage.errors import BadDataError, ConflictError, UnreachableError, UsageError
from storage.location import (
    REMOVED_BYTES,
    VERSION,
    Location,
    Lock,
    Refused,
    Status,
    TakeOver,
    Write,
    named_version,
    root_object,
)
from storage.s3_client import S3Client
from storage.s3_lock import s3_lock
from storage.s3_options import check_bucket, store_settings

PIECE_BYTES = 16 * 2**20
"""What is read at once of an object that is copied to this machine."""
NO_PATH = (
    "contains an empty part, '.', '..' or a control character, so that no path can reach the "
    "object."
)
SUFFIX_CHARACTERS = 16
"""How much of an object's suffixes the name of such a copy keeps."""


def open_s3(url: str, options: Mapping[str, str]) -> "S3Location":
    """Return the location of an `s3://BUCKET/PREFIX`; nothing is read or made yet.

    `options` are those of obstore's `S3Store` and its client (`endpoint_url`, `region`,
    `access_key_id`, `timeout`, ...), and `retry_seconds`; they come before the environment's
    `AWS_...`, from which the credentials are taken otherwise. Raises `UsageError`.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    if not bucket or not _can_be_named(prefix):
        raise UsageError(
            f"{url!r} names no place in a bucket; expected s3://BUCKET/PREFIX, the parts of the "
            "prefix divided by single slashes."
        )
    check_bucket(bucket, url)
    client = S3Client(bucket, store_settings(options))
    _ = client.store  # refused here, where the options are wrong
    return S3Location(PurePosixPath(prefix), client)


def _can_be_named(key: str) -> bool:
    """Return whether a key can be a path, which obstore and file systems take it for."""
    parts = key.split("/")
    return all(part not in ("", ".", "..") for part in parts) and key.isprintable()


@dataclass(frozen=True, repr=False)
class S3Location(Location):
    """The objects of a bucket whose keys begin with a prefix."""

    path: PurePosixPath
    client: S3Client
    renames: ClassVar[bool] = False

    def __str__(self) -> str:
        return self.client.url(self._key())

    def _at(self, key: str) -> PurePosixPath:
        if not _can_be_named(key):
            raise BadDataError(f"The name {key!r} leads outside {self}; it is refused.")
        return self.path / key

    def _key(self, key: str = "") -> str:
        """Return an object's key in the bucket; empty for the bucket's root."""
        path = self._at(key) if key else self.path
        return "/".join(path.parts)

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        return self.client.get(self._key(key), start, stop)

    def put(self, key: str, data: bytes | memoryview, *, new: bool = False) -> None:
        """Write an object by one request, if it is not large; under a lock conditionally."""
        if new:
            self.check_held()
            if not self.client.put_if(self._key(key), bytes(data), None):
                raise ConflictError(f"{self}/{key} exists already: another writer was first.")
        elif self.lock is None:
            self.client.put(self._key(key), data)
        else:
            self._change(key, lambda _: bytes(data))

    def _change(self, key: str, change: Callable[[bytes], bytes]) -> bytes:
        """Write what `change` makes of an object, and return it.

        The lock is looked at after the object was read. Raises `ConflictError` where it was lost
        or, without a lock, where the object was changed in between.
        """
        at = self._key(key)
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

    @contextmanager
    def open_for_writing(self, key: str) -> Iterator[Write]:
        """Keep the pieces on this machine's disk, so that the upload can be tried again."""
        with _temporary_space():
            pieces = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        with pieces:

            def write(data: bytes | memoryview) -> None:
                with _temporary_space():
                    files.write(pieces.fileno(), data)

            yield write
            self.client.put(self._key(key), pieces)

    def append(self, key: str, data: bytes, before: bytes | None = None) -> None:
        """Write the object anew, unless it has changed since it was read."""
        self._change(key, lambda content: (content if before is None else before) + data)

    def exists(self, key: str = "") -> bool:
        at = self._key(key)
        return bool(at and self.client.holds(at)) or bool(self.client.list_level(at))

    def is_free(self) -> bool:
        """Return whether no object is here or below, but for versions that were not published."""
        if self.client.holds(self._key()):
            return False
        return all(VERSION.match(key) for key in self._listing())

    def look(self, key: str) -> Status:
        meta = self.client.look(self._key(key))
        modified = meta["last_modified"]
        return Status(meta["size"], f"{meta['e_tag']} {modified}", modified.timestamp())

    @contextmanager
    def as_file(
        self, key: str, count: int | None = None, check: Callable[[], None] = lambda: None
    ) -> Iterator[Path]:
        """Give a copy, made piece by piece, which goes when the block ends."""
        size = self.size(key) if count is None else min(self.size(key), count)
        with _temporary_space():
            directory = tempfile.TemporaryDirectory()
        with directory as place:
            suffixes = "".join(PurePosixPath(key).suffixes[-2:])
            path = Path(place) / f"object{suffixes[-SUFFIX_CHARACTERS:]}"
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

    def _listing(self) -> dict[str, int]:
        """Return the sizes of all objects below, those with keys that no path can be too."""
        sizes, skipped = self.client.list_all(self._key()), len(self._key("_")) - 1
        return {key[skipped:]: size for key, size in sorted(sizes.items())}

    def sizes(self) -> dict[str, int]:
        return {key: size for key, size in self._listing().items() if _can_be_named(key)}

    def names(self, key: str = "") -> list[str]:
        names = {
            path.rstrip("/").rpartition("/")[2] for path in self.client.list_level(self._key(key))
        }
        return sorted(filter(_can_be_named, names))

    def objects(self, refused: Refused | None = None) -> list[str]:
        keys = list(self._listing())
        if refused is not None:
            for key in keys:
                if not _can_be_named(key):
                    refused(key, BadDataError(f"The name {key!r} {NO_PATH} Give it another name."))
        return [key for key in keys if _can_be_named(key)]

    def delete(self, key: str) -> None:
        self.client.delete([self._key(key)])

    def delete_tree(self) -> None:
        """Remove all objects below, and one of this very name."""
        self.client.delete([self._key(key) for key in self.sizes()])
        if self._key() and self.client.holds(self._key()):
            self.client.delete([self._key()])

    def writer_lock(
        self, what: str, take_over: TakeOver | None = None
    ) -> AbstractContextManager[Lock]:
        return s3_lock(self.client, self._key(), what, take_over)

    def staging(self) -> Self:
        """Return a version of its own below this place, which needs no lock."""
        return replace(self.child(f"version-{uuid.uuid4().hex}"), lock=None)

    def _install(self, staged: Location, root: str) -> None:
        """Let the root object name the version that was staged."""
        self._move(root, lambda _: staged.name)

    def remove_tree(self, root: str) -> None:
        self._move(root, lambda _: None)

    def recover(self, root: str) -> None:
        """Remove all but the current version, once no writer can publish another one of them.

        Where there is no root object that names one, they wait for the next `publish`.
        """
        content, _ = self.client.get_tagged(self._key(root)) or (b"", None)
        version = named_version(content)
        if version and _besides(self.client.list_all(self._key()), self._key(root), version):
            self._move(root, named_version)

    def _move(self, root: str, choose: Callable[[bytes], str | None]) -> None:
        """Let the root object name the version that `choose` gives, and remove all others."""
        listed = self.client.list_all(self._key())
        written = self._change(root, lambda content: root_object(choose(content)))
        self.client.delete(_besides(listed, self._key(root), named_version(written)))

    def sweep_trees(self, key: str, root: str) -> None:
        """Remove versions that were never published, or are not any more."""
        for name, sizes in self.child(key).sizes_by_tree().items():
            tree = self.child(f"{key}/{name}")
            if root in sizes and sizes[root] != REMOVED_BYTES:
                tree.recover(root)
            elif sizes.keys() != {root}:
                tree.remove_tree(root)


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


def _besides(keys: Iterable[str], root: str, version: str | None) -> list[str]:
    """Return the objects of a place that belong neither to its root nor to a version."""
    kept = f"{root.rpartition('/')[0]}/{version}/"
    return [key for key in keys if key != root and not key.startswith(kept)]
