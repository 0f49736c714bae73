"""Verification: read all of a dataset, a run or a scoring, and check everything that is recorded.

Each function yields, for each thing that it has checked, what that was and what is wrong with it:
`None` where nothing is. Files that are no part of what is verified are wrong too, for nothing
vouches for them. What a dead writer left under a hidden temporary name is not, nor is what systems
and editors leave (`.DS_Store`, `Thumbs.db`): such files are passed to `mention`.
"""

from collections.abc import Callable, Iterator
from functools import partial
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
from storage.dataset import MAKE_AGAIN, Dataset, Split, open_dataset
from storage.errors import BadDataError
from storage.ledger import LEDGER, SCORED, Ledger
from storage.location import VERSION, Location, is_foreign, is_leftover
from storage.runs import RECORD, SCORES, open_run
from storage.schema import METADATA_NAME
from storage.scores import FORMAT as SCORES_FORMAT
from storage.scores import JOURNAL, METRICS, Scores, is_complete, open_scores, scoring_homes
from storage.store import LocationStore, check_group, open_array

Check = tuple[str, BadDataError | None]

Mention = Callable[[str], None]
"""Called with a sentence about something that is not wrong."""


def _ignore(text: str) -> None:
    """Mention nothing."""


Found = TypeVar("Found")


def verify_location(location: Location, mention: Mention = _ignore) -> Iterator[Check]:
    """Verify whatever is at a location: a run, a scoring, or else what should be a dataset."""
    if location.exists(RECORD):
        return verify_run(location, mention)
    verify = verify_scores if _is_scoring(location) else verify_dataset
    return verify(location, mention)


def verify_dataset(location: Location, mention: Mention = _ignore) -> Iterator[Check]:
    """Every chunk, count and digest of a dataset, and how Zarr itself opens its arrays."""
    dataset, error = _attempt(lambda: open_dataset(location))
    yield f"{location}: attributes", error
    if dataset is None:
        return
    store = LocationStore(dataset.tree, read_only=True)
    members = [key.removesuffix(f"/{METADATA_NAME}") for key in dataset.metadata_digests]
    yield f"{location}: groups", _trouble(check_group, store, "", members)
    for split in dataset.splits.values():
        yield from _verify_split(split, store)
    yield from _strangers(dataset.tree, _dataset_keys(dataset).__contains__, mention)


def _verify_split(split: Split, store: LocationStore) -> Iterator[Check]:
    place = f"{store.location}/{split.name}"
    yield f"{place}: group", _trouble(check_group, store, split.name, split.arrays)
    yield from _verify_arrays(store, split.arrays)
    error = _trouble(split.check_claim)
    yield f"{place}: presence of chunks", error
    if error is not None:
        return
    for number in range(split.schema.chunks):
        yield f"{place}: chunk {number}", _trouble(_check_chunk, split, number)
    if split.schema.classes:
        yield f"{place}: class counts", _trouble(_check_class_counts, split)


def _check_chunk(split: Split, number: int) -> None:
    targets = split.read_chunk(number).targets
    if targets is None:
        return
    found = targets.sum(axis=0, dtype=np.int64).tolist()
    recorded = split.chunk_class_counts[number].tolist()
    if found != recorded:
        raise BadDataError(
            f"Chunk {number} of split {split.name} has class counts {found}; recorded are "
            f"{recorded}. {MAKE_AGAIN}"
        )


def _check_class_counts(split: Split) -> None:
    found = split.chunk_class_counts.sum(axis=0).tolist()
    if found != list(split.record.class_counts):
        raise BadDataError(
            f"Split {split.name} counts {found} rows per class; recorded are "
            f"{list(split.record.class_counts)}. {MAKE_AGAIN}"
        )


def _dataset_keys(dataset: Dataset) -> set[str]:
    keys = {METADATA_NAME, *dataset.metadata_digests}
    for split in dataset.splits.values():
        keys |= _chunk_keys(f"{split.name}/", split.arrays)
    return keys


def verify_scores(location: Location, mention: Mention = _ignore) -> Iterator[Check]:
    """Every chunk and digest of a complete scoring, its metrics, and how Zarr opens its arrays."""
    scores, error = _attempt(lambda: open_scores(location))
    yield f"{location}: attributes", error
    if scores is None:
        return
    store = LocationStore(scores.location, read_only=True)
    yield f"{location}: group", _trouble(check_group, store, "", scores.arrays)
    yield from _verify_arrays(store, scores.arrays)
    for number in range(scores.schema.chunks):
        yield f"{location}: chunk {number}", _trouble(scores.read_chunk, number)
    yield from _strangers(scores.location, _scores_keys(scores).__contains__, mention)


def _scores_keys(scores: Scores) -> set[str]:
    metadata = {f"{name}/{METADATA_NAME}" for name in scores.arrays}
    return {METADATA_NAME, METRICS, JOURNAL} | metadata | _chunk_keys("", scores.arrays)


def _is_scoring(location: Location) -> bool:
    try:
        tree = location.current(METADATA_NAME)
        document = documents.parse(documents.read(tree, METADATA_NAME), str(location))
    except (FileNotFoundError, BadDataError):
        return False
    attributes = document.get("attributes")
    return isinstance(attributes, dict) and attributes.get("format") == SCORES_FORMAT


def verify_run(location: Location, mention: Mention = _ignore) -> Iterator[Check]:
    """A run's record, every checkpoint, the lines of metrics, the ledger, and every scoring.

    Other files at the run's top belong to whoever put them there.
    """
    run, error = _attempt(lambda: open_run(location))
    yield f"{location}: record", error
    if run is None:
        return
    for name in list_checkpoints(run):
        error = _trouble(load_checkpoint, run, name)
        if error is None or name in list_checkpoints(run):  # a running training prunes checkpoints
            yield f"{location}: checkpoint {name}", error
    yield f"{location}: metrics", _trouble(recorded_metrics, run)
    yield from _strangers(location, _is_of_run, mention)
    homes = scoring_homes(location.child(SCORES))
    yield from _verify_ledger(Ledger(location), homes)
    for home in homes:
        yield from verify_scores(location.child(f"{SCORES}/{home}"), mention)


def _verify_ledger(ledger: Ledger, homes: list[str]) -> Iterator[Check]:
    """Check the lines of a run's ledger, and that it and the scorings tell of each other.

    A run without a ledger, as an early release made it, is sound.
    """
    error = _trouble(ledger.check_presence)
    if error is not None:
        yield f"{ledger}: presence", error
    if error is not None or not ledger.location.holds(LEDGER):
        return
    entries, error = _attempt(ledger.entries)
    yield f"{ledger}: lines", error
    if entries is None:
        return
    yield f"{ledger}: number of lines", _trouble(partial(ledger.check_count, torn_is_lost=True))
    texts = [documents.canonical(entry) for entry in entries]
    yield f"{ledger}: no line twice", _trouble(_check_distinct, ledger, texts)
    recorded = {str(entry.get("result")) for entry in entries if entry["event"] == SCORED}
    for home in homes:
        if f"{SCORES}/{home}" not in recorded and is_complete(ledger.location.child(home)):
            yield f"{ledger}: {home}", _without_line(ledger, home)
    for result in sorted(recorded.difference(f"{SCORES}/{home}" for home in homes)):
        yield f"{ledger}: {result}", _without_scoring(ledger, result)


def _check_distinct(ledger: Ledger, lines: list[bytes]) -> None:
    known: set[bytes] = set()
    for number, line in enumerate(lines, 1):
        if line in known:
            raise BadDataError(f"{ledger} line {number} repeats an earlier line. Remove it.")
        known.add(line)


def _without_line(ledger: Ledger, home: str) -> BadDataError:
    return BadDataError(
        f"{ledger} has no line for the scoring {home}. Run the same `pipeline score` again, which "
        "writes it, or restore the ledger from a copy."
    )


def _without_scoring(ledger: Ledger, result: str) -> BadDataError:
    return BadDataError(
        f"{ledger} lists {result}, which is missing. Restore it from a copy, or run the same "
        "`pipeline score` again."
    )


def _is_of_run(key: str) -> bool:
    """Whether a file of a run is a checkpoint's; what lies elsewhere is not judged by its name."""
    directory, *rest = (part for part in key.split("/") if not VERSION.fullmatch(part))
    if directory != DIRECTORY:
        return True
    return len(rest) == 2 and parse_name(rest[0]) is not None and rest[1] in (STATE, MANIFEST)


def _verify_arrays(store: LocationStore, readers: dict[str, ChunkedArray]) -> Iterator[Check]:
    """What our own reading of chunks does not look at: the arrays' own metadata."""
    for reader in readers.values():
        yield f"{reader.location}: metadata", _trouble(open_array, store, reader)


def _chunk_keys(prefix: str, readers: dict[str, ChunkedArray]) -> set[str]:
    return {f"{prefix}{name}/{key}" for name, reader in readers.items() for key in reader.keys}


def _strangers(
    location: Location, is_expected: Callable[[str], bool], mention: Mention
) -> Iterator[Check]:
    """Every object whose key is not expected, and which is no leftover of a dead writer."""
    for key in location.objects():
        if is_expected(key) or any(is_leftover(part) for part in key.split("/")):
            continue
        place = f"{location}/{key}"
        if is_foreign(key):
            mention(f"{place} is not part of what is recorded; it is ignored.")
            continue
        yield (
            place,
            BadDataError(f"{place} is no part of what is recorded here. Move it elsewhere."),
        )


def _attempt(read: Callable[[], Found]) -> tuple[Found | None, BadDataError | None]:
    try:
        return read(), None
    except BadDataError as error:
        return None, error


def _trouble(check: Callable[..., Any], *arguments: Any) -> BadDataError | None:
    return _attempt(lambda: check(*arguments))[1]
