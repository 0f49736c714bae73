"""Verification: read all of a dataset, run or scores, and check every digest.

Each function yields pairs of a description and its error, or None if the check passed. Unexpected
files are errors too. Temporary files of dead writers are ignored. So are files that systems and
editors create (`.DS_Store`, `Thumbs.db`), but `mention` is called with a sentence about each, and
about what else deserves attention without being an error.
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
    pinned_checkpoints,
    recorded_metrics,
)
from storage.chunks import ChunkedArray
from storage.dataset import MAKE_AGAIN, Split, open_dataset
from storage.errors import BadDataError
from storage.ledger import LEDGER, LEDGER_COUNT, SCORED, Entry, Ledger
from storage.location import VERSION, Location, is_foreign, is_leftover
from storage.runs import (
    FAILURE,
    RECORD,
    REFERENCE_FORMAT,
    REFERENCE_VERSION,
    REFERENCES,
    SCORES,
    open_run,
    reference_key,
)
from storage.schema import METADATA_NAME
from storage.scores import JOURNAL, METRICS, SCORES_FORMAT, is_complete, open_scores, scoring_homes
from storage.trees import ZARR_FIELDS, metadata_digest

Check = tuple[str, BadDataError | None]
Mention = Callable[[str], None]
Opened = TypeVar("Opened")


def verify_location(location: Location, mention: Mention = lambda text: None) -> Iterator[Check]:
    """Verify a run, scores or a dataset."""
    if location.exists(RECORD):
        return verify_run(location, mention)
    verify = verify_scores if SCORES_FORMAT.is_claimed_at(location) else verify_dataset
    return verify(location, mention)


def verify_dataset(location: Location, mention: Mention = lambda text: None) -> Iterator[Check]:
    """Check every chunk, count and digest of a dataset, and its consolidated metadata."""
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
    yield from _unexpected(dataset.tree, expected.__contains__, mention)


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
    """Check every chunk of published scores, their metrics and their metadata."""
    scores, error = _attempt(open_scores, location)
    yield f"{location}: attributes", error
    if scores is None:
        return
    yield _check(f"{location}: group", _check_group, scores.location, scores.arrays)
    for number in range(scores.schema.chunks):
        yield _check(f"{location}: chunk {number}", scores.read_chunk, number)
    expected = {METRICS, JOURNAL} | _document_keys(scores.arrays) | _chunk_keys(scores.arrays)
    yield from _unexpected(scores.location, expected.__contains__, mention)


def verify_run(location: Location, mention: Mention = lambda text: None) -> Iterator[Check]:
    """Check a run's record, checkpoints, metrics, ledger and scores.

    Other files in the run's directory itself are allowed.
    """
    run, error = _attempt(open_run, location)
    yield f"{location}: record", error
    if run is None:
        return
    for name in list_checkpoints(run):
        check = _check(f"{location}: checkpoint {name}", load_checkpoint, run, name)
        # A training run in progress may have pruned a checkpoint.
        if check[1] is None or name in list_checkpoints(run):
            yield check
    kept = list_checkpoints(run)
    for name in pinned_checkpoints(run):
        if name not in kept:
            mention(
                f"{location}/{name.key} is missing, although it was promoted: `pipeline score "
                "--model` may need it. Restore it from a copy."
            )
    yield _check(f"{location}: metrics", recorded_metrics, run)
    if location.exists(FAILURE):
        yield _check(f"{location}: failure", run.failure)
    for file in location.names(REFERENCES):
        if not is_leftover(file) and not is_foreign(file):
            yield _check(f"{location}: reference {file}", _check_reference, location, file)
    yield from _unexpected(location, _is_of_run, mention)
    homes = scoring_homes(location.child(SCORES))
    yield from _verify_ledger(Ledger(location), homes, mention)
    for home in homes:
        yield from verify_scores(location.child(f"{SCORES}/{home}"), mention)


def _check_reference(location: Location, name: str) -> None:
    """Raise `BadDataError` for a damaged reference of a model."""
    key = f"{REFERENCES}/{name}"
    reference = documents.read_sealed(location, key)
    place = f"{location}/{key}"
    documents.check_format(reference, REFERENCE_FORMAT, (REFERENCE_VERSION,), place)
    documents.check_fields(reference, {"model_digest": str}, place)
    if reference_key(reference["model_digest"]) != key:
        raise BadDataError(
            f"{place} is the reference of model {reference['model_digest']}, which belongs "
            "elsewhere. Remove it; `pipeline score` makes it again."
        )


def _verify_ledger(ledger: Ledger, homes: list[str], mention: Mention) -> Iterator[Check]:
    """Check a ledger's lines, and that it lists exactly the existing scores.

    A run of an early release has no ledger, or one without a count of its lines.
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
    if not ledger.location.holds(LEDGER_COUNT):
        mention(
            f"{ledger.location}/{LEDGER_COUNT} is missing: lost lines of {ledger} cannot be "
            "detected. The next `pipeline score` writes it."
        )
    yield _check(f"{ledger}: number of lines", lambda: ledger.check_count(torn_is_lost=True))
    yield _check(f"{ledger}: no line twice", _check_distinct, ledger, entries)
    recorded = {str(entry.get("result")) for entry in entries if entry["event"] == SCORED}
    results = {f"{SCORES}/{home}": home for home in homes}
    for result, home in results.items():
        if result not in recorded and is_complete(ledger.location.child(home)):
            yield (
                f"{ledger}: {home}",
                BadDataError(
                    f"{ledger} has no line for the scores {home}. Run the same `pipeline score` "
                    "again, which writes it, or restore the ledger from a copy."
                ),
            )
    for result in sorted(recorded - results.keys()):
        place = f"{ledger.location}/{result.removeprefix(f'{SCORES}/')}"
        yield (
            f"{ledger}: {result}",
            BadDataError(
                f"{ledger} lists {place}, which is missing. Restore it from a copy, or run the "
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
    """Return whether a run may contain a file: below checkpoints/, only checkpoints' files."""
    directory, *rest = (part for part in key.split("/") if not VERSION.fullmatch(part))
    if directory != DIRECTORY:
        return True
    return len(rest) == 2 and parse_name(rest[0]) is not None and rest[1] in (STATE, MANIFEST)


def _check_group(location: Location, members: Iterable[str]) -> None:
    """Raise `BadDataError` if Zarr cannot open a group, or its consolidated metadata are wrong."""
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
            f"{place} has the unknown field {min(unknown)!r}, which Zarr refuses. Remove the field."
        )


def _agrees(consolidated: Any, member: str, stored: dict[str, Any]) -> bool:
    """Return whether consolidated metadata describe a member as its own `zarr.json` does."""
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


def _unexpected(
    location: Location, is_expected: Callable[[str], bool], mention: Mention
) -> Iterator[Check]:
    """Yield an error for each unexpected object that no dead writer left."""
    for key in location.objects():
        place = f"{location}/{key}"
        if is_expected(key) or any(is_leftover(part) for part in key.split("/")):
            continue
        if is_foreign(key):
            mention(f"{place} does not belong here; it is ignored.")
        else:
            yield place, BadDataError(f"{place} does not belong here. Move it elsewhere.")


def _attempt(
    read: Callable[..., Opened], *arguments: Any
) -> tuple[Opened | None, BadDataError | None]:
    try:
        return read(*arguments), None
    except BadDataError as error:
        return None, error


def _check(description: str, check: Callable[..., Any], *arguments: Any) -> Check:
    return description, _attempt(check, *arguments)[1]
