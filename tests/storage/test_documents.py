"""Sealed documents: damage and unexpected values are detected."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import documents, trees
from storage.errors import BadDataError
from storage.places import open_location

DOCUMENT = {"format": "test", "count": 12, "loss": 0.1234, "names": ["å", "b"], "seen": {"a": None}}

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def content(data: bytes) -> dict[str, Any]:
    return documents.check_seal(documents.parse(data, "the document"), "the document")


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    document=st.dictionaries(
        st.text().filter(lambda key: key != documents.SEAL), json_values, max_size=4
    )
)
def test_round_trip(document: dict[str, Any]) -> None:
    """Any JSON value is read back from its sealed text, floats to the last bit."""
    assert document == content(documents.sealed_bytes(document))
    assert document == content(documents.sealed_bytes(document, indent=None))


def test_an_unreadable_document_is_not_written() -> None:
    """A string that is not valid text, as a file's name may be, is refused when it is written."""
    with pytest.raises(BadDataError, match="not valid UTF-8"):
        documents.sealed_bytes({"file": "caf\udce9"})


@pytest.mark.parametrize("indent", [2, None])
def test_flipped_bits(indent: int | None) -> None:
    """Each single flipped bit is refused, or leaves the same content (an escape's letter case)."""
    data = documents.sealed_bytes(DOCUMENT, indent)
    without_effect = 0
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            try:
                assert DOCUMENT == content(bytes(damaged))
                without_effect += 1
            except BadDataError:
                continue
    assert without_effect < 8


def test_truncation() -> None:
    """Truncated text is refused, unless only the final line break is missing."""
    data = documents.sealed_bytes(DOCUMENT)
    assert DOCUMENT == content(data[:-1])
    for length in range(len(data) - 1):
        with pytest.raises(BadDataError):
            content(data[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[1, 2]",
        b"null",
        b'{"a": NaN, "seal": "x"}',
        b'{"a": Infinity, "seal": "x"}',
        b'{"a": 1}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe\xfd",
        b"\0" * 64,
    ],
    ids=lambda data: repr(data[:12]),
)
def test_invalid_documents(data: bytes) -> None:
    """Other JSON, invalid JSON, a missing seal, NaN and deep nesting end in exit 3."""
    with pytest.raises(BadDataError, match="the document"):
        content(data)


def test_a_message_names_both_digests() -> None:
    """The message for a wrong seal has both digests."""
    document = documents.seal({"a": 1}) | {"a": 2}
    with pytest.raises(BadDataError) as caught:
        documents.check_seal(document, "run.json")
    assert "run.json is damaged" in str(caught.value)
    assert documents.digest_of({"a": 1}) in str(caught.value)
    assert documents.digest_of({"a": 2}) in str(caught.value)


def test_a_group_is_sealed_among_its_attributes() -> None:
    """A sealed Zarr group has no field that is unknown to Zarr."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"a": 1}}
    document = trees.seal_group(trees.seal_group(group))
    assert group.keys() == document.keys()
    trees.check_group_seal(document, {"a"}, "zarr.json")
    for damaged in (
        document | {"node_type": "array"},
        document | {"attributes": document["attributes"] | {"a": 2}},
        document | {"attributes": {"a": 1}},
        document | {"attributes": document["attributes"] | {"a": float("nan")}},
    ):
        with pytest.raises(BadDataError, match=r"zarr\.json"):
            trees.check_group_seal(damaged, {"a"}, "zarr.json")


def test_a_document_past_the_limit_is_not_read(tmp_path: Path) -> None:
    """A file above the size limit is refused without reading it."""
    with open(tmp_path / "run.json", "wb") as file:
        file.truncate(documents.DOCUMENT_LIMIT + 1)
    with pytest.raises(BadDataError, match="268,435,457 bytes; expected at most 268,435,456"):
        documents.read_sealed(open_location(tmp_path), "run.json")


def test_a_document_on_disk(tmp_path: Path) -> None:
    """`read_sealed` returns a file's content, and raises an error if there is no file."""
    place = open_location(tmp_path)
    place.put("run.json", documents.sealed_bytes(DOCUMENT))
    assert DOCUMENT == documents.read_sealed(place, "run.json")
    assert DOCUMENT.items() <= json.loads(place.get("run.json")).items()
    with pytest.raises(FileNotFoundError):
        documents.read_sealed(place, "absent.json")


def test_lone_surrogates() -> None:
    """A lone surrogate, which cannot be printed, is refused; a pair is not."""
    with pytest.raises(BadDataError, match="half a surrogate pair"):
        documents.parse(rb'{"name": "\uD83D"}', "the document")
    assert {"name": "\U0001f600"} == documents.parse(rb'{"name": "\uD83D\uDE00"}', "the document")


@pytest.mark.parametrize("document", [None, [], {}, {"rows": 1.0}, {"rows": True}, {"rows": None}])
def test_fields_of_other_types_are_refused(document: Any) -> None:
    """A field that is missing, or of a similar type, is named."""
    with pytest.raises(BadDataError, match=r"the document has a .* for its 'rows'; expected a int"):
        documents.check_fields(document, {"rows": int}, "the document")
    documents.check_fields({"rows": 1}, {"rows": int}, "the document")
