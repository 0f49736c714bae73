"""Zarr groups with a sealed root: the common part of datasets and scores.

The root `zarr.json` is written last. It records the digests of the documents below it, and that the
tree is complete. Attributes and consolidated metadata that other Zarr programs add are ignored:
digests cover a document's *own* metadata (see docs/reference/formats.md).
"""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from storage import documents
from storage.chunks import Document
from storage.errors import BadDataError
from storage.location import Location
from storage.schema import METADATA_NAME

OWN_SEAL = "own_seal"
"""The seal of the root's own metadata. Early releases check `documents.SEAL`, of the whole root."""
METADATA_DIGESTS = "metadata_digests"
"""The digest of the bytes of each `zarr.json` below the root, by key, for early releases."""
OWN_METADATA_DIGESTS = "own_metadata_digests"
"""The digest of the own metadata of each of them."""
ROOT_ATTRIBUTES = frozenset(
    {"format", "format_version", METADATA_DIGESTS, OWN_METADATA_DIGESTS, "complete"}
)
"""The sealed attributes of every root."""
FINDINGS, STATISTICS, LABELS = NOTES = ("findings", "statistics", "labels")
"""Root attributes with a seal of their own. Earlier releases ignore them, so `OWN_SEAL` does, too.
"""
ARRAY_ATTRIBUTES = frozenset({"scale_factor", "add_offset"})
"""The own attributes of arrays; groups below the root have none."""
ZARR_FIELDS = frozenset(
    {
        "zarr_format",
        "node_type",
        "attributes",
        "shape",
        "data_type",
        "chunk_grid",
        "chunk_key_encoding",
        "fill_value",
        "codecs",
        "dimension_names",
        "storage_transformers",
    }
)
"""The fields of a `zarr.json` that Zarr defines."""

Opened = TypeVar("Opened")


@dataclass(frozen=True)
class TreeFormat:
    """A tree format: its name and attributes, and the texts of its error messages."""

    name: str
    """The root's `format`, such as `mnist-stream dataset`."""
    versions: tuple[int, ...]
    """Versions that this release reads."""
    attributes: frozenset[str]
    """The root's sealed attributes beyond `ROOT_ATTRIBUTES`."""
    unfinished: str
    """The end of a message about an incomplete tree."""
    remedy: str
    """What to do about a damaged tree."""
    absent: Callable[[Location], str]
    """Return the message for a location without such a tree."""

    def parse(self, tree: Location, root: bytes) -> Document:
        """Return a root document, complete or not; raise `BadDataError` for another format."""
        place = f"{tree}/{METADATA_NAME}"
        document = documents.parse(root, place)
        documents.check_format(document.get("attributes"), self.name, self.versions, place)
        return document

    def is_claimed_at(self, location: Location) -> bool:
        """Return whether a location's root names this format, damaged or not."""
        try:
            return self.name.encode() in (read_root(location)[1] or b"")
        except BadDataError:
            return False

    def attributes_at(self, location: Location) -> Document:
        """Return a root's attributes, unchecked; the tree may be incomplete."""
        tree, root = read_root(location)
        if root is None:
            raise BadDataError(self.absent(location))
        attributes: Document = self.parse(tree, root)["attributes"]
        return attributes

    def open(self, location: Location, build: Callable[[Location, Document], Opened]) -> Opened:
        """Return `build(tree, attributes)` for the complete tree at a location.

        Raises `BadDataError` if there is none or its documents are damaged. `build` may raise
        `KeyError`, `TypeError`, `ValueError` or `AttributeError` for unexpected attributes.
        """
        tree, root = read_root(location)
        try:
            attributes = self._check_root(location, tree, root)
            try:
                opened = build(tree, attributes)
                self._check_documents(tree, attributes)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise BadDataError(
                    f"The attributes of {location} do not fit '{self.name}' ({error!r}). "
                    f"{self.remedy}"
                ) from error
        except BadDataError:
            if read_root(location) == (tree, root):
                raise
            return self.open(location, build)  # replaced while it was read: try again
        return opened

    def _check_root(self, location: Location, tree: Location, root: bytes | None) -> Document:
        if root is None:
            raise BadDataError(self.absent(location))
        document = self.parse(tree, root)
        attributes: Document = document["attributes"]
        if attributes.get("complete") is not True:
            raise BadDataError(f"{location} is incomplete: {self.unfinished}")
        check_group_seal(document, ROOT_ATTRIBUTES | self.attributes, f"{tree}/{METADATA_NAME}")
        return attributes

    def _check_documents(self, tree: Location, attributes: Document) -> None:
        """Raise `BadDataError` for the first `zarr.json` that does not have its recorded digest."""
        recorded: Any = attributes.get(OWN_METADATA_DIGESTS, attributes[METADATA_DIGESTS])
        for key, expected in recorded.items():
            data = self.read(tree, key)
            if expected != hashlib.sha256(data).hexdigest():
                place = f"{tree}/{key}"
                own = own_metadata(documents.parse(data, place), ARRAY_ATTRIBUTES)
                self.check_digest(place, documents.checked_digest(own, place), expected)

    def read(self, tree: Location, key: str) -> bytes:
        """Return a document of a tree; raise `BadDataError` if it is missing."""
        try:
            return documents.read(tree, key)
        except FileNotFoundError:
            raise BadDataError(f"{tree}/{key} is missing. {self.remedy}") from None

    def check_digest(self, place: str, digest: str, recorded: str) -> None:
        """Raise `BadDataError` that names `place` if two digests differ."""
        if digest != recorded:
            raise BadDataError(
                f"{place} has digest {digest}, not its recorded digest {recorded}: it is damaged, "
                f"or belongs elsewhere. {self.remedy}"
            )


def read_root(location: Location) -> tuple[Location, bytes | None]:
    """Return the location of the published tree, and its `zarr.json` or None."""
    tree = location
    try:
        tree = location.current(METADATA_NAME)
        return tree, documents.read(tree, METADATA_NAME)
    except FileNotFoundError:
        return tree, None


def write_tree(
    tree: Location,
    attributes: Mapping[str, Any],
    members: Mapping[str, Document],
    unsynced: Collection[str] = (),
) -> None:
    """Write the documents of all groups and arrays, given by path, then the root.

    Before the root is written, other objects that were written `unsynced` are made durable.
    The root has consolidated metadata, without which xarray warns and opens the group slowly.
    """
    written = {f"{path}/{METADATA_NAME}": document for path, document in members.items()}
    contents = {key: metadata_bytes(document) for key, document in written.items()}
    for key, content in contents.items():
        tree.put(key, content)
    if not tree.durable:
        tree.sync([*unsynced, *contents])
    digests = {
        METADATA_DIGESTS: {
            key: hashlib.sha256(content).hexdigest() for key, content in contents.items()
        },
        OWN_METADATA_DIGESTS: {key: metadata_digest(document) for key, document in written.items()},
    }
    root = group_metadata({**attributes, **digests, "complete": True}, members)
    replace(tree, durable=True).put(METADATA_NAME, metadata_bytes(seal_group(root)))


def group_metadata(
    attributes: Mapping[str, Any], members: Mapping[str, Document] | None = None
) -> Document:
    """Return the `zarr.json` of a group, with consolidated metadata if `members` are given.

    `members` are the documents of all groups and arrays below it, by path.
    """
    document: Document = {"attributes": attributes, "zarr_format": 3}
    if members is not None:
        document["consolidated_metadata"] = _consolidated(
            {
                path: member | {"consolidated_metadata": _consolidated({})}
                if member["node_type"] == "group"
                else member
                for path, member in sorted(members.items())
            }
        )
    return document | {"node_type": "group"}


def _consolidated(members: Mapping[str, Document]) -> Document:
    return {"kind": "inline", "must_understand": False, "metadata": members}


def metadata_bytes(document: Document) -> bytes:
    """Return the text of a `zarr.json` as Zarr writes it, without a line break at its end."""
    return documents.document_bytes(document).rstrip()


def own_metadata(document: Document, attributes: Collection[str]) -> Document:
    """Return the fields of a `zarr.json` that Zarr defines, with `attributes` alone.

    Empty fields are dropped, as other Zarr programs may leave them out.
    """
    every = document.get("attributes")
    if isinstance(every, dict):
        own = {name: value for name, value in every.items() if name in attributes}
        document = document | {"attributes": own}
    return {
        name: value
        for name, value in document.items()
        if name in ZARR_FIELDS and value not in (None, [], {})
    }


def metadata_digest(document: Document) -> str:
    """Return the digest of the own metadata of a group or array below the root."""
    return documents.digest_of(own_metadata(document, ARRAY_ATTRIBUTES))


def seal_group(document: Document) -> Document:
    """Return a root document with both seals added to its attributes."""
    every = document["attributes"].items()
    attributes = {key: value for key, value in every if key not in (documents.SEAL, OWN_SEAL)}
    own = own_metadata(document | {"attributes": attributes}, attributes.keys() - set(NOTES))
    body = document | {"attributes": attributes | {OWN_SEAL: documents.digest_of(own)}}
    seal = {documents.SEAL: documents.digest_of(body)}
    return body | {"attributes": body["attributes"] | seal}


def check_group_seal(document: Document, attributes: Collection[str], place: str) -> None:
    """Raise `BadDataError` if a root's own metadata do not match its seal."""
    every = document["attributes"]
    seal = every.get(documents.SEAL)
    if isinstance(seal, str):  # without this seal, the group is damaged as well
        seal = every.get(OWN_SEAL, seal)
    documents.check_seal(own_metadata(document, attributes) | {documents.SEAL: seal}, place)
