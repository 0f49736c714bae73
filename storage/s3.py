"""Locations in an S3 bucket.

A store has no rename, and a crash does not free its locks: a stalled writer may continue after
another has taken over its lock. These rules keep it from touching what the other publishes:

- **Unique names.** A tree (a dataset, a checkpoint, scores) is written below its place under
  `version-HEX`, where no other writer writes. A version is a complete tree.
- **A root object.** One small object at the place, `zarr.json` or `manifest.json`, names the
  current version, or records that the tree was removed. Its content is never the same twice. A
  place without such an object holds the tree itself, as earlier releases wrote it.
- **Conditional writes.** A write to a shared name reads the object, checks the lock, then writes on
  condition that the object is unchanged. A writer that lost its lock before the check stops there;
  one that lost it afterwards fails once the new holder has written the object. A holder whose
  condition fails retries. This applies to root objects, metrics, the ledger and model names.
  `run.json` is written on condition that it does not exist.
- **Removal.** A shared name is never removed: a removed checkpoint leaves its root object. Versions
  are listed before the lock is checked, and removed after a conditional write of the root. Those
  listed belong to this writer or to earlier ones, which read the root before that write and so can
  no longer publish. A later holder's version was not listed. Readers of a removed version get an
  error that it was replaced.
- **Chunks of scores** are in the version. A job that continues a scoring copies the sound ones into
  its own version.

Without a lock, the last writer wins: `--out` files, pins and records of failed inbox files, whose
content does not depend on the writer. For locks see `storage/s3_lock.py`.
"""

import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import ClassVar, Self

from storage import files
from storage.errors import BadDataError, ConflictError, UsageError, temporary_space
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
from storage.s3_lock import s3_lock, s3_lock_holder
from storage.s3_options import check_bucket, store_settings

PIECE_BYTES = 16 * 2**20
"""Bytes per request when an object is copied to this machine."""
NO_PATH = (
    "contains an empty part, '.', '..' or a control character, so that no path can reach the "
    "object."
)
SUFFIX_CHARACTERS = 16
"""Characters of an object's suffixes that the name of such a copy keeps."""


def open_s3(url: str, options: Mapping[str, str]) -> "S3Location":
    """Return the location of `s3://BUCKET/PREFIX`, without a request.

    `options` are those of obstore's `S3Store` and its client (`endpoint_url`, `region`,
    `access_key_id`, `timeout`, ...) and `retry_seconds`. They take precedence over the `AWS_`
    variables. Raises `UsageError` for a bad URL or option.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    if not bucket or not _can_be_named(prefix):
        raise UsageError(
            f"{url!r} is not a valid S3 URL; expected s3://BUCKET/PREFIX, with single slashes "
            "between the parts of the prefix."
        )
    check_bucket(bucket, url)
    client = S3Client(bucket, store_settings(options))
    _ = client.store  # raises UsageError for bad options
    return S3Location(PurePosixPath(prefix), client)


def _can_be_named(key: str) -> bool:
    """Return whether a key is a valid path for obstore and for file systems."""
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
            raise BadDataError(f"The name {key!r} leads outside {self}, or no path can contain it.")
        return self.path / key

    def _key(self, key: str = "") -> str:
        """Return the full key of an object in the bucket; empty for the bucket's root."""
        path = self._at(key) if key else self.path
        return "/".join(path.parts)

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        return self.client.get(self._key(key), start, stop)

    def put(self, key: str, data: bytes | memoryview, *, new: bool = False) -> None:
        if new:
            self.check_held()
            if not self.client.put_if(self._key(key), bytes(data), None):
                raise ConflictError(f"{self}/{key} exists already: another writer was first.")
        elif self.lock is None:
            self.client.put(self._key(key), data)
        else:
            self._change(key, lambda _: bytes(data))

    def _change(self, key: str, change: Callable[[bytes], bytes]) -> bytes:
        """Replace an object by `change(content)`, conditionally, and return the new content.

        Checks the lock after reading the object. Raises `ConflictError` if the lock was lost or,
        without a lock, if another writer changed the object.
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
        with temporary_space():  # on disk, so that the upload can be retried
            pieces = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        with pieces:

            def write(data: bytes | memoryview) -> None:
                with temporary_space():
                    files.write(pieces.fileno(), data)

            yield write
            self.client.put(self._key(key), pieces)

    def append(self, key: str, data: bytes, before: bytes | None = None) -> None:
        self._change(key, lambda content: (content if before is None else before) + data)

    def exists(self, key: str = "") -> bool:
        at = self._key(key)
        return bool(at and self.client.holds(at)) or bool(self.client.list_level(at))

    def is_free(self) -> bool:
        """Return whether there are no objects but those of unpublished versions."""
        if self.client.holds(self._key()):
            return False
        return all(VERSION.match(key) for key in self._listing())

    def status(self, key: str) -> Status:
        meta = self.client.head(self._key(key))
        modified = meta["last_modified"]
        return Status(meta["size"], f"{meta['e_tag']} {modified}", modified.timestamp())

    @contextmanager
    def as_file(
        self, key: str, count: int | None = None, check: Callable[[], None] = lambda: None
    ) -> Iterator[Path]:
        size = self.size(key) if count is None else min(self.size(key), count)
        with temporary_space():
            directory = tempfile.TemporaryDirectory()
        with directory as place:
            suffixes = "".join(PurePosixPath(key).suffixes[-2:])
            path = Path(place) / f"object{suffixes[-SUFFIX_CHARACTERS:]}"
            with temporary_space():
                descriptor = files.create(path)
            try:
                for start in range(0, size, PIECE_BYTES):
                    check()
                    piece = self.get(key, start, min(start + PIECE_BYTES, size))
                    with temporary_space():
                        files.write(descriptor, piece)
            finally:
                files.close(descriptor)
            yield path

    def _listing(self) -> dict[str, int]:
        """Return the sizes of all objects below, including those whose keys are not valid paths."""
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
        self.client.delete([self._key(key) for key in self.sizes()])
        if self._key() and self.client.holds(self._key()):
            self.client.delete([self._key()])

    def writer_lock(
        self, subject: str, take_over: TakeOver | None = None
    ) -> AbstractContextManager[Lock]:
        return s3_lock(self.client, self._key(), subject, take_over)

    def lock_holder(self) -> str | None:
        return s3_lock_holder(self.client, self._key())

    def staging(self) -> Self:
        return replace(self.child(f"version-{uuid.uuid4().hex}"), lock=None)

    def _install(self, staged: Location, root: str) -> None:
        self._move(root, lambda _: staged.name)

    def remove_tree(self, root: str) -> None:
        self._move(root, lambda _: None)

    def recover(self, root: str) -> None:
        """Remove all versions but the current one; without a current one, leave them."""
        content, _ = self.client.get_tagged(self._key(root)) or (b"", None)
        version = named_version(content)
        if version and _other_versions(self.client.list_all(self._key()), self._key(root), version):
            self._move(root, named_version)

    def _move(self, root: str, choose: Callable[[bytes], str | None]) -> None:
        """Make the root object name the version that `choose` returns, and remove all others."""
        listed = self.client.list_all(self._key())
        written = self._change(root, lambda content: root_object(choose(content)))
        self.client.delete(_other_versions(listed, self._key(root), named_version(written)))

    def sweep_trees(self, key: str, root: str) -> None:
        for name, sizes in self.child(key).sizes_by_tree().items():
            tree = self.child(f"{key}/{name}")
            if root in sizes and sizes[root] != REMOVED_BYTES:
                tree.recover(root)
            elif sizes.keys() != {root}:
                tree.remove_tree(root)


def _other_versions(keys: Iterable[str], root: str, version: str | None) -> list[str]:
    """Return the keys at a place except its root object and those of one version."""
    kept = f"{root.rpartition('/')[0]}/{version}/"
    return [key for key in keys if key != root and not key.startswith(kept)]
