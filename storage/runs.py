"""The run directory: run.json, metrics.jsonl, and the writer's lock."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

from storage import documents
from storage.errors import BadDataError, ConflictError
from storage.location import Location, TakeOver, is_foreign
from storage.places import referenced

FORMAT = "mnist-stream run"
FORMAT_VERSION = 1
RECORD = "run.json"
METRICS = "metrics.jsonl"
SCORES = "scores"
"""The directory of the run's scorings."""
LOCK = ".lock"
RECORDED = {
    "run_id": str,
    "configuration": dict,
    "dataset_digest": str,
    "dataset": dict,
    "versions": dict,
    "environment": dict,
}
"""The fields of run.json besides its format."""


@dataclass(frozen=True, repr=False)
class Run:
    """A run's record, as it was written when the run began."""

    location: Location
    run_id: str
    """Drawn when the run began; every checkpoint carries it, so none of another run passes."""
    configuration: dict[str, Any]
    """The effective configuration, field by field: the last resume's, where it changed some."""
    dataset_digest: str
    dataset: dict[str, Any]
    """Its `place`, and what a scoring must know of it: `class_names`, `transforms`, `image_shape`
    and `element_type`. Runs of older releases lack the place and the last two. The place is a URL,
    an absolute path where such a one was given, or else a path relative to the run."""
    versions: dict[str, int]
    """Versions of the order and of the step's arithmetic."""
    environment: dict[str, Any]
    """NumPy, its BLAS and kernel, Python, the machine's architecture."""

    def __repr__(self) -> str:
        network, epochs = map(self.configuration.get, ("network", "epochs"))
        return (
            f"<Run at {self.location}>\n"
            f"  network: {network}, {epochs} epochs\n"
            f"  dataset: {self.dataset_place or 'unknown place'}, digest {self.dataset_digest[:12]}"
        )

    @property
    def dataset_place(self) -> str | None:
        """Return where the dataset was that the run began with; None where it is not recorded."""
        place = self.dataset.get("place")
        return None if place is None else referenced(place, self.location)

    def write(self, *, new: bool = False) -> None:
        """Write the record in one step; `new` refuses to replace one. The caller holds the lock."""
        record = {name: value for name, value in vars(self).items() if name != "location"}
        document = {"format": FORMAT, "format_version": FORMAT_VERSION} | record
        self.location.put(RECORD, documents.sealed_bytes(document), new=new)

    def reconfigured(self, configuration: dict[str, Any]) -> Self:
        """Record other settings, as a resume changed them, and return the run that has them."""
        run = replace(self, configuration=configuration)
        run.write()
        return run

    def append_metrics(
        self, line: dict[str, Any], before: list[dict[str, Any]] | None = None
    ) -> None:
        """Add one sealed line to metrics.jsonl, which holds those `before` and nothing else."""
        self.location.append(METRICS, _lines([line]), None if before is None else _lines(before))

    def rewrite_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Make metrics.jsonl hold just these lines, in one step."""
        self.location.put(METRICS, _lines(lines))

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl, each checked; none where there is no such file.

        A last line that was cut off by a death is left out: the next resume writes it anew.
        """
        try:
            data = documents.read(self.location, METRICS)
        except FileNotFoundError:
            return []
        *whole, torn = data.split(b"\n")
        place = f"{self.location}/{METRICS}"
        if torn and not torn.startswith(b"{"):
            raise BadDataError(f"{place} ends in something that is no line of metrics.")
        return [
            documents.parse_sealed(line, f"{place} line {number}")
            for number, line in enumerate(whole, 1)
        ]


def check_place(location: Location) -> None:
    """Raise `ConflictError` where a run cannot begin: one is there, or something else is."""
    names = location.names()  # one listing: another process may begin a run at any time
    if RECORD in names:
        raise ConflictError(f"{location} is a run already.")
    strange = [name for name in names if not is_foreign(name) and not name.endswith(".tmp")]
    if strange:
        raise ConflictError(
            f"{location} holds {strange[0]!r} but no {RECORD}; it is not a run and is left alone. "
            "Choose another --run."
        )


def create_run(
    location: Location,
    *,
    configuration: dict[str, Any],
    dataset_digest: str,
    dataset: dict[str, Any],
    versions: dict[str, int],
    environment: dict[str, Any],
) -> Run:
    """Begin a run: write its record. The caller holds its lock.

    Raises `ConflictError` where there is a run already, or the directory holds something else.
    """
    check_place(location)
    run_id = uuid.uuid4().hex
    run = Run(location, run_id, configuration, dataset_digest, dataset, versions, environment)
    run.write(new=True)
    return run


def open_run(location: Location) -> Run:
    """Open the run at a location; its record is checked.

    Raises `BadDataError` where there is none, or it is damaged or of a newer format.
    """
    place = f"{location}/{RECORD}"
    try:
        record = documents.read_sealed(location, RECORD)
    except FileNotFoundError:
        raise BadDataError(_nothing_there(location)) from None
    documents.check_format(record, FORMAT, (FORMAT_VERSION,), place)
    documents.check_fields(record, RECORDED, place)
    return Run(location=location, **{name: record[name] for name in RECORDED})


def run_exists(location: Location) -> bool:
    """Return whether there is a run's record, sound or not."""
    return location.exists(RECORD)


def _lines(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(documents.sealed_bytes(line, indent=None) for line in lines)


@contextmanager
def run_lock(location: Location, take_over: TakeOver | None = None) -> Iterator[Location]:
    """Hold the right to write to a run; yield its location for the holder."""
    with location.child(LOCK).writer_lock(f"The run {location}", take_over) as lock:
        yield location.under(lock)


def _nothing_there(location: Location) -> str:
    if not location.exists():
        return f"There is no run at {location}. Make one with `pipeline train --run {location}`."
    return f"{location} is not a run: it holds no {RECORD}. Restore it, or choose another --run."
