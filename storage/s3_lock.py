"""The writer's lock in a store: an object, taken by a conditional write, that says who holds it.

No kernel frees it when its holder dies, and how long a holder has been silent does not prove it
dead: so it stays until its holder gives it back, or somebody who knows better takes it over. The
former holder finds another's signature there when it next looks, which it does before it publishes
anything, and stops. Between that look and the write that follows lies a moment in which a lock
could change hands unseen; what is published there is written conditionally too (a manifest and a
root only where there is none, lines of metrics only after those that were read), so that neither of
two writers replaces what the other has published.

A store that does not know conditional writes would let everybody win: each taking ends in one that
must fail, and where it does not, the store is refused.

Free is an object that is absent or empty: one that is given back is emptied by a conditional write,
for S3 knows none for removal in general.
"""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from storage.errors import (
    ConflictError,
    LockedError,
    PipelineError,
    UnreachableError,
    UsageError,
)
from storage.kernel_lock import holder_named_by, signature
from storage.location import Lock, TakeOver
from storage.s3_client import S3Client

FINISHED = "another process, which has finished"
UNKNOWN = "another process"


@dataclass(frozen=True)
class S3Lock(Lock):
    """A lock that was taken; it can be pickled, so that others may check it for their writer."""

    client: S3Client
    key: str
    what: str
    """What it is the right to write."""
    content: bytes = field(repr=False)
    """Our signature, which no other has."""

    def check(self) -> None:
        """Raise `ConflictError` where the object no longer has our signature."""
        content = self._read()[0]
        if content != self.content:
            holder = (holder_named_by(content) or UNKNOWN) if content else FINISHED
            raise ConflictError(
                f"{self.what} was taken over by {holder}; this process publishes nothing more "
                "there."
            )

    def acquire(self, take_over: TakeOver | None) -> None:
        """Sign the object, or raise `LockedError` that names who has it."""
        content, tag = self._read()
        if content and take_over is None:
            raise self._conflict(content)
        if not self.client.put_if(self.key, self.content, tag):
            raise self._conflict(self._read()[0])
        if self.client.put_if(self.key, _signed(), None):
            raise UsageError(
                f"The object store at {self.client.url(self.key)} ignores conditional writes "
                "(If-None-Match), so that nothing there can be locked. Use a store that has them."
            )
        if content and take_over is not None:
            former = holder_named_by(content) or UNKNOWN
            take_over(f"{self.what} was being written by {former}: taken over.")

    def release(self) -> None:
        """Give it back, unless it is another's by now."""
        content, tag = self._read()
        if content == self.content:
            self.client.put_if(self.key, b"", tag)

    def _read(self) -> tuple[bytes, str | None]:
        """Return the object with its tag; nothing where it is absent."""
        return self.client.get_tagged(self.key) or (b"", None)

    def _conflict(self, content: bytes) -> LockedError:
        holder = holder_named_by(content) or UNKNOWN
        return LockedError(
            f"{self.what} is being written by {holder}. Wait for it, or stop it; if it is dead, "
            "pass --take-over.",
            holder,
        )


def _signed() -> bytes:
    return json.dumps(signature() | {"token": uuid.uuid4().hex}).encode()


@contextmanager
def s3_lock(client: S3Client, key: str, what: str, take_over: TakeOver | None) -> Iterator[S3Lock]:
    """Hold the only right to write `what` while the block runs; see `Location.writer_lock`."""
    lock = S3Lock(client, key, what, _signed())
    lock.acquire(take_over)
    try:
        yield lock
    except BaseException as error:
        if isinstance(error, Exception):
            with suppress(UnreachableError):
                lock.check()  # if it was taken over, that is what went wrong
        with suppress(PipelineError):  # the first failure is the one to tell
            lock.release()
        raise
    lock.release()
