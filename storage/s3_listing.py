"""Listings with keys that obstore refuses: with `//`, a part `.` or `..`, or control characters.

One such key makes obstore fail a whole page. Here the request (S3's ListObjectsV2) is our own.
obstore signs it: it appends the path that is to be signed, an empty one, to the endpoint, which is
here the bucket with the query of the request; S3 ignores the last parameter.
"""

import urllib.error
import urllib.request
from datetime import timedelta
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, unquote_plus
from xml.etree import ElementTree as ET

import obstore
from obstore.exceptions import GenericError
from obstore.store import S3Store

from storage.s3_options import ENDPOINT, ENDPOINT_OF_S3, REGION

SECONDS = 30.0
"""How long a page may take, and how long its URL is signed for."""
PAGE_BYTES = 2**25
"""More than a page of 1,000 keys, of 1,024 bytes each, can take."""


def can_be_named(key: str) -> bool:
    """Whether a key can be reached by a path, which obstore and file systems take it for."""
    parts = key.split("/")
    return all(part not in ("", ".", "..") for part in parts) and key.isprintable()


def listed_raw(bucket: str, options: dict[str, str], prefix: str) -> dict[str, int]:
    """Return the sizes of all objects whose keys begin with `prefix/`, whatever their names.

    Raises obstore's errors.
    """
    found: dict[str, int] = {}
    token = None
    while True:
        page = _page(bucket, options, prefix, token)
        plus = page.findtext("{*}EncodingType") == "url"
        for entry in page.iterfind("{*}Contents"):
            key = entry.findtext("{*}Key") or ""
            key = unquote_plus(key) if plus else key
            size = int(entry.findtext("{*}Size") or 0)
            if size or not key.endswith("/"):  # else it stands for a folder
                found[key] = size
        token = page.findtext("{*}NextContinuationToken")
        if not token:
            return found


def _page(bucket: str, options: dict[str, str], prefix: str, token: str | None) -> ET.Element:
    query = {"list-type": "2", "encoding-type": "url", "prefix": f"{prefix}/" if prefix else ""}
    if token is not None:
        query["continuation-token"] = token
    query["x-id"] = "ListObjectsV2"  # the last one, to which obstore adds a slash
    text = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
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
    if options.get("virtual_hosted_style_request", "").lower() in ("true", "1", "yes", "on"):
        return endpoint
    return f"{endpoint}/{quote(bucket)}"


def _signed(bucket: str, options: dict[str, str], url: str) -> str:
    if options.get("skip_signature", "").lower() in ("true", "1", "yes", "on"):
        return url
    ours = ("retry_seconds", "timeout", "connect_timeout", "allow_http", ENDPOINT, ENDPOINT_OF_S3)
    config: Any = {name: value for name, value in options.items() if name not in ours}
    config |= {ENDPOINT_OF_S3: url, "virtual_hosted_style_request": "true"}
    store = S3Store(bucket, config=config, client_options={"allow_http": True})
    return obstore.sign(store, "GET", "", timedelta(seconds=SECONDS))
