"""The scores format: write chunks, continue after a crash, publish, open."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from storage import documents
from storage.chunks import ChunkedArray, array_metadata, values_digest
from storage.errors import BadDataError, ConflictError, PipelineError
from storage.ledger import FAILED, LEDGER, LEDGER_COUNT, pause_between_attempts, waiting_lock
from storage.location import Location, TakeOver, is_foreign
from storage.schema import METADATA_NAME, SIZE_LIMIT, InChunks
from storage.trees import TreeFormat, group_metadata, metadata_bytes, write_tree

FORMAT = "mnist-stream scores"
FORMAT_VERSION = 1
AVERAGES_VERSION = 2
"""The version of an average's scores, which earlier releases do not read."""
AVERAGE_FIELDS = {"members": list, "average_shifts": int}
"""The fields of a schema that only an average's scores record."""
METRICS = "metrics.json"
JOURNAL = "chunks.jsonl"
"""A file that earlier releases kept in unfinished scores; it is ignored."""
AGAIN = "Remove the directory and score again."

Predictions: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int32]]
"""Probabilities `(rows, classes)` and predicted class indices `(rows,)`."""


@dataclass(frozen=True)
class ScoresSchema(InChunks):
    """The model and the split that are scored, and the shape of the arrays."""

    model_digest: str
    dataset_digest: str
    split: str
    rows: int
    classes: int
    chunk_rows: int
    class_names: tuple[str, ...]
    members: tuple[str, ...] = ()
    """The digests of the models that are averaged; may be empty for one model without shifts."""
    average_shifts: int = 0
    """The largest shift in pixels of the images that are averaged; 0 for none."""

    def __post_init__(self) -> None:
        limits = dict.fromkeys(("rows", "classes", "chunk_rows"), (1, SIZE_LIMIT))
        self._check_sizes("scoring", limits)
        self._check_chunk(4 * self.classes)
        if len(self.class_names) != self.classes:
            raise BadDataError(
                f"Scores of {self.classes:,} classes have {len(self.class_names):,} class names."
            )
        digest = average_digest(self.members or (self.model_digest,), self.average_shifts)
        if digest != self.model_digest:
            raise BadDataError(
                f"Scores of model {self.model_digest} name members and shifts whose average is "
                f"model {digest}. {AGAIN}"
            )

    @property
    def is_average(self) -> bool:
        """Whether the probabilities are means over several models or shifts."""
        return len(self.members) > 1 or self.average_shifts > 0

    @property
    def home(self) -> str:
        """The directory's name under `scores/`."""
        average = len(self.members), self.average_shifts
        return scoring_home(self.model_digest, self.dataset_digest, self.split, *average)

    def to_json(self) -> dict[str, Any]:
        document = {**vars(self), "class_names": list(self.class_names)}
        if self.is_average:
            return document | {"members": list(self.members)}
        return {name: value for name, value in document.items() if name not in AVERAGE_FIELDS}


def average_digest(members: Sequence[str], average_shifts: int) -> str:
    """Return the digest of the average of models, given by their digests, in this order.

    One model without shifts keeps its own digest.
    """
    if len(members) == 1 and not average_shifts:
        return members[0]
    text = "|".join(["mnist-stream average 1", str(average_shifts), *members])
    return hashlib.sha256(text.encode()).hexdigest()


def scoring_home(
    model_digest: str, dataset_digest: str, split: str, members: int = 1, average_shifts: int = 0
) -> str:
    """Return the directory's name under `scores/`, which depends on the arguments alone."""
    average = [f"average{members}"] if members > 1 else []
    average += [f"shifts{average_shifts}"] if average_shifts else []
    identity = hashlib.sha256(f"{model_digest}|{dataset_digest}".encode()).hexdigest()
    return "-".join([split, *average, identity[:12]])


def score_arrays(location: Location, schema: ScoresSchema) -> dict[str, ChunkedArray]:
    """Return the two arrays of the scores at a location, by name."""
    shapes: dict[str, tuple[Any, ...]] = {
        "probabilities": (schema.classes, "float32", schema.chunk_rows, ("sample", "class")),
        "predicted": (1, "int32", schema.chunk_rows, ("sample",)),
    }
    return {
        name: ChunkedArray(location.child(name), schema.rows, *shape)
        for name, shape in shapes.items()
    }


def read_arrays(
    location: Location, schema: ScoresSchema, number: int, digest: str | None = None
) -> Predictions:
    """Return one chunk; raise `BadDataError` if it is missing, damaged or has another digest."""
    arrays = score_arrays(location, schema)
    predictions = arrays["probabilities"].read(number), arrays["predicted"].read(number)[:, 0]
    if digest is not None:
        SCORES_FORMAT.check_digest(
            f"Chunk {number} of {location}", chunk_digest(predictions), digest
        )
    return predictions


def chunk_digest(predictions: Predictions) -> str:
    """Return the SHA-256 in hex of a chunk's values."""
    return values_digest(*predictions).hex()


@dataclass(frozen=True, repr=False)
class Scores:
    """The published scores of one split; chunks are checked as they are read."""

    location: Location
    """The scores' Zarr group, in an object store a version below their place."""
    schema: ScoresSchema
    """The numbers of rows, classes and chunks, the class names, and the digests of the inputs."""
    chunk_digests: tuple[str, ...]
    """SHA-256 of each chunk's values, in hex."""
    metrics: dict[str, Any]
    """The content of metrics.json."""

    def __repr__(self) -> str:
        schema = self.schema
        return (
            f"<Scores of {schema.split} at {self.location}>\n"
            f"  rows: {schema.rows:,}, {schema.classes} classes\n"
            f"  model: {schema.model_digest[:12]}, dataset: {schema.dataset_digest[:12]}\n"
            f"  digest: {self.digest[:12]}"
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the chunk digests, which identifies all predictions."""
        return hashlib.sha256("".join(self.chunk_digests).encode()).hexdigest()

    @property
    def arrays(self) -> dict[str, ChunkedArray]:
        return score_arrays(self.location, self.schema)

    def read_chunk(self, number: int) -> Predictions:
        """Return a chunk's probabilities `(rows, classes)` and predicted class indices `(rows,)`.

        Raises `BadDataError`, naming the chunk, if it is missing or damaged.
        """
        return read_arrays(self.location, self.schema, number, self.chunk_digests[number])


def open_scores(location: Location) -> Scores:
    """Open published scores; chunks are checked when they are read.

    Raises `BadDataError` if they are missing, incomplete or damaged.
    """
    return SCORES_FORMAT.open(location, partial(_from_attributes, location))


def _from_attributes(location: Location, tree: Location, attributes: dict[str, Any]) -> Scores:
    schema = _schema(attributes["scored"], str(tree))
    digests = tuple(str(digest) for digest in attributes["chunk_digests"])
    if len(digests) != schema.chunks:
        raise ValueError(f"{len(digests)} digests for {schema.chunks} chunks")
    if location.name != schema.home:
        raise BadDataError(
            f"{location} contains the scores that belong in {schema.home}: the directory was "
            "renamed or swapped. Rename it back."
        )
    place, metrics = f"{tree}/{METRICS}", SCORES_FORMAT.read(tree, METRICS)
    SCORES_FORMAT.check_digest(
        place, hashlib.sha256(metrics).hexdigest(), attributes["metrics_sha256"]
    )
    return Scores(tree, schema, digests, documents.parse_sealed(metrics, place))


def _schema(scored: Any, place: str) -> ScoresSchema:
    texts = dict.fromkeys(("model_digest", "dataset_digest", "split"), str)
    documents.check_fields(scored, texts, place)
    names = scored["class_names"]
    if type(names) is not list or any(type(name) is not str for name in names):
        raise BadDataError(f"{place} has class names that are not a list of strings. {AGAIN}")
    average = {name: scored[name] for name in AVERAGE_FIELDS if name in scored}
    documents.check_fields(average, {name: AVERAGE_FIELDS[name] for name in average}, place)
    members = tuple(map(str, scored.get("members", ())))
    return ScoresSchema(**scored | {"class_names": tuple(names), "members": members})


def is_complete(location: Location) -> bool:
    """Return whether scores are marked complete, damaged or not."""
    try:
        return SCORES_FORMAT.attributes_at(location).get("complete") is True
    except BadDataError:
        return False


def _nothing_there(location: Location) -> str:
    if location.exists():  # in a store, until they are published
        return f"{location} is incomplete: {SCORES_FORMAT.unfinished}"
    return f"There are no scores at {location}. Run `pipeline score`."


SCORES_FORMAT = TreeFormat(
    name=FORMAT,
    versions=(FORMAT_VERSION, AVERAGES_VERSION),
    attributes=frozenset({"scored", "chunk_digests", "metrics_sha256"}),
    unfinished="run the same `pipeline score` again.",
    remedy=AGAIN,
    absent=_nothing_there,
)


def scoring_homes(scores: Location) -> list[str]:
    """Return the sorted names of all scores in a run's `scores/`, complete or not."""
    others = (LEDGER, LEDGER_COUNT, FAILED)
    return [name for name in scores.names() if name not in others and not is_foreign(name)]


class ScoresWriter:
    """Writes the chunks of scores, in any order and from several threads.

    Sound chunks of an interrupted writer are kept; metadata are written again.
    """

    def __init__(self, location: Location, schema: ScoresSchema) -> None:
        """Collect the sound chunks; the caller holds the lock."""
        self.home = location
        self.location = location.draft()
        """The location of the chunks."""
        self._unsynced = self.location.unsynced()
        self.schema = schema
        self.digests: dict[int, str] = {}
        """The digest of each written chunk, including workers' chunks."""
        self._attributes: dict[str, Any] = {
            "format": FORMAT,
            "format_version": AVERAGES_VERSION if schema.is_average else FORMAT_VERSION,
            "scored": schema.to_json(),
        }
        for place in location.drafts():
            self._adopt(place)
        if not self.digests:
            self.location.delete_tree()
        for key in ("", *score_arrays(location, schema)):
            self.location.sweep(key)
        self.location.put(METADATA_NAME, metadata_bytes(group_metadata(self._attributes)))

    @property
    def missing(self) -> list[int]:
        return [number for number in range(self.schema.chunks) if number not in self.digests]

    def write_chunk(
        self, number: int, probabilities: NDArray[np.float32], predicted: NDArray[np.int32]
    ) -> None:
        """Write one chunk: `(rows, classes)` and `(rows,)`. It is durable when it is published."""
        predictions = (probabilities, predicted)
        self.digests[number] = write_arrays(self._unsynced, self.schema, number, *predictions)

    def read_chunk(self, number: int) -> Predictions:
        return read_arrays(self.location, self.schema, number, self.digests[number])

    def publish(self, metrics: dict[str, Any]) -> Scores:
        """Write the metrics, sync everything, then write the root that marks the scores complete.

        Raises `UnreachableError` if a chunk that a worker wrote cannot be seen from here.
        """
        arrays = score_arrays(self.location, self.schema)
        for array in arrays.values():
            array.check_presence()
        digests = [self.digests[number] for number in range(self.schema.chunks)]
        written = documents.sealed_bytes(metrics)
        self._unsynced.put(METRICS, written)
        attributes = self._attributes | {
            "chunk_digests": digests,
            "metrics_sha256": hashlib.sha256(written).hexdigest(),
        }
        members = {name: array_metadata(array) for name, array in arrays.items()}
        keys = [f"{name}/{key}" for name, array in arrays.items() for key in array.keys]
        write_tree(self._unsynced, attributes, members, [METRICS, *keys])
        if self.location != self.home:
            self.home.publish(self.location, METADATA_NAME)
        return Scores(self.location, self.schema, tuple(digests), metrics)

    def _adopt(self, place: Location) -> None:
        """Keep the sound chunks that an interrupted writer of the same scores left at a place."""
        try:
            if SCORES_FORMAT.attributes_at(place).get("scored") != self.schema.to_json():
                return
            written = set(place.objects())
        except (BadDataError, FileNotFoundError):  # a stalled writer may be removing it
            return
        keys = [array.keys for array in score_arrays(place, self.schema).values()]
        for number, (first, second) in enumerate(zip(*keys, strict=True)):
            pair = {f"probabilities/{first}", f"predicted/{second}"}
            if number in self.digests or not pair <= written:
                continue
            with suppress(BadDataError):
                probabilities, predicted = read_arrays(place, self.schema, number)
                if not np.array_equal(probabilities.argmax(axis=1), predicted):
                    continue  # the two chunks do not belong together
                if place == self.location:
                    self.digests[number] = chunk_digest((probabilities, predicted))
                else:
                    self.write_chunk(number, probabilities, predicted)


def write_arrays(
    location: Location,
    schema: ScoresSchema,
    number: int,
    probabilities: NDArray[np.float32],
    predicted: NDArray[np.int32],
) -> str:
    """Write one chunk of both arrays and return its digest.

    Any process may do so, repeatedly: the bytes are the same. Raises `BadDataError` that names the
    first row with a probability that is not finite.
    """
    finite = np.isfinite(probabilities).all(axis=1)
    if not finite.all():
        row = schema.chunk_bounds(number)[0] + int(np.argmin(finite))
        raise BadDataError(
            f"Row {row} of split {schema.split} has probabilities that are not finite: its values, "
            "or the model's parameters, are too large for the arithmetic. Correct the row, or "
            "score with another checkpoint."
        )
    arrays = score_arrays(location, schema)
    arrays["probabilities"].write(number, probabilities)
    arrays["predicted"].write(number, predicted[:, None])
    return chunk_digest((probabilities, predicted))


@contextmanager
def score_into(
    location: Location,
    schema: ScoresSchema,
    take_over: TakeOver | None = None,
    wait: float = 0.0,
    pause: Callable[[ConflictError], None] = pause_between_attempts,
) -> Iterator[ScoresWriter]:
    """Yield a writer of new or interrupted scores, under their lock: see `waiting_lock`.

    Raises `ConflictError` if another process is writing them, or if they are complete.
    """
    lock_file, subject = location.sibling(".lock"), f"The scoring {location}"
    with waiting_lock(lock_file, subject, take_over, wait, pause) as lock:
        try:
            if is_complete(location):
                raise ConflictError(
                    f"The scores in {location} are complete; open them, or remove them first."
                )
            yield ScoresWriter(location.under(lock), schema)
        finally:
            with suppress(PipelineError):  # an earlier failure is the one to report
                if is_complete(location):
                    lock.retire()  # no job will write here again
