"""Checkpoints of a run: save, load, list, prune, and fall back from a damaged one."""

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
"""The directory of a run with an object for each checkpoint that has been given a name."""
RECORDED = {
    "state_bytes": int,
    "state_sha256": str,
    "parameters_digest": str,
    "config_digest": str,
    "progress": dict,
}
"""The fields of a manifest that are not known beforehand."""
NAME = re.compile(r"(\d{6,})-(\d{6,})")

Tensors = dict[str, NDArray[Any]]


class ForeignCheckpointError(BadDataError):
    """A sound checkpoint that another run has saved."""


@dataclass(frozen=True, order=True)
class CheckpointName:
    """Where in the run a checkpoint was taken: whole epochs, then steps of the next one."""

    epoch: int
    step: int

    def __str__(self) -> str:
        return f"{self.epoch:06d}-{self.step:06d}"

    @property
    def key(self) -> str:
        """The checkpoint's directory inside the run."""
        return f"{DIRECTORY}/{self}"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read, every digest checked."""

    name: CheckpointName
    tensors: Tensors
    parameters_digest: str
    """SHA-256 over the parameters: the model's digest."""
    progress: dict[str, Any]
    """The trainer's own state: the stream's, the running sums, the metrics so far."""


def save_checkpoint(
    run: Run,
    name: CheckpointName,
    tensors: Tensors,
    *,
    parameters_digest: str,
    config_digest: str,
    progress: dict[str, Any],
) -> None:
    """Write a checkpoint: wholly, and for good, or not at all.

    The manifest is written last, and nothing is listed before it is there: see `Location.making`.
    One of the same name that is there already is replaced.
    """
    state = save_safetensors({key: np.asarray(tensors[key], order="C") for key in sorted(tensors)})
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "run_id": run.run_id,
        "epoch": name.epoch,
        "step": name.step,
        "state_bytes": len(state),
        "state_sha256": hashlib.sha256(state).hexdigest(),
        "parameters_digest": parameters_digest,
        "config_digest": config_digest,
        "dataset_digest": run.dataset_digest,
        "progress": progress,
    }
    with run.location.atomic_tree(name.key, MANIFEST) as tree:
        tree.put(STATE, state)
        tree.put(MANIFEST, documents.sealed_bytes(manifest))


def list_checkpoints(run: Run) -> list[CheckpointName]:
    """The names of the run's checkpoints, sound or not, oldest first."""
    return sorted(filter(None, map(parse_name, run.location.trees(DIRECTORY, MANIFEST))))


def parse_name(text: str) -> CheckpointName | None:
    """The checkpoint's name that a directory's name spells in the one way that there is."""
    match = NAME.fullmatch(text)
    name = CheckpointName(int(match[1]), int(match[2])) if match else None
    return name if str(name) == text else None


def load_checkpoint(run: Run, name: CheckpointName, template: Tensors | None = None) -> Checkpoint:
    """One checkpoint, its digests checked, its tensors compared with a template's.

    Raises `BadDataError` that names the file and what is wrong with it.
    """
    try:
        location = run.location.child(name.key).current(MANIFEST)
        manifest = _read_manifest(run, name, location)
    except FileNotFoundError:
        place = f"{run.location.child(name.key)}/{MANIFEST}"
        raise BadDataError(f"{place} is missing: the checkpoint is not whole.") from None
    state = _read_state(location, manifest)
    try:
        tensors = load_safetensors(state)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BadDataError(f"{location}/{STATE} is not in safetensors format ({error}).") from error
    if template is not None:
        check_template(location, tensors, template)
    return Checkpoint(name, tensors, manifest["parameters_digest"], manifest["progress"])


def _read_manifest(run: Run, name: CheckpointName, location: Location) -> dict[str, Any]:
    place = f"{location}/{MANIFEST}"
    manifest = documents.read_sealed(location, MANIFEST)
    expected = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "run_id": run.run_id,
        "epoch": name.epoch,
        "step": name.step,
        "dataset_digest": run.dataset_digest,
    }
    for field, value in expected.items():
        if manifest.get(field) != value:
            kind = ForeignCheckpointError if field == "run_id" else BadDataError
            raise kind(
                f"{place} has {field} {manifest.get(field)!r}; expected {value!r}: it belongs to "
                "another checkpoint, run or release."
            )
    documents.check_fields(manifest, RECORDED, place)
    return manifest


def _read_state(location: Location, manifest: dict[str, Any]) -> bytes:
    place = f"{location}/{STATE}"
    try:
        size = location.size(STATE)
        if size != manifest.get("state_bytes"):
            raise BadDataError(
                f"{place} has {size:,} bytes; its manifest says {manifest.get('state_bytes')!r}."
            )
        state = location.get(STATE)
    except FileNotFoundError:
        raise BadDataError(f"{place} is missing: the checkpoint is not whole.") from None
    found = hashlib.sha256(state).hexdigest()
    if found != manifest["state_sha256"]:
        raise BadDataError(
            f"{place} has digest {found}; its manifest says {manifest['state_sha256']}: damaged."
        )
    return state


def check_template(location: Location, tensors: Tensors, template: Tensors) -> None:
    """Raise `BadDataError` where tensors have other names, shapes or types than a template's."""
    saved = {key: f"{value.dtype}{list(value.shape)}" for key, value in tensors.items()}
    wanted = {key: f"{value.dtype}{list(value.shape)}" for key, value in template.items()}
    differing = [
        f"{key}: {saved.get(key, 'nothing')} saved, {wanted.get(key, 'nothing')} expected"
        for key in sorted(saved.keys() | wanted.keys())
        if saved.get(key) != wanted.get(key)
    ]
    if differing:
        raise BadDataError(f"{location}/{STATE} does not fit the run: {'; '.join(differing)}.")


def load_newest(
    run: Run, template: Tensors | None
) -> Iterator[Checkpoint | tuple[CheckpointName, BadDataError]]:
    """The newest sound checkpoint last; before it, each damaged one with what is wrong with it.

    Yields nothing where the run has no checkpoint. Raises `BadDataError` where it has some and
    none is sound: a fresh start would throw the run away without a word.
    """
    names = list_checkpoints(run)
    if names and all(_is_foreign(run, name) for name in reversed(names)):
        raise BadDataError(
            f"{run.location}/{RECORD} is another run's: its run_id is {run.run_id}, and none of "
            f"the {len(names)} checkpoints has that. Restore it from a copy."
        )
    for name in reversed(names):
        try:
            checkpoint = load_checkpoint(run, name, template)
        except BadDataError as error:
            if name in list_checkpoints(run):  # else its successor came, and it was pruned
                yield name, error
        else:
            yield checkpoint
            return
    if list_checkpoints(run) != names:
        yield from load_newest(run, template)
    elif names:
        raise BadDataError(
            f"None of the {len(names)} checkpoints of {run.location} is sound; nothing was changed."
            " Restore one from a copy, or train into another --run."
        )


def _is_foreign(run: Run, name: CheckpointName) -> bool:
    try:
        _read_manifest(run, name, run.location.child(name.key).current(MANIFEST))
    except ForeignCheckpointError:
        return True
    except (BadDataError, FileNotFoundError):
        pass
    return False


def prune_checkpoints(
    run: Run, saved: CheckpointName, keep: int, also: set[CheckpointName]
) -> None:
    """Remove all but the newest `keep` (at least 1), counted back from `saved`, and `also`.

    Those that are pinned stay, too. Those later than `saved` go: they were found damaged, which is
    why the run is back before them, and must not be counted as newer than what is sound.
    """
    names = list_checkpoints(run)
    kept = [name for name in names if name <= saved][-keep:]
    for name in names:
        if name not in kept and name not in also and not (name <= saved and is_pinned(run, name)):
            run.location.child(name.key).remove_tree(MANIFEST)


def pin_checkpoint(run: Run, name: CheckpointName) -> None:
    """Keep a checkpoint for good, whatever the run's training prunes."""
    pin = {"checkpoint": str(name), "run_id": run.run_id}
    run.location.put(f"{PINS}/{name}.json", documents.sealed_bytes(pin))


def is_pinned(run: Run, name: CheckpointName) -> bool:
    """Whether a checkpoint is kept for good."""
    return run.location.exists(f"{PINS}/{name}.json")


def recorded_metrics(run: Run) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, compared with the newest sound checkpoint's copy of them.

    One more line than it has is an epoch whose checkpoint a death forestalled; more are there
    where newer checkpoints are damaged. Raises `BadDataError` for any other difference.
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
    if list_checkpoints(run) != names:  # the run goes on meanwhile: look again
        return recorded_metrics(run)
    if not isinstance(saved, list) or lines[: len(saved)] != saved:
        raise BadDataError(
            f"{run.location}/{METRICS} does not have the lines that the newest sound checkpoint "
            "recorded; it is damaged or another run's. `pipeline train --resume` writes it anew."
        )
    if len(lines) > len(saved) + 1 and not damaged:
        raise BadDataError(
            f"{run.location}/{METRICS} has {len(lines)} epochs, the newest checkpoint "
            f"{len(saved)}: checkpoints are missing. Restore them from a copy."
        )
    return lines


def sweep_checkpoints(run: Run) -> None:
    """Remove what dead writers left of them; the caller holds the run's lock."""
    run.location.sweep_trees(DIRECTORY, MANIFEST)
