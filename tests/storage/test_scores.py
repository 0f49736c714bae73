"""The scores format: written chunk by chunk, continued after a crash, opened when complete."""

import json
from pathlib import Path

import numpy as np
import pytest

from storage import documents, trees
from storage.errors import BadDataError, ConflictError, UnreachableError
from storage.location import Location
from storage.places import open_location
from storage.scores import (
    METRICS,
    Scores,
    ScoresSchema,
    average_digest,
    is_complete,
    open_scores,
    score_into,
)
from tests.storage.artefacts import make_scores, scores_schema, write_scores

SCHEMA = scores_schema(rows=9)  # five chunks, the last with a single row


@pytest.fixture
def run(anywhere: Location) -> Location:
    return anywhere.child("run")


@pytest.fixture
def local_run(tmp_path: Path) -> Location:
    return open_location(tmp_path / "run")


@pytest.fixture
def home(run: Location) -> Location:
    return run.child(f"scores/{SCHEMA.home}")


@pytest.fixture
def local_home(local_run: Location) -> Location:
    return local_run.child(f"scores/{SCHEMA.home}")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """Return scores that were never interrupted."""
    return make_scores(open_location(tmp_path_factory.mktemp("expected")), SCHEMA)


def die_after(home: Location, *numbers: int) -> Location:
    """Score some chunks without publishing; return their location."""
    with score_into(home, SCHEMA) as writer:
        write_scores(writer, numbers)
        return writer.location


def finish(home: Location) -> tuple[list[int], Scores]:
    """Score the missing chunks and publish; return their numbers and the scores."""
    with score_into(home, SCHEMA) as writer:
        missing = writer.missing
        write_scores(writer, missing)
        return missing, writer.publish({"accuracy": 0.5})


def test_round_trip(run: Location, home: Location) -> None:
    """Probabilities and classes are read back exactly, including the short last chunk."""
    rng = np.random.default_rng(3)
    written = []
    with score_into(home, SCHEMA) as writer:
        for number in range(SCHEMA.chunks):
            start, stop = SCHEMA.chunk_bounds(number)
            probabilities = rng.random((stop - start, 3), np.float32)
            written.append((probabilities, probabilities.argmax(axis=1).astype(np.int32)))
            writer.write_chunk(number, *written[-1])
            assert np.array_equal(probabilities, writer.read_chunk(number)[0])
        writer.publish({"accuracy": 0.25})
    scores = open_scores(home)
    assert SCHEMA == scores.schema
    assert {"accuracy": 0.25} == scores.metrics
    for number, (probabilities, predicted) in enumerate(written):
        chunk = scores.read_chunk(number)
        assert ("float32", "int32") == (chunk[0].dtype.name, chunk[1].dtype.name)
        assert probabilities.tobytes() == chunk[0].tobytes()
        assert predicted.tobytes() == chunk[1].tobytes()


def test_a_scoring_is_complete_only_when_published(home: Location) -> None:
    """Opening unpublished scores reports them as incomplete, and missing ones as missing."""
    with pytest.raises(BadDataError, match="There are no scores at"):
        open_scores(home)
    die_after(home, *range(SCHEMA.chunks))
    assert not is_complete(home)
    with pytest.raises(BadDataError, match="is incomplete: run the same"):
        open_scores(home)
    assert [] == finish(home)[0]
    assert is_complete(home)


def test_every_chunk_must_be_present(home: Location) -> None:
    """Scores are not published if a worker wrote a chunk to another disk."""
    with score_into(home, SCHEMA) as writer:
        write_scores(writer, writer.missing)
        writer.location.delete("probabilities/c.1.0")
        with pytest.raises(UnreachableError, match=r"1 of 5 chunks .* the first is c\.1\.0"):
            writer.publish({})
    assert not is_complete(home)


def test_a_scoring_continues_after_a_crash(home: Location, expected: Scores) -> None:
    """Only the missing chunks are scored, and the result is the same."""
    die_after(home, 0, 3)
    missing, scores = finish(home)
    assert [1, 2, 4] == missing
    assert expected.digest == scores.digest == open_scores(home).digest
    assert len(expected.location.objects()) == len(scores.location.objects())


@pytest.mark.slow
@pytest.mark.parametrize("array", ["probabilities/c.3.0", "predicted/c.3"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "gone", "another's"])
def test_a_chunk_damaged_before_completion_is_scored_again(
    home: Location, expected: Scores, array: str, damage: str
) -> None:
    """Chunks that the crash or the disk damaged are scored again."""
    left = die_after(home, 0, 1, 3)
    data = left.get(array)
    match damage:
        case "flipped":
            left.put(array, data[:9] + bytes([data[9] ^ 16]) + data[10:])
        case "cut":
            left.put(array, data[:-1])
        case "empty":
            left.put(array, b"")
        case "gone":
            left.delete(array)
        case _:
            left.put(array, left.get(array.replace("c.3", "c.1")))
    missing, scores = finish(home)
    assert [2, 3, 4] == missing
    assert expected.digest == scores.digest


@pytest.mark.slow
@pytest.mark.parametrize("key", ["probabilities/zarr.json", "predicted/zarr.json"])
@pytest.mark.parametrize("content", [b"", b"{", None])
def test_damaged_metadata_are_rewritten(
    home: Location, expected: Scores, key: str, content: bytes | None
) -> None:
    """The arrays' metadata are written again; the sound chunks are kept."""
    left = die_after(home, 0, 1)
    if content is None:
        left.delete(key)
    else:
        left.put(key, content)
    missing, scores = finish(home)
    assert [2, 3, 4] == missing
    assert expected.location.get(key) == scores.location.get(key)
    assert expected.digest == scores.digest


def test_a_damaged_root_starts_over(home: Location, expected: Scores) -> None:
    """If the root is damaged, no chunk is kept."""
    die_after(home, 0, 1).put("zarr.json", b"{")
    missing, scores = finish(home)
    assert [0, 1, 2, 3, 4] == missing
    assert expected.digest == scores.digest


def test_scores_of_another_model_are_not_used(home: Location) -> None:
    """Unfinished scores of another model in the same directory are replaced."""
    with score_into(home, scores_schema(rows=9, model_digest="e" * 64)) as writer:
        write_scores(writer, [0, 1])
    with score_into(home, SCHEMA) as writer:
        assert [0, 1, 2, 3, 4] == writer.missing


def test_a_complete_scoring_is_not_written_again(home: Location) -> None:
    """Complete scores are a conflict, and stay."""
    scores = finish(home)[1]
    with pytest.raises(ConflictError, match="are complete; open them"), score_into(home, SCHEMA):
        pytest.fail("a complete scoring was opened for writing")
    assert scores.digest == open_scores(home).digest


def test_two_writers_of_the_same_scores(home: Location) -> None:
    """A second writer is refused."""
    with (
        score_into(home, SCHEMA),
        pytest.raises(ConflictError, match=r"The scoring .* is being written by process"),
        score_into(home, SCHEMA),
    ):
        pytest.fail("two write one scoring")


@pytest.mark.parametrize("key", ["probabilities/c.1.0", "predicted/c.1"])
def test_a_damaged_chunk_is_named(home: Location, key: str) -> None:
    """A missing or swapped chunk of published scores is an error."""
    scores = finish(home)[1]
    home = scores.location
    home.put(key, home.get(key.replace("c.1", "c.2")))
    with pytest.raises(BadDataError, match=r"Chunk 1 of .* recorded digest"):
        scores.read_chunk(1)
    home.delete(key)
    with pytest.raises(BadDataError, match="Chunk 1 is missing"):
        scores.read_chunk(1)


@pytest.mark.parametrize("key", [METRICS, "predicted/zarr.json", "probabilities/zarr.json"])
def test_damaged_documents_are_reported_on_opening(home: Location, key: str) -> None:
    """The metrics and the arrays' metadata must match the root's digests."""
    tree = finish(home)[1].location
    data = tree.get(key)
    tree.put(key, data + b" " if key == METRICS else data.replace(b'"regular"', b'"other"'))
    with pytest.raises(BadDataError, match=f"{key} has digest"):
        open_scores(home)
    tree.delete(key)
    with pytest.raises(BadDataError, match=f"{key} is missing"):
        open_scores(home)


def test_swapped_scorings_are_reported(local_run: Location) -> None:
    """Scores in a renamed directory are refused."""
    train = make_scores(local_run, scores_schema(split="train"))
    test = make_scores(local_run)
    train.location.path.rename(local_run.path / "aside")
    test.location.path.rename(train.location.path)
    with pytest.raises(BadDataError, match=f"that belong in {test.schema.home}"):
        open_scores(train.location)


@pytest.mark.parametrize(
    "change", [{"rows": 0}, {"chunk_rows": 0}, {"classes": 2**40}, {"rows": "9"}, {"chunks": 4}]
)
def test_an_invalid_root(home: Location, change: dict[str, object]) -> None:
    """Sealed but invalid attributes end in exit 3, before anything is allocated."""
    tree = finish(home)[1].location
    document = json.loads(tree.get("zarr.json"))
    document["attributes"]["scored"] |= change
    tree.put("zarr.json", documents.document_bytes(trees.seal_group(document)))
    with pytest.raises(BadDataError):
        open_scores(home)


def test_a_schema_is_checked() -> None:
    """A chunk above the size limit is refused, with both sizes."""
    with pytest.raises(BadDataError, match="Use fewer rows per chunk"):
        ScoresSchema("a", "b", "test", 2**40, 10, 2**40, ())


MEMBERS = ("a" * 64, "b" * 64)
AVERAGE = "1b0606c514d89c33413b0b86e5ecf976b1757d1780dc24a5520467a3b90c5628"
"""sha256sum of `mnist-stream average 1|1|aaa...|bbb...`."""


def test_digest_of_an_average() -> None:
    """It covers the members in their order and the shifts; one model without shifts has its own."""
    assert average_digest(MEMBERS, 1) == AVERAGE
    assert average_digest(MEMBERS[:1], 0) == MEMBERS[0]
    others = [(MEMBERS[::-1], 1), (MEMBERS, 0), (MEMBERS[:1], 1)]
    assert 4 == len({AVERAGE, *(average_digest(*other) for other in others)})


def test_scores_of_an_average(run: Location) -> None:
    """Members and shifts are part of the name and of the attributes, in version 2."""
    average = scores_schema(model_digest=AVERAGE, members=MEMBERS, average_shifts=1)
    assert average.home.startswith("test-average2-shifts1-")
    scores = make_scores(run, average)
    opened = open_scores(run.child(f"scores/{average.home}"))
    assert (average, scores.digest) == (opened.schema, opened.digest)
    attributes = json.loads(scores.location.get("zarr.json"))["attributes"]
    assert 2 == attributes["format_version"]
    plain = make_scores(run).location.get("zarr.json")
    assert 1 == json.loads(plain)["attributes"]["format_version"]
    assert b"members" not in plain


@pytest.mark.parametrize(
    "change",
    [{"members": list(MEMBERS[::-1])}, {"average_shifts": 2}, {"members": "ab"}, {"members": [1]}],
)
def test_members_that_do_not_fit(local_run: Location, change: dict[str, object]) -> None:
    """Members and shifts must give the model's digest."""
    scores = make_scores(
        local_run, scores_schema(model_digest=AVERAGE, members=MEMBERS, average_shifts=1)
    )
    path = scores.location.path / "zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["scored"] |= change
    path.write_text(json.dumps(trees.seal_group(document)))
    with pytest.raises(BadDataError, match=r"name members and shifts|has a str for its"):
        open_scores(scores.location)
