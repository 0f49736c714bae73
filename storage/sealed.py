"""JSON documents that carry their own digest, so that no changed bit passes for a value."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from storage.errors import BadDataError
from storage.objects import Location

DOCUMENT_LIMIT = 256 * 2**20
"""The largest document that is read, in bytes; what is larger is none of ours."""

SEAL = "seal"


def canonical(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, ASCII; floats round-trip exactly."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest_of(value: object) -> str:
    """SHA-256, in hex, of a value's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def seal(document: dict[str, Any]) -> dict[str, Any]:
    """The document with its seal added: the digest of everything else in it."""
    body = {key: value for key, value in document.items() if key != SEAL}
    return body | {SEAL: digest_of(body)}


def document_bytes(document: dict[str, Any], indent: int | None = 2) -> bytes:
    """A document as text for a file; `indent=None` gives one line.

    Raises `BadDataError` for what `parse` would refuse: no document is written that cannot be read.
    """
    data = (json.dumps(document, indent=indent, allow_nan=False) + "\n").encode()
    if _has_half_character(data, document):
        raise BadDataError(
            "A name that is to be recorded is no text in UTF-8. Give that file or directory "
            "another one."
        )
    return data


def sealed_bytes(document: dict[str, Any], indent: int | None = 2) -> bytes:
    """The same, with its seal."""
    return document_bytes(seal(document), indent)


def parse(data: bytes, place: str) -> dict[str, Any]:
    """A JSON object from bytes, or `BadDataError` that names `place`."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"{place} is not valid JSON ({error}); it is damaged.") from error
    if not isinstance(document, dict):
        raise BadDataError(f"{place} holds a JSON {type(document).__name__}, not an object.")
    if _has_half_character(data, document):
        raise BadDataError(f"{place} holds half a surrogate pair, which is no text; it is damaged.")
    return document


def _has_half_character(data: bytes, document: dict[str, Any]) -> bool:
    """Whether a text is none that can be printed or encoded: JSON's escapes can spell it."""
    if b"\\ud" not in data.lower():
        return False
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return True
    return False


def check_fields(document: Any, kinds: Mapping[str, type], place: str) -> None:
    """Raise `BadDataError` for the first field that is missing or not of its type.

    An integer does not pass for a float, nor a boolean for an integer: we write none for the other.
    """
    for name, kind in kinds.items():
        found = document.get(name) if isinstance(document, dict) else None
        if type(found) is not kind:
            raise BadDataError(
                f"{place} has a {type(found).__name__} for its '{name}'; expected a "
                f"{kind.__name__}. Restore it from a copy, or make it again."
            )


def check_seal(document: dict[str, Any], place: str) -> dict[str, Any]:
    """The document without its seal, or `BadDataError` where the two do not agree."""
    body = {key: value for key, value in document.items() if key != SEAL}
    found = document.get(SEAL)
    try:
        expected = digest_of(body)
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"{place} holds a value that is not JSON ({error}).") from error
    if found != expected:
        raise BadDataError(
            f"{place} is damaged: its seal is {found!r}, its content has digest {expected}. "
            "Restore it from a copy, or make it again."
        )
    return body


def seal_group(document: dict[str, Any]) -> dict[str, Any]:
    """A Zarr group's document with its seal added, in the attributes: Zarr has no other place."""
    attributes = {key: value for key, value in document["attributes"].items() if key != SEAL}
    body = document | {"attributes": attributes}
    return document | {"attributes": attributes | {SEAL: digest_of(body)}}


def check_group_seal(document: dict[str, Any], place: str) -> None:
    """Raise `BadDataError` where a Zarr group's document does not agree with its seal."""
    attributes = dict(document["attributes"])
    found = attributes.pop(SEAL, None)
    check_seal(document | {"attributes": attributes, SEAL: found}, place)


def read(location: Location, key: str) -> bytes:
    """A document's bytes, refused by its size before it is read.

    Raises `FileNotFoundError` where there is none.
    """
    size = location.size(key)
    if size > DOCUMENT_LIMIT:
        raise BadDataError(
            f"{location.child(key)} has {size:,} bytes; expected at most {DOCUMENT_LIMIT:,}."
        )
    return location.get(key)


def read_sealed(location: Location, key: str) -> dict[str, Any]:
    """A sealed document from a file, checked. `FileNotFoundError` where there is none."""
    place = str(location.child(key))
    return check_seal(parse(read(location, key), place), place)
