"""Requests to an S3 store, each tried again within a bound, its refusals told as ours.

obstore sends them. Retried is what may pass: 5xx, 408 and 429 answers, those with a code that the
AWS SDKs retry (`storage/s3_answers.py`), refused and dropped connections, answers that are cut off
or too slow. A conditional write whose answer was
lost finds, when it is tried again, its own object in the way: so what is there is compared with
what was to be written, and the same bytes count as written.
"""

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PreconditionError,
    UnknownConfigurationKeyError,
)
from obstore.store import S3Store

from storage.errors import UnreachableError, UsageError
from storage.s3_answers import code_of, first_line, may_pass, not_s3, reason, refusal
from storage.s3_listing import can_be_named, listed_raw
from storage.s3_options import ENDPOINT, REGION

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult

Result = TypeVar("Result")
Unusable = Callable[[str], None]
"""Called with the key of an object that cannot be reached by a path."""

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

_INVALID_KEY = "invalid path"


@dataclass(frozen=True)
class S3Client:
    """A bucket of a store, and how to reach it. It can be pickled; connections are its own."""

    bucket: str
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Those of obstore's `S3Store`, and `retry_seconds`; sorted by name. They may hold secrets."""
    _answered: list[str] = field(default_factory=list, init=False, compare=False, repr=False)
    """A key that a store has answered for."""

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
            with _panics_told():
                return S3Store(self.bucket, retry_config={"max_retries": 0}, **settings)
        except UnknownConfigurationKeyError as error:
            name = re.search(r"key: '(.*?)'", str(error))
            raise UsageError(
                f"--storage-option {name[1] if name else ''} is not known; expected one of "
                "obstore's for S3, such as endpoint_url, region, access_key_id or timeout."
            ) from error
        except (BaseError, ValueError, TypeError) as error:
            raise UsageError(f"A --storage-option cannot be used: {first_line(error)}.") from error

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

    @property
    def address(self) -> str:
        """Where the store is, for people."""
        options = dict(self.options)
        return options.get(ENDPOINT) or f"Amazon S3 in {options.get(REGION, 'us-east-1')}"

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of an object; `FileNotFoundError` where there is none."""
        if stop is not None and stop <= max(start, 0):
            self.size(key)
            return b""

        def ask() -> bytes:
            ranges: Any = {"suffix": -start} if start < 0 else {"offset": start}
            if stop is not None and start >= 0:
                ranges = (start, stop)
            whole = start == 0 and stop is None
            try:
                return self._answer(key, {} if whole else {"range": ranges}).bytes().to_bytes()
            except BaseError as error:
                if "status code: 416" in str(error) or "NotPartial" in str(error):
                    raise _OutOfRange from None
                raise

        try:
            found = self._try("read", key, ask)
        except _OutOfRange:
            return self._short_of(key, start)
        if stop is None or start >= 0:
            return found
        return found[: max(0, stop - (self.size(key) - len(found)))]

    def _short_of(self, key: str, start: int) -> bytes:
        """Nothing, where nothing of the object lies in the range: it is empty, or shorter."""
        size = self.size(key)
        if size > max(start, 0):
            raise UnreachableError(
                f"Cannot read {self.url(key)}: {not_s3(self.address, 'it ignores ranges')}"
            )
        return b""

    def get_tagged(self, key: str) -> tuple[bytes, str] | None:
        """An object with the tag of this version of it; None where there is none."""

        def ask() -> tuple[bytes, str]:
            answer = self._answer(key, {})
            return answer.bytes().to_bytes(), str(answer.meta["e_tag"])

        try:
            return self._try("read", key, ask)
        except FileNotFoundError:
            return None

    def size(self, key: str) -> int:
        """An object's length in bytes; `FileNotFoundError` where there is none."""
        return self._try("look at", key, lambda: self._look(key).meta["size"])

    def version(self, key: str) -> str:
        """What changes when an object is put anew; `FileNotFoundError` where there is none."""

        def ask() -> str:
            found = self._look(key).meta
            return f"{found['e_tag']} {found['last_modified']}"

        return self._try("look at", key, ask)

    def age(self, key: str) -> float:
        """Seconds since an object was put; `FileNotFoundError` where there is none."""

        def ask() -> datetime:
            return self._look(key).meta["last_modified"]

        return (datetime.now(UTC) - self._try("look at", key, ask)).total_seconds()

    def _look(self, key: str) -> "GetResult":
        """Return an object's metadata; where it is refused, with the reason.

        An answer to HEAD has no body to give one, so the same is asked again by GET.
        """
        try:
            return self._answer(key, {"head": True})
        except (BaseError, FileNotFoundError) as error:
            if may_pass(error) or code_of(error):
                raise
            return self._answer(key, {})

    def _answer(self, key: str, options: "GetOptions") -> "GetResult":
        """Return what the store answers, unless a web page came in its place."""
        answer = obstore.get(self.store, key, options=options)
        kind = str(answer.attributes.get("Content-Type", ""))
        if answer.meta["e_tag"] is None or (
            kind.startswith(("text/html", "application/xhtml"))
            and not key.lower().endswith((".html", ".htm", ".xhtml"))
        ):
            found = f"{kind or 'no Content-Type'}, ETag {answer.meta['e_tag']}"
            raise UnreachableError(f"Cannot read {self.url(key)}: {not_s3(self.address, found)}")
        self._answered[:] = [key]
        return answer

    def _check_answers(self, key: str) -> None:
        """Look once whether a web page answers in the store's place: it would take any object."""
        if not self._answered:
            with suppress(BaseError, FileNotFoundError), _panics_told():
                self._answer(key, {"head": True})
            self._answered[:] = [key]

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

        self._check_answers(key)
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
                if may_pass(error) or code_of(error) == "NoSuchBucket":
                    raise
                return False
            return True

        self._check_answers(key)
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

    def delete(self, keys: list[str]) -> None:
        """Remove objects; those that are not there are none to remove."""
        if keys:
            with suppress(FileNotFoundError):
                self._try("remove", keys[0], lambda: obstore.delete(self.store, keys))

    def list_all(self, prefix: str, unusable: Unusable = lambda key: None) -> dict[str, int]:
        """The sizes of all objects whose keys begin with `prefix/`, by key.

        `unusable` is called for keys that cannot be paths, such as those with `//`; the empty
        objects that stand for folders are left out.
        """

        def ask() -> dict[str, int]:
            try:
                pages = obstore.list(self.store, prefix=prefix or None)
                return {found["path"]: found["size"] for page in pages for found in page}
            except BaseError as error:
                if _INVALID_KEY not in str(error):
                    raise
                return self._listed_raw(prefix)

        found = self._try("list", prefix, ask)
        self._confirm(prefix, found)
        for key in found:
            if not can_be_named(key):
                unusable(key)
        return {key: size for key, size in found.items() if self._is_object(key, size, prefix)}

    def list_level(self, prefix: str) -> tuple[list[str], list[str]]:
        """The objects, and the common prefixes of more, one level below `prefix/`."""

        def ask() -> tuple[list[str], list[str]]:
            try:
                found = obstore.list_with_delimiter(self.store, prefix=prefix or None)
            except BaseError as error:
                if _INVALID_KEY not in str(error):
                    raise
                return self._level_of(prefix, self._listed_raw(prefix))
            objects = [meta["path"] for meta in found["objects"] if meta["path"] != prefix]
            return (
                [key for key in objects if can_be_named(key)],
                [key for key in found["common_prefixes"] if can_be_named(key)],
            )

        found = self._try("list", prefix, ask)
        self._confirm(prefix, any(found))
        return found

    def holds_below(self, prefix: str) -> bool:
        """Return whether any object's key begins with `prefix/`, except a folder's own."""

        def ask() -> bool:
            try:
                pages = obstore.list(self.store, prefix=prefix or None, chunk_size=1)
                entries = ((one["path"], one["size"]) for page in pages for one in page)
                return any(
                    not can_be_named(key) or self._is_object(key, size, prefix)
                    for key, size in entries
                )
            except BaseError as error:
                if _INVALID_KEY not in str(error):
                    raise
                return True

        found = self._try("list", prefix, ask)
        self._confirm(prefix, found)
        return found

    def _listed_raw(self, prefix: str) -> dict[str, int]:
        with _panics_told():
            return listed_raw(self.bucket, dict(self.options), prefix)

    def _level_of(self, prefix: str, keys: dict[str, int]) -> tuple[list[str], list[str]]:
        """What of all keys below a prefix `list_level` gives."""
        start = len(prefix) + 1 if prefix else 0
        named = [key for key in keys if can_be_named(key.removesuffix("/"))]
        deeper = sorted(
            {key[:start] + key[start:].partition("/")[0] for key in named if "/" in key[start:]}
        )
        return [key for key in named if "/" not in key[start:] and key[start:]], deeper

    def _is_object(self, key: str, size: int, prefix: str) -> bool:
        """Whether a key that was listed can be read: obstore lists the folder `a/` as `a`."""
        if key == prefix or not can_be_named(key):
            return False
        return size > 0 or self.holds(key)

    def _confirm(self, prefix: str, found: object) -> None:
        """Make sure that an empty listing is one: a web page would look the same."""
        if not found:
            self.holds(prefix or ".")

    def _try(self, verb: str, key: str, ask: Callable[[], Result]) -> Result:
        """Ask until there is an answer, or the time for it is over."""
        began, pause = time.monotonic(), FIRST_PAUSE
        while True:
            try:
                with _panics_told():
                    return ask()
            except FileNotFoundError as error:
                if verb == "write" or code_of(error) in (None, "NoSuchBucket"):
                    raise self._refused(verb, key, error) from error
                raise FileNotFoundError(self.url(key)) from None
            except BaseError as error:
                if not may_pass(error):
                    raise self._refused(verb, key, error) from error
                spent = time.monotonic() - began
                if spent + pause > self.retry_seconds:
                    raise self._out_of_reach(verb, key, error, spent) from error
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _refused(self, verb: str, key: str, error: Exception) -> UnreachableError:
        why = refusal(error, self.bucket, self.address)
        return UnreachableError(f"Cannot {verb} {self.url(key)}: {why}")

    def _out_of_reach(
        self, verb: str, key: str, error: Exception, spent: float
    ) -> UnreachableError:
        tries = f", again and again for {spent:.1f} s" if spent >= FIRST_PAUSE / 2 else ""
        return UnreachableError(
            f"Cannot {verb} {self.url(key)}: {reason(error)}{tries}, at {self.address}. Run the "
            "same command again when the store is back."
        )


class _OutOfRange(Exception):  # noqa: N818 - an answer, caught where it was asked for
    """The store has no byte in the range that was asked for."""


@contextmanager
def _panics_told() -> Iterator[None]:
    """Raise `UnreachableError` where obstore panics, which it does where it cannot send a request.

    A panic is no `Exception`, and would get past everyone who handles those.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UnreachableError(
            f"The S3 client cannot send its request ({first_line(error)}). Check the AWS_ "
            "variables and --storage-option for an invalid value."
        ) from error
