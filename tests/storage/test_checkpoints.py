"""Checkpoints: atomic, checked against a template, with fallback from damaged ones."""

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage import checkpoints, documents, files
from storage.checkpoints import (
    DIRECTORY,
    MANIFEST,
    STATE,
    Checkpoint,
    CheckpointName,
    Tensors,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    prune_checkpoints,
    recorded_metrics,
    save_checkpoint,
    sweep_checkpoints,
)
from storage.errors import BadDataError, UnreachableError
from storage.location import REMOVED_BYTES, Location
from storage.places import open_location
from storage.runs import METRICS, Run
from storage.verify import verify_run
from tests.storage.artefacts import begin_run, make_run, metrics_line, save_epoch, tensors_of

TEMPLATE = {name: np.zeros_like(tensor) for name, tensor in tensors_of(1).items()}


@pytest.fixture
def run(anywhere: Location) -> Run:
    """Return a run with a checkpoint after each of three epochs."""
    return make_run(anywhere.child("run"))


@pytest.fixture
def local_run(tmp_path: Path) -> Run:
    """Return the same run in a local directory."""
    return make_run(open_location(tmp_path / "run"))


def home(run: Run, epoch: int) -> Location:
    """Return the location of a checkpoint's objects."""
    return run.location.child(CheckpointName(epoch, 0).key).current(MANIFEST)


def remaining(run: Run) -> list[str]:
    """Return the names of checkpoints with any object except the root of a removed one."""
    sizes = run.location.child(DIRECTORY).sizes()
    return sorted({key.split("/")[0] for key, size in sizes.items() if size != REMOVED_BYTES})


def flip_bit(place: Location, key: str) -> None:
    """Flip a bit in the middle of a file."""
    data = bytearray(place.get(key))
    data[len(data) // 2] ^= 4
    place.put(key, bytes(data))


def assert_same_tensors(expected: Tensors, actual: Tensors) -> None:
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        assert (tensor.dtype, tensor.shape) == (actual[name].dtype, actual[name].shape)
        assert tensor.tobytes() == actual[name].tobytes()


def test_save_and_load(run: Run) -> None:
    """The tensors (bit by bit), the model's digest and the progress are read back."""
    loaded = load_checkpoint(run, CheckpointName(2, 0), TEMPLATE)
    assert_same_tensors(tensors_of(2), loaded.tensors)
    assert f"{2:064x}" == loaded.parameters_digest
    assert {"metrics": [metrics_line(1), metrics_line(2)]} == loaded.progress


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
def test_unusual_tensors(run: Run, dtype: str) -> None:
    """Scalars, empty and non-contiguous tensors and NaN are saved exactly."""
    values = np.arange(12).reshape(3, 4).astype(dtype)
    if values.dtype.kind == "f":
        values[0] = [np.nan, np.inf, -0.0, 5e-324]
    tensors = {"turned": values.T, "scalar": values[1, 1], "empty": values[:0]}
    tensors = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    name = CheckpointName(3, 7)
    digests = {"parameters_digest": "a" * 64, "config_digest": "b" * 64}
    save_checkpoint(run, name, tensors, **digests, progress={})
    assert_same_tensors(
        {
            name: np.ascontiguousarray(tensor).reshape(tensor.shape)
            for name, tensor in tensors.items()
        },
        load_checkpoint(run, name, tensors).tensors,
    )


def test_checkpoints_are_listed_oldest_first(run: Run) -> None:
    """Checkpoints are sorted by epoch, then step, even beyond a million; others are ignored."""
    for name in (CheckpointName(10**6, 0), CheckpointName(1, 5), CheckpointName(1, 10**6)):
        save_checkpoint(run, name, {}, parameters_digest="", config_digest="", progress={})
    for other in ("notes.txt", ".000004-000000.tmp/x", "4-0/x"):
        run.location.put(f"{DIRECTORY}/{other}", b"")
    expected = ["000001-000000", "000001-000005", "000001-1000000", "000002-000000"]
    expected += ["000003-000000", "1000000-000000"]
    assert expected == [str(name) for name in list_checkpoints(run)]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (TEMPLATE | {"layer.1": np.zeros(2)}, "layer.1: nothing saved, float64[2] expected"),
        ({"layer.0": TEMPLATE["layer.0"]}, "velocity: float32[21] saved, nothing expected"),
        (
            TEMPLATE | {"layer.0": np.zeros((3, 7), np.float32)},
            "layer.0: float32[7, 3] saved, float32[3, 7] expected",
        ),
        (
            TEMPLATE | {"layer.0": np.zeros((7, 3))},
            "layer.0: float32[7, 3] saved, float64[7, 3] expected",
        ),
    ],
    ids=["name", "surplus", "shape", "dtype"],
)
def test_a_template_that_differs(run: Run, template: Tensors, message: str) -> None:
    """The message shows both sides of a name, shape or dtype that differs."""
    with pytest.raises(BadDataError) as caught:
        load_checkpoint(run, CheckpointName(3, 0), template)
    assert message in str(caught.value)


def newest(run: Run) -> tuple[list[str], Checkpoint | None]:
    """Return the damaged checkpoints that were skipped, and the one that is used."""
    passed: list[str] = []
    for loaded in load_newest(run, TEMPLATE):
        if isinstance(loaded, Checkpoint):
            return passed, loaded
        passed.append(str(loaded[0]))
    return passed, None


def test_the_newest_is_used(run: Run) -> None:
    """If all are sound, the newest is used; None without any."""
    passed, loaded = newest(run)
    assert loaded is not None
    assert ([], CheckpointName(3, 0)) == (passed, loaded.name)
    assert ([], None) == newest(begin_run(run.location.child("fresh")))


@pytest.mark.parametrize(
    "damage",
    [
        lambda place, _: flip_bit(place, STATE),
        lambda place, _: flip_bit(place, MANIFEST),
        lambda place, _: place.put(STATE, place.get(STATE)[:-1]),
        lambda place, _: place.put(STATE, b""),
        lambda place, _: place.put(MANIFEST, b""),
        lambda place, _: place.delete(STATE),
        lambda place, _: place.delete(MANIFEST),
        lambda place, before: place.put(STATE, before.get(STATE)),
    ],
    ids=["state", "manifest", "cut", "empty", "empty manifest", "gone", "no manifest", "another's"],
)
def test_a_damaged_newest_is_passed_over(
    run: Run, damage: Callable[[Location, Location], None]
) -> None:
    """A damaged checkpoint is reported and the one before is used; nothing is removed."""
    damage(home(run, 3), home(run, 2))
    before = run.location.objects()
    passed, loaded = newest(run)
    assert loaded is not None
    assert (["000003-000000"], CheckpointName(2, 0)) == (passed, loaded.name)
    assert_same_tensors(tensors_of(2), loaded.tensors)
    assert before == run.location.objects()


def test_a_truncated_state_is_refused_by_its_size(run: Run) -> None:
    """A state of the wrong size is refused without being read and hashed."""
    place, state = home(run, 3), home(run, 3).get(STATE)
    place.put(STATE, state[:-1])
    lengths = f"has {len(state) - 1:,} bytes; expected {len(state):,}: it is damaged"
    with pytest.raises(BadDataError, match=lengths):
        load_checkpoint(run, CheckpointName(3, 0))


def test_all_damaged_is_an_error(run: Run) -> None:
    """If all are damaged, each is reported, the exit code is 3, and nothing is removed."""
    for epoch in (1, 2, 3):
        flip_bit(home(run, epoch), STATE)
    before = run.location.objects()
    with pytest.raises(BadDataError, match=r"All 3 checkpoints of .* are damaged"):
        newest(run)
    assert before == run.location.objects()
    prune_checkpoints(run, CheckpointName(3, 0), 1, set())
    with pytest.raises(BadDataError, match=r"The only checkpoint of .* is damaged"):
        newest(run)


def test_a_checkpoint_of_another_run_is_refused(run: Run, tmp_path: Path) -> None:
    """A sound checkpoint that was copied from another run is refused."""
    other = make_run(open_location(tmp_path / "other"))
    for key in (STATE, MANIFEST):
        home(run, 3).put(key, home(other, 3).get(key))
    with pytest.raises(BadDataError, match=f"has run_id '{other.run_id}'; expected '{run.run_id}'"):
        load_checkpoint(run, CheckpointName(3, 0))


def test_swapped_checkpoints_are_refused(local_run: Run) -> None:
    """Swapped directories are both refused."""
    home(local_run, 2).path.rename(local_run.location.path / "aside")
    home(local_run, 3).path.rename(home(local_run, 2).path)
    (local_run.location.path / "aside").rename(home(local_run, 3).path)
    for epoch, other in ((2, 3), (3, 2)):
        with pytest.raises(BadDataError, match=f"has epoch {other}; expected {epoch} by"):
            load_checkpoint(local_run, CheckpointName(epoch, 0))


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"dataset_digest": "1" * 64},
        {"progress": []},
        {"parameters_digest": None},
        {"state_bytes": 10**15},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_manifest_of_other_content_is_refused(run: Run, change: dict[str, object]) -> None:
    """A sealed manifest of another version, dataset, type or size is refused."""
    manifest = documents.read_sealed(home(run, 3), MANIFEST) | change
    home(run, 3).put(MANIFEST, documents.sealed_bytes(manifest))
    with pytest.raises(BadDataError, match="000003-000000"):
        load_checkpoint(run, CheckpointName(3, 0))


@pytest.mark.parametrize("state", [b"", b"\0" * 8, b"\xff" * 64, (2**62).to_bytes(8, "little")])
def test_an_invalid_safetensors_file(run: Run, state: bytes) -> None:
    """A state with the right digest and a bad header is refused, for any claimed sizes."""
    manifest = documents.read_sealed(home(run, 3), MANIFEST)
    digest = hashlib.sha256(state).hexdigest()
    manifest |= {"state_bytes": len(state), "state_sha256": digest}
    home(run, 3).put(STATE, state)
    home(run, 3).put(MANIFEST, documents.sealed_bytes(manifest))
    with pytest.raises(BadDataError, match="not in safetensors format"):
        load_checkpoint(run, CheckpointName(3, 0))


def save_while_reading(run: Run, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save two more epochs and prune, right after the list of checkpoints has been read once."""
    original = checkpoints.list_checkpoints

    def list_and_save(run: Run) -> list[CheckpointName]:
        names = original(run)
        monkeypatch.undo()
        for epoch in (4, 5):
            run.append_metrics(metrics_line(epoch))
            prune_checkpoints(run, save_epoch(run, epoch), keep, also=set())
        return names

    monkeypatch.setattr(checkpoints, "list_checkpoints", list_and_save)


def test_loading_while_checkpoints_are_pruned(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader during training gets the newer checkpoint, without a false alarm."""
    save_while_reading(run, 1, monkeypatch)
    passed, loaded = newest(run)
    assert loaded is not None
    assert ([], CheckpointName(5, 0)) == (passed, loaded.name)


def test_metrics_of_a_running_training(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that are appended while the checkpoint is read are returned, without an error."""
    save_while_reading(run, 5, monkeypatch)
    assert [metrics_line(epoch) for epoch in (1, 2, 3, 4, 5)] == recorded_metrics(run)


def test_pruning_keeps_the_newest_and_the_best(run: Run) -> None:
    """The last N and the given checkpoints are kept; the others are removed completely."""
    for epoch in (4, 5):
        save_epoch(run, epoch)
    prune_checkpoints(run, CheckpointName(5, 0), keep=2, also={CheckpointName(2, 0)})
    expected = ["000002-000000", "000004-000000", "000005-000000"]
    assert expected == remaining(run) == list(map(str, list_checkpoints(run)))


def test_pruning_after_a_fall_back_keeps_what_is_sound(run: Run) -> None:
    """Later, damaged checkpoints are removed, and do not count towards N."""
    flip_bit(home(run, 3), STATE)
    save_checkpoint(
        run, CheckpointName(2, 4), TEMPLATE, parameters_digest="", config_digest="", progress={}
    )
    prune_checkpoints(run, CheckpointName(2, 4), keep=1, also=set())
    assert ["000002-000004"] == remaining(run) == list(map(str, list_checkpoints(run)))


def test_a_checkpoint_is_saved_again(run: Run) -> None:
    """A checkpoint of the same name is replaced, even if damaged; no temporary file is left."""
    flip_bit(home(run, 3), STATE)
    name = save_epoch(run, 3)
    assert_same_tensors(tensors_of(3), load_checkpoint(run, name, TEMPLATE).tensors)
    assert ["manifest.json", "state.safetensors"] == home(run, 3).names()
    assert 3 == len(remaining(run))
    assert len(run.location.child(CheckpointName(2, 0).key).objects()) == len(
        run.location.child(name.key).objects()
    )


@pytest.mark.parametrize("operation", ["create", "write", "fsync", "rename", "mkdir"])
def test_a_failed_save_leaves_the_older_ones(
    local_run: Run, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """A full disk, at any operation, costs only the new checkpoint; no file is left."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = local_run.location.objects()
    with monkeypatch.context() as broken:
        broken.setattr(files, operation, refuse)
        with pytest.raises(UnreachableError, match="No space left on device"):
            save_epoch(local_run, 4)
    assert before == local_run.location.objects()


def test_sweep(local_run: Run) -> None:
    """Half-written and half-removed checkpoints are not listed, and are removed by the sweep."""
    for name in (".000004-000000.tmp", ".000001-000000.old"):
        local_run.location.put(f"{DIRECTORY}/{name}/{STATE}", b"half")
    assert 3 == len(list_checkpoints(local_run))
    sweep_checkpoints(local_run)
    assert 3 == len(local_run.location.names(DIRECTORY))


def test_recorded_metrics_are_the_checkpoints(run: Run) -> None:
    """The lines match the newest sound checkpoint; one more is an epoch that was interrupted."""
    lines = [metrics_line(epoch) for epoch in (1, 2, 3)]
    assert lines == recorded_metrics(run)
    run.append_metrics(metrics_line(4))
    assert [*lines, metrics_line(4)] == recorded_metrics(run)
    assert [] == recorded_metrics(begin_run(run.location.child("fresh")))


@pytest.mark.slow
def test_truncated_metrics(local_run: Run) -> None:
    """Fewer lines than the checkpoint recorded are damage, whether a byte or all are missing."""
    whole = local_run.location.get(METRICS)
    for length in range(len(whole)):
        local_run.location.put(METRICS, whole[:length])
        with pytest.raises(BadDataError, match=r"metrics\.jsonl"):
            recorded_metrics(local_run)
    local_run.location.delete(METRICS)
    with pytest.raises(BadDataError, match=r"metrics\.jsonl does not have the lines"):
        recorded_metrics(local_run)


def test_metrics_without_their_checkpoints_are_reported(run: Run) -> None:
    """More epochs than checkpoints explain are an error, unless some are damaged."""
    for epoch in (2, 3):
        run.location.child(CheckpointName(epoch, 0).key).delete_tree()
    with pytest.raises(BadDataError, match="has 3 epochs, the newest checkpoint 1"):
        recorded_metrics(run)
    home(run, 3).put(MANIFEST, b"damaged")
    assert 3 == len(recorded_metrics(run))


def test_names_with_extra_zeros(run: Run) -> None:
    """A directory whose name has more zeros is not a checkpoint, and verification reports it."""
    names = list_checkpoints(run)
    run.location.put("checkpoints/0000003-000000/manifest.json", b"{}")
    assert names == list_checkpoints(run)
    assert 1 == sum(error is not None for _, error in verify_run(run.location))


def test_a_sweep_keeps_other_files(local_run: Run) -> None:
    """Hidden files that this project did not write are kept."""
    local_run.location.put("checkpoints/.notes", b"mine")
    local_run.location.put("checkpoints/.000004-000000.tmp/state.safetensors", b"")
    sweep_checkpoints(local_run)
    assert b"mine" == local_run.location.get("checkpoints/.notes")
    assert not local_run.location.exists("checkpoints/.000004-000000.tmp")
