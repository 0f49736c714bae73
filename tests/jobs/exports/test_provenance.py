"""The provenance of a model has what in-toto and SLSA require, and the digests of real files."""

import base64
import gzip
import hashlib
import json
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.exports.provenance import checkpoint_subjects, statement, statement_file
from jobs.training.job import train
from jobs.training.model import Model
from pipeline.ingest import ingest
from storage.errors import ConflictError, UsageError
from tests.commands.sets import write_set
from tests.jobs.training.test_reproduce import change_document
from tests.jobs.trainings import Log, small, warnings_in

URI = re.compile(r"[a-z][a-z0-9+.-]*:\S+")
DIGEST = re.compile("[0-9a-f]{64}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `files`, the dataset `data` of them, and the runs `a` and `b`."""
    place = tmp_path_factory.mktemp("made")
    labels = write_set(place / "files") / "train-labels-idx1-ubyte"
    labels.with_suffix(".gz").write_bytes(gzip.compress(labels.read_bytes()))
    labels.unlink()
    ingest(str(place / "files"), place / "data", rows_per_chunk=64)
    for name, seed in (("a", 0), ("b", 1)):
        settings = small(epochs=2, batch_size=50, seed=seed)
        train(settings, dataset=place / "data", run=place / name)
    return place


def check_descriptor(descriptor: dict[str, Any]) -> None:
    """A resource descriptor has a URI, a digest or content."""
    assert descriptor.keys() & {"uri", "digest", "content"}
    assert descriptor.keys() <= {"name", "uri", "digest", "content"}
    assert URI.fullmatch(descriptor.get("uri", "a:b"))
    assert DIGEST.fullmatch(descriptor.get("digest", {"sha256": "0" * 64})["sha256"])
    assert len(base64.b64decode(descriptor.get("content", ""))) < 1024


def check_statement(document: dict[str, Any]) -> dict[str, Any]:
    """A statement has the fields that the specifications require; return its predicate."""
    assert {"_type", "subject", "predicateType", "predicate"} == document.keys()
    assert "https://in-toto.io/Statement/v1" == document["_type"]
    assert "https://slsa.dev/provenance/v1" == document["predicateType"]
    names = [subject["name"] for subject in document["subject"]]
    assert len(names) == len({*names}) > 0
    predicate: dict[str, Any] = document["predicate"]
    definition, details = predicate["buildDefinition"], predicate["runDetails"]
    for descriptor in (*document["subject"], *definition["resolvedDependencies"]):
        check_descriptor(descriptor)
    assert all("digest" in subject for subject in document["subject"])
    assert URI.fullmatch(definition["buildType"])
    assert URI.fullmatch(details["builder"]["id"])
    assert definition["externalParameters"]
    assert not definition["externalParameters"].keys() & definition["internalParameters"].keys()
    for time in details["metadata"].values():
        assert time.endswith("Z")
        datetime.fromisoformat(time)
    return predicate


@pytest.mark.slow
def test_statement(made: Path) -> None:
    """Subjects and source files have the SHA-256 of the files, and all settings are there."""
    model = Model.load(made / "a")
    document = statement(model, checkpoint_subjects(model))
    assert document == statement(Model.load(made / "a"), checkpoint_subjects(model))
    predicate = check_statement(document)
    state = made / "a/checkpoints/000002-000000/state.safetensors"
    digests = {subject["name"].split("/")[-1]: subject["digest"] for subject in document["subject"]}
    expected = {"model": model.digest, state.name: hashlib.sha256(state.read_bytes()).hexdigest()}
    assert {name: {"sha256": digest} for name, digest in expected.items()} == digests
    definition, run = predicate["buildDefinition"], model.members[0].run
    assert {run.run_id: run.configuration} == definition["externalParameters"]["configurations"]
    assert {run.run_id: run.environment} == definition["internalParameters"]["environments"]
    dataset, *sources, numpy = definition["resolvedDependencies"]
    assert ("dataset", run.dataset_digest) == (dataset["name"], dataset["digest"]["sha256"])
    assert {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (made / "files").iterdir()
    } == {Path(source["name"]).name: source["digest"]["sha256"] for source in sources}
    assert f"pkg:pypi/numpy@{run.environment['numpy']}" == numpy["uri"]
    times = predicate["runDetails"]["metadata"]
    assert times["startedOn"] < times["finishedOn"]
    assert datetime.fromisoformat(times["finishedOn"]) == datetime.fromisoformat(
        run.metrics()[-1]["timing"]["time"]
    )


def test_averages(made: Path) -> None:
    """An average has its members in order; one of a run has its configuration and dataset once."""
    model = Model.load(made / "a", "2,1", average_shifts=1)
    parameters = check_statement(statement(model, {}))["buildDefinition"]["externalParameters"]
    assert 1 == parameters["average_shifts"]
    assert [member.digest for member in model.members] == [
        member["model_digest"] for member in parameters["members"]
    ]
    assert 1 == len(parameters["configurations"])


def test_dataset(made: Path, tmp_path: Path, caplog: Log) -> None:
    """Without its dataset the statement has no source files, with a warning; another is refused."""
    shutil.copytree(made, tmp_path / "made")
    change_document(
        tmp_path / "made/a/run.json",
        lambda run: run["dataset"].update(place="../elsewhere"),
    )
    model = Model.load(tmp_path / "made/a")
    predicate = check_statement(statement(model, {}))
    names = [known["name"] for known in predicate["buildDefinition"]["resolvedDependencies"]]
    assert ["dataset", "numpy"] == names
    assert "The statement has no source files: There is no dataset" in warnings_in(caplog)[0]
    sources = statement(model, {}, dataset=made / "data")
    assert 6 == len(sources["predicate"]["buildDefinition"]["resolvedDependencies"])
    ingest("synthetic:60,20", tmp_path / "drawn")
    with pytest.raises(ConflictError, match="was trained on"):
        statement(model, {}, dataset=tmp_path / "drawn")


def test_parent(made: Path, tmp_path: Path) -> None:
    """The model that a run was started from is a dependency."""
    train({"epochs": 1}, dataset=made / "data", run=tmp_path / "run", parent=f"{made / 'a'}@1")
    document = statement(Model.load(tmp_path / "run"), {})
    check_statement(document)
    *_, parent, _ = document["predicate"]["buildDefinition"]["resolvedDependencies"]
    digest = {"sha256": Model.load(made / "a", 1).digest}
    assert {"name": "parent", "digest": digest} == parent


def test_generated_digits(digits: Path, tmp_path: Path) -> None:
    """Digits that were generated are described by what generated them."""
    train(small(epochs=1), dataset=digits, run=tmp_path / "run")
    document = statement(Model.load(tmp_path / "run"), {})
    check_statement(document)
    sources = document["predicate"]["buildDefinition"]["resolvedDependencies"][1:-1]
    contents = [json.loads(base64.b64decode(source["content"])) for source in sources]
    assert {"train", "test"} == {content["split"] for content in contents}


def test_name_of_file(tmp_path: Path) -> None:
    """The file is a JSON file."""
    with pytest.raises(UsageError, match=r"--provenance is .* ends in \.json"):
        statement_file(tmp_path / "provenance.txt")
    with pytest.raises(UsageError, match="--provenance is"):
        statement_file(tmp_path.parent / f"{'a' * 300}.json")
