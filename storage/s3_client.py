"""Requests to an S3 store, with bounded retries and error messages that say what to do.

obstore sends them. Transient errors are retried: 5xx, 408 and 429 responses, those with a code that
the AWS SDKs retry (`storage/s3_answers.py`), refused and dropped connections, slow or truncated
responses. If the response to a conditional write is lost, the retry conflicts with the written
object. So an object with the same bytes counts as success. obstore's own retries know neither those
codes nor conditional writes, so they are off.

One key with `//`, a part `.` or `..`, or control characters makes obstore fail a whole page of a
listing. Then this module sends S3's ListObjectsV2 itself, with a URL that obstore signs. The
endpoint for obstore is the bucket's URL with the request's query, to which it appends an empty
path.
"""

import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from http.client import HTTPException
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote_plus, urlencode
from xml.etree import ElementTree as ET

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    InvalidPathError,
    PreconditionError,
    UnknownConfigurationKeyError,
)
from obstore.store import S3Store

from storage.errors import UnreachableError, UsageError, did_you_mean
from storage.s3_answers import code_of, first_line, may_pass, not_s3, reason, refusal
from storage.s3_options import CLIENT_OPTIONS, ENDPOINT, ENDPOINT_OF_S3, REGION, RETRIES

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta


SECONDS = 30.0
"""Timeout of a page's request, and lifetime of its signature."""
PAGE_BYTES = 2**25
"""Upper bound of the size of a page: 1,000 keys of 1,024 bytes."""


def list_any_keys(bucket: str, options: dict[str, str], prefix: str) -> dict[str, int]:
    """Return the sizes of all objects whose keys begin with `prefix/`, valid paths or not.

    Raises obstore's errors.
    """
    sizes: dict[str, int] = {}
    query = {"list-type": "2", "encoding-type": "url", "prefix": f"{prefix}/" if prefix else ""}
    while True:
        page = _page(bucket, options, query)
        for entry in page.iterfind("{*}Contents"):
            key, size = entry.findtext("{*}Key") or "", int(entry.findtext("{*}Size") or 0)
            if size or not key.endswith("/"):  # else it represents a folder
                sizes[unquote_plus(key)] = size
        token = page.findtext("{*}NextContinuationToken")
        if not token:
            return sizes
        query["continuation-token"] = token


def _page(bucket: str, options: dict[str, str], query: dict[str, str]) -> ET.Element:
    text = urlencode(query | {"x-id": "ListObjectsV2"}, quote_via=quote, safe="")
    url = _signed(bucket, options, f"{_bucket_url(bucket, options)}?{text}")
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:  # noqa: S310 - checked: http(s)
            return ET.fromstring(answer.read(PAGE_BYTES))  # noqa: S314 - expat fetches nothing
    except urllib.error.HTTPError as error:
        with error:
            body = error.read(PAGE_BYTES).decode(errors="replace")
        raise GenericError(f"status code: {error.code} {error.reason}: {body}") from error
    except (OSError, HTTPException, ET.ParseError) as error:
        raise GenericError(f"HTTP error: {error}") from error


def _bucket_url(bucket: str, options: dict[str, str]) -> str:
    endpoint = options.get(ENDPOINT)
    if endpoint is None:
        return f"https://{bucket}.s3.{options.get(REGION, 'us-east-1')}.amazonaws.com/"
    return endpoint if _is_on(options, "virtual_hosted_style_request") else f"{endpoint}/{bucket}"


def _signed(bucket: str, options: dict[str, str], url: str) -> str:
    if _is_on(options, "skip_signature"):
        return url
    others = (*CLIENT_OPTIONS, RETRIES, ENDPOINT, ENDPOINT_OF_S3)
    config: Any = {name: value for name, value in options.items() if name not in others}
    config |= {ENDPOINT_OF_S3: url, "virtual_hosted_style_request": "true"}
    store = S3Store(bucket, config=config, client_options={"allow_http": True})
    return obstore.sign(store, "GET", "", timedelta(seconds=SECONDS))


def _is_on(options: dict[str, str], name: str) -> bool:
    return options.get(name, "").lower() in ("true", "1", "yes", "on")


Result = TypeVar("Result")

RETRY_SECONDS = 60.0
"""Time after which the store counts as unreachable."""
TIMEOUT = "30s"
"""Timeout of one attempt, to the last byte of its response."""
CONNECT_TIMEOUT = "5s"
COMMON_OPTIONS = ("endpoint_url", "region", "access_key_id", "skip_signature", "timeout")
"""Storage options that a message names."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between attempts: doubled each time, and drawn at random from the upper half."""
CONDITIONAL_TRIES = 5
"""Attempts of a conditional write for which the store reports a false conflict."""
OUT_OF_RANGE = ("status code: 416", "non-partial")
"""Texts of errors for an empty byte range."""


@dataclass(frozen=True)
class S3Client:
    """Requests to one bucket. It can be pickled; connections are not shared."""

    bucket: str
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Options of obstore's `S3Store` and `retry_seconds`, sorted; they may hold secrets."""
    _answered: list[str] = field(default_factory=list, init=False, compare=False, repr=False)
    """A key for which the store has responded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.bucket, self.options)

    @cached_property
    def store(self) -> S3Store:
        """Return obstore's client, created at first use; it is thread-safe."""
        options = dict(self.options)
        options.pop(RETRIES, None)
        client = {"timeout": TIMEOUT, "connect_timeout": CONNECT_TIMEOUT}
        client |= {name: options.pop(name) for name in CLIENT_OPTIONS if name in options}
        settings: dict[str, Any] = {"config": options, "client_options": client}
        try:
            return S3Store(self.bucket, retry_config={"max_retries": 0}, **settings)
        except UnknownConfigurationKeyError as error:
            key = re.search(r"key: '(.*?)'", str(error))
            name = key[1] if key else ""
            raise UsageError(
                f"--storage-option {name} is not known; expected one of obstore's for S3, such as "
                f"{', '.join(COMMON_OPTIONS)}.{did_you_mean(name, COMMON_OPTIONS)}"
            ) from error
        except (BaseError, ValueError, TypeError) as error:
            raise UsageError(f"A --storage-option cannot be used: {first_line(error)}.") from error

    @property
    def retry_seconds(self) -> float:
        return float(dict(self.options).get(RETRIES, RETRY_SECONDS))

    def url(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    @property
    def address(self) -> str:
        """The store's endpoint or region, for messages."""
        options = dict(self.options)
        return options.get(ENDPOINT) or f"Amazon S3 in {options.get(REGION, 'us-east-1')}"

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        options: GetOptions = {}
        if stop is not None:
            options = {"range": (start, max(start + 1, stop))}
        elif start:
            options = {"range": {"suffix": -start} if start < 0 else {"offset": start}}

        def ask() -> bytes | None:
            try:
                return self._answer(key, options).bytes().to_bytes()
            except BaseError as error:
                if not any(sign in str(error) for sign in OUT_OF_RANGE):
                    raise
                return None

        content = self._try("read", key, ask)
        if content is not None:
            return content if stop is None else content[: max(0, stop - start)]
        if self.head(key)["size"] > max(0, start):
            answer = not_s3(self.address, "it ignores ranges")
            raise UnreachableError(f"Cannot read {self.url(key)}: {answer}")
        return b""

    def get_tagged(self, key: str) -> tuple[bytes, str] | None:
        """Return an object's content and ETag; None if it does not exist."""

        def ask() -> tuple[bytes, str]:
            answer = self._answer(key, {})
            return answer.bytes().to_bytes(), str(answer.meta["e_tag"])

        try:
            return self._try("read", key, ask)
        except FileNotFoundError:
            return None

    def head(self, key: str) -> "ObjectMeta":
        """Return an object's metadata; raise `FileNotFoundError` if it does not exist.

        The response to HEAD has no body with a reason, so GET repeats a refused request.
        """

        def ask() -> "ObjectMeta":
            try:
                return self._answer(key, {"head": True}).meta
            except (BaseError, FileNotFoundError) as error:
                if may_pass(error) or code_of(error):
                    raise
                return self._answer(key, {}).meta

        return self._try("access", key, ask)

    def _answer(self, key: str, options: "GetOptions") -> "GetResult":
        """Return the store's response; raise `UnreachableError` for a web page in its place."""
        answer = obstore.get(self.store, key, options=options)
        content_type = str(answer.attributes.get("Content-Type", ""))
        if answer.meta["e_tag"] is None or (
            content_type.startswith(("text/html", "application/xhtml"))
            and not key.lower().endswith((".html", ".htm", ".xhtml"))
        ):
            page = f"{content_type or 'no Content-Type'}, ETag {answer.meta['e_tag']}"
            raise UnreachableError(f"Cannot read {self.url(key)}: {not_s3(self.address, page)}")
        self._answered[:] = [key]
        return answer

    def _check_answers(self, key: str) -> None:
        """Raise `UnreachableError` for a web server, which writes and listings do not detect."""
        if not self._answered:
            with suppress(BaseError, FileNotFoundError):
                self._answer(key or ".", {"head": True})
            self._answered[:] = [key]

    def holds(self, key: str) -> bool:
        try:
            self.head(key)
        except FileNotFoundError:
            return False
        return True

    def put(self, key: str, data: bytes | memoryview | IO[bytes]) -> None:
        """Write an object atomically; large ones as a multipart upload."""

        def ask() -> None:
            if not isinstance(data, bytes | memoryview):
                data.seek(0)
            obstore.put(self.store, key, data)

        self._check_answers(key)
        self._try("write", key, ask)

    def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        """Write an object if its ETag is `tag`, or for None if it does not exist.

        Returns whether it was written.
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
            stored, current = self.get_tagged(key) or (None, None)
            if stored == data:
                return True  # the response to an earlier attempt was lost
            if current != tag:
                return False
        raise UnreachableError(
            f"{self.url(key)} is being written by other processes. Run the same command again."
        )

    def delete(self, keys: list[str]) -> None:
        if keys:
            with suppress(FileNotFoundError):
                self._try("remove", keys[0], lambda: obstore.delete(self.store, keys))

    def list_all(self, prefix: str) -> dict[str, int]:
        """Return the sizes of all objects below `prefix/`, by key, without those of folders."""

        def ask() -> dict[str, int]:
            try:
                pages = obstore.list(self.store, prefix=prefix or None)
                sizes = {entry["path"]: entry["size"] for page in pages for entry in page}
            except InvalidPathError:
                return list_any_keys(self.bucket, dict(self.options), prefix)
            return {key: size for key, size in sizes.items() if self._is_object(key, size, prefix)}

        return self._list(prefix, ask)

    def list_level(self, prefix: str) -> list[str]:
        """Return the keys and common prefixes one level below `prefix/`."""

        def ask() -> list[str]:
            try:
                level = obstore.list_with_delimiter(self.store, prefix=prefix or None)
            except InvalidPathError:
                start = len(prefix) + 1 if prefix else 0
                keys = list_any_keys(self.bucket, dict(self.options), prefix)
                return sorted({key[:start] + key[start:].partition("/")[0] for key in keys})
            objects = [entry["path"] for entry in level["objects"] if entry["path"] != prefix]
            return sorted({*objects, *level["common_prefixes"]})

        return self._list(prefix, ask)

    def _list(self, prefix: str, ask: Callable[[], Result]) -> Result:
        listing = self._try("list", prefix, ask)
        if not listing:
            self._check_answers(prefix)
        return listing

    def _is_object(self, key: str, size: int, prefix: str) -> bool:
        """Return whether a listed key is an object: obstore lists the folder `a/` as `a`."""
        return key != prefix and (size > 0 or self.holds(key))

    def _try(self, verb: str, key: str, ask: Callable[[], Result]) -> Result:
        """Return `ask()`, retrying transient errors for at most `retry_seconds`."""
        began, pause, again = time.monotonic(), FIRST_PAUSE, ""
        while True:
            try:
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
                    raise UnreachableError(
                        f"Cannot {verb} {self.url(key)}: {reason(error)}{again}, at "
                        f"{self.address}. Run the same command again when the store is available."
                    ) from error
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE)
            again = f", retried for {time.monotonic() - began:.1f} s"

    def _refused(self, verb: str, key: str, error: Exception) -> UnreachableError:
        why = refusal(error, self.bucket, self.address)
        return UnreachableError(f"Cannot {verb} {self.url(key)}: {why}")
