"""The scores format: probabilities and predicted classes, chunk by chunk, then published."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from storage import sealed
from storage.chunks import ChunkReader
from storage.errors import BadDataError, ConflictError
from storage.location import Location, TakeOver
from storage.locks import writer_lock
from storage.schema import CHUNK_LIMIT
from storage.store import METADATA_NAME, open_for_writing

FORMAT = "mnist-stream scores"
FORMAT_VERSION = 1
METRICS = "metrics.json"
JOURNAL = "chunks.jsonl"
"""Digests of the chunks written so far; gone once the scoring is complete."""
AGAIN = "Remove the directory and score again."


@dataclass(frozen=True)
class ScoresSchema:
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
        both = f"{self.model_digest}|{self.dataset_digest}".encode()
        return f"{self.split}-{hashlib.sha256(both).hexdigest()[:12]}"

    @property
    def chunks(self) -> int:
        """Chunks of each array."""
        return -(-self.rows // self.chunk_rows)

    def chunk_bounds(self, number: int) -> tuple[int, int]:
        """The rows [start, stop) of a chunk."""
        start = number * self.chunk_rows
        return start, min(start + self.chunk_rows, self.rows)

    def to_json(self) -> dict[str, Any]:
        """The attributes that say what was scored."""
        return {**vars(self), "class_names": list(self.class_names)}


@dataclass(frozen=True)
class Scores:
    """A complete scoring, opened for reading; chunks are checked as they are read."""

    location: Location
    schema: ScoresSchema
    chunk_digests: tuple[str, ...]

    def read_chunk(self, number: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Probabilities `(rows, classes)` and predicted class indices `(rows,)` of a chunk.

        Raises `BadDataError` that names the chunk where it is missing or damaged.
        """
        probabilities, predicted = self.read_unchecked(number)
        if _chunk_digest(probabilities, predicted) != self.chunk_digests[number]:
            raise BadDataError(
                f"Chunk {number} of {self.location} does not have its recorded digest. {AGAIN}"
            )
        if not 0 <= predicted.min() <= predicted.max() < self.schema.classes:
            raise BadDataError(
                f"Chunk {number} of {self.location} predicts a class that is none. {AGAIN}"
            )
        return probabilities, predicted

    def read_unchecked(self, number: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The same of whatever decodes, whether or not it is what was recorded."""
        probabilities, predicted = (
            self.readers[name].read(number) for name in ("probabilities", "predicted")
        )
        return probabilities, predicted[:, 0]

    @property
    def readers(self) -> dict[str, ChunkReader]:
        """The two arrays by name, as readers of whole chunks."""
        schema, location = self.schema, self.location
        return {
            "probabilities": ChunkReader(
                location.child("probabilities"),
                schema.rows,
                schema.classes,
                "float32",
                schema.chunk_rows,
            ),
            "predicted": ChunkReader(
                location.child("predicted"),
                schema.rows,
                columns=1,
                dtype="int32",
                chunk_rows=schema.chunk_rows,
                two_dimensional=False,
            ),
        }

    @property
    def digest(self) -> str:
        """SHA-256 over the chunk digests: of all predictions."""
        return hashlib.sha256("".join(self.chunk_digests).encode()).hexdigest()

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json, checked."""
        try:
            return sealed.read_sealed(self.location, METRICS)
        except FileNotFoundError:
            raise BadDataError(f"{self.location}/{METRICS} is missing. {AGAIN}") from None


class ScoresWriter:
    """A scoring that is being written, possibly one that goes on where another died."""

    def __init__(self, location: Location, schema: ScoresSchema) -> None:
        """Takes over what sound chunks there are; the caller holds the lock.

        Of a scoring before, nothing else is used: the arrays' metadata is written anew.
        """
        self.location = location
        self.schema = schema
        self._digests: dict[int, str] = {}
        self._digests = self._journalled()
        if not self._digests:
            location.delete_tree()
        for key in ("", *self._scores().readers):
            location.sweep(key)
        for key, document in _metadata(schema).items():
            location.put(key, document)

    @property
    def missing(self) -> list[int]:
        """The chunks that are still to be written."""
        return [number for number in range(self.schema.chunks) if number not in self._digests]

    def write_chunk(
        self, number: int, probabilities: NDArray[np.float32], predicted: NDArray[np.int32]
    ) -> None:
        """Write one chunk: `(rows, classes)` and `(rows,)`; durable when this returns."""
        self.record_chunk(
            number, write_arrays(self.location, self.schema, number, probabilities, predicted)
        )

    def record_chunk(self, number: int, digest: str) -> None:
        """Enter a chunk that `write_arrays` has written, here or elsewhere, in the journal."""
        line = sealed.sealed_bytes({"chunk": number, "digest": digest}, indent=None)
        self.location.note(JOURNAL, number, line)
        self._digests[number] = digest

    def recorded_digest(self, number: int) -> str | None:
        """The digest of a chunk that is written; None of one that is missing."""
        return self._digests.get(number)

    def read_chunk(self, number: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """A chunk that was written, perhaps by the job before, checked."""
        return self._scores().read_chunk(number)

    def publish(self, metrics: dict[str, Any]) -> Scores:
        """Write the metrics, then say that the scoring is complete."""
        scores = self._scores()
        self.location.check_held()
        self.location.put(METRICS, sealed.sealed_bytes(metrics))
        document = sealed.parse(self.location.get(METADATA_NAME), str(self.location))
        document["attributes"] |= {
            "chunk_digests": list(scores.chunk_digests),
            "metadata_digests": {
                key: hashlib.sha256(self.location.get(key)).hexdigest()
                for key in (f"{name}/{METADATA_NAME}" for name in scores.readers)
            },
            "metrics_sha256": hashlib.sha256(self.location.get(METRICS)).hexdigest(),
            "complete": True,
        }
        self.location.check_held()
        self.location.put(METADATA_NAME, sealed.document_bytes(sealed.seal_group(document)))
        self.location.delete_notes(JOURNAL)
        return scores

    def _scores(self) -> Scores:
        digests = tuple(self._digests.get(number, "") for number in range(self.schema.chunks))
        return Scores(self.location, self.schema, digests)

    def _journalled(self) -> dict[int, str]:
        """The chunks that a job before wrote and that are sound, by their journal."""
        try:
            if _document(self.location)["attributes"].get("scored") != self.schema.to_json():
                return {}
            lines = self.location.notes(JOURNAL).split(b"\n")
        except BadDataError:
            return {}
        recorded: dict[int, str] = {}
        for line in lines:
            try:
                entry = sealed.check_seal(sealed.parse(line, JOURNAL), JOURNAL)
                recorded[int(entry["chunk"])] = str(entry["digest"])
            except (BadDataError, KeyError, ValueError, TypeError):
                continue  # a line cut off by the death: its chunk is scored again
        return {
            number: digest for number, digest in recorded.items() if self._sound(number, digest)
        }

    def _sound(self, number: int, digest: str) -> bool:
        try:
            return digest == _chunk_digest(*self._scores().read_unchecked(number))
        except BadDataError:
            return False


def write_arrays(
    location: Location,
    schema: ScoresSchema,
    number: int,
    probabilities: NDArray[np.float32],
    predicted: NDArray[np.int32],
) -> str:
    """Write one chunk of a scoring's two arrays, and return its digest for `record_chunk`.

    Any process may do that, and do it again: the bytes are the same.
    """
    start, stop = schema.chunk_bounds(number)
    for name, values in (("probabilities", probabilities), ("predicted", predicted)):
        open_for_writing(location, name)[start:stop] = values
    return _chunk_digest(probabilities, predicted)


def read_arrays(
    location: Location, schema: ScoresSchema, number: int, digest: str
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """One chunk of an incomplete scoring: `BadDataError` where it has another digest than that."""
    digests = [""] * schema.chunks
    digests[number] = digest
    return Scores(location, schema, tuple(digests)).read_chunk(number)


@contextmanager
def score_into(
    location: Location, schema: ScoresSchema, take_over: TakeOver | None = None
) -> Iterator[ScoresWriter]:
    """Write, or go on writing, a scoring in its home, under its lock.

    Raises `ConflictError` where another writes it, or has completed it in the meantime.
    """
    with scores_lock(location, take_over) as locked:
        if is_complete(location):
            raise ConflictError(f"The scoring {location} is complete; open it, or remove it first.")
        yield ScoresWriter(locked, schema)


@contextmanager
def scores_lock(location: Location, take_over: TakeOver | None = None) -> Iterator[Location]:
    """Hold the right to write one scoring, which is given to its holder as a location.

    Raises `ConflictError` that names the holder where another has it.
    """
    with writer_lock(location.sibling("", ".lock"), f"The scoring {location}", take_over) as lock:
        yield location.under(lock)


def open_scores(location: Location) -> Scores:
    """A complete scoring, its attributes checked.

    Raises `BadDataError` where there is none, or it is incomplete or damaged.
    """
    document = _document(location)
    attributes = document["attributes"]
    if attributes.get("complete") is not True:
        raise BadDataError(f"{location} is incomplete: run the same `pipeline score` again.")
    place = f"{location}/{METADATA_NAME}"
    sealed.check_group_seal(document, place)
    try:
        schema = _schema(attributes["scored"], place)
        digests = tuple(str(digest) for digest in attributes["chunk_digests"])
        recorded = dict(attributes["metadata_digests"]) | {METRICS: attributes["metrics_sha256"]}
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
        _check_digest(location, key, expected)
    return Scores(location, schema, digests)


def _schema(scored: Any, place: str) -> ScoresSchema:
    sealed.check_fields(
        scored, {name: str for name in ("model_digest", "dataset_digest", "split")}, place
    )
    names = scored["class_names"]
    if type(names) is not list or any(type(name) is not str for name in names):
        raise BadDataError(f"{place} has class names that are no list of texts. {AGAIN}")
    return ScoresSchema(**scored | {"class_names": tuple(names)})


def _check_digest(location: Location, key: str, expected: str) -> None:
    try:
        found = hashlib.sha256(sealed.read(location, key)).hexdigest()
    except FileNotFoundError:
        raise BadDataError(f"{location}/{key} is missing. {AGAIN}") from None
    if found != expected:
        raise BadDataError(f"{location}/{key} has digest {found}, recorded is {expected}. {AGAIN}")


def is_complete(location: Location) -> bool:
    """Whether a scoring says that it is complete, whatever else may be wrong with it."""
    try:
        return _document(location)["attributes"].get("complete") is True
    except BadDataError:
        return False


def _document(location: Location) -> dict[str, Any]:
    """The `zarr.json` of what claims to be a scoring; its format and version are checked."""
    place = f"{location}/{METADATA_NAME}"
    try:
        document = sealed.parse(sealed.read(location, METADATA_NAME), place)
    except FileNotFoundError:
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


def _metadata(schema: ScoresSchema) -> dict[str, bytes]:
    """Every `zarr.json` of an empty scoring, by key; the root's comes first."""
    documents: dict[str, Buffer] = {}
    root = zarr.create_group(
        MemoryStore(documents),
        attributes={
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "scored": schema.to_json(),
        },
    )
    shapes = {
        "probabilities": ("float32", ("sample", "class"), (schema.classes,)),
        "predicted": ("int32", ("sample",), ()),
    }
    for name, (dtype, dimensions, columns) in shapes.items():
        root.create_array(
            name,
            shape=(schema.rows, *columns),
            dtype=dtype,
            chunks=(schema.chunk_rows, *columns),
            compressors=[ZstdCodec(level=1, checksum=True), Crc32cCodec()],
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=dimensions,
            fill_value=0,
            config={"write_empty_chunks": True},
        )
    return {key: document.to_bytes() for key, document in documents.items()}


def _chunk_digest(probabilities: NDArray[np.float32], predicted: NDArray[np.int32]) -> str:
    content = hashlib.sha256(np.ascontiguousarray(probabilities, dtype="<f4").data)
    content.update(np.ascontiguousarray(predicted, dtype="<i4").data)
    return content.hexdigest()
