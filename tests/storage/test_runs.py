"""The run directory: run.json, metrics.jsonl, and the errors for damaged ones."""

import json
from dataclasses import replace

import pytest

from storage import documents
from storage.errors import BadDataError, ConflictError
from storage.location import Location
from storage.runs import LOCK, METRICS, RECORD, open_run, run_exists, run_lock
from tests.storage.artefacts import begin_run, metrics_line


@pytest.fixture
def place(anywhere: Location) -> Location:
    return anywhere.child("run")


def test_round_trip(place: Location) -> None:
    """A created run is read back, and each run has its own id."""
    run = begin_run(place)
    assert run == open_run(place)
    assert run_exists(place)
    assert run.run_id != begin_run(place.child("other")).run_id


def test_a_recipe_is_recorded_if_there_is_one(place: Location) -> None:
    """A run from a recipe records its name; the record of any other is as in earlier releases."""
    run = begin_run(place)
    assert "recipe" not in documents.read_sealed(place, RECORD)
    replace(run, recipe="quick").write()
    assert "quick" == open_run(place).reconfigured({"epochs": 9}).recipe == open_run(place).recipe


def test_a_run_begins_under_its_lock(place: Location) -> None:
    """A lock file and a partial file do not prevent creating a run."""
    with run_lock(place):
        place.put(".run.json.1-0.tmp", b"")
        run = begin_run(place)
    assert run == open_run(place)
    assert place.exists(LOCK)


def test_a_run_begins_once(place: Location) -> None:
    """Creating a run twice is a conflict, and the first one stays."""
    run = begin_run(place)
    with pytest.raises(ConflictError, match="is a run already"):
        begin_run(place)
    assert run == open_run(place)


def test_a_directory_with_other_files(place: Location) -> None:
    """A directory with other files is refused; the message names the first file."""
    place.put("thesis.tex", b"precious")
    with pytest.raises(ConflictError, match=r"contains 'thesis\.tex' but no run\.json"):
        begin_run(place)
    assert ["thesis.tex"] == place.names()


def test_a_run_whose_record_is_gone_is_not_started_again(place: Location) -> None:
    """Checkpoints without run.json are not overwritten by a new run."""
    begin_run(place).append_metrics(metrics_line(1))
    place.delete(RECORD)
    with pytest.raises(ConflictError, match=r"contains 'metrics\.jsonl' but no run\.json"):
        begin_run(place)
    with pytest.raises(BadDataError, match=r"is not a run: it contains no run\.json"):
        open_run(place)


def test_no_run(place: Location) -> None:
    """The messages for a missing path and for a file differ."""
    with pytest.raises(BadDataError, match="There is no run at"):
        open_run(place)
    parent, name = place.split()
    parent.put(name, b"x")
    with pytest.raises(BadDataError, match="is not a run"):
        open_run(place)


@pytest.mark.parametrize("change", [{"dataset_digest": "1" * 64}, {"seal": None}])
def test_a_changed_record_is_refused(place: Location, change: dict[str, object]) -> None:
    """A run.json with a wrong seal is damaged, and named."""
    begin_run(place)
    place.put(RECORD, json.dumps(json.loads(place.get(RECORD)) | change).encode())
    with pytest.raises(BadDataError, match=r"run\.json is damaged: its seal"):
        open_run(place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "has format version 2; this release reads up to 1"),
        ({"format": "diary"}, "has format 'diary', not 'mnist-stream run'"),
        ({"run_id": None}, r"has a \w+ for its 'run_id'"),
        ({"configuration": 3}, r"has a \w+ for its 'configuration'"),
        ({"versions": "ab"}, r"has a \w+ for its 'versions'"),
        ({"recipe": 3}, r"has a \w+ for its 'recipe'"),
    ],
)
def test_an_invalid_record(place: Location, change: dict[str, object], message: str) -> None:
    """A sealed run.json of a newer version, or with wrong fields, is refused."""
    begin_run(place)
    document = documents.read_sealed(place, RECORD) | change
    kept = {field: value for field, value in document.items() if value is not None}
    place.put(RECORD, documents.sealed_bytes(kept))
    with pytest.raises(BadDataError, match=rf"run\.json {message}"):
        open_run(place)


def test_metrics_are_appended(place: Location) -> None:
    """Appended lines are read back; before the first there are none."""
    run = begin_run(place)
    assert [] == run.metrics()
    for epoch in (1, 2):
        run.append_metrics(metrics_line(epoch))
    assert [metrics_line(1), metrics_line(2)] == open_run(place).metrics()


def test_metrics_are_rewritten(place: Location) -> None:
    """On resume the file contains exactly the checkpoint's lines."""
    run = begin_run(place)
    for epoch in (1, 2, 3):
        run.append_metrics(metrics_line(epoch))
    run.rewrite_metrics([metrics_line(1)])
    assert [metrics_line(1)] == run.metrics()
    run.rewrite_metrics([])
    assert [] == run.metrics()


def test_an_incomplete_line_is_ignored(place: Location) -> None:
    """If the last line is cut off at any byte, the lines before it are read."""
    run = begin_run(place)
    run.append_metrics(metrics_line(1))
    whole = place.size(METRICS)
    run.append_metrics(metrics_line(2))
    data = place.get(METRICS)
    for length in range(whole, len(data)):
        place.put(METRICS, data[:length])
        assert [metrics_line(1)] == run.metrics()


def test_a_changed_line_is_damage(place: Location) -> None:
    """A flipped bit is an error with the line's number."""
    run = begin_run(place)
    for epoch in (1, 2, 3):
        run.append_metrics(metrics_line(epoch))
    data = place.get(METRICS)
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        place.put(METRICS, data.replace(line, line.replace(b'"loss"', b'"lass"')))
        with pytest.raises(BadDataError, match=rf"metrics\.jsonl line {number} is damaged"):
            run.metrics()
    for rest in (b"\0\0\0", b"garbage"):
        place.put(METRICS, data + rest)
        with pytest.raises(BadDataError, match="ends with something other than a line"):
            run.metrics()
