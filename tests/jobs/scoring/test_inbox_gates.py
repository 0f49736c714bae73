"""Gates of an inbox: what is judged, what it is compared with, and which night hears of it."""

from pathlib import Path

import pytest

from jobs.scoring.gates import Gates
from jobs.scoring.job import score
from pipeline.ingest import ingest
from storage.errors import QualityGateError
from tests.jobs.inboxes import Events, ledger, put_images, score_inbox


def test_gates_of_labelled_files(run: Path, inbox: Path) -> None:
    """A file below the gate is scored and marked; files without labels are not judged."""
    put_images(inbox / "a-images-idx3", 1, labelled=True)
    put_images(inbox / "b-images-idx3", 2)
    result = score_inbox(run, inbox, gates=Gates(min_accuracy=1.0))
    assert isinstance(result.error, QualityGateError)
    assert [5, 0] == [line["exit"] for line in ledger(run)]
    assert ["below gate", "ok"] == [line["status"] for line in ledger(run)]


def test_only_what_is_new_ends_the_night(run: Path, inbox: Path, events: Events) -> None:
    """A file below the gate is one night's alarm; another one, or a stricter gate, is a new one."""
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


def test_files_that_could_not_be_judged(run: Path, inbox: Path, events: Events) -> None:
    """Where there is a gate, files without labels are counted; where there is none, none are."""
    put_images(inbox / "a-images-idx3", 1, labelled=True)
    put_images(inbox / "b-images-idx3", 2)
    assert [] == score_inbox(run, inbox).unjudged
    result = score_inbox(run, inbox, gates=Gates(min_accuracy=0.0))
    assert (None, ["b-images-idx3"]) == (result.error, result.unjudged)
    assert ["b-images-idx3"] == [event["file"] for event in events.named("unjudged")]


def test_a_file_is_compared_with_the_one_before(run: Path, inbox: Path) -> None:
    """All files of an inbox are one split: the first labelled one is what the next may fall to."""
    put_images(inbox / "a-images-idx3", 1, labelled=True)
    put_images(inbox / "b-images-idx3", 2, labelled=True)
    first, second = score_inbox(run, inbox, gates=Gates(max_drop=1.0)).results
    assert first.accuracy is not None
    assert () == first.verdicts
    assert [pytest.approx(first.accuracy - 1.0)] == [one.limit for one in second.verdicts]


def test_a_split_is_compared_with_any_of_its_name(run: Path, inbox: Path, digits: Path) -> None:
    """A dataset's `test` is held against the `test` of another dataset that was scored before."""
    put_images(inbox / "t10k-images-idx3-ubyte", 1, labelled=True)
    ingest(str(inbox), inbox.parent / "other")
    other = score(run=run, dataset=inbox.parent / "other")
    (verdict,) = score(run=run, dataset=digits, gates=Gates(max_drop=1.0)).verdicts
    assert other.accuracy is not None
    assert pytest.approx(other.accuracy - 1.0) == verdict.limit
