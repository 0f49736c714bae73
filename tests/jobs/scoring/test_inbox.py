"""The inbox: files arrive, grow, change and disappear; each content is scored once."""

import gzip
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.scoring.config import ScoreConfig
from jobs.scoring.inbox import Inbox
from jobs.scoring.job import run_batch, score
from jobs.signals import StopSignal
from pipeline.ingest import ingest
from storage.dataset import Dataset
from storage.errors import ConflictError, StoppedError, UnreachableError
from storage.events import Progress
from tests.jobs.inboxes import Events, put_images, recorded, score_inbox, settle


def test_all_files(run: Path, inbox: Path) -> None:
    """Image files are scored with or without labels, compressed or not, at any depth."""
    put_images(inbox / "a-images-idx3-ubyte", 1, rows=12, labelled=True)
    put_images(inbox / "b.idx3-ubyte.gz", 2, rows=13)
    put_images(inbox / "monday" / "c.xz", 3, rows=14)
    result = score_inbox(run, inbox)
    scored = {one.file: (one.metrics["rows"], one.accuracy is None) for one in result.results}
    assert {
        "a-images-idx3-ubyte": (12, False),
        "b.idx3-ubyte.gz": (13, True),
        "monday/c.xz": (14, True),
    } == scored
    assert (None, [], []) == (result.error, result.failed, result.left)
    assert [("scored", name) for name in scored] == list(recorded(run))


def test_same_scores_as_a_dataset(run: Path, inbox: Path, tmp_path: Path) -> None:
    """The scores of a file equal those of a dataset with the same rows."""
    put_images(inbox / "train-images-idx3-ubyte", 1, labelled=True)
    (from_file,) = score_inbox(run, inbox).results
    ingest(str(inbox), tmp_path / "dataset")
    other = score(run=run, dataset=tmp_path / "dataset", split="train")
    assert other.scores.read_chunk(0)[0].tolist() == from_file.scores.read_chunk(0)[0].tolist()
    assert other.accuracy == from_file.accuracy


def test_once(run: Path, inbox: Path) -> None:
    """A second pass scores nothing and writes nothing."""
    put_images(inbox / "a", 1)
    score_inbox(run, inbox)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    again = score_inbox(run, inbox)
    assert [True] == [one.already_done for one in again.results]
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    locks = {path for path in after if path.name.endswith(".lock")}
    assert {path for path in after if path not in locks} == before.keys() - locks
    assert all(before[path] == after[path] for path in before.keys() - locks)


def test_renamed_is_not_scored_again(run: Path, inbox: Path) -> None:
    """A renamed file is recognised by its content, and the ledger gets no further line."""
    put_images(inbox / "a", 1).rename(inbox / "b")
    score_inbox(run, inbox)
    (inbox / "b").rename(inbox / "c")
    again = score_inbox(run, inbox)
    assert [("c", True)] == [(one.file, one.already_done) for one in again.results]
    assert [("scored", "b")] == list(recorded(run))


def test_compressed_copy_is_not_scored_again(run: Path, inbox: Path) -> None:
    """The same rows in another file format have the same scores, recorded in one further line."""
    raw = put_images(inbox / "a", 1)
    (inbox / "b.gz").write_bytes(gzip.compress(raw.read_bytes()))
    settle(inbox / "b.gz")
    for _ in range(2):
        result = score_inbox(run, inbox)
    assert 1 == len({one.scores.schema.home for one in result.results})
    assert [("scored", "a"), ("found", "b.gz")] == list(recorded(run))


def test_changed_is_scored_again(run: Path, inbox: Path) -> None:
    """A file whose content changed is scored again."""
    put_images(inbox / "a", 1)
    first = score_inbox(run, inbox).results[0]
    put_images(inbox / "a", 2)
    second = score_inbox(run, inbox).results[0]
    assert (False, False) == (first.already_done, second.already_done)
    assert first.scores.schema.home != second.scores.schema.home


def test_growing_is_left(run: Path, inbox: Path) -> None:
    """A file that is being written is left, and scored when it is complete."""
    path = put_images(inbox / "a", 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    done = threading.Event()

    def grow() -> None:
        with open(path, "ab") as file:
            while not done.wait(0.01):
                file.write(b"\0")
                file.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        result = score_inbox(run, inbox, settle=0.3)
    finally:
        done.set()
        writer.join()
    assert ([], []) == (result.results, result.failed)
    assert [{"file": "a", "reason": "it is still being written"}] == result.left
    assert result.error is None
    path.write_bytes(whole)
    settle(path)
    assert ["a"] == [one.file for one in score_inbox(run, inbox).results]


def test_recent_file(run: Path, inbox: Path, events: Events) -> None:
    """A file that was just written is scored after a pause, which is reported, if unchanged."""
    os.utime(put_images(inbox / "a", 1))
    assert ["a"] == [one.file for one in score_inbox(run, inbox, settle=0.5).results]
    (text,) = [event["text"] for event in events.named("settling")]
    assert "Waiting 0.5 s for files that are still changing" == text


def test_labels_that_arrive_during_the_pause(
    run: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images whose labels arrive a moment later are left, and then scored with them."""
    os.utime(put_images(inbox / "a-images-idx3-ubyte", 1, labelled=True))
    labels = inbox / "a-labels-idx1-ubyte"
    labels.rename(inbox.parent / "labels")

    def put_labels(seconds: float, stop: object) -> None:
        (inbox.parent / "labels").rename(labels)

    monkeypatch.setattr("jobs.scoring.inbox.pause", put_labels)
    result = score_inbox(run, inbox, settle=5.0)
    assert [{"file": "a-images-idx3-ubyte", "reason": "it is still being written"}] == result.left
    (scored,) = score_inbox(run, inbox).results
    assert scored.accuracy is not None
    assert [("scored", "a-images-idx3-ubyte")] == list(recorded(run))


def at_ingest(action: Callable[[], object]) -> Progress:
    """Return a progress callback that calls `action` once, when a file starts to be read."""
    left = [action]

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        if stage.startswith("ingest") and left:
            left.pop()()

    return progress


def test_unmounted_inbox(run: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An inbox that disappears during a pass is an error that can be retried."""
    os.utime(put_images(inbox / "a", 1))
    away = inbox.with_name("away")
    monkeypatch.setattr("jobs.scoring.inbox.pause", lambda seconds, stop: inbox.rename(away))
    result = score_inbox(run, inbox, settle=5.0)
    assert [{"file": "a", "reason": "it was removed"}] == result.left
    assert isinstance(result.error, UnreachableError)


@pytest.mark.parametrize("change", ["rewritten", "deleted"])
def test_changed_while_it_is_read(change: str, run: Path, inbox: Path) -> None:
    """A file that changes or disappears while it is read is left, not recorded as bad."""
    path = put_images(inbox / "a", 1)
    other = put_images(inbox.parent / "other", 2)

    def act() -> None:
        if change == "rewritten":
            path.write_bytes(other.read_bytes())
        else:
            path.unlink()

    result = score_inbox(run, inbox, progress=at_ingest(act))
    if result.results:  # after its rows were read completely
        assert change == "deleted"
        return
    assert [] == result.failed
    assert ["it changed or disappeared while it was being read"] == [
        one["reason"] for one in result.left
    ]
    assert [] == list(recorded(run))


def test_labels_that_arrive_later(run: Path, inbox: Path) -> None:
    """Images scored without labels are scored again when their labels arrive."""
    put_images(inbox / "a-images-idx3-ubyte", 1, labelled=True)
    labels = inbox / "a-labels-idx1-ubyte"
    labels.rename(inbox.parent / "labels")
    assert score_inbox(run, inbox).results[0].accuracy is None
    (inbox.parent / "labels").rename(labels)
    assert score_inbox(run, inbox).results[0].accuracy is not None


def test_datasets(run: Path, inbox: Path, digits: Path) -> None:
    """Each split of a complete dataset is scored; an incomplete dataset is left."""
    shutil.copytree(digits, inbox / "whole")
    shutil.copytree(digits, inbox / "half")
    document = json.loads((inbox / "half" / "zarr.json").read_text())
    del document["attributes"]["complete"]
    (inbox / "half" / "zarr.json").write_text(json.dumps(document))
    result = score_inbox(run, inbox)
    assert ["whole/test", "whole/train"] == [one.file for one in result.results]
    assert [{"file": "half", "reason": "the dataset is not complete"}] == result.left


def test_outputs(run: Path, inbox: Path, tmp_path: Path) -> None:
    """--out is written once for each file, with its labels, under the name of its scores."""
    put_images(inbox / "a-images-idx3-ubyte", 1, labelled=True)
    put_images(inbox / "b", 2)
    result = score_inbox(run, inbox, out=str(tmp_path / "out" / "{home}.csv"))
    written = sorted((tmp_path / "out").glob("*.csv"))
    assert sorted(one.scores.schema.home for one in result.results) == [p.stem for p in written]
    contents = [path.read_bytes() for path in written]
    with_labels = [content.startswith(b"row,predicted,probability,true,") for content in contents]
    assert [False, True] == sorted(with_labels)
    written[with_labels.index(True)].unlink()
    before = written[with_labels.index(False)].stat().st_mtime_ns
    score_inbox(run, inbox, out=str(tmp_path / "out" / "{home}.csv"))
    assert contents == [path.read_bytes() for path in written]
    assert before == written[with_labels.index(False)].stat().st_mtime_ns


def test_temporary_datasets_are_removed(run: Path, inbox: Path) -> None:
    """After a pass only locks remain beside the scores."""
    put_images(inbox / "a", 1)
    score_inbox(run, inbox)
    hidden = [path.name for path in (run / "scores").iterdir() if path.name.startswith(".")]
    (lock,) = (name for name in hidden if name.startswith(".inbox-"))
    assert [".ledger.lock", lock] == sorted(hidden, reverse=True)
    assert lock.endswith(".lock")


def test_one_pass_at_a_time(run: Path, inbox: Path) -> None:
    """A second job on the same inbox is refused, naming the first."""
    put_images(inbox / "a", 1)
    refused: list[str] = []

    def second() -> None:
        with pytest.raises(ConflictError) as caught:
            score_inbox(run, inbox)
        refused.append(str(caught.value))

    assert None is score_inbox(run, inbox, progress=at_ingest(second)).error
    assert [f"The scoring of inbox {inbox} is being written by process {os.getpid()}"] == [
        text.partition(" on ")[0] for text in refused
    ]


def test_no_inbox(run: Path, inbox: Path) -> None:
    """A missing inbox exits with 6, because it may be mounted later; it does not count as empty."""
    with pytest.raises(UnreachableError, match=r"does not exist. Did you mean '.*/inbox'\? Create"):
        score_inbox(run, inbox.parent / "inbx")


def test_skipped_files(run: Path, inbox: Path, events: Events) -> None:
    """Markers and checksums are reported as skipped; excluded files are not reported."""
    put_images(inbox / "a", 1)
    for name in ("_SUCCESS", "SHA256SUMS", "a.md5", "scan.docm"):
        (inbox / name).write_text("not data")
        settle(inbox / name)
    result = score_inbox(run, inbox, exclude=("*.docm",))
    assert ([], None) == (result.failed, result.error)
    assert ["SHA256SUMS", "_SUCCESS", "a.md5"] == events.named("skipped")[0]["files"]


def test_large_file_with_a_bad_header(run: Path, inbox: Path) -> None:
    """A large bad file is refused by its header alone, and recorded once under any name."""
    put_images(inbox / "a", 1)
    (inbox / "huge").write_bytes(b"")
    os.truncate(inbox / "huge", 2**40)
    settle(inbox / "huge")
    for name in ("huge", "other"):
        result = score_inbox(run, inbox)
        assert ["a"] == [one.file for one in result.results]
        assert f"{name}: its element type code is 0x00" in result.failed[0]["error"]
        if name == "huge":
            (inbox / "huge").rename(inbox / "other")
    assert [("scored", "a"), ("failed", "huge")] == list(recorded(run))


def test_stop_while_a_file_is_hashed(run: Path, inbox: Path) -> None:
    """A signal stops the job while it hashes a large file."""
    (inbox / "huge").write_bytes(bytes((0, 0, 8, 2)) + (2**24).to_bytes(4, "big") + b"\0\1\0\0")
    os.truncate(inbox / "huge", 12 + 2**40)
    settle(inbox / "huge")

    class LateSignal(StopSignal):
        """Send the signal while the file is being hashed, at the fourth check."""

        checks = 0

        @property
        def requested(self) -> bool:
            self.checks += 1
            return self.checks > 3

    with pytest.raises(StoppedError, match="Run the same command to continue"):
        run_batch(ScoreConfig(run=str(run), inbox=str(inbox), settle=0.0), stop=LateSignal())


@pytest.mark.parametrize("retries", [0, 1])
def test_unreachable_file(
    retries: int, run: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unreachable file is retried, or left for the next run; others are scored."""
    put_images(inbox / "a", 1)
    put_images(inbox / "b", 2)
    failures = [UnreachableError("The store does not respond.")]
    read = Inbox.dataset

    def unsteady(*arguments: Any) -> Dataset:
        if failures:
            raise failures.pop()
        return read(*arguments)

    monkeypatch.setattr(Inbox, "dataset", unsteady)
    result = score_inbox(run, inbox, retries=retries, retry_wait=0.0)
    assert ["a", "b"][1 - retries :] == [one.file for one in result.results]
    left = [] if retries else [{"file": "a", "reason": "The store does not respond."}]
    assert (left, not retries) == (result.left, isinstance(result.error, UnreachableError))
