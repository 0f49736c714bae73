"""A scoring by its documents: what it is of, whether it is complete, and its metrics.

Reads JSON alone and imports no Zarr, so that a job that finds its work done can say so at once.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from storage import documents
from storage.errors import BadDataError
from storage.location import Location, is_foreign
from storage.schema import CHUNK_LIMIT, METADATA_NAME, InChunks

FORMAT = "mnist-stream scores"
FORMAT_VERSION = 1
METRICS = "metrics.json"
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
JOURNAL = "chunks.jsonl"
"""Digests of the chunks written so far; gone once the scoring is complete."""
LEDGER = "ledger.jsonl"
LEDGER_COUNT = "ledger.json"
"""How many lines the ledger has, and their digest."""
FAILED = "failed"
"""What lies beside the scorings in a run's directory of scores."""
GO_ON = "run the same `pipeline score` again."
AGAIN = "Remove the directory and score again."


def scoring_home(model_digest: str, dataset_digest: str, split: str) -> str:
    """The one directory name of a scoring under `scores/`: of its content alone."""
    both = f"{model_digest}|{dataset_digest}".encode()
    return f"{split}-{hashlib.sha256(both).hexdigest()[:12]}"


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
        """The attributes that say what was scored."""
        return {**vars(self), "class_names": list(self.class_names)}


@dataclass(frozen=True)
class ScoresRecord:
    """A complete scoring by its documents: what was scored, the digests, and the metrics."""

    location: Location
    """Where it really lies: a Zarr group, in a store below its home."""
    schema: ScoresSchema
    chunk_digests: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over the chunk digests: of all predictions."""
        return hashlib.sha256("".join(self.chunk_digests).encode()).hexdigest()

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json, checked."""
        try:
            return documents.read_sealed(self.location, METRICS)
        except FileNotFoundError:
            raise BadDataError(f"{self.location}/{METRICS} is missing. {AGAIN}") from None


def open_record(location: Location) -> ScoresRecord:
    """A complete scoring's documents, each of them checked; its chunks are not looked at.

    Raises `BadDataError` where there is none, or it is incomplete or damaged.
    """
    tree = _published_tree(location)
    document = root_document(tree)
    attributes = document["attributes"]
    if attributes.get("complete") is not True:
        raise BadDataError(f"{location} is incomplete: {GO_ON}")
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
    for key, expected in recorded.items():
        documents.check_metadata(_read(tree, key), expected, f"{tree}/{key}", AGAIN)
    found = hashlib.sha256(_read(tree, METRICS)).hexdigest()
    if found != metrics_digest:
        raise BadDataError(
            f"{tree}/{METRICS} has digest {found}, recorded is {metrics_digest}. {AGAIN}"
        )
    return ScoresRecord(tree, schema, digests)


def _schema(scored: Any, place: str) -> ScoresSchema:
    documents.check_fields(
        scored, dict.fromkeys(("model_digest", "dataset_digest", "split"), str), place
    )
    names = scored["class_names"]
    if type(names) is not list or any(type(name) is not str for name in names):
        raise BadDataError(f"{place} has class names that are no list of texts. {AGAIN}")
    return ScoresSchema(**scored | {"class_names": tuple(names)})


def _read(location: Location, key: str) -> bytes:
    try:
        return documents.read(location, key)
    except FileNotFoundError:
        raise BadDataError(f"{location}/{key} is missing. {AGAIN}") from None


def is_complete(location: Location) -> bool:
    """Whether a scoring says that it is complete, whatever else may be wrong with it."""
    try:
        return root_document(_published_tree(location))["attributes"].get("complete") is True
    except BadDataError:
        return False


def _published_tree(location: Location) -> Location:
    """Return where the scoring that is published at its home lies."""
    try:
        return location.current(METADATA_NAME)
    except FileNotFoundError:
        raise BadDataError(f"There is no scoring at {location}. Run `pipeline score`.") from None


def root_document(location: Location) -> dict[str, Any]:
    """The `zarr.json` of what claims to be a scoring; its format and version are checked."""
    place = f"{location}/{METADATA_NAME}"
    try:
        document = documents.parse(documents.read(location, METADATA_NAME), place)
    except FileNotFoundError:
        if location.exists():  # as it is in a store until it is published
            raise BadDataError(f"{location} is incomplete: {GO_ON}") from None
        raise BadDataError(f"There is no scoring at {location}. Run `pipeline score`.") from None
    attributes = document.get("attributes")
    if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
        raise BadDataError(f"{place} does not say '{FORMAT}'; it is not a scoring. {AGAIN}")
    if attributes.get("format_version") != FORMAT_VERSION:
        raise BadDataError(
            f"{place} has format version {attributes.get('format_version')!r}; this release reads "
            f"{FORMAT_VERSION}. Install a newer mnist-stream."
        )
    return document


def scoring_homes(scores: Location) -> list[str]:
    """The names of the scorings in a run's directory of scores, complete or not, sorted."""
    others = (LEDGER, LEDGER_COUNT, FAILED)
    return [name for name in scores.names() if name not in others and not is_foreign(name)]
