"""A run is trained again: the same bits are confirmed, and every change of its record is named."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jobs.nn.architecture import parse_network
from jobs.training.job import train
from jobs.training.reproduce import Reproduction, reproduce
from jobs.training.result import TrainResult
from jobs.training.trainer import flat_parameters, parameters_digest
from pipeline.ingest import ingest
from storage import documents
from storage.checkpoints import MANIFEST, STATE, CheckpointName
from storage.errors import BadDataError, ConflictError, QualityGateError, StoppedError, UsageError
from tests.jobs.trainings import Log, StopAt, small, warnings_in

CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "order": lambda line: line.update(order_digest="0" * 64),
    "parameters": lambda line: line.update(parameters_digest="0" * 64),
    "loss": lambda line: line.update(loss=np.nextafter(line["loss"], 9)),
    "accuracy": lambda line: line.update(accuracy=0.5),
    "steps": lambda line: line.update(steps=line["steps"] - 1),
    "learning rate": lambda line: line.update(learning_rate=0.1),
    "test cross-entropy": lambda line: line["evaluation"]["test"].update(cross_entropy=0.5),
}
"""Changes of an epoch's recorded metrics, by the quantity that then differs."""


def files(run: Path) -> dict[str, tuple[bytes, int]]:
    """Every file and directory of a run with its content and time of change."""
    return {
        str(path.relative_to(run)): (
            path.read_bytes() if path.is_file() else b"",
            path.stat().st_mtime_ns,
        )
        for path in (run, *run.rglob("*"))
    }


def change_document(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a sealed document, and seal it again."""
    document = json.loads(path.read_bytes())
    change(document)
    path.write_bytes(documents.sealed_bytes(document))


def change_line(run: Path, epoch: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the metrics of an epoch, in metrics.jsonl and in all checkpoints."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    change(lines[epoch - 1])
    sealed = [documents.sealed_bytes(line, indent=None) for line in lines]
    (run / "metrics.jsonl").write_bytes(b"".join(sealed))
    for manifest in run.glob(f"checkpoints/*/{MANIFEST}"):
        change_document(manifest, lambda document: change_in(document, epoch, change))


def change_in(manifest: dict[str, Any], epoch: int, change: Callable[..., None]) -> None:
    for line in manifest["progress"]["metrics"][epoch - 1 :][:1]:
        change(line)


def change_tensor(run: Path, name: CheckpointName, tensor: str) -> None:
    """Flip the lowest bit of a tensor's first value, and give the checkpoint all new digests."""
    state = run / name.key / STATE
    tensors = load_file(state)
    key = next(key for key in tensors if key.startswith(tensor))
    flipped = tensors[key].copy()
    flipped.reshape(-1).view(np.uint32)[0] ^= 1
    tensors[key] = flipped
    save_file(tensors, state)
    new = {
        "state_sha256": hashlib.sha256(state.read_bytes()).hexdigest(),
        "state_bytes": state.stat().st_size,
    }
    if name.step:  # the digest after an epoch is in the metrics too
        layers = parse_network("784-relu-9-softmax-10")
        new["parameters_digest"] = parameters_digest(layers, flat_parameters(layers, tensors))
    change_document(run / name.key / MANIFEST, lambda manifest: manifest.update(new))


def first_difference(result: Reproduction) -> tuple[int, list[str]]:
    """The number of the first epoch that differs, and what differs in it."""
    epoch = next(epoch for epoch in result.epochs if epoch.differences)
    return epoch.metrics["epoch"], list(epoch.differences)


def test_same_bits(whole: TrainResult) -> None:
    """All epochs are the same; no byte and no time of the run changes."""
    run = whole.run.location.path
    before = files(run)
    result = reproduce(run)
    result.check()
    assert result.is_same
    assert "the same bits: 6 of 6 epochs" == result.summary
    assert before == files(run)


def test_range(whole: TrainResult) -> None:
    """Epochs in the middle start from the checkpoint before them."""
    result = reproduce(whole.run.location.path, first=3, last=4, threads=1)
    assert [3, 4] == [epoch.metrics["epoch"] for epoch in result.epochs]
    assert "the same bits: 2 of 2 epochs (3 to 4 of 6)" == result.summary
    recorded = [{key: line[key] for key in line if key != "timing"} for line in whole.metrics[2:4]]
    assert recorded == [epoch.metrics for epoch in result.epochs]


def test_unfinished_run(half_done: Path) -> None:
    """The epochs that a run has are reproduced, and the checkpoint within the next is checked."""
    (half_done / "metrics.jsonl").write_bytes(
        b"".join((half_done / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:3])
    )
    assert "the same bits: 3 of 3 epochs" == reproduce(half_done).summary
    (half_done / CheckpointName(3, 4).key / STATE).write_bytes(b"")
    assert (3, ["checkpoint 000003-000004"]) == first_difference(reproduce(half_done))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"holdout": 200, "patience": 1, "learning_rate": 0.2, "epochs": 50},
        {"parallel": "rounds", "replicas": 2, "sync_every": 3, "checkpoint_every": 4},
        {"rotate": 10.0, "dropout": 0.2, "average_shifts": 1, "dtype": "float64"},
        {"optimizer": "momentum", "schedule": "cosine", "restarts": 1, "batch_size": 0},
    ],
    ids=["stopped early", "rounds", "distortions", "full batch"],
)
def test_settings(digits: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Runs are reproduced whatever their settings, some from the middle."""
    result = train(small(**{"epochs": 3} | settings), dataset=digits, run=tmp_path / "run")
    epochs = len(result.metrics)
    for first in (1, epochs):
        again = reproduce(tmp_path / "run", first=first)
        assert again.is_same
        assert epochs - first + 1 == len(again.epochs)


@pytest.mark.parametrize("quantity", CHANGES)
def test_changed_metrics(half_done: Path, quantity: str) -> None:
    """A changed metric is named with its epoch, even if all copies of it were changed."""
    change_line(half_done, 2, CHANGES[quantity])
    result = reproduce(half_done, last=3)
    number, differing = first_difference(result)
    assert (2, quantity) == (number, differing[0])
    assert ("parameters" in differing) == (len(result.epochs) == 2)  # then there is no use in more
    with pytest.raises(QualityGateError, match=f"^Epoch 2 of .*/half-done .*{quantity}: .* comp"):
        result.check()


@pytest.mark.parametrize("name", [CheckpointName(2, 0), CheckpointName(2, 8)], ids=str)
@pytest.mark.parametrize("tensor", ["layer_0", "layer_1", "optimizer."])
def test_changed_tensors(finished: Path, name: CheckpointName, tensor: str) -> None:
    """One bit of a checkpoint is found, although the digests of its file fit."""
    change_tensor(finished, name, tensor)
    result = reproduce(finished, last=4)
    epoch = name.epoch + (name.step > 0)
    assert (epoch, [f"checkpoint {name}"]) == first_difference(result)
    by_digest = "layer" in tensor and not name.step
    expected = "The parameters of" if by_digest else f"saved and computed {tensor}"
    assert result.epochs[epoch - 1].differences[f"checkpoint {name}"].startswith(expected)
    assert 4 == len(result.epochs)
    with pytest.raises(QualityGateError, match="All its recorded metrics were: restore the check"):
        result.check()


def test_changed_digests(finished: Path) -> None:
    """A checkpoint is named if its own digest, its metrics or its bytes were changed."""
    changed = [CheckpointName(2, 0), CheckpointName(3, 0), CheckpointName(4, 0)]
    digest, metrics, state = (finished / name.key for name in changed)
    change_document(digest / MANIFEST, lambda manifest: manifest.update(parameters_digest="0" * 64))
    change_document(metrics / MANIFEST, lambda manifest: change_in(manifest, 1, CHANGES["loss"]))
    (state / STATE).write_bytes(b"0" + (state / STATE).read_bytes()[1:])
    result = reproduce(finished)
    assert [[], *([f"checkpoint {name}"] for name in changed), [], []] == [
        list(epoch.differences) for epoch in result.epochs
    ]
    for name in changed:
        with pytest.raises(BadDataError, match=str(name)):
            reproduce(finished, first=name.epoch + 1)


def test_checkpoints_that_are_missing(half_done: Path) -> None:
    """A range that cannot start says which can; a record with lines missing is not believed."""
    with pytest.raises(BadDataError, match=r"no checkpoint 000001-000000 .* the first: 1, 4\.$"):
        reproduce(half_done, first=2)
    for first, last in ((0, 2), (3, 2), (1, 7), (7, None)):
        with pytest.raises(UsageError, match=rf"epochs 1 to 6; .* from epoch {first} "):
            reproduce(half_done, first=first, last=last)
    lines = (half_done / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (half_done / "metrics.jsonl").write_bytes(lines[0])
    with pytest.raises(BadDataError, match="has 1 epoch; the newest checkpoint is 000003-000004"):
        reproduce(half_done)
    (half_done / "metrics.jsonl").unlink()
    with pytest.raises(BadDataError, match="has 0 epochs; the newest"):
        reproduce(half_done)


def test_pruned_at_the_same_time(finished: Path) -> None:
    """A checkpoint that training prunes while the run is reproduced is no difference."""

    def prune(stage: str, done: int, total: int, note: str = "") -> None:
        if stage.startswith("epoch 3"):
            shutil.rmtree(finished / CheckpointName(3, 0).key, ignore_errors=True)

    assert reproduce(finished, last=4, progress=prune).is_same


def test_another_environment(half_done: Path, log: Log) -> None:
    """The message names what differs between the environments."""
    change_document(half_done / "run.json", lambda run: run["environment"].update(numpy="1.0"))
    change_line(half_done, 1, CHANGES["parameters"])
    with pytest.raises(QualityGateError, match=r"another environment: numpy was '1\.0', is '"):
        reproduce(half_done).check()
    assert "numpy was '1.0'" in warnings_in(log)[0]
    change_document(half_done / "run.json", lambda run: run["versions"].update(step=2))
    with pytest.raises(ConflictError, match="Reproduce it with the release that started it"):
        reproduce(half_done)


def test_dataset(half_done: Path, digits: Path, tmp_path: Path) -> None:
    """A copy of the dataset is as good as the run's own; another dataset is refused."""
    copy = shutil.copytree(digits, tmp_path / "copy")
    assert reproduce(half_done, dataset=copy, last=1).is_same
    ingest("synthetic:1031,211", tmp_path / "other", rows_per_chunk=100)
    with pytest.raises(ConflictError, match=r"was trained on the dataset at .* Pass the run's"):
        reproduce(half_done, dataset=tmp_path / "other")


def test_stopped(half_done: Path) -> None:
    """A signal ends it within a step, and nothing is written."""
    before, stop = files(half_done), StopAt(15)
    with pytest.raises(StoppedError, match="run is unchanged") as caught:
        reproduce(half_done, progress=stop, stop=stop.signal)
    assert 143 == caught.value.exit_code
    assert before == files(half_done)
