"""Requests to an S3 store, each tried again within a bound, its refusals told as ours.

obstore does the talking. What is tried again is what may pass: 5xx, 408 and 429 answers, refused
and dropped connections, answers that are cut off or too slow. A conditional write whose answer was
lost finds, when it is tried again, its own object in the way: so what is there is compared with
what was to be written, and the same bytes count as written.
"""

import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import IO, Any, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)
from obstore.store import S3Store

from storage.errors import UnreachableError, UsageError

Result = TypeVar("Result")

RETRY_SECONDS = 60.0
"""How long a request is tried again before the store counts as out of reach."""
TIMEOUT = "30s"
"""How long one try may take, from its sending to the last byte of its answer."""
CONNECT_TIMEOUT = "5s"
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between tries: doubled each time, and drawn at random from the upper half."""
CONDITIONAL_TRIES = 5
"""How often a conditional write is tried where the store reports a conflict that is none."""
CLIENT_OPTIONS = ("timeout", "connect_timeout", "allow_http")

_STATUS = re.compile(r"status code: (\d{3})[\w ]*")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_PASSING = {"408", "429"}
_METADATA_SERVER = "169.254."


@dataclass(frozen=True)
class S3Client:
    """A bucket of a store, and how to reach it. It can be pickled; connections are its own."""

    bucket: str
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Those of obstore's `S3Store`, and `retry_seconds`; sorted by name. They may hold secrets."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.bucket, self.options)

    @cached_property
    def store(self) -> S3Store:
        """The connections, opened when first needed; usable from any thread."""
        options = dict(self.options)
        options.pop("retry_seconds", None)
        client = {"timeout": TIMEOUT, "connect_timeout": CONNECT_TIMEOUT}
        client |= {name: options.pop(name) for name in CLIENT_OPTIONS if name in options}
        settings: dict[str, Any] = {"config": options, "client_options": client}
        try:
            return S3Store(self.bucket, retry_config={"max_retries": 0}, **settings)
        except UnknownConfigurationKeyError as error:
            name = re.search(r"key: '(.*?)'", str(error))
            raise UsageError(
                f"--storage-option {name[1] if name else ''} is not known; expected one of "
                "obstore's for S3, such as endpoint_url, region, access_key_id or timeout."
            ) from error
        except (BaseError, ValueError, TypeError) as error:
            raise UsageError(f"A --storage-option cannot be used: {_first_line(error)}.") from error

    @cached_property
    def retry_seconds(self) -> float:
        """How long to try again."""
        given = dict(self.options).get("retry_seconds", str(RETRY_SECONDS))
        try:
            seconds = float(given)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < 1e6:
            raise UsageError(
                f"--storage-option retry_seconds is {given!r}; expected a number of seconds."
            )
        return seconds

    def url(self, key: str) -> str:
        """The key as a URL, for people."""
        return f"s3://{self.bucket}/{key}"

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of an object; `FileNotFoundError` where there is none."""
        if stop is not None and stop <= max(start, 0):
            self.size(key)
            return b""

        def ask() -> bytes:
            if stop is not None and start >= 0:
                return obstore.get_range(self.store, key, start=start, end=stop).to_bytes()
            ranges: Any = {"suffix": -start} if start < 0 else {"offset": start}
            options: Any = {"range": ranges} if start else {}
            return obstore.get(self.store, key, options=options).bytes().to_bytes()

        try:
            found = self._try("read", key, ask)
        except _OutOfRange:  # nothing of the object lies in it: it is empty, or shorter
            return b""
        if stop is None or start >= 0:
            return found
        return found[: max(0, stop - (self.size(key) - len(found)))]

    def get_tagged(self, key: str) -> tuple[bytes, str] | None:
        """An object with the tag of this version of it; None where there is none."""

        def ask() -> tuple[bytes, str]:
            result = obstore.get(self.store, key)
            tag = result.meta["e_tag"]
            if tag is None:
                raise UnreachableError(
                    f"{self.url(key)} has no ETag; use an S3 store that has them."
                )
            return result.bytes().to_bytes(), tag

        try:
            return self._try("read", key, ask)
        except FileNotFoundError:
            return None

    def size(self, key: str) -> int:
        """An object's length in bytes; `FileNotFoundError` where there is none."""
        return self._try("look at", key, lambda: obstore.head(self.store, key)["size"])

    def version(self, key: str) -> str:
        """What changes when an object is put anew; `FileNotFoundError` where there is none."""

        def ask() -> str:
            found = obstore.head(self.store, key)
            return f"{found['e_tag']} {found['last_modified']}"

        return self._try("look at", key, ask)

    def age(self, key: str) -> float:
        """Seconds since an object was put; `FileNotFoundError` where there is none."""

        def ask() -> datetime:
            return obstore.head(self.store, key)["last_modified"]

        return (datetime.now(UTC) - self._try("look at", key, ask)).total_seconds()

    def holds(self, key: str) -> bool:
        """Whether there is an object of this name."""
        try:
            self.size(key)
        except FileNotFoundError:
            return False
        return True

    def put(self, key: str, data: bytes | memoryview | IO[bytes]) -> None:
        """Write an object, whole; what is large goes in parts, which become one in the end."""

        def ask() -> None:
            if not isinstance(data, bytes | memoryview):
                data.seek(0)
            obstore.put(self.store, key, data)

        self._try("write", key, ask)

    def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        """Write an object only where it is the version `tag`, or for None is not there yet.

        False where another came first.
        """
        mode: Any = "create" if tag is None else {"e_tag": tag}

        def ask() -> bool:
            try:
                obstore.put(self.store, key, data, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError) as error:
                if "NoSuchBucket" in str(error):
                    raise
                return False
            return True

        for _ in range(CONDITIONAL_TRIES):
            if self._try("write", key, ask):
                return True
            found = self.get_tagged(key)
            if found is not None and found[0] == data:
                return True  # the answer to an earlier try was lost
            if (found and found[1]) != tag:
                return False
        raise UnreachableError(
            f"{self.url(key)} is being written by too many at once. Run the same command again."
        )

    def copy(self, source: str, target: str) -> None:
        """Copy an object within the bucket; its bytes do not come here."""
        self._try("copy to", target, lambda: obstore.copy(self.store, source, target))

    def delete(self, keys: list[str]) -> None:
        """Remove objects; those that are not there are none to remove."""
        if keys:
            with suppress(FileNotFoundError):
                self._try("remove", keys[0], lambda: obstore.delete(self.store, keys))

    def list_all(self, prefix: str) -> dict[str, int]:
        """The sizes of all objects whose keys begin with `prefix/`, by key."""

        def ask() -> dict[str, int]:
            pages = obstore.list(self.store, prefix=prefix or None)
            return {found["path"]: found["size"] for page in pages for found in page}

        return self._try("list", prefix, ask)

    def list_level(self, prefix: str) -> tuple[list[str], list[str]]:
        """The objects, and the common prefixes of more, one level below `prefix/`."""

        def ask() -> tuple[list[str], list[str]]:
            found = obstore.list_with_delimiter(self.store, prefix=prefix or None)
            return [meta["path"] for meta in found["objects"]], list(found["common_prefixes"])

        return self._try("list", prefix, ask)

    def holds_below(self, prefix: str) -> bool:
        """Whether there is an object whose key begins with `prefix/`."""

        def ask() -> bool:
            return any(page for page in obstore.list(self.store, prefix=prefix, chunk_size=1))

        return self._try("list", prefix, ask)

    def _try(self, verb: str, key: str, ask: Callable[[], Result]) -> Result:
        """Ask until there is an answer, or the time for it is over."""
        began, pause = time.monotonic(), FIRST_PAUSE
        while True:
            try:
                return ask()
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise self._refusal(verb, key, error) from error
                raise FileNotFoundError(self.url(key)) from None
            except BaseError as error:
                if "status code: 416" in str(error) or "NotPartial" in str(error):
                    raise _OutOfRange from None
                if not _may_pass(error):
                    raise self._refusal(verb, key, error) from error
                spent = time.monotonic() - began
                if spent + pause > self.retry_seconds:
                    raise self._out_of_reach(verb, key, error, spent) from error
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _refusal(self, verb: str, key: str, error: Exception) -> UnreachableError:
        """What will not pass by itself: the bucket, the right to it, the credentials."""
        text = str(error)
        if "NoSuchBucket" in text:
            return UnreachableError(
                f"Cannot {verb} {self.url(key)}: there is no bucket '{self.bucket}' at the store. "
                "Create it, or check its name, the region and the endpoint."
            )
        if _METADATA_SERVER in text:
            return UnreachableError(
                f"Cannot {verb} {self.url(key)}: there are no credentials. Set AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY, or pass --storage-option skip_signature=true for a "
                "public bucket."
            )
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            return UnreachableError(
                f"Cannot {verb} {self.url(key)}: the store refuses these credentials "
                f"({_reason(error)}). Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they "
                "are allowed to do."
            )
        return UnreachableError(
            f"Cannot {verb} {self.url(key)}: the store refuses ({_reason(error)}). Check the "
            "region, the endpoint and the --storage-option given."
        )

    def _out_of_reach(
        self, verb: str, key: str, error: Exception, spent: float
    ) -> UnreachableError:
        return UnreachableError(
            f"Cannot {verb} {self.url(key)}: {_reason(error)}, again and again for {spent:.0f} s. "
            "What was complete before is untouched; run the same command again when the store is "
            "back."
        )


class _OutOfRange(Exception):  # noqa: N818 - an answer, caught where it was asked for
    """The store has no byte in the range that was asked for."""


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    text = str(error)
    refused = PermissionDeniedError | UnauthenticatedError | AlreadyExistsError | PreconditionError
    if isinstance(error, refused) or "redirect without LOCATION" in text:
        return False
    if _METADATA_SERVER in text:
        return False
    status = _STATUS.search(text)
    return status is None or not status[1].startswith("4") or status[1] in _PASSING


def _reason(error: BaseException) -> str:
    """The store's own word for it, or what became of the connection, in a few words."""
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    if status:
        return status[0].removeprefix("status code: ") + (f", {code[1]}" if code else "")
    for sign, reason in (
        ("Connection refused", "the connection is refused"),
        ("TimedOut", "no whole answer in time"),
        ("timed out", "no whole answer in time"),
        ("dns error", "the host's name is not known"),
    ):
        if sign in text:
            return reason
    return "the connection or the answer broke off" if "HTTP error" in text else _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200].rstrip(".: ")
