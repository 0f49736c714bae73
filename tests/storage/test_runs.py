"""The run directory: its record, its lines of metrics, and what is refused."""

import json

import pytest

from storage import documents
from storage.errors import BadDataError, ConflictError
from storage.location import Location
from storage.runs import LOCK, METRICS, RECORD, open_run, run_exists, run_lock
from tests.storage.artefacts import begin_run, metrics_line


@pytest.fixture
def place(anywhere: Location) -> Location:
    return anywhere.child("run")


def test_a_record_comes_back(place: Location) -> None:
    """What a run began with is what is opened, and each run has an identity of its own."""
    run = begin_run(place)
    assert run == open_run(place)
    assert run_exists(place)
    assert run.run_id != begin_run(place.child("other")).run_id


def test_a_run_begins_under_its_lock(place: Location) -> None:
    """The lock's file and the rest of a dead writer's put do not keep a run from beginning."""
    with run_lock(place):
        place.put(".run.json.1-0.tmp", b"")
        run = begin_run(place)
    assert run == open_run(place)
    assert place.exists(LOCK)


def test_a_run_begins_once(place: Location) -> None:
    """A second beginning is a conflict and leaves the first one's record."""
    run = begin_run(place)
    with pytest.raises(ConflictError, match="is a run already"):
        begin_run(place)
    assert run == open_run(place)


def test_a_directory_of_something_else_is_no_place_for_a_run(place: Location) -> None:
    """A directory that holds other files is named with the first of them, and left alone."""
    place.put("thesis.tex", b"precious")
    with pytest.raises(ConflictError, match=r"holds 'thesis\.tex' but no run\.json"):
        begin_run(place)
    assert ["thesis.tex"] == place.names()


def test_a_run_whose_record_is_gone_is_not_begun_anew(place: Location) -> None:
    """Checkpoints without run.json are no empty directory: nothing is started afresh."""
    begin_run(place).append_metrics(metrics_line(1))
    place.delete(RECORD)
    with pytest.raises(ConflictError, match=r"holds 'metrics\.jsonl' but no run\.json"):
        begin_run(place)
    with pytest.raises(BadDataError, match=r"is not a run: it holds no run\.json"):
        open_run(place)


def test_no_run_is_told(place: Location) -> None:
    """A place where nothing is, and a path to a file, are told apart from a run."""
    with pytest.raises(BadDataError, match="There is no run at"):
        open_run(place)
    parent, name = place.split()
    parent.put(name, b"x")
    with pytest.raises(BadDataError, match="is not a run"):
        open_run(place)


@pytest.mark.parametrize("change", [{"dataset_digest": "1" * 64}, {"seal": None}])
def test_a_changed_record_is_refused(place: Location, change: dict[str, object]) -> None:
    """A record that is not what was sealed is damaged, and named."""
    begin_run(place)
    place.put(RECORD, json.dumps(json.loads(place.get(RECORD)) | change).encode())
    with pytest.raises(BadDataError, match=r"run\.json is damaged: its seal"):
        open_run(place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "has format version 2; this release reads up to 1"),
        ({"format": "diary"}, "does not say 'mnist-stream run'"),
        ({"run_id": None}, r"has a \w+ for its 'run_id'"),
        ({"configuration": 3}, r"has a \w+ for its 'configuration'"),
        ({"versions": "ab"}, r"has a \w+ for its 'versions'"),
    ],
)
def test_a_record_of_another_kind_is_refused(
    place: Location, change: dict[str, object], message: str
) -> None:
    """Sealed, but newer, or with fields that are missing or of other types."""
    begin_run(place)
    document = documents.read_sealed(place, RECORD) | change
    kept = {field: value for field, value in document.items() if value is not None}
    place.put(RECORD, documents.sealed_bytes(kept))
    with pytest.raises(BadDataError, match=rf"run\.json {message}"):
        open_run(place)


def test_metrics_are_appended(place: Location) -> None:
    """Each line is there once it has been appended; before the first there are none."""
    run = begin_run(place)
    assert [] == run.metrics()
    for epoch in (1, 2):
        run.append_metrics(metrics_line(epoch))
    assert [metrics_line(1), metrics_line(2)] == open_run(place).metrics()


def test_metrics_are_rewritten(place: Location) -> None:
    """On resume the file holds just the checkpoint's lines, no line where there is none."""
    run = begin_run(place)
    for epoch in (1, 2, 3):
        run.append_metrics(metrics_line(epoch))
    run.rewrite_metrics([metrics_line(1)])
    assert [metrics_line(1)] == run.metrics()
    run.rewrite_metrics([])
    assert [] == run.metrics()


def test_a_line_cut_off_by_a_death_is_left_out(place: Location) -> None:
    """However much of an appended line got to the disk, those before it are read."""
    run = begin_run(place)
    run.append_metrics(metrics_line(1))
    whole = place.size(METRICS)
    run.append_metrics(metrics_line(2))
    data = place.get(METRICS)
    for length in range(whole, len(data)):
        place.put(METRICS, data[:length])
        assert [metrics_line(1)] == run.metrics()


def test_a_changed_line_is_damage(place: Location) -> None:
    """A flipped bit in any line is refused with the line's number."""
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
        with pytest.raises(BadDataError, match="ends in something that is no line"):
            run.metrics()
