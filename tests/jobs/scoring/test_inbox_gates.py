"""Gates of an inbox: the files that are judged, the accuracy to compare, and the alarms."""

from pathlib import Path

import pytest

from jobs.scoring.gates import Gates
from jobs.scoring.job import score
from pipeline.ingest import ingest
from storage.errors import QualityGateError
from tests.jobs.inboxes import Events, ledger, put_images, score_inbox


def test_gates_of_labelled_files(run: Path, inbox: Path) -> None:
    """A file below a gate is scored and its verdict recorded; unlabelled files are not judged."""
    put_images(inbox / "a-images-idx3", 1, labelled=True)
    put_images(inbox / "b-images-idx3", 2)
    result = score_inbox(run, inbox, gates=Gates(min_accuracy=1.0))
    assert isinstance(result.error, QualityGateError)
    assert [5, 0] == [line["exit"] for line in ledger(run)]
    assert ["below gate", "ok"] == [line["status"] for line in ledger(run)]


def test_only_new_verdicts_change_the_exit_code(run: Path, inbox: Path, events: Events) -> None:
    """A file below a gate fails one job only; another file, or a stricter gate, fails the next."""
    put_images(inbox / "a-images-idx3", 1, labelled=True)
    accuracy = score_inbox(run, inbox).results[0].accuracy
    assert accuracy is not None
    low, high = Gates(min_accuracy=(1 + accuracy) / 2), Gates(min_accuracy=1.0)
    errors = [score_inbox(run, inbox, gates=gates).error for gates in (low, low, high, high)]
    assert [True, False, True, False] == [isinstance(one, QualityGateError) for one in errors]
    put_images(inbox / "b-images-idx3", 2, labelled=True)
    result = score_inbox(run, inbox, gates=high)
    assert "b-images-idx3 scored by" in str(result.error)
    assert "a-images-idx3" not in str(result.error)
    assert 3 == len(events.named("gate"))
    assert [True, True] == [one.missed is not None for one in result.results]
    assert [("scored", 0), ("judged", 5), ("judged", 5), ("scored", 5)] == [
        (line["event"], line["exit"]) for line in ledger(run)
    ]


def test_unjudged_files(run: Path, inbox: Path, events: Events) -> None:
    """Files without labels are counted as unjudged if there is a gate."""
    put_images(inbox / "a-images-idx3", 1, labelled=True)
    put_images(inbox / "b-images-idx3", 2)
    assert [] == score_inbox(run, inbox).unjudged
    result = score_inbox(run, inbox, gates=Gates(min_accuracy=0.0))
    assert (None, ["b-images-idx3"]) == (result.error, result.unjudged)
    assert ["b-images-idx3"] == [event["file"] for event in events.named("unjudged")]


def test_drop_between_files(run: Path, inbox: Path) -> None:
    """The files of an inbox count as one split: a drop is measured from the file before."""
    put_images(inbox / "a-images-idx3", 1, labelled=True)
    put_images(inbox / "b-images-idx3", 2, labelled=True)
    first, second = score_inbox(run, inbox, gates=Gates(max_drop=1.0)).results
    assert first.accuracy is not None
    assert () == first.verdicts
    assert [pytest.approx(first.accuracy - 1.0)] == [one.limit for one in second.verdicts]


def test_drop_between_datasets(run: Path, inbox: Path, digits: Path) -> None:
    """A drop is measured from the last split of the same name, even in another dataset."""
    put_images(inbox / "t10k-images-idx3-ubyte", 1, labelled=True)
    ingest(str(inbox), inbox.parent / "other")
    other = score(run=run, dataset=inbox.parent / "other")
    (verdict,) = score(run=run, dataset=digits, gates=Gates(max_drop=1.0)).verdicts
    assert other.accuracy is not None
    assert pytest.approx(other.accuracy - 1.0) == verdict.limit
