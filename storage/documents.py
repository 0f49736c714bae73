"""Sealed JSON documents: each contains its own digest, so that any damage is detected."""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from storage.errors import BadDataError
from storage.location import Location

DOCUMENT_LIMIT = 256 * 2**20
"""The largest document that is read, in bytes."""

LONGEST_NAME = 40
"""Characters of a format's name that a message quotes."""

SEAL = "seal"


def canonical(value: object) -> bytes:
    """Return a value's canonical JSON: sorted keys, no spaces, ASCII; floats round-trip."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest_of(value: object) -> str:
    """Return the SHA-256 in hex of a value's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def seal(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with its seal: the digest of everything else in it."""
    body = {key: value for key, value in document.items() if key != SEAL}
    return body | {SEAL: digest_of(body)}


def document_bytes(document: dict[str, Any], indent: int | None = 2) -> bytes:
    """Return a document as text for a file, one line for `indent=None`.

    Raises `BadDataError` for a document that `parse` would refuse.
    """
    data = (json.dumps(document, indent=indent, allow_nan=False) + "\n").encode()
    if _has_half_character(data, document):
        raise BadDataError("A file or directory has a name that is not valid UTF-8. Rename it.")
    return data


def sealed_bytes(document: dict[str, Any], indent: int | None = 2) -> bytes:
    """Return a document with its seal as text for a file."""
    return document_bytes(seal(document), indent)


def parse(data: bytes, place: str) -> dict[str, Any]:
    """Return a JSON object; raise `BadDataError` that names `place` for anything else."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"{place} is not valid JSON ({error}); it is damaged.") from error
    if not isinstance(document, dict):
        raise BadDataError(f"{place} holds a JSON {type(document).__name__}, not an object.")
    if _has_half_character(data, document):
        raise BadDataError(f"{place} contains half a surrogate pair, not text; it is damaged.")
    return document


def _has_half_character(data: bytes, document: dict[str, Any]) -> bool:
    """Return whether a string contains a lone surrogate, which cannot be printed or encoded."""
    if b"\\ud" not in data.lower():
        return False
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return True
    return False


def check_format(document: Any, name: str, versions: Collection[int], place: str) -> None:
    """Raise `BadDataError` for a document or attributes of another format or a newer version."""
    actual = document.get("format") if isinstance(document, dict) else None
    if actual != name:
        known = isinstance(actual, str) and len(actual) <= LONGEST_NAME
        raise BadDataError(
            f"{place} {f'has format {actual!r}, not' if known else 'does not have format'} "
            f"{name!r}. Give another place, or restore it from a copy if it is damaged."
        )
    version = document.get("format_version")
    if version not in versions:
        raise BadDataError(
            f"{place} has format version {version!r}; this release reads up to {max(versions)}. "
            "Install a newer mnist-stream, or create it again with this one."
        )


def check_fields(document: Any, types: Mapping[str, type], place: str) -> None:
    """Raise `BadDataError` for the first field that is missing or has another type.

    An integer is not accepted as a float, nor a boolean as an integer.
    """
    for name, expected in types.items():
        value = document.get(name) if isinstance(document, dict) else None
        if type(value) is not expected:
            raise BadDataError(
                f"{place} has a {type(value).__name__} for its '{name}'; expected a "
                f"{expected.__name__}. Restore it from a copy, or create it again."
            )


def parse_sealed(data: bytes, place: str) -> dict[str, Any]:
    """Return a JSON object without its seal; raise `BadDataError` for a wrong seal."""
    return check_seal(parse(data, place), place)


def check_seal(document: dict[str, Any], place: str) -> dict[str, Any]:
    """Return a document without its seal; raise `BadDataError` for a wrong seal."""
    body = {key: value for key, value in document.items() if key != SEAL}
    digest = checked_digest(body, place)
    if document.get(SEAL) != digest:
        raise BadDataError(
            f"{place} is damaged: its seal is {document.get(SEAL)!r}, its content has digest "
            f"{digest}. Restore it from a copy, or create it again."
        )
    return body


def checked_digest(document: dict[str, Any], place: str) -> str:
    """Return a document's digest; raise `BadDataError` that names `place` if it has none."""
    try:
        return digest_of(document)
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"{place} holds a value that is not JSON ({error}).") from error


def read(location: Location, key: str) -> bytes:
    """Return a document's bytes, of at most `DOCUMENT_LIMIT`.

    Raises `FileNotFoundError` if there is none.
    """
    size = location.size(key)
    if size > DOCUMENT_LIMIT:
        raise BadDataError(
            f"{location.child(key)} has {size:,} bytes; expected at most {DOCUMENT_LIMIT:,}."
        )
    return location.get(key)


def read_document(location: Location, key: str) -> dict[str, Any]:
    """Return a JSON object from a file; raise `BadDataError` if there is none."""
    place = f"{location}/{key}"
    try:
        return parse(read(location, key), place)
    except FileNotFoundError:
        raise BadDataError(f"{place} is missing. Restore it from a copy.") from None


def read_sealed(location: Location, key: str) -> dict[str, Any]:
    """Return a sealed document from a file; raise `FileNotFoundError` if there is none."""
    return parse_sealed(read(location, key), str(location.child(key)))
