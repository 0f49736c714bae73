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
from urllib.parse import quote, unquote_plus, urlencode
from xml.etree import ElementTree as ET

import obstore
from obstore.exceptions import GenericError
from obstore.store import S3Store

from storage.s3_options import CLIENT_OPTIONS, ENDPOINT, ENDPOINT_OF_S3, REGION, RETRIES

SECONDS = 30.0
"""How long a page may take, and how long its URL is signed for."""
PAGE_BYTES = 2**25
"""More than a page of 1,000 keys, of 1,024 bytes each, can take."""


def list_any_keys(bucket: str, options: dict[str, str], prefix: str) -> dict[str, int]:
    """Return the sizes of all objects whose keys begin with `prefix/`, whatever their names.

    Raises obstore's errors.
    """
    sizes: dict[str, int] = {}
    query = {"list-type": "2", "encoding-type": "url", "prefix": f"{prefix}/" if prefix else ""}
    while True:
        page = _page(bucket, options, query)
        for entry in page.iterfind("{*}Contents"):
            key, size = entry.findtext("{*}Key") or "", int(entry.findtext("{*}Size") or 0)
            if size or not key.endswith("/"):  # else it stands for a folder
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
