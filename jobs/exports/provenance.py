"""Provenance of a model: an in-toto statement with SLSA's predicate, from what its run recorded."""

import base64
import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import starmap
from typing import Any

from jobs.training.history import check_history, end_of
from jobs.training.model import Model
from jobs.training.prepare import check_dataset
from jobs.training.select_checkpoint import open_chosen_dataset
from storage.checkpoints import MANIFEST, STATE
from storage.documents import canonical, read_document, read_sealed
from storage.errors import BadDataError, ConflictError, PipelineError, UsageError
from storage.files import file_to_write
from storage.local import LocalLocation
from storage.location import Location
from storage.places import Place, open_location
from storage.runs import METRICS, Run

logger = logging.getLogger(__name__)

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:mnist-stream:train:v1"
BUILDER = "urn:mnist-stream"

Descriptor = dict[str, Any]
"""What in-toto calls a resource descriptor: a name with a digest, a URI or content."""


def statement(
    model: Model,
    subjects: Mapping[str, str],
    *,
    dataset: Place | None = None,
    storage_options: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a statement of how a model was made, which is the same whenever it is written.

    Parameters
    ----------
    model
        The model, as `Model.load` returns it.
    subjects
        SHA-256 in hex of the files that the statement is about, by name. The model's digest is
        added.
    dataset
        The dataset, which records its source files. None: the one that the run records. If that
        cannot be opened, the statement has its digest only.
    storage_options
        Options of an S3 store.

    Raises
    ------
    ConflictError
        If the dataset is another one than the run's.
    BadDataError
        If the run's metrics are damaged, or there is no dataset at the given place.
    """
    runs = {member.run.run_id: member.run for member in model.members}
    dependencies = [
        descriptor
        for run in runs.values()
        for descriptor in _dependencies(run, dataset, storage_options)
    ]
    unique = list({canonical(descriptor): descriptor for descriptor in dependencies}.values())
    return {
        "_type": STATEMENT_TYPE,
        "subject": [subject("model", model.digest), *starmap(subject, subjects.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "members": [
                        {
                            "run": member.run.run_id,
                            "checkpoint": str(member.checkpoint),
                            "model_digest": member.digest,
                        }
                        for member in model.members
                    ],
                    "average_shifts": model.average_shifts,
                    "configurations": {key: run.configuration for key, run in runs.items()},
                },
                "internalParameters": {
                    "versions": {key: run.versions for key, run in runs.items()},
                    "environments": {key: run.environment for key, run in runs.items()},
                },
                "resolvedDependencies": unique,
            },
            "runDetails": {"builder": {"id": BUILDER}, "metadata": _metadata(model)},
        },
    }


def subject(name: str, digest: str) -> Descriptor:
    """Return the descriptor of a file, or of a model, with SHA-256 in hex."""
    return {"name": name, "digest": {"sha256": digest}}


def _dependencies(
    run: Run, dataset: Place | None, storage_options: Mapping[str, str] | None
) -> Iterator[Descriptor]:
    """Yield the dataset of a run, its source files, the parent and NumPy."""
    place = run.dataset_place or ""
    uri = {"uri": place} if "://" in place else {}
    yield {"name": "dataset", "digest": {"sha256": run.dataset_digest}} | uri
    try:
        data = open_chosen_dataset(run, dataset, storage_options)
        check_dataset(run, data)
        yield from map(_source, data.sources)
    except PipelineError as error:
        if dataset is not None:
            raise
        logger.warning("The statement has no source files: %s", error)
    if run.parent is not None:
        yield {"name": "parent", "digest": {"sha256": run.parent["model_digest"]}}
    yield {"name": "numpy", "uri": f"pkg:pypi/numpy@{run.environment.get('numpy')}"}


def _source(source: Mapping[str, Any]) -> Descriptor:
    """Return the descriptor of a source file, or the content of what generated digits record."""
    digest = source.get("stored_sha256") or source.get("decoded_sha256")
    content = base64.b64encode(canonical(source)).decode()
    known = {"digest": {"sha256": digest}} if digest else {"content": content}
    return {"name": f"source/{source.get('split')}/{source.get('name')}"} | known


def _metadata(model: Model) -> dict[str, str]:
    """Return when the first and the last epoch of the members began and ended, as recorded."""
    begins, ends = [], []
    for member in model.members:
        run = member.run
        lines = check_history(run.metrics(), f"{run.location}/{METRICS}")[: member.checkpoint.epoch]
        times = [end_of(line) for line in lines]
        if times and times[0] and times[-1]:
            begins.append(times[0] - lines[0]["timing"]["seconds"])
            ends.append(times[-1])
    if len(ends) < len(model.members):
        return {}  # an early release did not record the times
    return {"startedOn": _time(min(begins)), "finishedOn": _time(max(ends))}


def _time(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def checkpoint_subjects(model: Model) -> dict[str, str]:
    """Return SHA-256 of the file with the tensors of each member, by its key in the run."""
    subjects = {}
    for member in model.members:
        tree = member.run.location.child(member.checkpoint.key).current(MANIFEST)
        digest = read_sealed(tree, MANIFEST)["state_sha256"]
        subjects[f"{member.run.run_id}/{member.checkpoint.key}/{STATE}"] = digest
    return subjects


def statement_file(place: Place, storage_options: Mapping[str, str] | None = None) -> Location:
    """Return the file to write a statement to.

    Raises `UsageError` for a name of another ending, and `ConflictError` for an existing file that
    is not a statement, such as a run's record.
    """
    if not str(place).endswith(".json"):
        raise UsageError(f"--provenance is {str(place)!r}; expected a name that ends in .json.")
    file = open_location(place, storage_options)
    if isinstance(file, LocalLocation):
        file = LocalLocation(file_to_write(file.path, "--provenance"))
    if file.is_object() and not _is_statement(file):
        raise ConflictError(
            f"{file} exists and is not a statement, so it is not replaced. Choose another name for "
            "--provenance."
        )
    return file


def _is_statement(file: Location) -> bool:
    parent, key = file.split()
    try:
        return read_document(parent, key).get("_type") == STATEMENT_TYPE
    except BadDataError:
        return False
