"""Open the location that a path, a `file://` URL or an `s3://` URL names."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from storage.errors import MissingExtraError, UsageError
from storage.local import LocalLocation
from storage.location import Location

Place: TypeAlias = str | Path | Location
"""A path, a URL or a location."""


def open_location(place: Place, options: Mapping[str, str] | None = None) -> Location:
    """Return the location that a path or URL names; nothing is read yet.

    Parameters
    ----------
    place
        A path, a `file://` or an `s3://BUCKET/PREFIX` URL, or a location, which is returned.
    options
        Options of an S3 store, such as `{"endpoint_url": "https://..."}`. They take precedence
        over the environment's `AWS_...` variables.

    Raises
    ------
    UsageError
        If the place is empty or a URL of another scheme, or if an option is unknown.
    """
    if isinstance(place, Location):
        return place
    text = str(place)
    if not text.strip():
        raise UsageError("A location is empty; give a path.")
    if "\0" in text:
        raise UsageError("A path cannot contain a null character.")
    if text.startswith("s3://"):
        return _open_s3(text, options or {})
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    elif "://" in text:
        scheme = text.split("://", 1)[0]
        raise UsageError(
            f"'{text}' is a {scheme}:// URL; expected a path, a file:// or an s3:// URL."
        )
    try:
        return LocalLocation(Path(text).expanduser())
    except RuntimeError as error:
        raise UsageError(
            f"There is no home directory for {Path(text).parts[0]!r} in {text!r}; write ./{text} "
            "for a directory of that name."
        ) from error


def is_url_of_store(place: Place) -> bool:
    """Return whether a place is an `s3://` URL."""
    return not isinstance(place, Location) and str(place).startswith("s3://")


def reference_to(target: Location, base: Location) -> str:
    """Return a reference from a document in `base` to a location.

    It is relative if both are on a disk, so that they can be moved together.
    """
    text = str(target)
    if "://" in text:
        return text
    if "://" in str(base):
        return os.path.abspath(text)
    return os.path.relpath(os.path.realpath(text), os.path.realpath(str(base)))


def recorded_place(target: Location, base: Location) -> str:
    """Return a place as the run in `base` records it: an absolute path as it was given.

    Another path is recorded as seen from the run, so that both can be moved.
    """
    place = str(target)
    return place if os.path.isabs(place) else reference_to(target, base)


def is_same_place(one: Location, other: Location) -> bool:
    """Return whether two locations are the same directory or prefix."""
    return reference_to(one, other) in (".", str(other))


def referenced(reference: str, base: Location) -> str:
    """Return the path or URL of a reference in `base`."""
    if "://" in reference or os.path.isabs(reference):
        return reference
    plain = os.path.normpath(os.path.join(str(base), reference))
    real = os.path.normpath(os.path.join(os.path.realpath(str(base)), reference))
    # `..` after a symbolic link may lead elsewhere; if not, the shorter path is clearer.
    return plain if os.path.realpath(plain) == os.path.realpath(real) else real


def _open_s3(url: str, options: Mapping[str, str]) -> Location:
    try:
        from storage.s3 import open_s3
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("obstore"):
            raise
        raise MissingExtraError(f"The S3 store of {url!r}", "obstore", "s3") from error
    return open_s3(url, options)
