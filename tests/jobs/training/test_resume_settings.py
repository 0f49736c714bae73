"""Resume: settings that may change, and settings that are refused."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from jobs.training.config import TrainConfig
from jobs.training.job import train
from jobs.training.prepare import begin_run, completed, configure
from jobs.training.settings import Setting, setting_type
from pipeline.ingest import ingest
from pipeline.sources.formats import SourceOptions
from storage import documents
from storage.checkpoints import CheckpointName
from storage.dataset import open_dataset
from storage.errors import BadDataError, ConflictError, StoppedError
from storage.places import open_location
from storage.runs import RECORD, create_run, open_run, run_lock
from tests.jobs.trainings import (
    SMALL,
    Log,
    StopAt,
    checkpoints,
    outcome,
    small,
    stopped_at,
    tree,
    warnings_in,
)


@pytest.mark.slow
def test_settings_that_may_change(half_done: Path, digits: Path, expected: dict[str, Any]) -> None:
    """Checkpoints and threads may change: the result does not depend on them."""
    config = small(keep=2, threads=3, checkpoint_every=5)
    assert expected == outcome(train(config, dataset=digits, run=half_done, resume=True))
    assert [CheckpointName(5, 10), CheckpointName(6, 0)] == checkpoints(half_done)


def test_networks_are_compared_in_full(finished: Path, expected: dict[str, Any]) -> None:
    """A network without its ends matches the run's if it is the same after completion."""
    assert expected == outcome(train({"network": "relu-9"}, run=finished, resume=True))
    config = small(network="relu-9-softmax", checkpoint_every=4)
    assert expected == outcome(train(config, run=finished, resume=True))
    with pytest.raises(
        ConflictError, match=r"network: '784-relu-9-softmax-10' rec.*'784-tanh-9-so"
    ):
        train({"network": "tanh-9"}, run=finished, resume=True)


def test_splits_to_evaluate_are_compared(digits: Path, tmp_path: Path) -> None:
    """Splits to evaluate are the run's in any order, with or without spaces between them."""
    place = tmp_path / "run"
    train(small(evaluate="train, test", epochs=1), dataset=digits, run=place)
    for same in ("train,test", "test, train"):
        result = train({"evaluate": same}, run=place, resume=True)
        assert ("train, test", True) == (result.config.evaluate, result.already_done)
    with pytest.raises(ConflictError, match="evaluate: 'train, test' recorded, 'test' given"):
        train({"evaluate": "test"}, run=place, resume=True)


def test_settings_without_effect(half_done: Path, expected: dict[str, Any], log: Log) -> None:
    """Settings without effect cause a warning and are not compared; the recorded value stays."""
    given = {"momentum": 0.5, "replicas": 2, "outer-momentum": 0.1, "threads": 1}
    result = train(given, run=half_done, resume=True)
    assert expected == outcome(result)
    assert [
        "--momentum has no effect with --optimizer adamw.",
        "--replicas, --outer-momentum have no effect with --parallel steps.",
    ] == warnings_in(log)
    recorded = open_run(open_location(half_done)).configuration
    assert (0.9, 4, 0.5, 1) == tuple(
        recorded[name] for name in ("momentum", "replicas", "outer_momentum", "threads")
    )
    assert recorded == result.config.to_json()


def test_settings_that_are_not_given(half_done: Path, expected: dict[str, Any]) -> None:
    """Settings and a dataset that are not given are the run's; given ones are compared."""
    with pytest.raises(ConflictError, match=r"\(seed: 0 recorded, 1 given\)"):
        train({"seed": 1, "learning-rate": 0.01}, run=half_done, resume=True)
    stop = StopAt(2)
    with pytest.raises(StoppedError):
        train({"keep": 2}, run=half_done, resume=True, progress=stop, stop=stop.signal)
    result = train(run=half_done, resume=True)
    assert expected == outcome(result)
    assert (2, 4) == (result.config.keep, result.config.checkpoint_every)


def test_the_runs_dataset(finished: Path, digits: Path, tmp_path: Path) -> None:
    """A missing dataset, or another one in its place, is refused."""
    moved = tmp_path / "moved"
    _record(finished, lambda record: record["dataset"].update(place=str(moved)))
    with pytest.raises(BadDataError, match=r"no dataset at .*moved.* pass --dataset"):
        train(run=finished, resume=True)
    ingest("synthetic:1031,211", moved, rows_per_chunk=230, options=SourceOptions(seed=1))
    with pytest.raises(ConflictError, match=r"trained on the dataset at .*moved with digest"):
        train(run=finished, resume=True)
    assert train(dataset=digits, run=finished, resume=True).already_done


def test_a_run_that_does_not_record_its_datasets_place(
    finished: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of an earlier release is resumed with the default dataset."""
    _record(finished, lambda record: record["dataset"].pop("place"))
    monkeypatch.setattr("jobs.training.select_checkpoint.DEFAULT_DATASET", str(digits))
    assert train(run=finished, resume=True).already_done


@pytest.mark.slow
def test_parts_of_another_release(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run keeps its micro-batches if a later release has another default."""
    config = small(checkpoint_every=4, micro_batches=None)
    expected = outcome(train(config, dataset=digits, run=tmp_path / "whole"))
    stop = checkpoints(tmp_path / "whole")[3]
    begun = stopped_at(tmp_path / "whole", stop, tmp_path / "begun")
    monkeypatch.setattr("jobs.training.step.default_micro_batches", lambda batch_size: 3)
    assert expected == outcome(train(config, dataset=digits, run=begun, resume=True))
    other = outcome(train(config, dataset=digits, run=tmp_path / "other"))
    assert expected != other


def test_other_settings(finished: Path, digits: Path) -> None:
    """The message names all settings that differ, with both values; nothing is lost."""
    before = tree(finished)
    with pytest.raises(ConflictError, match=r"holdout: 0 .*, 9 given; patience: 0 .*, 2 given"):
        train(small(holdout=9, patience=2), dataset=digits, run=finished, resume=True)
    assert before == tree(finished)


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_each_fixed_setting(optimizer: str, digits: Path, tmp_path: Path) -> None:
    """Another value of any fixed setting is a conflict that names both values.

    That it fits neither the dataset nor the other settings does not matter.
    """
    dataset = open_dataset(open_location(digits))
    config = small(
        optimizer=optimizer,
        schedule="cosine",
        restarts=2,
        restart_epochs=2,
        parallel="rounds",
        elastic=1.0,
        distort_until=0.5,
    )
    recorded = completed(config, dataset)
    run = begin_run(open_location(tmp_path / "run"), config, recorded, dataset)
    ignored = {setting.name for setting in recorded.without_effect()}
    for setting in fields(TrainConfig):
        name, value = setting.name, getattr(recorded, setting.name)
        if setting.metadata["may_change"] or name in ignored:
            continue
        for other in _values(setting):
            given = {name: other}
            if completed(replace(recorded, **given), dataset) == recorded:
                continue
            with pytest.raises(ConflictError) as caught:
                configure(given, run, dataset)
            assert f"{name}: {value!r} recorded, " in str(caught.value)


def _values(setting: Setting) -> list[Any]:
    """The bounds of a setting, all its choices, or other texts."""
    texts = {"network": ["softmax", "10-softmax-3"], "evaluate": ["validation", "none"]}
    if setting_type(setting) is bool:
        return [True, False]
    choices, least, most = (setting.metadata[key] for key in ("choices", "least", "most"))
    if setting.name in texts or choices:
        return texts.get(setting.name) or list(choices)
    return [least, 10**9 if most is None else most]


def test_another_dataset(finished: Path, tmp_path: Path) -> None:
    """A dataset with other rows is refused; the message has both digests."""
    other = ingest(
        "synthetic:1031,211", tmp_path / "other", rows_per_chunk=230, options=SourceOptions(seed=1)
    ).dataset
    with pytest.raises(ConflictError) as caught:
        train(SMALL, dataset=tmp_path / "other", run=finished, resume=True)
    recorded = open_run(open_location(finished)).dataset_digest
    assert recorded in str(caught.value)
    assert other.digest in str(caught.value)


def test_another_environment(
    half_done: Path, digits: Path, expected: dict[str, Any], log: Log
) -> None:
    """A run that was started with another NumPy resumes with a warning."""
    record = json.loads((half_done / RECORD).read_text())
    record["environment"]["numpy"] = "1.2.3"
    (half_done / RECORD).write_bytes(documents.sealed_bytes(record))
    result = train(SMALL, dataset=digits, run=half_done, resume=True)
    assert expected == outcome(result)
    (warning,) = warnings_in(log)
    assert "numpy was '1.2.3', is" in warning


@pytest.mark.parametrize(("what", "version"), [("order", 2), ("step", 1)])
def test_other_versions(half_done: Path, digits: Path, what: str, version: int) -> None:
    """A run with another version of the order or the arithmetic is not resumed.

    That is reported before other differences, because no setting could help.
    """
    record = json.loads((half_done / RECORD).read_text())
    record["versions"][what] = version
    record["configuration"]["micro_batches"] = 17
    (half_done / RECORD).write_bytes(documents.sealed_bytes(record))
    with pytest.raises(ConflictError, match=f"'{what}': {version}"):
        train(SMALL, dataset=digits, run=half_done, resume=True)


def test_locked(half_done: Path, digits: Path) -> None:
    """A run that another process is writing to is refused and not changed."""
    before = tree(half_done)
    with (
        run_lock(open_location(half_done)),
        pytest.raises(ConflictError, match="is being written by process"),
    ):
        train(SMALL, dataset=digits, run=half_done, resume=True)
    assert before == tree(half_done)


def test_directory_with_other_content(digits: Path, tmp_path: Path) -> None:
    """A directory with other content is not changed."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConflictError, match=r"thesis\.tex"):
        train(SMALL, dataset=digits, run=tmp_path / "run", resume=True)
    assert ["thesis.tex"] == [path.name for path in (tmp_path / "run").iterdir()]
    assert "years of work" == (tmp_path / "run" / "thesis.tex").read_text()


def test_invalid_record(digits: Path, tmp_path: Path) -> None:
    """A record with unknown settings is refused with its place and their name."""
    create_run(
        open_location(tmp_path / "run"),
        configuration={"batchsize": 3},
        dataset_digest=train_digest(digits),
        dataset={},
        versions={"order": 1, "step": 4},
        environment={},
    )
    with pytest.raises(BadDataError, match=r"run\.json has an unknown setting 'batchsize'"):
        train(SMALL, dataset=digits, run=tmp_path / "run", resume=True)


def _record(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the record of a run."""
    record = json.loads((run / RECORD).read_text())
    change(record)
    (run / RECORD).write_bytes(documents.sealed_bytes(record))


def train_digest(dataset: Path) -> str:
    """The digest of a dataset on disk."""
    document = json.loads((dataset / "zarr.json").read_text())
    return str(document["attributes"]["digest"])
