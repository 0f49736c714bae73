"""JSON documents that carry their own digest, so that no changed bit passes for a value."""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from storage.errors import BadDataError
from storage.location import Location

DOCUMENT_LIMIT = 256 * 2**20
"""The largest document that is read, in bytes; what is larger is none of ours."""

SEAL = "seal"


def canonical(value: object) -> bytes:
    """Return the one JSON text of a value: sorted keys, no spaces, ASCII; floats round-trip."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest_of(value: object) -> str:
    """Return the SHA-256, in hex, of a value's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def seal(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with its seal added: the digest of everything else in it."""
    body = {key: value for key, value in document.items() if key != SEAL}
    return body | {SEAL: digest_of(body)}


def document_bytes(document: dict[str, Any], indent: int | None = 2) -> bytes:
    """Return a document as text for a file; `indent=None` gives one line.

    Raises `BadDataError` for what `parse` would refuse: no document is written that cannot be read.
    """
    data = (json.dumps(document, indent=indent, allow_nan=False) + "\n").encode()
    if _has_half_character(data, document):
        raise BadDataError("A file or directory has a name that is not valid UTF-8. Rename it.")
    return data


def sealed_bytes(document: dict[str, Any], indent: int | None = 2) -> bytes:
    """Return a document with its seal as text for a file."""
    return document_bytes(seal(document), indent)


def parse(data: bytes, place: str) -> dict[str, Any]:
    """Return a JSON object from bytes, or raise `BadDataError` that names `place`."""
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
    """Return whether a string cannot be printed or encoded: JSON's escapes can spell such ones."""
    if b"\\ud" not in data.lower():
        return False
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return True
    return False


def check_format(document: Any, name: str, versions: Collection[int], place: str) -> None:
    """Raise `BadDataError` for a document, or attributes, of another format or a newer version."""
    if not isinstance(document, dict) or document.get("format") != name:
        raise BadDataError(
            f"{place} does not say '{name}': it is not a {name.split()[1]}, or it is damaged. Give "
            "another place, or restore it from a copy."
        )
    version = document.get("format_version")
    if version not in versions:
        raise BadDataError(
            f"{place} has format version {version!r}; this release reads up to {max(versions)}. "
            "Install a newer mnist-stream, or make it again with this one."
        )


def check_fields(document: Any, types: Mapping[str, type], place: str) -> None:
    """Raise `BadDataError` for the first field that is missing or not of its type.

    An integer does not pass for a float, nor a boolean for an integer: we write none for the other.
    """
    for name, expected in types.items():
        value = document.get(name) if isinstance(document, dict) else None
        if type(value) is not expected:
            raise BadDataError(
                f"{place} has a {type(value).__name__} for its '{name}'; expected a "
                f"{expected.__name__}. Restore it from a copy, or make it again."
            )


def parse_sealed(data: bytes, place: str) -> dict[str, Any]:
    """Return a JSON object without its seal, or raise `BadDataError` where the two differ."""
    return check_seal(parse(data, place), place)


def check_seal(document: dict[str, Any], place: str) -> dict[str, Any]:
    """Return a document without its seal, or raise `BadDataError` where the two differ."""
    body = {key: value for key, value in document.items() if key != SEAL}
    digest = checked_digest(body, place)
    if document.get(SEAL) != digest:
        raise BadDataError(
            f"{place} is damaged: its seal is {document.get(SEAL)!r}, its content has digest "
            f"{digest}. Restore it from a copy, or make it again."
        )
    return body


def checked_digest(document: dict[str, Any], place: str) -> str:
    """Return the digest of what was read at a place, or raise `BadDataError` that names it."""
    try:
        return digest_of(document)
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"{place} holds a value that is not JSON ({error}).") from error


def read(location: Location, key: str) -> bytes:
    """Return a document's bytes; one that is too large is refused before it is read.

    Raises `FileNotFoundError` where there is none.
    """
    size = location.size(key)
    if size > DOCUMENT_LIMIT:
        raise BadDataError(
            f"{location.child(key)} has {size:,} bytes; expected at most {DOCUMENT_LIMIT:,}."
        )
    return location.get(key)


def read_document(location: Location, key: str) -> dict[str, Any]:
    """Return a JSON object from a file. Raises `BadDataError` where there is none."""
    place = f"{location}/{key}"
    try:
        return parse(read(location, key), place)
    except FileNotFoundError:
        raise BadDataError(f"{place} is missing. Restore it from a copy.") from None


def read_sealed(location: Location, key: str) -> dict[str, Any]:
    """Return a sealed document from a file. Raises `FileNotFoundError` where there is none."""
    return parse_sealed(read(location, key), str(location.child(key)))
