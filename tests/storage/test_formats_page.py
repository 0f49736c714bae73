"""docs/reference/formats.md is correct: a reader written from it, without this project's code."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from safetensors.numpy import load_file

from jobs.scoring.job import score
from jobs.training.config import TrainConfig
from jobs.training.job import train
from pipeline.ingest import ingest
from tests.storage.artefacts import REPOSITORY

PAGE = (REPOSITORY / "docs" / "reference" / "formats.md").read_text()
SETTINGS = (REPOSITORY / "docs" / "reference" / "settings.md").read_text()
ADDED = set(re.findall(r"^\| `(\w+)` .* added \|$", SETTINGS, re.MULTILINE))
"""The settings that are marked as added; those of the runs here have their defaults."""
Json = dict[str, Any]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(value: object) -> bytes:
    """Return canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def unsealed(text: str) -> Json:
    """Return a document without its seal, after checking it."""
    document: Json = json.loads(text)
    recorded = document.pop("seal")
    assert sha256(canonical(document)) == recorded
    return document


def unsealed_lines(path: Path) -> list[Json]:
    return [unsealed(line) for line in path.read_text().splitlines()]


def listed(head: str) -> list[str]:
    """Return the names in the first column of the page's table with this head."""
    rows = PAGE.partition(f"\n| {head} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


OF_SEVERAL_RUNS = {"runs"}
"""Fields of averages over several runs, which the runs here are not."""
ROOT = listed("root attribute")
FIELDS = re.findall(r"`(\w+)`", PAGE.partition("Keep only the fields")[2].partition(".\n")[0])


def own_digest(document: Json, attributes: list[str]) -> str:
    """Return the digest of a zarr.json's own metadata."""
    kept = {
        name: document["attributes"][name] for name in attributes if name in document["attributes"]
    }
    own = {name: document[name] for name in FIELDS if name in document} | {"attributes": kept}
    return sha256(canonical({name: own[name] for name in own if own[name] not in (None, [], {})}))


def open_group(place: Path, attributes: list[str]) -> tuple[zarr.Group, Json]:
    """Return a group and its root attributes, every document checked."""
    root = json.loads((place / "zarr.json").read_text())
    every: Json = root["attributes"]
    assert every["complete"] is True
    assert every.keys() == {*attributes, *ROOT}
    notes = ("findings", "statistics", "labels")
    own = [name for name in every if "seal" not in name and name not in notes]
    assert every["own_seal"] == own_digest(root, own)
    recorded = every.pop("seal")
    assert sha256(canonical(root)) == recorded
    for key, digest in every["own_metadata_digests"].items():
        content = (place / key).read_bytes()
        document = json.loads(content)
        is_array = document["node_type"] == "array"
        assert digest == own_digest(document, ["scale_factor", "add_offset"] if is_array else [])
        assert every["metadata_digests"][key] == sha256(content)
    return zarr.open_group(place, mode="r"), every


def values(group: zarr.Group, name: str) -> NDArray[Any]:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[:])


def chunk_digests(arrays: list[NDArray[Any]], chunk_rows: int) -> list[str]:
    """Return the digest of each chunk: its rows of one array, then those of the next."""
    return [
        sha256(b"".join(array[start : start + chunk_rows].tobytes() for array in arrays))
        for start in range(0, len(arrays[0]), chunk_rows)
    ]


def read_dataset(place: Path) -> tuple[zarr.Group, Json]:
    """Return a dataset, all its digests checked."""
    group, attributes = open_group(place, listed("root attribute of a dataset"))
    for name, split in attributes["splits"].items():
        assert list(split) == listed("field of a split")
        arrays = [values(group, f"{name}/{array}") for array in ("inputs", "targets")]
        digests, counts = (
            values(group, f"{name}/chunk_{of}") for of in ("digests", "class_counts")
        )
        assert [row.tobytes().hex() for row in digests] == chunk_digests(
            arrays, split["chunk_rows"]
        )
        assert split["digest"] == sha256(digests.tobytes())
        assert split["class_counts_digest"] == sha256(counts.astype("<i8").tobytes())
        assert counts.sum(axis=0).tolist() == split["class_counts"]
    findings = unsealed(json.dumps(attributes["findings"]))
    assert list(findings) == listed("field of `findings`")
    assert [list(split) for split in findings["splits"].values()] == [
        listed("finding of a split")
    ] * len(attributes["splits"])
    statistics = unsealed(json.dumps(attributes["statistics"]))
    assert list(statistics) == listed("field of `statistics`")
    assert list(statistics["counts"]) == listed("image statistic")
    assert unsealed(json.dumps(attributes["labels"])) == {"values": list(range(10))}
    meaning = {
        name: attributes[name] for name in ("class_names", "image_shape", "transforms", "splits")
    }
    constants = {"format": "mnist-stream dataset", "format_version": 1}
    assert attributes["digest"] == sha256(canonical(constants | meaning))
    return group, attributes


def read_model(run: Path, epoch: str) -> tuple[list[NDArray[Any]], Json, Json]:
    """Return a checkpoint's layers, its manifest and its run's record, all digests checked."""
    record = unsealed((run / "run.json").read_text())
    lines = unsealed_lines(run / "metrics.jsonl")
    place = run / "checkpoints" / epoch
    manifest = unsealed((place / "manifest.json").read_text())
    assert list(record) == listed("field of `run.json`")
    assert list(lines[0]) == listed("field of a line of `metrics.jsonl`")
    assert set(manifest) == set(listed("field of `manifest.json`"))
    assert manifest["progress"]["metrics"] == lines
    state = (place / "state.safetensors").read_bytes()
    assert (len(state), sha256(state)) == (manifest["state_bytes"], manifest["state_sha256"])
    tensors = load_file(place / "state.safetensors")
    layers = [tensors[name] for name in sorted(tensors) if name.startswith("layer_")]
    settings = record["configuration"]
    text = f"{settings['network']}|{settings['dtype']}|".encode()
    model = sha256(text + b"".join(layer.tobytes() for layer in layers))
    assert model == manifest["parameters_digest"] == lines[-1]["parameters_digest"]
    rounds = {"replicas", "sync_every", "outer_learning_rate", "outer_momentum"}
    kept = settings.keys() - rounds - ADDED - {"checkpoint_every", "keep", "threads"}
    assert manifest["config_digest"] == sha256(canonical({name: settings[name] for name in kept}))
    return layers, manifest, record


def read_scores(place: Path) -> tuple[zarr.Group, Json, str]:
    """Return scores, their root attributes and their digest, all digests checked."""
    group, attributes = open_group(place, listed("root attribute of scores"))
    scored = attributes["scored"]
    arrays = [values(group, name) for name in ("probabilities", "predicted")]
    assert attributes["chunk_digests"] == chunk_digests(arrays, scored["chunk_rows"])
    metrics = (place / "metrics.json").read_bytes()
    assert sha256(metrics) == attributes["metrics_sha256"]
    document = unsealed(metrics.decode())
    fields = listed("field of `metrics.json`")
    assert list(document) == [name for name in fields if name not in OF_SEVERAL_RUNS]
    assert list(document["drift"]) == listed("field of `drift`")
    home = sha256(f"{scored['model_digest']}|{scored['dataset_digest']}".encode())[:12]
    assert place.name == f"{scored['split']}-{home}"
    return group, scored, sha256("".join(attributes["chunk_digests"]).encode())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, a run and scores, as the commands make them."""
    place = tmp_path_factory.mktemp("formats")
    ingest("synthetic:110,50", place / "set", rows_per_chunk=40)
    config = TrainConfig(network="784-relu-8-tanh-6-softmax-10", epochs=2, batch_size=20)
    train(config, dataset=place / "set", run=place / "run")
    score(run=place / "run", dataset=place / "set")
    return place


def test_scores_are_what_the_model_gives(made: Path) -> None:
    """The model read from the checkpoint, applied to the rows read from the dataset."""
    dataset, attributes = read_dataset(made / "set")
    layers, manifest, record = read_model(made / "run", "000002-000000")
    (place,) = (made / "run" / "scores").glob("test-*")
    scores, scored, digest = read_scores(place)
    (reference,) = (made / "run" / "references").glob("*.json")
    document = unsealed(reference.read_text())
    assert reference.stem == manifest["parameters_digest"][:12]
    assert list(document) == listed("field of a reference")
    assert [len(row) for row in document["hidden_covariance"]] == [1, 2, 3, 4, 5, 6]
    assert attributes["digest"] == record["dataset_digest"] == scored["dataset_digest"]
    assert manifest["parameters_digest"] == scored["model_digest"]
    (line,) = unsealed_lines(made / "run" / "scores" / "ledger.jsonl")
    assert set(line) == set(listed("field of a line of `ledger.jsonl`")) - OF_SEVERAL_RUNS
    assert line["scores_digest"] == digest
    count = unsealed((made / "run" / "scores" / "ledger.json").read_text())
    ledger = (made / "run" / "scores" / "ledger.jsonl").read_bytes()
    assert count == {"lines": 1, "sha256": sha256(ledger)}

    scaling = dataset["test/inputs"].attrs
    inputs = values(dataset, "test/inputs")
    rows = inputs * float(str(scaling["scale_factor"])) + float(str(scaling["add_offset"]))
    for layer, activation in zip(layers, ("relu", "tanh", "softmax"), strict=True):
        sums = rows @ layer
        if activation == "softmax":
            shares = np.exp(sums)
            rows = shares / shares.sum(axis=1, keepdims=True)
        else:
            outputs = np.maximum(sums, 0) if activation == "relu" else np.tanh(sums)
            rows = np.column_stack([np.ones(len(outputs)), outputs])
    np.testing.assert_allclose(values(scores, "probabilities"), rows, atol=1e-5)
    np.testing.assert_array_equal(values(scores, "predicted"), rows.argmax(axis=1))


def test_order_digest(made: Path) -> None:
    """The chain over mini-batches, here of rows in their stored order."""
    config = TrainConfig(network="784-softmax-10", epochs=1, batch_size=20, shuffle=False)
    train(config, dataset=made / "set", run=made / "unshuffled")
    (line,) = unsealed_lines(made / "unshuffled" / "metrics.jsonl")
    link = bytes(32)
    for start in range(0, 110, 20):
        numbers = np.arange(start, min(start + 20, 110), dtype="<u8")
        link = hashlib.sha256(link + numbers.tobytes()).digest()
    assert line["order_digest"] == link.hex()


@pytest.mark.slow
def test_shards(tmp_path: Path) -> None:
    """A shard is its chunks one after the other, then their offsets and lengths."""
    ingest("synthetic:1010,5", tmp_path / "set", rows_per_chunk=1)
    read_dataset(tmp_path / "set")
    *_, last = sorted(
        (tmp_path / "set" / "train" / "inputs").glob("c.*"),
        key=lambda path: int(path.suffixes[0][1:]),
    )
    stored = last.read_bytes()
    index = np.frombuffer(stored[-8 * 16 - 4 : -4], "<u8").reshape(8, 2)
    beyond = 2**64 - 1
    assert (index[2:] == beyond).all()
    assert index[0].tolist() == [0, index[1, 0]]
    assert index[1].sum() == len(stored) - 8 * 16 - 4
