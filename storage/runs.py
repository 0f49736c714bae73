"""The run directory: run.json, metrics.jsonl, failure.json, and the writer's lock."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

from storage import documents
from storage.errors import BadDataError, ConflictError, PipelineError, nearest_place
from storage.location import Location, TakeOver, is_foreign
from storage.places import referenced

FORMAT = "mnist-stream run"
FORMAT_VERSION = 1
RECORD = "run.json"
METRICS = "metrics.jsonl"
FAILURE = "failure.json"
"""Exists if the last training failed for a reason that a resume would meet again."""
SCORES = "scores"
"""The directory of the run's scores."""
REFERENCES = "references"
"""The directory of the references of the run's models."""
REFERENCE_FORMAT = "mnist-stream reference"
REFERENCE_VERSION = 1
LOCK = ".lock"
RECORDED = {
    "run_id": str,
    "configuration": dict,
    "dataset_digest": str,
    "dataset": dict,
    "versions": dict,
    "environment": dict,
}
"""The fields of run.json, without its format."""
OPTIONAL = {"recipe": str, "parent": dict}
"""Its fields that only some runs have."""
PARENT = {
    "place": str,
    "run_id": str,
    "checkpoint": str,
    "model_digest": str,
    "optimizer": bool,
}
"""The fields of `parent`."""


@dataclass(frozen=True, repr=False)
class Run:
    """A run and the content of its run.json."""

    location: Location
    run_id: str
    """A random name, repeated in every checkpoint, so that other runs' checkpoints are refused."""
    configuration: dict[str, Any]
    """All settings by name, as the last resume left them."""
    dataset_digest: str
    dataset: dict[str, Any]
    """The training dataset's `place`, `class_names`, `labels`, `transforms`, `image_shape` and
    `element_type`. Runs of early releases have only `class_names` and `transforms`. The place is a
    URL, an absolute path if one was given, or a path relative to the run."""
    versions: dict[str, int]
    """Versions of the order and of a step's arithmetic."""
    environment: dict[str, Any]
    """NumPy's version, its BLAS and kernel, the machine's architecture."""
    recipe: str | None = None
    """The recipe that the settings were given by, for information; recorded if there is one."""
    parent: dict[str, Any] | None = None
    """The checkpoint that the run was started from, if it was: its run's `place` (like that of the
    dataset) and `run_id`, its name (`checkpoint`), its `model_digest`, and whether the state of its
    `optimizer` was taken over."""

    def __repr__(self) -> str:
        network, epochs = map(self.configuration.get, ("network", "epochs"))
        return (
            f"<Run at {self.location}>\n"
            f"  network: {network}, {epochs} epochs\n"
            f"  dataset: {self.dataset_place or 'unknown place'}, digest {self.dataset_digest[:12]}"
        )

    @property
    def dataset_place(self) -> str | None:
        """The training dataset's path or URL; None if it is not recorded."""
        place = self.dataset.get("place")
        return None if place is None else referenced(place, self.location)

    @property
    def parent_place(self) -> str | None:
        """The path or URL of the parent's run; None without a parent."""
        return None if self.parent is None else referenced(self.parent["place"], self.location)

    @property
    def parent_checkpoint(self) -> str | None:
        """The parent as `train --from` takes it: `runs/base@000010-000000`."""
        return None if self.parent is None else f"{self.parent_place}@{self.parent['checkpoint']}"

    def write(self, *, new: bool = False) -> None:
        """Write run.json atomically; with `new`, raise `ConflictError` if it exists.

        The caller holds the lock.
        """
        record = {name: vars(self)[name] for name in RECORDED}
        record |= {name: value for name in OPTIONAL if (value := vars(self)[name]) is not None}
        document = {"format": FORMAT, "format_version": FORMAT_VERSION} | record
        self.location.put(RECORD, documents.sealed_bytes(document), new=new)

    def reconfigured(self, configuration: dict[str, Any]) -> Self:
        """Record the changed settings of a resume, and return the run with them."""
        run = replace(self, configuration=configuration)
        run.write()
        return run

    def append_metrics(
        self, line: dict[str, Any], before: list[dict[str, Any]] | None = None
    ) -> None:
        """Append a sealed line to metrics.jsonl; `before` are the lines that it has."""
        self.location.append(METRICS, _lines([line]), None if before is None else _lines(before))

    def rewrite_metrics(self, lines: list[dict[str, Any]]) -> None:
        self.location.put(METRICS, _lines(lines))

    def metrics(self) -> list[dict[str, Any]]:
        """Return the checked lines of metrics.jsonl; an empty list if there is no such file.

        An incomplete last line, which a crash leaves, is ignored: the next resume rewrites it.
        """
        try:
            data = documents.read(self.location, METRICS)
        except FileNotFoundError:
            return []
        *complete, torn = data.split(b"\n")
        place = f"{self.location}/{METRICS}"
        if torn and not torn.startswith(b"{"):
            raise BadDataError(f"{place} ends with something other than a line of metrics.")
        return [
            documents.parse_sealed(line, f"{place} line {number}")
            for number, line in enumerate(complete, 1)
        ]

    def record_failure(self, error: PipelineError) -> None:
        """Record the error that ended the training; the next resume removes the record."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        document = {"time": time, "exit": error.exit_code, "error": str(error)}
        self.location.put(FAILURE, documents.sealed_bytes(document))

    def remove_failure(self) -> None:
        self.location.delete(FAILURE)

    def failure(self) -> str | None:
        """Return the message of the error that ended the last training; None if none did."""
        try:
            record = documents.read_sealed(self.location, FAILURE)
        except FileNotFoundError:
            return None
        documents.check_fields(record, {"error": str}, f"{self.location}/{FAILURE}")
        return str(record["error"])


def check_place(location: Location) -> None:
    """Raise `ConflictError` if a location already contains a run or other files."""
    names = location.names()  # one listing: another process may begin a run at any time
    if RECORD in names:
        raise ConflictError(f"{location} is a run already.")
    others = [name for name in names if not is_foreign(name) and not name.endswith(".tmp")]
    if others:
        raise ConflictError(
            f"{location} contains {others[0]!r} but no {RECORD}: it is not a run, and is left "
            "alone. Choose another --run."
        )


def create_run(
    location: Location,
    *,
    configuration: dict[str, Any],
    dataset_digest: str,
    dataset: dict[str, Any],
    versions: dict[str, int],
    environment: dict[str, Any],
    recipe: str | None = None,
    parent: dict[str, Any] | None = None,
) -> Run:
    """Create a run: write its run.json. The caller holds its lock.

    Raises `ConflictError` if the location already contains a run or other files.
    """
    check_place(location)
    run_id = uuid.uuid4().hex
    run = Run(
        location,
        run_id,
        configuration,
        dataset_digest,
        dataset,
        versions,
        environment,
        recipe,
        parent,
    )
    run.write(new=True)
    return run


def open_run(location: Location) -> Run:
    """Open a run; raise `BadDataError` if it is missing, damaged or of a newer format."""
    place = f"{location}/{RECORD}"
    try:
        record = documents.read_sealed(location, RECORD)
    except FileNotFoundError:
        raise BadDataError(_nothing_there(location)) from None
    documents.check_format(record, FORMAT, (FORMAT_VERSION,), place)
    recorded = RECORDED | {name: type_ for name, type_ in OPTIONAL.items() if name in record}
    documents.check_fields(record, recorded, place)
    if "parent" in record:
        documents.check_fields(record["parent"], PARENT, f"The parent in {place}")
    return Run(location=location, **{name: record[name] for name in recorded})


def reference_key(model_digest: str) -> str:
    """Return the key of a model's reference below its run."""
    return f"{REFERENCES}/{model_digest[:12]}.json"


def run_exists(location: Location) -> bool:
    """Return whether there is a run.json, sound or not."""
    return location.exists(RECORD)


def _lines(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(documents.sealed_bytes(line, indent=None) for line in lines)


@contextmanager
def run_lock(location: Location, take_over: TakeOver | None = None) -> Iterator[Location]:
    """Hold a run's lock; yield its location for the holder."""
    with location.child(LOCK).writer_lock(f"The run {location}", take_over) as lock:
        yield location.under(lock)


def _nothing_there(location: Location) -> str:
    if not location.exists():
        return (
            f"There is no run at {location}.{nearest_place(str(location))} Make one with "
            f"`pipeline train --run {location}`."
        )
    return f"{location} is not a run: it contains no {RECORD}. Restore it, or give another place."
