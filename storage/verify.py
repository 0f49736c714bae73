"""Verification: read all of a dataset, a run or a scoring, and check everything that is recorded.

Each function yields, for each thing that it has checked, what that was and what is wrong with it:
`None` where nothing is. Files that are no part of what is verified are wrong too, for nothing
vouches for them. What a dead writer left under a hidden temporary name is not, nor is what systems
and editors leave (`.DS_Store`, `Thumbs.db`): `mention` is called with a sentence about such files.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from storage import documents
from storage.checkpoints import (
    DIRECTORY,
    MANIFEST,
    STATE,
    list_checkpoints,
    load_checkpoint,
    parse_name,
    recorded_metrics,
)
from storage.chunks import ChunkedArray
from storage.dataset import MAKE_AGAIN, Split, open_dataset
from storage.errors import BadDataError
from storage.ledger import LEDGER, SCORED, Entry, Ledger
from storage.location import VERSION, Location, is_foreign, is_leftover
from storage.runs import RECORD, SCORES, open_run
from storage.schema import METADATA_NAME
from storage.scores import JOURNAL, METRICS, SCORES_FORMAT, is_complete, open_scores, scoring_homes
from storage.trees import ZARR_FIELDS, metadata_digest

Check = tuple[str, BadDataError | None]
Mention = Callable[[str], None]
Opened = TypeVar("Opened")


def verify_location(location: Location, mention: Mention = lambda text: None) -> Iterator[Check]:
    """Verify whatever is at a location: a run, a scoring, or else what should be a dataset."""
    if location.exists(RECORD):
        return verify_run(location, mention)
    verify = verify_scores if SCORES_FORMAT.is_claimed_at(location) else verify_dataset
    return verify(location, mention)


def verify_dataset(location: Location, mention: Mention = lambda text: None) -> Iterator[Check]:
    """Check every chunk, count and digest of a dataset, and what Zarr programs read of it."""
    dataset, error = _attempt(open_dataset, location)
    yield f"{location}: attributes", error
    if dataset is None:
        return
    arrays = {
        f"{split.name}/{name}": array
        for split in dataset.splits.values()
        for name, array in split.arrays.items()
    }
    members = [*dataset.splits, *arrays]
    yield _check(f"{location}: groups", _check_group, dataset.tree, members)
    for split in dataset.splits.values():
        yield from _verify_split(split, dataset.tree.child(split.name))
    expected = _document_keys(members) | _chunk_keys(arrays)
    yield from _strangers(dataset.tree, expected.__contains__, mention)


def _verify_split(split: Split, place: Location) -> Iterator[Check]:
    yield _check(f"{place}: group", _check_group, place, split.arrays)
    presence = _check(f"{place}: presence of chunks", split.check_claim)
    yield presence
    if presence[1] is not None:
        return
    for number in range(split.schema.chunks):
        yield _check(f"{place}: chunk {number}", _check_chunk, split, number)
    if split.schema.classes:
        yield _check(f"{place}: class counts", _check_class_counts, split)


def _check_chunk(split: Split, number: int) -> None:
    targets = split.read_chunk(number).targets
    if targets is None:
        return
    counts = targets.sum(axis=0, dtype=np.int64).tolist()
    recorded = split.chunk_class_counts[number].tolist()
    if counts != recorded:
        raise BadDataError(
            f"Chunk {number} of split {split.name} has class counts {counts}; recorded are "
            f"{recorded}. {MAKE_AGAIN}"
        )


def _check_class_counts(split: Split) -> None:
    counts = split.chunk_class_counts.sum(axis=0).tolist()
    if counts != list(split.record.class_counts):
        raise BadDataError(
            f"Split {split.name} counts {counts} rows per class; recorded are "
            f"{list(split.record.class_counts)}. {MAKE_AGAIN}"
        )


def verify_scores(location: Location, mention: Mention = lambda text: None) -> Iterator[Check]:
    """Check every chunk and digest of a complete scoring, its metrics, and its metadata."""
    scores, error = _attempt(open_scores, location)
    yield f"{location}: attributes", error
    if scores is None:
        return
    yield _check(f"{location}: group", _check_group, scores.location, scores.arrays)
    for number in range(scores.schema.chunks):
        yield _check(f"{location}: chunk {number}", scores.read_chunk, number)
    expected = {METRICS, JOURNAL} | _document_keys(scores.arrays) | _chunk_keys(scores.arrays)
    yield from _strangers(scores.location, expected.__contains__, mention)


def verify_run(location: Location, mention: Mention = lambda text: None) -> Iterator[Check]:
    """Check a run's record, checkpoints, metrics, ledger and scorings.

    Other files at the run's top belong to whoever put them there.
    """
    run, error = _attempt(open_run, location)
    yield f"{location}: record", error
    if run is None:
        return
    for name in list_checkpoints(run):
        check = _check(f"{location}: checkpoint {name}", load_checkpoint, run, name)
        # A running training prunes checkpoints.
        if check[1] is None or name in list_checkpoints(run):
            yield check
    yield _check(f"{location}: metrics", recorded_metrics, run)
    yield from _strangers(location, _is_of_run, mention)
    homes = scoring_homes(location.child(SCORES))
    yield from _verify_ledger(Ledger(location), homes)
    for home in homes:
        yield from verify_scores(location.child(f"{SCORES}/{home}"), mention)


def _verify_ledger(ledger: Ledger, homes: list[str]) -> Iterator[Check]:
    """Check the lines of a run's ledger, and that it lists just the scorings that there are.

    A run without a ledger, as an early release made it, is sound.
    """
    presence = _check(f"{ledger}: presence", ledger.check_presence)
    if presence[1] is not None:
        yield presence
        return
    if not ledger.location.holds(LEDGER):
        return
    entries, error = _attempt(ledger.entries)
    yield f"{ledger}: lines", error
    if entries is None:
        return
    yield _check(f"{ledger}: number of lines", lambda: ledger.check_count(torn_is_lost=True))
    yield _check(f"{ledger}: no line twice", _check_distinct, ledger, entries)
    recorded = {str(entry.get("result")) for entry in entries if entry["event"] == SCORED}
    results = {f"{SCORES}/{home}": home for home in homes}
    for result, home in results.items():
        if result not in recorded and is_complete(ledger.location.child(home)):
            yield (
                f"{ledger}: {home}",
                BadDataError(
                    f"{ledger} has no line for the scoring {home}. Run the same `pipeline score` "
                    "again, which writes it, or restore the ledger from a copy."
                ),
            )
    for result in sorted(recorded - results.keys()):
        yield (
            f"{ledger}: {result}",
            BadDataError(
                f"{ledger} lists {result}, which is missing. Restore it from a copy, or run the "
                "same `pipeline score` again."
            ),
        )


def _check_distinct(ledger: Ledger, entries: list[Entry]) -> None:
    known: set[bytes] = set()
    for number, line in enumerate(map(documents.canonical, entries), 1):
        if line in known:
            raise BadDataError(f"{ledger} line {number} repeats an earlier line. Remove it.")
        known.add(line)


def _is_of_run(key: str) -> bool:
    """Return whether a file of a run is a checkpoint's, or lies where others may put files."""
    directory, *rest = (part for part in key.split("/") if not VERSION.fullmatch(part))
    if directory != DIRECTORY:
        return True
    return len(rest) == 2 and parse_name(rest[0]) is not None and rest[1] in (STATE, MANIFEST)


def _check_group(location: Location, members: Iterable[str]) -> None:
    """Raise `BadDataError` where Zarr and xarray could not open a group, or read other members.

    They read the members' metadata from the group's consolidated metadata, if any.
    """
    place = f"{location}/{METADATA_NAME}"
    document = documents.read_document(location, METADATA_NAME)
    _check_fields(document, place)
    consolidated = document.get("consolidated_metadata")
    for member in members:
        stored = documents.read_document(location, f"{member}/{METADATA_NAME}")
        _check_fields(stored, f"{location}/{member}/{METADATA_NAME}")
        if consolidated is not None and not _agrees(consolidated, member, stored):
            raise BadDataError(
                f"{place} describes {member} differently from {location}/{member}/{METADATA_NAME}. "
                "Recreate it with zarr.consolidate_metadata, or restore it from a copy."
            )


def _check_fields(document: dict[str, Any], place: str) -> None:
    unknown = document.keys() - ZARR_FIELDS - {"consolidated_metadata"}
    if unknown:
        raise BadDataError(
            f"{place} has the field {min(unknown)!r}, which Zarr does not know. Remove the field."
        )


def _agrees(consolidated: Any, member: str, stored: dict[str, Any]) -> bool:
    """Return whether a group's consolidated metadata describe a member as its own do."""
    try:
        known = consolidated["kind"] == "inline" and consolidated["metadata"][member]
        _check_fields(known, member)
        return metadata_digest(known) == metadata_digest(stored)
    except (BadDataError, TypeError, KeyError, ValueError, AttributeError):
        return False


def _document_keys(members: Iterable[str]) -> set[str]:
    return {METADATA_NAME, *(f"{member}/{METADATA_NAME}" for member in members)}


def _chunk_keys(arrays: dict[str, ChunkedArray]) -> set[str]:
    return {f"{path}/{key}" for path, array in arrays.items() for key in array.keys}


def _strangers(
    location: Location, is_expected: Callable[[str], bool], mention: Mention
) -> Iterator[Check]:
    """Yield every object whose key is not expected, and which is no leftover of a dead writer."""
    for key in location.objects():
        place = f"{location}/{key}"
        if is_expected(key) or any(is_leftover(part) for part in key.split("/")):
            continue
        if is_foreign(key):
            mention(f"{place} is not part of what is recorded; it is ignored.")
        else:
            text = f"{place} is no part of what is recorded here. Move it elsewhere."
            yield place, BadDataError(text)


def _attempt(
    read: Callable[..., Opened], *arguments: Any
) -> tuple[Opened | None, BadDataError | None]:
    try:
        return read(*arguments), None
    except BadDataError as error:
        return None, error


def _check(what: str, check: Callable[..., Any], *arguments: Any) -> Check:
    return what, _attempt(check, *arguments)[1]
