"""Verification: sound artefacts pass, and any damage is reported or has no effect."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from storage import documents, trees
from storage.checkpoints import (
    MANIFEST,
    list_checkpoints,
    load_checkpoint,
    pin_checkpoint,
    recorded_metrics,
)
from storage.dataset import open_dataset
from storage.errors import BadDataError
from storage.location import Location
from storage.places import open_location
from storage.runs import open_run
from storage.schema import SplitRecord, dataset_digest
from storage.scores import open_scores
from storage.verify import verify_dataset, verify_location, verify_run, verify_scores
from tests.storage.artefacts import (
    contents,
    create_dataset,
    dataset_schema,
    make_dataset,
    make_run,
    scores_schema,
    write_parts,
)
from tests.storage.damages import truncations, with_flipped_bit

FLIPS_PER_FILE = 6
SEED = 2


@pytest.fixture
def dataset(dataset_place: Location) -> Location:
    return dataset_place


@pytest.fixture
def sharded(tmp_path: Path) -> Location:
    schema = dataset_schema(chunks_per_shard=2, classes=0)
    return make_dataset(open_location(tmp_path / "sharded"), schema).location


@pytest.fixture
def run(run_place: Location) -> Location:
    return run_place


def errors_in(location: Location) -> list[str]:
    """Return the errors of a verification."""
    return [str(error) for _, error in verify_location(location) if error is not None]


def test_a_sound_dataset_passes(dataset: Location, sharded: Location) -> None:
    """Every chunk and count of a sound dataset is checked."""
    checked = dict(verify_dataset(dataset))
    assert [None] == list(set(checked.values()))
    for what in (
        "train: chunk 2",
        "test: chunk 1",
        "test: class counts",
    ):
        assert f"{dataset}/{what}" in checked
    assert [] == errors_in(sharded)


def test_a_sound_run_passes(run: Location) -> None:
    """A run's record, metrics, checkpoints and scores are checked."""
    checked = dict(verify_run(run))
    assert [None] == list(set(checked.values()))
    for what in ("record", "metrics", "checkpoint 000001-000000"):
        assert f"{run}: {what}" in checked
    assert 2 == sum(what.endswith(": attributes") for what in checked)
    of_one = dict(verify_scores(run.child(f"scores/{scores_schema().home}")))
    assert of_one.items() <= checked.items()


def test_files_of_dead_writers_are_ignored(dataset: Location, run: Location) -> None:
    """Temporary files and half-removed checkpoints are not errors."""
    dataset.put("train/.c.0.0.17-3.tmp", b"")
    run.put("checkpoints/.000001-000000.old/manifest.json", b"")
    run.put("checkpoints/.000004-000000.tmp/state.safetensors", b"")
    assert [] == errors_in(dataset) + errors_in(run)


def test_an_interrupted_run_is_sound(run: Location) -> None:
    """An epoch that was recorded but not saved is not an error: a resume repeats it."""
    open_run(run).append_metrics({"epoch": 4})
    assert [] == errors_in(run)


@pytest.mark.parametrize(
    "key", ["train/inputs/c.9.0", "notes.txt", "valid/inputs/zarr.json", "train/c"]
)
def test_an_unexpected_file_in_a_dataset_is_reported(dataset: Location, key: str) -> None:
    """Unexpected files are errors: an extra chunk, other metadata, notes."""
    dataset.put(key, b"unexpected")
    errors = errors_in(dataset)
    assert [f"{dataset}/{key} does not belong here. Move it elsewhere."] == errors


def test_a_damaged_failure_is_reported(run: Location) -> None:
    """The record of a failed training is checked as any document is."""
    open_run(run).record_failure(BadDataError("Chunk 0 is damaged."))
    assert [] == errors_in(run)
    run.put("failure.json", run.get("failure.json").replace(b"0 is", b"1 is"))
    assert ["failure.json"] == [Path(message.split()[0]).name for message in errors_in(run)]


def test_an_unexpected_file_in_a_run_is_reported(run: Location) -> None:
    """Unexpected files are errors below checkpoints/ and scores/, but not directly in the run."""
    home = f"scores/{scores_schema().home}"
    run.put("notes.txt", b"mine")
    run.put("checkpoints/000003-000000x/state.safetensors", b"unexpected")
    run.put(f"{home}/probabilities/c.7.0", b"unexpected")
    errors = errors_in(run)
    assert 2 == len(errors)
    assert "checkpoints/000003-000000x/state.safetensors does not belong" in errors[0]
    assert f"{home}/probabilities/c.7.0 does not belong" in errors[1]


def test_a_promoted_checkpoint_that_is_gone_is_mentioned(run: Location) -> None:
    """Pruning never removes a promoted checkpoint, so its absence is worth a sentence."""
    opened = open_run(run)
    first, *_ = list_checkpoints(opened)
    pin_checkpoint(opened, first)
    mentioned: list[str] = []
    assert not [error for _, error in verify_run(run, mentioned.append) if error]
    assert not mentioned
    run.child(first.key).remove_tree(MANIFEST)
    assert not [error for _, error in verify_run(run, mentioned.append) if error]
    assert [f"{run}/{first.key} is missing"] == [text.split(",")[0] for text in mentioned]


def swap(location: Location, one: str, other: str) -> None:
    first, second = location.get(one), location.get(other)
    location.put(one, second)
    location.put(other, first)


HOME = f"scores/{scores_schema().home}"
OTHER_HOME = f"scores/{scores_schema(split='train').home}"
CHECKPOINT = "checkpoints/00000{}-000000/{}"
DELETED = {
    "dataset": (
        "train/targets/c.2.0",
        "test/chunk_digests/c.0.0",
        "test/chunk_class_counts/zarr.json",
        "train/zarr.json",
        "zarr.json",
    ),
    "run": (
        "run.json",
        "metrics.jsonl",
        CHECKPOINT.format(2, "manifest.json"),
        CHECKPOINT.format(3, "state.safetensors"),
        f"{HOME}/zarr.json",
        f"{HOME}/metrics.json",
        f"{HOME}/predicted/c.1",
    ),
}
SWAPPED = {
    "dataset": (
        ("train/inputs/c.0.0", "train/inputs/c.1.0"),
        ("train/targets/c.0.0", "test/targets/c.0.0"),
        ("train/inputs/zarr.json", "test/inputs/zarr.json"),
        ("train/chunk_digests/c.0.0", "test/chunk_digests/c.0.0"),
        ("train/chunk_class_counts/c.0.0", "test/chunk_class_counts/c.0.0"),
    ),
    "run": (
        *(
            (CHECKPOINT.format(2, name), CHECKPOINT.format(3, name))
            for name in ("state.safetensors", "manifest.json")
        ),
        ("run.json", "metrics.jsonl"),
        (f"{HOME}/predicted/c.0", f"{HOME}/predicted/c.1"),
        (f"{HOME}/metrics.json", f"{OTHER_HOME}/metrics.json"),
    ),
}


@pytest.mark.parametrize("artefact", ["dataset", "run"])
def test_a_file_gone_or_swapped_is_reported(artefact: str, request: pytest.FixtureRequest) -> None:
    """Each damage is detected, and every message names the place."""
    place: Location = request.getfixturevalue(artefact)
    whole = contents(place)

    def assert_detected(*changed: str) -> None:
        errors = errors_in(place)
        assert errors, changed
        assert all(str(place) in message for message in errors)
        for key in changed:
            place.put(key, whole[key])

    for key in DELETED[artefact]:
        place.delete(key)
        assert_detected(key)
    for one, other in SWAPPED[artefact]:
        swap(place, one, other)
        assert_detected(one, other)
    assert [] == errors_in(place)


@pytest.mark.parametrize("artefact", ["dataset", "run"])
def test_a_field_that_zarr_does_not_know_is_reported(
    artefact: str, request: pytest.FixtureRequest
) -> None:
    """Zarr refuses unknown fields in groups, arrays and consolidated metadata."""
    place: Location = request.getfixturevalue(artefact)
    for key in [key for key in place.objects() if Path(key).name == "zarr.json"]:
        whole = place.get(key)
        for parts in (whole.split(b'"attributes"', 1), whole.rsplit(b'"attributes"', 1)):
            place.put(key, b'"attribwtes"'.join(parts))
            assert any(str(place) in message for message in errors_in(place)), key
        place.put(key, whole)
    assert [] == errors_in(place)


def test_files_of_another_run_are_reported(run: Location, tmp_path: Path) -> None:
    """A record or metrics of another run are detected."""
    other = make_run(open_location(tmp_path / "other"), epochs=4).location
    record = run.get("run.json")
    run.put("run.json", other.get("run.json"))
    assert 3 == sum("has run_id" in message for message in errors_in(run))
    run.put("run.json", record)
    run.put("metrics.jsonl", other.get("metrics.jsonl").split(b"\n", 1)[1])
    assert ["metrics.jsonl"] == [Path(message.split()[0]).name for message in errors_in(run)]


def test_class_counts_that_were_always_wrong(tmp_path: Path) -> None:
    """Wrong counts that were sealed are detected by counting the rows."""
    with create_dataset(open_location(tmp_path / "set"), dataset_schema()) as writer:
        records = {
            name: [replace(record, class_counts=(4, 0, 0)) for record in written]
            for name, written in write_parts(writer).items()
        }
        dataset = writer.publish(records, [], {})
    errors = errors_in(dataset.location)
    assert 5 == len(errors)
    assert all("class counts" in message for message in errors)


def test_a_wrong_sum_of_class_counts(dataset: Location) -> None:
    """The root's counts must be the sums of the chunks' counts, even if the seal is right."""
    document = json.loads(dataset.get("zarr.json"))
    attributes = document["attributes"]
    attributes["splits"]["test"]["class_counts"] = [5, 0, 0]
    records = {name: SplitRecord.from_json(entry) for name, entry in attributes["splits"].items()}
    attributes["digest"] = dataset_digest(
        tuple(attributes["class_names"]),
        tuple(attributes["image_shape"]),
        tuple(attributes["transforms"]),
        records,
    )
    dataset.put("zarr.json", documents.document_bytes(trees.seal_group(document)))
    [message] = errors_in(dataset)
    assert "Split test counts [0, 2, 3] rows per class; recorded are [5, 0, 0]" in message


def dataset_content(location: Location) -> Any:
    """Return all values that readers get from a dataset."""
    dataset = open_dataset(location)
    chunks = [
        split.read_chunk(number).digest()
        for split in dataset.splits.values()
        for number in range(split.schema.chunks)
    ]
    counts = [split.chunk_class_counts.tolist() for split in dataset.splits.values()]
    group = zarr.open_group(str(dataset.tree), mode="r")
    arrays = [np.asarray(group[f"{name}/inputs"]).tobytes() for name in dataset.splits]
    attributes = (dataset.digest, dataset.name, dataset.sources, dataset.fingerprint)
    return attributes, chunks, counts, arrays


def run_content(location: Location) -> Any:
    """Return all values that readers get from a run and its scores."""
    run = open_run(location)
    checkpoints = [
        (
            name,
            checkpoint.parameters_digest,
            checkpoint.progress,
            {key: tensor.tobytes() for key, tensor in checkpoint.tensors.items()},
        )
        for name in list_checkpoints(run)
        for checkpoint in [load_checkpoint(run, name)]
    ]
    scorings = [
        (scores.schema, scores.digest, scores.metrics)
        for home in location.names("scores")
        if not home.startswith(".")
        for scores in [open_scores(location.child(f"scores/{home}"))]
    ]
    return run, recorded_metrics(run), checkpoints, scorings


def flipped(data: bytes, draw: random.Random) -> Iterator[bytes]:
    """Yield the file's bytes with a single bit flipped, at random positions."""
    for _ in range(FLIPS_PER_FILE if data else 0):
        yield with_flipped_bit(data, draw)


def truncated(data: bytes, draw: random.Random) -> Iterator[bytes]:
    """Yield the file's bytes cut off: to nothing, by a byte, and at random."""
    lengths = {*truncations(len(data)), draw.randrange(len(data) + 1)} if data else ()
    yield from (data[:length] for length in lengths)


@pytest.mark.slow
@pytest.mark.parametrize("damages", [flipped, truncated])
@pytest.mark.parametrize(
    ("artefact", "content"),
    [("dataset", dataset_content), ("sharded", dataset_content), ("run", run_content)],
)
def test_any_damage_is_detected_or_harmless(
    request: pytest.FixtureRequest,
    artefact: str,
    content: Callable[[Location], Any],
    damages: Callable[[bytes, random.Random], Iterator[bytes]],
) -> None:
    """Damage to any file is detected, or readers get the same content."""
    location: Location = request.getfixturevalue(artefact)
    whole = content(location)
    draw = random.Random(SEED)
    detected = without_effect = 0
    for key in location.objects():
        path = location.path / key
        data = path.read_bytes()
        for damaged in damages(data, draw):
            path.write_bytes(damaged)
            if errors_in(location):
                detected += 1
            else:
                assert whole == content(location), f"silent damage in {key}"
                without_effect += 1
        path.write_bytes(data)
    assert [] == errors_in(location)
    assert without_effect < detected / 5  # files of locks, final line breaks
