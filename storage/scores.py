"""The scores format: what a scoring is of, and a complete one opened for reading."""

import hashlib
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from storage import documents
from storage.chunks import ChunkedArray
from storage.errors import BadDataError
from storage.ledger import FAILED, LEDGER, LEDGER_COUNT
from storage.location import Location, is_foreign
from storage.schema import CHUNK_LIMIT, METADATA_NAME, InChunks

FORMAT = "mnist-stream scores"
FORMAT_VERSION = 1
METRICS = "metrics.json"
JOURNAL = "chunks.jsonl"
"""What earlier releases kept beside a scoring until it was complete; it is not read."""
ROOT_ATTRIBUTES = frozenset(
    {
        "format",
        "format_version",
        "scored",
        "chunk_digests",
        documents.METADATA_DIGESTS,
        documents.OWN_METADATA_DIGESTS,
        "metrics_sha256",
        "complete",
    }
)
"""The attributes of a scoring's root that are ours, and sealed."""
CONTINUE = "run the same `pipeline score` again."
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
        for field in ("rows", "classes", "chunk_rows"):
            value = getattr(self, field)
            if type(value) is not int or not 1 <= value < 2**48:
                raise BadDataError(
                    f"A scoring's {field} is {value!r}; expected a positive integer."
                )
        if 4 * self.classes * self.chunk_rows > CHUNK_LIMIT:
            raise BadDataError(
                f"A chunk of {self.chunk_rows:,} rows of {self.classes:,} classes is more than "
                f"{CHUNK_LIMIT:,} bytes; use fewer rows per chunk."
            )
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
    rows, chunk_rows = schema.rows, schema.chunk_rows
    return {
        "probabilities": ChunkedArray(
            location.child("probabilities"), rows, schema.classes, "float32", chunk_rows
        ),
        "predicted": ChunkedArray(
            location.child("predicted"), rows, 1, "int32", chunk_rows, two_dimensional=False
        ),
    }


def read_unchecked(location: Location, schema: ScoresSchema, number: int) -> Predictions:
    """Read one chunk, whatever its digest; `BadDataError` where it is missing or damaged."""
    arrays = score_arrays(location, schema)
    return arrays["probabilities"].read(number), arrays["predicted"].read(number)[:, 0]


def read_arrays(location: Location, schema: ScoresSchema, number: int, digest: str) -> Predictions:
    """Read one chunk; `BadDataError` names it where it is missing or has another digest."""
    predictions = read_unchecked(location, schema, number)
    if chunk_digest(*predictions) != digest:
        raise BadDataError(
            f"Chunk {number} of {location} does not have its recorded digest. {AGAIN}"
        )
    return predictions


def chunk_digest(probabilities: NDArray[np.float32], predicted: NDArray[np.int32]) -> str:
    """Return the SHA-256 of a chunk's values."""
    content = hashlib.sha256(np.ascontiguousarray(probabilities, dtype="<f4").data)
    content.update(np.ascontiguousarray(predicted, dtype="<i4").data)
    return content.hexdigest()


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
    tree = _published_tree(location)
    document = root_document(tree)
    attributes = document["attributes"]
    if attributes.get("complete") is not True:
        raise BadDataError(f"{location} is incomplete: {CONTINUE}")
    place = f"{tree}/{METADATA_NAME}"
    documents.check_group_seal(document, ROOT_ATTRIBUTES, place)
    try:
        schema = _schema(attributes["scored"], place)
        digests = tuple(str(digest) for digest in attributes["chunk_digests"])
        recorded = documents.recorded_digests(attributes)
        metrics_digest = attributes["metrics_sha256"]
        if len(digests) != schema.chunks:
            raise ValueError(f"{len(digests)} digests for {schema.chunks} chunks")
    except (KeyError, TypeError, ValueError) as error:
        raise BadDataError(f"{place} is not of a scoring ({error!r}). {AGAIN}") from error
    if location.name != schema.home:
        raise BadDataError(
            f"{location} holds the scoring whose home is {schema.home}: it was renamed or swapped "
            "with another. Give it its name back."
        )
    documents.check_all_metadata(tree, recorded, AGAIN)
    metrics = _read(tree, METRICS)
    digest = hashlib.sha256(metrics).hexdigest()
    if digest != metrics_digest:
        raise BadDataError(
            f"{tree}/{METRICS} has digest {digest}, recorded is {metrics_digest}. {AGAIN}"
        )
    content = documents.parse(metrics, f"{tree}/{METRICS}")
    return Scores(tree, schema, digests, documents.check_seal(content, f"{tree}/{METRICS}"))


def _schema(scored: Any, place: str) -> ScoresSchema:
    texts = dict.fromkeys(("model_digest", "dataset_digest", "split"), str)
    documents.check_fields(scored, texts, place)
    names = scored["class_names"]
    if type(names) is not list or any(type(name) is not str for name in names):
        raise BadDataError(f"{place} has class names that are not a list of strings. {AGAIN}")
    return ScoresSchema(**scored | {"class_names": tuple(names)})


def _read(location: Location, key: str) -> bytes:
    try:
        return documents.read(location, key)
    except FileNotFoundError:
        raise BadDataError(f"{location}/{key} is missing. {AGAIN}") from None


def is_complete(location: Location) -> bool:
    """Return whether a scoring says that it is complete, whatever else may be wrong with it."""
    try:
        return root_document(_published_tree(location))["attributes"].get("complete") is True
    except BadDataError:
        return False


def _published_tree(location: Location) -> Location:
    try:
        return location.current(METADATA_NAME)
    except FileNotFoundError:
        raise BadDataError(f"There is no scoring at {location}. Run `pipeline score`.") from None


def root_document(location: Location) -> dict[str, Any]:
    """Return the `zarr.json` of what claims to be a scoring; its format and version are checked."""
    place = f"{location}/{METADATA_NAME}"
    try:
        document = documents.parse(documents.read(location, METADATA_NAME), place)
    except FileNotFoundError:
        if location.exists():  # as it is in a store until it is published
            raise BadDataError(f"{location} is incomplete: {CONTINUE}") from None
        raise BadDataError(f"There is no scoring at {location}. Run `pipeline score`.") from None
    documents.check_format(document.get("attributes"), FORMAT, (FORMAT_VERSION,), place)
    return document


def scoring_homes(scores: Location) -> list[str]:
    """Return the names of the scorings in a run's directory of scores, complete or not, sorted."""
    others = (LEDGER, LEDGER_COUNT, FAILED)
    return [name for name in scores.names() if name not in others and not is_foreign(name)]
