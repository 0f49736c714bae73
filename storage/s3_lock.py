"""The writer's lock in a store: an object that names its holder, taken by a conditional write.

A crash does not free it, and a silent holder may still be alive. So it remains until its holder
releases it or the user takes it over. The former holder checks for its own signature before it
publishes anything, and stops if it finds another. The lock may still change hands between that
check and the write, so published objects are written conditionally too (see `storage/s3.py`).

A store that ignores conditional writes would grant the lock to every writer. So each acquisition
ends in a conditional write that must fail; if it succeeds, the store is refused.

A lock is free if its object is absent or empty. Releasing it writes an empty object conditionally,
as S3 has no conditional removal in general.
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
from storage.kernel_lock import UNKNOWN, holder_named_by, signature
from storage.location import Lock, TakeOver
from storage.s3_client import S3Client

FINISHED = "another process, which has finished"


@dataclass(frozen=True)
class S3Lock(Lock):
    """A lock that is held. It can be pickled, so that workers can check it for their job."""

    client: S3Client
    key: str
    subject: str
    """The artefact that it protects, for messages."""
    content: bytes = field(repr=False)
    """The holder's unique signature."""

    def check(self) -> None:
        content = self._read()[0]
        if content != self.content:
            holder = (holder_named_by(content) or UNKNOWN) if content else FINISHED
            raise ConflictError(
                f"{self.subject} was taken over by {holder}; this process stopped writing there."
            )

    def acquire(self, take_over: TakeOver | None) -> None:
        content, tag = self._read()
        if content and take_over is None:
            raise self._conflict(content)
        if not self.client.put_if(self.key, self.content, tag):
            raise self._conflict(self._read()[0])
        if self.client.put_if(self.key, _signed(), None):
            raise UsageError(
                f"The object store at {self.client.url(self.key)} ignores conditional writes "
                "(If-None-Match), so nothing there can be locked. Use a store that supports them."
            )
        if content and take_over is not None:
            former = holder_named_by(content) or UNKNOWN
            take_over(f"{self.subject} was being written by {former}: taken over.")

    def release(self) -> None:
        """Empty the object, unless another process has taken the lock over."""
        content, tag = self._read()
        if content == self.content:
            self.client.put_if(self.key, b"", tag)

    def _read(self) -> tuple[bytes, str | None]:
        """Return the object with its tag; empty and None if it is absent."""
        return self.client.get_tagged(self.key) or (b"", None)

    def _conflict(self, content: bytes) -> LockedError:
        holder = holder_named_by(content) or UNKNOWN
        return LockedError(
            f"{self.subject} is being written by {holder}. Wait for it, or stop it; if it is no "
            "longer running, pass --take-over.",
            holder,
        )


def _signed() -> bytes:
    return json.dumps(signature() | {"token": uuid.uuid4().hex}).encode()


def s3_lock_holder(client: S3Client, key: str) -> str | None:
    """Return the description of a lock's holder, alive or not; None if it is free."""
    content, _ = client.get_tagged(key) or (b"", None)
    return (holder_named_by(content) or UNKNOWN) if content else None


@contextmanager
def s3_lock(
    client: S3Client, key: str, subject: str, take_over: TakeOver | None
) -> Iterator[S3Lock]:
    """Hold the exclusive right to write `subject`; see `Location.writer_lock`."""
    lock = S3Lock(client, key, subject, _signed())
    lock.acquire(take_over)
    try:
        yield lock
    except BaseException as error:
        if isinstance(error, Exception):
            with suppress(UnreachableError):
                lock.check()  # raises if it was taken over: that is the cause
        with suppress(PipelineError):  # the first failure is the one to report
            lock.release()
        raise
    lock.release()
