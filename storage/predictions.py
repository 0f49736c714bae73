"""The scores format: probabilities and predicted classes, chunk by chunk, then published."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import documents
from storage.chunks import ChunkedArray
from storage.errors import BadDataError, ConflictError, PipelineError
from storage.location import Location, TakeOver, writer_lock
from storage.schema import METADATA_NAME
from storage.scorings import (
    AGAIN,
    FORMAT,
    FORMAT_VERSION,
    JOURNAL,
    METRICS,
    ScoresRecord,
    ScoresSchema,
    is_complete,
    open_record,
    root_document,
)
from storage.zarr_metadata import (
    Document,
    array_metadata,
    group_metadata,
    metadata_bytes,
    metadata_digests,
)

__all__ = [
    "FORMAT",
    "JOURNAL",
    "METRICS",
    "Scores",
    "ScoresSchema",
    "ScoresWriter",
    "is_complete",
    "open_scores",
    "score_into",
    "scores_lock",
]


class Scores(ScoresRecord):
    """A complete scoring, opened for reading; chunks are checked as they are read."""

    def read_chunk(self, number: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Probabilities `(rows, classes)` and predicted class indices `(rows,)` of a chunk.

        Raises `BadDataError` that names the chunk where it is missing or damaged.
        """
        probabilities, predicted = self.read_unchecked(number)
        if _chunk_digest(probabilities, predicted) != self.chunk_digests[number]:
            raise BadDataError(
                f"Chunk {number} of {self.location} does not have its recorded digest. {AGAIN}"
            )
        _check_finite(probabilities, self.schema, number)
        if not 0 <= predicted.min() <= predicted.max() < self.schema.classes:
            raise BadDataError(
                f"Chunk {number} of {self.location} predicts a class that is none. {AGAIN}"
            )
        return probabilities, predicted

    def read_unchecked(self, number: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The same of whatever decodes, whether or not it is what was recorded."""
        probabilities, predicted = (
            self.arrays[name].read(number) for name in ("probabilities", "predicted")
        )
        return probabilities, predicted[:, 0]

    @property
    def arrays(self) -> dict[str, ChunkedArray]:
        """The two arrays by name, chunk by chunk."""
        return score_arrays(self.location, self.schema)


def score_arrays(location: Location, schema: ScoresSchema) -> dict[str, ChunkedArray]:
    """The two arrays of the scoring at a location, by name."""
    return {
        "probabilities": ChunkedArray(
            location.child("probabilities"),
            schema.rows,
            schema.classes,
            "float32",
            schema.chunk_rows,
        ),
        "predicted": ChunkedArray(
            location.child("predicted"),
            schema.rows,
            columns=1,
            dtype="int32",
            chunk_rows=schema.chunk_rows,
            two_dimensional=False,
        ),
    }


class ScoresWriter:
    """A scoring that is being written, possibly one that goes on where another died."""

    def __init__(self, location: Location, schema: ScoresSchema) -> None:
        """Takes over what sound chunks there are; the caller holds the lock.

        Of a scoring before, nothing else is used: the arrays' metadata is written anew.
        """
        self.home = location
        self.location = location.draft()
        """Where it is written."""
        self.schema = schema
        self._digests: dict[int, str] = {}
        for place in location.drafts():
            self._adopt(place)
        if not self._digests:
            self.location.delete_tree()
        for key in ("", *self._scores().arrays):
            self.location.sweep(key)
        self.location.put(METADATA_NAME, self._root({}))
        for name, document in self._arrays.items():
            self.location.put(f"{name}/{METADATA_NAME}", metadata_bytes(document))

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
        line = documents.sealed_bytes({"chunk": number, "digest": digest}, indent=None)
        self.location.note(JOURNAL, number, line)
        self._digests[number] = digest

    def recorded_digest(self, number: int) -> str | None:
        """The digest of a chunk that is written; None of one that is missing."""
        return self._digests.get(number)

    def read_chunk(self, number: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """A chunk that was written, perhaps by the job before, checked."""
        return self._scores().read_chunk(number)

    def publish(self, metrics: dict[str, Any]) -> Scores:
        """Write the metrics, then say that the scoring is complete.

        Raises `UnreachableError` where a chunk that was written elsewhere is not here.
        """
        scores = self._scores()
        for array in scores.arrays.values():
            array.check_there()
        self.location.put(METRICS, documents.sealed_bytes(metrics))
        attributes = {
            "chunk_digests": list(scores.chunk_digests),
            **metadata_digests(
                self._arrays,
                {name: metadata_bytes(document) for name, document in self._arrays.items()},
            ),
            "metrics_sha256": hashlib.sha256(self.location.get(METRICS)).hexdigest(),
            "complete": True,
        }
        self.location.put(METADATA_NAME, self._root(attributes))
        self.location.delete_notes(JOURNAL)
        if self.location != self.home:
            self.home.publish(self.location, METADATA_NAME)
        return scores

    @cached_property
    def _arrays(self) -> dict[str, Document]:
        """The documents of the two arrays, by name."""
        arrays = score_arrays(self.location, self.schema)
        return {
            "probabilities": array_metadata(arrays["probabilities"], ("sample", "class")),
            "predicted": array_metadata(arrays["predicted"], ("sample",)),
        }

    def _root(self, attributes: dict[str, Any]) -> bytes:
        """Return the scoring's own `zarr.json` with these attributes added."""
        begun = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "scored": self.schema.to_json(),
        }
        document = group_metadata(begun | attributes, self._arrays)
        return metadata_bytes(documents.seal_group(document))

    def _scores(self) -> Scores:
        digests = tuple(self._digests.get(number, "") for number in range(self.schema.chunks))
        return Scores(self.location, self.schema, digests)

    def _adopt(self, place: Location) -> None:
        """Take over the sound chunks that a job before wrote at a place."""
        for number, digest in self._journalled(place).items():
            if number in self._digests:
                continue
            try:
                chunk = Scores(place, self.schema, ()).read_unchecked(number)
            except BadDataError:
                continue
            if digest != _chunk_digest(*chunk):
                continue
            if place == self.location:
                self._digests[number] = digest
            else:
                self.write_chunk(number, *chunk)

    def _journalled(self, place: Location) -> dict[int, str]:
        """The chunks that a job before wrote at a place, with their digests, by their journal."""
        try:
            if root_document(place)["attributes"].get("scored") != self.schema.to_json():
                return {}
            lines = place.notes(JOURNAL).split(b"\n")
        except (BadDataError, FileNotFoundError):  # its writer may be removing it
            return {}
        recorded: dict[int, str] = {}
        for line in lines:
            try:
                entry = documents.check_seal(documents.parse(line, JOURNAL), JOURNAL)
                recorded[int(entry["chunk"])] = str(entry["digest"])
            except (BadDataError, KeyError, ValueError, TypeError):
                continue  # a line cut off by the death: its chunk is scored again
        return {
            number: digest
            for number, digest in recorded.items()
            if 0 <= number < self.schema.chunks
        }


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
    _check_finite(probabilities, schema, number)
    arrays = score_arrays(location, schema)
    arrays["probabilities"].write(number, probabilities)
    arrays["predicted"].write(number, predicted[:, None])
    return _chunk_digest(probabilities, predicted)


def _check_finite(probabilities: NDArray[np.float32], schema: ScoresSchema, number: int) -> None:
    finite = np.isfinite(probabilities).all(axis=1)
    if not finite.all():
        row = schema.chunk_bounds(number)[0] + int(np.argmin(finite))
        raise BadDataError(
            f"Row {row} of split {schema.split} gets probabilities that are not finite numbers: "
            "its values, or the model's parameters, are too large for the arithmetic. Correct the "
            "row, or score with another checkpoint."
        )


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

    Raises `ConflictError` that names the holder where another has it. Of a scoring that is complete
    the lock is retired: no job writes it again, and its file would stay for good.
    """
    with writer_lock(location.sibling("", ".lock"), f"The scoring {location}", take_over) as lock:
        try:
            yield location.under(lock)
        finally:
            with suppress(PipelineError):  # a failure before is the one to tell
                if is_complete(location):
                    lock.retire()


def open_scores(location: Location) -> Scores:
    """A complete scoring, its attributes checked.

    Raises `BadDataError` where there is none, or it is incomplete or damaged.
    """
    return Scores(**vars(open_record(location)))


def _chunk_digest(probabilities: NDArray[np.float32], predicted: NDArray[np.int32]) -> str:
    content = hashlib.sha256(np.ascontiguousarray(probabilities, dtype="<f4").data)
    content.update(np.ascontiguousarray(predicted, dtype="<i4").data)
    return content.hexdigest()
