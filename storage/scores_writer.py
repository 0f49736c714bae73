"""A scoring that is being written: chunk by chunk, continued after a crash, then published."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import documents
from storage.chunks import array_metadata
from storage.errors import BadDataError, ConflictError, PipelineError
from storage.ledger import pause_between_looks, waiting_lock
from storage.location import Location, TakeOver
from storage.schema import METADATA_NAME
from storage.scores import (
    FORMAT,
    FORMAT_VERSION,
    METRICS,
    SCORES_FORMAT,
    Predictions,
    Scores,
    ScoresSchema,
    chunk_digest,
    is_complete,
    read_arrays,
    score_arrays,
)
from storage.trees import group_metadata, metadata_bytes, write_tree


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
