"""The scores format: written chunk by chunk, continued after a crash, published, opened."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from storage import documents
from storage.chunks import ChunkedArray, array_metadata, values_digest
from storage.errors import BadDataError, ConflictError, PipelineError
from storage.ledger import FAILED, LEDGER, LEDGER_COUNT, pause_between_looks, waiting_lock
from storage.location import Location, TakeOver, is_foreign
from storage.schema import METADATA_NAME, SIZE_LIMIT, InChunks
from storage.trees import TreeFormat, group_metadata, metadata_bytes, write_tree

FORMAT = "mnist-stream scores"
FORMAT_VERSION = 1
METRICS = "metrics.json"
JOURNAL = "chunks.jsonl"
"""What earlier releases kept beside a scoring until it was complete; it is not read."""
AGAIN = "Remove the directory and score again."

Predictions: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int32]]
"""Probabilities `(rows, classes)` and predicted class indices `(rows,)`."""


@dataclass(frozen=True)
class ScoresSchema(InChunks):
    """What a scoring is of, and the shape of its arrays."""

    model_digest: str
    dataset_digest: str
    split: str
    rows: int
    classes: int
    chunk_rows: int
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be: `BadDataError` names the field."""
        limits = dict.fromkeys(("rows", "classes", "chunk_rows"), (1, SIZE_LIMIT))
        self._check_sizes("scoring", limits)
        self._check_chunk(4 * self.classes)
        if len(self.class_names) != self.classes:
            raise BadDataError(
                f"A scoring of {self.classes:,} classes has {len(self.class_names):,} names."
            )

    @property
    def home(self) -> str:
        """The scoring's one directory name under `scores/`."""
        return scoring_home(self.model_digest, self.dataset_digest, self.split)

    def to_json(self) -> dict[str, Any]:
        """Return the attributes that say what was scored."""
        return {**vars(self), "class_names": list(self.class_names)}


def scoring_home(model_digest: str, dataset_digest: str, split: str) -> str:
    """Return the one directory name of a scoring under `scores/`: of its content alone."""
    both = f"{model_digest}|{dataset_digest}".encode()
    return f"{split}-{hashlib.sha256(both).hexdigest()[:12]}"


def score_arrays(location: Location, schema: ScoresSchema) -> dict[str, ChunkedArray]:
    """Return the two arrays of the scoring at a location, by name."""
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
    """Read one chunk; `BadDataError` names it where it is missing or has another digest."""
    arrays = score_arrays(location, schema)
    predictions = arrays["probabilities"].read(number), arrays["predicted"].read(number)[:, 0]
    if digest is not None:
        SCORES_FORMAT.check_digest(
            f"Chunk {number} of {location}", chunk_digest(predictions), digest
        )
    return predictions


def chunk_digest(predictions: Predictions) -> str:
    """Return the SHA-256 of a chunk's values."""
    return values_digest(*predictions).hex()


@dataclass(frozen=True, repr=False)
class Scores:
    """The published scores of one split; chunks are checked as they are read."""

    location: Location
    """Their Zarr group, in an object store a version below their place."""
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
        """SHA-256 over the chunk digests, and so over all predictions."""
        return hashlib.sha256("".join(self.chunk_digests).encode()).hexdigest()

    @property
    def arrays(self) -> dict[str, ChunkedArray]:
        """The two arrays by name."""
        return score_arrays(self.location, self.schema)

    def read_chunk(self, number: int) -> Predictions:
        """Return a chunk's probabilities `(rows, classes)` and predicted class indices `(rows,)`.

        Raises `BadDataError`, naming the chunk, if it is missing or damaged.
        """
        return read_arrays(self.location, self.schema, number, self.chunk_digests[number])


def open_scores(location: Location) -> Scores:
    """Open a complete scoring: its documents are checked, its chunks are not looked at.

    Raises `BadDataError` where there is none, or it is incomplete or damaged.
    """
    return SCORES_FORMAT.open(location, partial(_from_attributes, location))


def _from_attributes(location: Location, tree: Location, attributes: dict[str, Any]) -> Scores:
    schema = _schema(attributes["scored"], str(tree))
    digests = tuple(str(digest) for digest in attributes["chunk_digests"])
    if len(digests) != schema.chunks:
        raise ValueError(f"{len(digests)} digests for {schema.chunks} chunks")
    if location.name != schema.home:
        raise BadDataError(
            f"{location} holds the scoring whose home is {schema.home}: it was renamed or swapped "
            "with another. Give it its name back."
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
    return ScoresSchema(**scored | {"class_names": tuple(names)})


def is_complete(location: Location) -> bool:
    """Return whether a scoring says that it is complete, whatever else may be wrong with it."""
    try:
        return SCORES_FORMAT.attributes_at(location).get("complete") is True
    except BadDataError:
        return False


def _nothing_there(location: Location) -> str:
    if location.exists():  # as it is in a store until it is published
        return f"{location} is incomplete: {SCORES_FORMAT.unfinished}"
    return f"There is no scoring at {location}. Run `pipeline score`."


SCORES_FORMAT = TreeFormat(
    name=FORMAT,
    versions=(FORMAT_VERSION,),
    attributes=frozenset({"scored", "chunk_digests", "metrics_sha256"}),
    unfinished="run the same `pipeline score` again.",
    remedy=AGAIN,
    absent=_nothing_there,
)


def scoring_homes(scores: Location) -> list[str]:
    """Return the names of the scorings in a run's directory of scores, complete or not, sorted."""
    others = (LEDGER, LEDGER_COUNT, FAILED)
    return [name for name in scores.names() if name not in others and not is_foreign(name)]


class ScoresWriter:
    """Writes the chunks of one scoring, in any order and from several threads."""

    def __init__(self, location: Location, schema: ScoresSchema) -> None:
        """Keep the sound chunks of a writer that died; the caller holds the lock.

        Nothing else of it is used: metadata is written anew.
        """
        self.home = location
        self.location = location.draft()
        """Where it is written."""
        self.schema = schema
        self.digests: dict[int, str] = {}
        """The digest of each chunk that is written, here or by `write_arrays` elsewhere."""
        self._attributes: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
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
        """The chunks that are still to be written."""
        return [number for number in range(self.schema.chunks) if number not in self.digests]

    def write_chunk(
        self, number: int, probabilities: NDArray[np.float32], predicted: NDArray[np.int32]
    ) -> None:
        """Write one chunk: `(rows, classes)` and `(rows,)`; durable when this returns."""
        predictions = (probabilities, predicted)
        self.digests[number] = write_arrays(self.location, self.schema, number, *predictions)

    def read_chunk(self, number: int) -> Predictions:
        """Read a chunk that was written, perhaps by the job before, checked."""
        return read_arrays(self.location, self.schema, number, self.digests[number])

    def publish(self, metrics: dict[str, Any]) -> Scores:
        """Write the metrics, then say that the scoring is complete.

        Raises `UnreachableError` where a chunk that was written elsewhere is not here.
        """
        arrays = score_arrays(self.location, self.schema)
        for array in arrays.values():
            array.check_there()
        digests = [self.digests[number] for number in range(self.schema.chunks)]
        written = documents.sealed_bytes(metrics)
        self.location.put(METRICS, written)
        attributes = self._attributes | {
            "chunk_digests": digests,
            "metrics_sha256": hashlib.sha256(written).hexdigest(),
        }
        members = {name: array_metadata(array) for name, array in arrays.items()}
        write_tree(self.location, attributes, members)
        if self.location != self.home:
            self.home.publish(self.location, METADATA_NAME)
        return Scores(self.location, self.schema, tuple(digests), metrics)

    def _adopt(self, place: Location) -> None:
        """Keep the chunks that a writer of the same scoring left at a place, whole and sound."""
        try:
            if SCORES_FORMAT.attributes_at(place).get("scored") != self.schema.to_json():
                return
            written = set(place.objects())
        except (BadDataError, FileNotFoundError):  # its writer may be removing it
            return
        keys = [array.keys for array in score_arrays(place, self.schema).values()]
        for number, (first, second) in enumerate(zip(*keys, strict=True)):
            both = {f"probabilities/{first}", f"predicted/{second}"}
            if number in self.digests or not both <= written:
                continue
            with suppress(BadDataError):
                probabilities, predicted = read_arrays(place, self.schema, number)
                if not np.array_equal(probabilities.argmax(axis=1), predicted):
                    continue  # the one is not of the other
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
    """Write one chunk of a scoring's two arrays, and return its digest for `record_chunk`.

    Any process may do that, and do it again: the bytes are the same. Raises `BadDataError` that
    names the row of a probability that is not a finite number.
    """
    finite = np.isfinite(probabilities).all(axis=1)
    if not finite.all():
        row = schema.chunk_bounds(number)[0] + int(np.argmin(finite))
        raise BadDataError(
            f"Row {row} of split {schema.split} gets probabilities that are not finite numbers: "
            "its values, or the model's parameters, are too large for the arithmetic. Correct the "
            "row, or score with another checkpoint."
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
    pause: Callable[[ConflictError], None] = pause_between_looks,
) -> Iterator[ScoresWriter]:
    """Write, or continue writing, a scoring in its home, under its lock: see `waiting_lock`.

    Raises `ConflictError` where another writes it, or has completed it in the meantime.
    """
    lock_file, what = location.sibling(".lock"), f"The scoring {location}"
    with waiting_lock(lock_file, what, take_over, wait, pause) as lock:
        try:
            if is_complete(location):
                raise ConflictError(
                    f"The scoring {location} is complete; open it, or remove it first."
                )
            yield ScoresWriter(location.under(lock), schema)
        finally:
            with suppress(PipelineError):  # a failure before is the one to tell
                if is_complete(location):
                    lock.retire()  # no job writes it again, and the lock's file would stay
