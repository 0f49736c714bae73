"""Checkpoints of a run: save, load, list, prune, and fall back from a damaged one to an older."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from storage import documents
from storage.errors import BadDataError
from storage.location import Location
from storage.runs import METRICS, RECORD, Run

FORMAT = "mnist-stream checkpoint"
FORMAT_VERSION = 1
DIRECTORY = "checkpoints"
STATE = "state.safetensors"
MANIFEST = "manifest.json"
PINS = "pins"
"""The directory of a run with an object for each promoted checkpoint."""
RECORDED = {
    "state_bytes": int,
    "state_sha256": str,
    "parameters_digest": str,
    "config_digest": str,
    "progress": dict,
}
"""The fields of a manifest whose values are not known in advance."""
NAME = re.compile(r"(\d{6,})-(\d{6,})")

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True, order=True)
class CheckpointName:
    """A checkpoint's position: completed epochs, then steps of the next one."""

    epoch: int
    step: int

    def __str__(self) -> str:
        return f"{self.epoch:06d}-{self.step:06d}"

    @property
    def key(self) -> str:
        return f"{DIRECTORY}/{self}"


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """A checkpoint that was read, with all digests checked."""

    name: CheckpointName
    tensors: Tensors
    parameters_digest: str
    """SHA-256 of the parameters: the model's digest."""
    progress: dict[str, Any]
    """The rest of the trainer's state: the stream's, the sums of the epoch, the metrics so far."""

    def __repr__(self) -> str:
        values = sum(tensor.size for tensor in self.tensors.values())
        return (
            f"<Checkpoint {self.name}>\n"
            f"  tensors: {len(self.tensors)} with {values:,} values\n"
            f"  model: digest {self.parameters_digest[:12]}"
        )


def save_checkpoint(
    run: Run,
    name: CheckpointName,
    tensors: Tensors,
    *,
    parameters_digest: str,
    config_digest: str,
    progress: dict[str, Any],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a checkpoint atomically, replacing one of the same name.

    `metadata` describes the tensors to other programs. Safetensors writes several entries in
    random order.
    """
    ordered = {key: np.asarray(tensors[key], order="C") for key in sorted(tensors)}
    state = save_safetensors(ordered, metadata)
    manifest = _identity(run, name) | {
        "state_bytes": len(state),
        "state_sha256": hashlib.sha256(state).hexdigest(),
        "parameters_digest": parameters_digest,
        "config_digest": config_digest,
        "progress": progress,
    }
    with run.location.atomic_tree(name.key, MANIFEST) as tree:
        tree.put(STATE, state)
        tree.put(MANIFEST, documents.sealed_bytes(manifest))


def _identity(run: Run, name: CheckpointName) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "run_id": run.run_id,
        "dataset_digest": run.dataset_digest,
        "epoch": name.epoch,
        "step": name.step,
    }


def list_checkpoints(run: Run) -> list[CheckpointName]:
    """Return the names of all checkpoints, sound or not, oldest first."""
    return sorted(filter(None, map(parse_name, run.location.trees(DIRECTORY, MANIFEST))))


def parse_name(text: str) -> CheckpointName | None:
    """Parse the name of a checkpoint's directory; return None for any other name."""
    match = NAME.fullmatch(text)
    name = CheckpointName(int(match[1]), int(match[2])) if match else None
    return name if str(name) == text else None


def load_checkpoint(run: Run, name: CheckpointName, template: Tensors | None = None) -> Checkpoint:
    """Return a checkpoint, checked against its digests and the names and shapes of a template.

    Raises `BadDataError` that names the damaged file.
    """
    location = run.location.child(name.key)
    try:
        location = location.current(MANIFEST)
        manifest = documents.read_sealed(location, MANIFEST)
        _check_manifest(run, name, manifest, f"{location}/{MANIFEST}")
        state = _read_state(location, manifest)
    except FileNotFoundError as error:
        raise BadDataError(f"{location} is incomplete: {error} is missing.") from None
    try:
        tensors = load_safetensors(state)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BadDataError(f"{location}/{STATE} is not in safetensors format ({error}).") from error
    if template is not None:
        check_template(location, tensors, template)
    return Checkpoint(name, tensors, manifest["parameters_digest"], manifest["progress"])


def _check_manifest(run: Run, name: CheckpointName, manifest: dict[str, Any], place: str) -> None:
    for field, value in _identity(run, name).items():
        if manifest.get(field) != value:
            raise BadDataError(
                f"{place} has {field} {manifest.get(field)!r}; expected {value!r} by {RECORD} and "
                "the checkpoint's name. It belongs to another run, checkpoint or release: restore "
                "the right one."
            )
    documents.check_fields(manifest, RECORDED, place)


def _read_state(location: Location, manifest: dict[str, Any]) -> bytes:
    size = location.size(STATE)
    if size != manifest["state_bytes"]:
        raise BadDataError(
            f"{location}/{STATE} has {size:,} bytes; expected {manifest['state_bytes']:,}: it is "
            "damaged."
        )
    state = location.get(STATE)
    digest = hashlib.sha256(state).hexdigest()
    if digest != manifest["state_sha256"]:
        raise BadDataError(
            f"{location}/{STATE} has digest {digest}; expected {manifest['state_sha256']}: it is "
            "damaged."
        )
    return state


def check_template(location: Location, tensors: Tensors, template: Tensors) -> None:
    """Raise `BadDataError` if tensors differ from a template's in name, shape or type."""
    saved = {key: f"{value.dtype}{list(value.shape)}" for key, value in tensors.items()}
    expected = {key: f"{value.dtype}{list(value.shape)}" for key, value in template.items()}
    differing = [
        f"{key}: {saved.get(key, 'nothing')} saved, {expected.get(key, 'nothing')} expected"
        for key in sorted(saved.keys() | expected.keys())
        if saved.get(key) != expected.get(key)
    ]
    if differing:
        raise BadDataError(f"{location}/{STATE} does not fit the run: {'; '.join(differing)}.")


def load_newest(
    run: Run, template: Tensors | None
) -> Iterator[Checkpoint | tuple[CheckpointName, BadDataError]]:
    """Yield each damaged checkpoint with its error, newest first, then the newest sound one.

    Yields nothing if the run has no checkpoint. Raises `BadDataError` if all are damaged: starting
    again would silently discard the run.
    """
    names = list_checkpoints(run)
    for name in reversed(names):
        try:
            checkpoint = load_checkpoint(run, name, template)
        except BadDataError as error:
            if name in list_checkpoints(run):  # else it was pruned after a newer one was saved
                yield name, error
        else:
            yield checkpoint
            return
    if list_checkpoints(run) != names:
        yield from load_newest(run, template)
    elif names:
        several = f"All {len(names)} checkpoints of {run.location} are"
        damaged = several if len(names) > 1 else f"The only checkpoint of {run.location} is"
        raise BadDataError(
            f"{damaged} damaged; nothing was changed. "
            f"Restore one, or the {RECORD} that they belong to, or train into another --run."
        )


def prune_checkpoints(
    run: Run, saved: CheckpointName, keep: int, also: set[CheckpointName]
) -> None:
    """Remove all checkpoints but the newest `keep` (at least 1) up to `saved`, `also` and pins.

    Checkpoints later than `saved` are removed too: they are damaged, and the run resumed from an
    earlier one.
    """
    names = list_checkpoints(run)
    kept = [name for name in names if name <= saved][-keep:]
    for name in names:
        if name not in kept and name not in also and not (name <= saved and is_pinned(run, name)):
            run.location.child(name.key).remove_tree(MANIFEST)


def pin_checkpoint(run: Run, name: CheckpointName) -> None:
    """Protect a checkpoint from pruning, permanently."""
    pin = {"checkpoint": str(name), "run_id": run.run_id}
    run.location.put(f"{PINS}/{name}.json", documents.sealed_bytes(pin))


def pinned_checkpoints(run: Run) -> list[CheckpointName]:
    """Return the names of the checkpoints that are protected from pruning, oldest first."""
    pins = (name.removesuffix(".json") for name in run.location.names(PINS))
    return sorted(filter(None, map(parse_name, pins)))


def is_pinned(run: Run, name: CheckpointName) -> bool:
    """Return whether a checkpoint is protected from pruning."""
    return run.location.exists(f"{PINS}/{name}.json")


def recorded_metrics(run: Run) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, compared with the newest sound checkpoint's copy.

    A crash before an epoch's checkpoint leaves one more line; damaged newer checkpoints leave
    several. Raises `BadDataError` for any other difference.
    """
    saved: Any = []
    damaged = False
    names = list_checkpoints(run)
    for name in reversed(names):
        try:
            saved = load_checkpoint(run, name).progress.get("metrics")
            break
        except BadDataError:
            damaged = True
    lines = run.metrics()
    if list_checkpoints(run) != names:  # a training run saved another one: try again
        return recorded_metrics(run)
    if not isinstance(saved, list) or lines[: len(saved)] != saved:
        raise BadDataError(
            f"{run.location}/{METRICS} does not have the lines that the newest sound checkpoint "
            "recorded: it is damaged or from another run. `pipeline train --resume` rewrites it."
        )
    if len(lines) > len(saved) + 1 and not damaged:
        raise BadDataError(
            f"{run.location}/{METRICS} has {len(lines)} epochs, the newest checkpoint "
            f"{len(saved)}: checkpoints are missing. Restore them from a copy."
        )
    return lines


def sweep_checkpoints(run: Run) -> None:
    """Remove unfinished checkpoints of dead writers; the caller holds the run's lock."""
    run.location.sweep_trees(DIRECTORY, MANIFEST)
