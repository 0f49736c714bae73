"""Datasets and scores as Zarr trees: every document below the root, and a root that is sealed.

The root is written last: it records the digests of the others and says that the tree is complete.
Other Zarr programs may add attributes and consolidated metadata; what is ours is checked.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from storage import documents
from storage.chunks import Document
from storage.errors import BadDataError
from storage.location import Location
from storage.schema import METADATA_NAME

OWN_SEAL = "own_seal"
"""The seal of what is ours; releases that do not know it check `documents.SEAL`, of all."""
METADATA_DIGESTS = "metadata_digests"
"""The digest of the bytes of each `zarr.json` below the root, by key, for those releases."""
OWN_METADATA_DIGESTS = "own_metadata_digests"
"""The digest of what is ours in each of them."""
ROOT_ATTRIBUTES = frozenset(
    {"format", "format_version", METADATA_DIGESTS, OWN_METADATA_DIGESTS, "complete"}
)
"""The attributes of every root that are ours, and sealed."""
ARRAY_ATTRIBUTES = frozenset({"scale_factor", "add_offset"})
"""The attributes that we give to arrays; groups below the root have none."""
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
"""The fields of a `zarr.json` that say what a group or array is."""

Opened = TypeVar("Opened")


@dataclass(frozen=True)
class TreeFormat:
    """One format of trees: how its root is recognised, and what to do about a bad one."""

    name: str
    """What the root says that it is, such as `mnist-stream dataset`."""
    versions: tuple[int, ...]
    """Those that this release reads."""
    attributes: frozenset[str]
    """The root's attributes that are ours, besides `ROOT_ATTRIBUTES`."""
    unfinished: str
    """How a message about an incomplete tree ends."""
    remedy: str
    """What to do about a damaged one."""
    absent: Callable[[Location], str]
    """Says what is at a location that holds no such tree, and what to do."""

    def parse(self, tree: Location, root: bytes) -> Document:
        """Return a root of this format, complete or not; raise `BadDataError` for any other."""
        place = f"{tree}/{METADATA_NAME}"
        document = documents.parse(root, place)
        documents.check_format(document.get("attributes"), self.name, self.versions, place)
        return document

    def is_claimed_at(self, location: Location) -> bool:
        """Return whether what is at a location says that it is of this format, damaged or not."""
        try:
            return self.name.encode() in (read_root(location)[1] or b"")
        except BadDataError:
            return False

    def attributes_at(self, location: Location) -> Document:
        """Return the attributes of the tree at a location, complete or not, unchecked."""
        tree, root = read_root(location)
        if root is None:
            raise BadDataError(self.absent(location))
        attributes: Document = self.parse(tree, root)["attributes"]
        return attributes

    def open(self, location: Location, build: Callable[[Location, Document], Opened]) -> Opened:
        """Return what `build` makes of a complete tree: of its place and its attributes.

        Raises `BadDataError` where there is none, or its documents are damaged. `build` may raise
        what a missing attribute, or one of another type, raises.
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
            return self.open(location, build)  # it was replaced in the meantime: look again
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
        """Raise `BadDataError` for the first `zarr.json` of a tree that is not the one recorded.

        Earlier releases recorded the digest of the bytes alone.
        """
        recorded: Any = attributes.get(OWN_METADATA_DIGESTS, attributes[METADATA_DIGESTS])
        for key, expected in recorded.items():
            data = self.read(tree, key)
            if expected != hashlib.sha256(data).hexdigest():
                place = f"{tree}/{key}"
                own = own_metadata(documents.parse(data, place), ARRAY_ATTRIBUTES)
                self.check_digest(place, documents.checked_digest(own, place), expected)

    def read(self, tree: Location, key: str) -> bytes:
        """Return a document of a tree; raise `BadDataError` where it is missing."""
        try:
            return documents.read(tree, key)
        except FileNotFoundError:
            raise BadDataError(f"{tree}/{key} is missing. {self.remedy}") from None

    def check_digest(self, place: str, digest: str, recorded: str) -> None:
        """Raise `BadDataError` where what is at a place does not have the digest recorded of it."""
        if digest != recorded:
            raise BadDataError(
                f"{place} has digest {digest}, not its recorded digest {recorded}: it is damaged, "
                f"or another's. {self.remedy}"
            )


def read_root(location: Location) -> tuple[Location, bytes | None]:
    """Return where the published tree lies, and its `zarr.json`; None where there is none."""
    tree = location
    try:
        tree = location.current(METADATA_NAME)
        return tree, documents.read(tree, METADATA_NAME)
    except FileNotFoundError:
        return tree, None


def write_tree(
    tree: Location, attributes: Mapping[str, Any], members: Mapping[str, Document]
) -> None:
    """Write the documents of all groups and arrays, given by path, then the root: it is complete.

    The root has consolidated metadata: xarray opens such a group at once and without a warning.
    """
    written = {f"{path}/{METADATA_NAME}": document for path, document in members.items()}
    contents = {key: metadata_bytes(document) for key, document in written.items()}
    for key, content in contents.items():
        tree.put(key, content)
    digests = {
        METADATA_DIGESTS: {
            key: hashlib.sha256(content).hexdigest() for key, content in contents.items()
        },
        OWN_METADATA_DIGESTS: {key: metadata_digest(document) for key, document in written.items()},
    }
    root = group_metadata({**attributes, **digests, "complete": True}, members)
    tree.put(METADATA_NAME, metadata_bytes(seal_group(root)))


def group_metadata(
    attributes: Mapping[str, Any], members: Mapping[str, Document] | None = None
) -> Document:
    """Return the `zarr.json` of a group.

    With `members`, the documents of all groups and arrays below it by their path, it has
    consolidated metadata.
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
    """Return the text of a `zarr.json`, without a line break at its end, as Zarr writes it."""
    return documents.document_bytes(document).rstrip()


def own_metadata(document: Document, attributes: Collection[str]) -> Document:
    """Return the part of a `zarr.json` that is ours: Zarr's own fields, and these attributes.

    Other Zarr programs may write the fields in another order, and leave out those that are empty.
    """
    every = document.get("attributes")
    if isinstance(every, dict):
        ours = {name: value for name, value in every.items() if name in attributes}
        document = document | {"attributes": ours}
    return {
        name: value
        for name, value in document.items()
        if name in ZARR_FIELDS and value not in (None, [], {})
    }


def metadata_digest(document: Document) -> str:
    """Return the digest of what is ours in the `zarr.json` of anything below the root."""
    return documents.digest_of(own_metadata(document, ARRAY_ATTRIBUTES))


def seal_group(document: Document) -> Document:
    """Return a Zarr group's document with both seals added to the attributes."""
    every = document["attributes"].items()
    attributes = {key: value for key, value in every if key not in (documents.SEAL, OWN_SEAL)}
    own = own_metadata(document | {"attributes": attributes}, attributes)
    body = document | {"attributes": attributes | {OWN_SEAL: documents.digest_of(own)}}
    seal = {documents.SEAL: documents.digest_of(body)}
    return body | {"attributes": body["attributes"] | seal}


def check_group_seal(document: Document, attributes: Collection[str], place: str) -> None:
    """Raise `BadDataError` where these attributes of a Zarr group do not agree with its seal."""
    every = document["attributes"]
    found = every.get(documents.SEAL)
    if isinstance(found, str):  # a group whose other seal is gone is damaged as well
        found = every.get(OWN_SEAL, found)
    documents.check_seal(own_metadata(document, attributes) | {documents.SEAL: found}, place)
