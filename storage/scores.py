"""The scores format: what a scoring is of, and a complete one opened for reading."""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from storage import documents
from storage.chunks import ChunkedArray, values_digest
from storage.errors import BadDataError
from storage.ledger import FAILED, LEDGER, LEDGER_COUNT
from storage.location import Location, is_foreign
from storage.schema import SIZE_LIMIT, InChunks
from storage.trees import TreeFormat

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


@dataclass(frozen=True)
class Scores:
    """A complete scoring; chunks are checked as they are read."""

    location: Location
    """Where it really lies: a Zarr group, in a store below its home."""
    schema: ScoresSchema
    chunk_digests: tuple[str, ...]
    metrics: dict[str, Any]
    """The content of metrics.json."""

    @property
    def digest(self) -> str:
        """SHA-256 over the chunk digests: of all predictions."""
        return hashlib.sha256("".join(self.chunk_digests).encode()).hexdigest()

    @property
    def arrays(self) -> dict[str, ChunkedArray]:
        """The two arrays by name."""
        return score_arrays(self.location, self.schema)

    def read_chunk(self, number: int) -> Predictions:
        """Read one chunk; `BadDataError` names it where it is missing or damaged."""
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
