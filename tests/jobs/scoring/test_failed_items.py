"""Bad files in an inbox: reported and recorded, until they are repaired or removed."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.sources.idx_split import IdxSplit
from storage.errors import BadDataError, InternalError
from storage.ledger import Ledger
from storage.places import open_location
from tests.jobs.inboxes import Events, ledger, put_images, recorded, score_inbox, settle
from tests.storage.idx_files import write_idx


def test_name_that_is_not_utf8(run: Path, inbox: Path) -> None:
    """A file whose name is not UTF-8 is bad until it is renamed; the others are scored."""
    put_images(inbox / "a", 1)
    latin1 = put_images(inbox / os.fsdecode(b"caf\xe9"), 2)
    for _ in range(2):
        assert isinstance(score_inbox(run, inbox).error, BadDataError)
    assert [("scored", "a"), ("failed", "caf\\xe9")] == list(recorded(run))
    latin1.rename(inbox / "café")
    assert score_inbox(run, inbox).error is None
    assert [] == Ledger(open_location(run)).failures()


def test_bad_files_do_not_stop_the_others(run: Path, inbox: Path) -> None:
    """Bad files are recorded with their errors, the others are scored, and the job exits with 3."""
    put_images(inbox / "a", 1)
    settle(shutil.copy(put_images(inbox / "b", 2), inbox / "cut"))
    os.truncate(inbox / "cut", 1000)
    settle(inbox / "cut")
    (inbox / "junk").write_bytes(b"no images")
    settle(inbox / "junk")
    result = score_inbox(run, inbox)
    assert ["a", "b"] == [one.file for one in result.results]
    assert ["cut", "junk"] == [one["file"] for one in result.failed]
    assert isinstance(result.error, BadDataError)
    assert "cut, junk" in str(result.error)
    failures = {entry["file"]: entry["error"] for entry in Ledger(open_location(run)).failures()}
    assert "cut off" in failures["cut"]
    assert "not an IDX file" in failures["junk"]
    lines = [line for line in ledger(run) if line["event"] == "failed"]
    assert [("cut", 3), ("junk", 3)] == [(line["file"], line["exit"]) for line in lines]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("notes", "notes: not scored: this is not an IDX file but a text that starts with"),
        (
            "small.idx",
            "small.idx: not scored: has images of 2 x 2; the run was trained on images of",
        ),
    ],
)
def test_message_names_its_file_once(
    name: str, message: str, run: Path, inbox: Path, events: Events
) -> None:
    """The message names the file once, whether or not the error begins with the name."""
    write_idx(inbox / "small.idx", np.zeros((3, 2, 2), np.uint8))
    (inbox / "notes").write_text("Put images here.")
    for path in inbox.iterdir():
        settle(path)
    score_inbox(run, inbox)
    (text,) = [event["text"] for event in events.named("failed") if event["file"] == name]
    assert text.startswith(message)
    assert 1 == text.count(name)


@pytest.mark.parametrize("repaired", [True, False])
def test_repaired_or_removed(repaired: bool, run: Path, inbox: Path) -> None:
    """A bad file that is repaired or removed is no longer a failure, but stays in the ledger."""
    (inbox / "a").write_bytes(b"no images")
    settle(inbox / "a")
    score_inbox(run, inbox)
    if repaired:
        put_images(inbox / "a", 1)
    else:
        (inbox / "a").unlink()
    assert score_inbox(run, inbox).error is None
    assert [] == Ledger(open_location(run)).failures()
    assert "failed" in [event for event, _ in recorded(run)]


def test_images_of_another_shape(run: Path, inbox: Path) -> None:
    """Images of another shape are bad for this model, even with the same number of values."""
    data = bytearray(put_images(inbox / "a", 1).read_bytes())
    data[8:16] = (14).to_bytes(4, "big") + (56).to_bytes(4, "big")
    (inbox / "a").write_bytes(bytes(data))
    settle(inbox / "a")
    result = score_inbox(run, inbox)
    words = "a has images of 14 x 56; the run was trained on images of 28 x 28."
    assert result.failed[0]["error"].startswith(words)
    assert isinstance(result.error, BadDataError)
    data[8:16] = (28).to_bytes(4, "big") + (14).to_bytes(4, "big")
    (inbox / "a").write_bytes(bytes(data[: 16 + 20 * 28 * 14]))
    settle(inbox / "a")
    result = score_inbox(run, inbox)
    error = result.failed[0]["error"]
    assert error.startswith("a has images of 28 x 14; the run was trained on images of 28 x 28.")


def test_labels_of_another_class(run: Path, inbox: Path) -> None:
    """Labels of a class that the model was not trained on are an error that names the file."""
    put_images(inbox / "a-images-idx3", 1, labelled=True)
    labels = inbox / "a-labels-idx1"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x21")
    settle(labels)
    error = score_inbox(run, inbox).failed[0]["error"]
    words = "a-images-idx3 has classes that the model was not trained on: 33; the model has 0, 1,"
    assert error.startswith(words)


def test_renamed_bad_file(run: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad file has one line in the ledger, even if it is renamed or reached by another path."""
    (inbox / "junk").write_bytes(b"no images")
    settle(inbox / "junk")
    first = score_inbox(run, inbox).failed[0]["error"]
    assert first.startswith("junk: this is not an IDX file")
    monkeypatch.chdir(inbox.parent)
    assert first == score_inbox(run, Path("inbox")).failed[0]["error"]
    (inbox / "junk").rename(inbox / "other")
    assert [{"file": "other", "error": first.replace("junk", "other")}] == (
        score_inbox(run, inbox).failed
    )
    assert [("failed", "junk")] == list(recorded(run))


def test_a_damaged_dataset(run: Path, inbox: Path, digits: Path) -> None:
    """A split with a missing chunk is bad; the other split is scored."""
    shutil.copytree(digits, inbox / "d")
    (inbox / "d" / "test" / "inputs" / "c.0.0").unlink()
    result = score_inbox(run, inbox)
    assert ["d/test"] == [one["file"] for one in result.failed]
    assert ["d/train"] == [one.file for one in result.results]


def test_a_damaged_model(run: Path, inbox: Path) -> None:
    """A damaged model ends the job; the files are not recorded as bad."""
    put_images(inbox / "a", 1)
    for state in run.glob("checkpoints/*/state.safetensors"):
        state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(BadDataError, match="All 3 checkpoints"):
        score_inbox(run, inbox)
    assert [] == Ledger(open_location(run)).failures()


def test_a_damaged_ledger(run: Path, inbox: Path) -> None:
    """A damaged ledger ends the job; the files are not recorded as bad, and no scores are lost."""
    put_images(inbox / "a", 1)
    score_inbox(run, inbox)
    path = run / "scores" / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b"ok", b"OK"))
    with pytest.raises(BadDataError, match="move the ledger away"):
        score_inbox(run, inbox)
    assert [] == Ledger(open_location(run)).failures()
    path.unlink()
    assert [True] == [one.already_done for one in score_inbox(run, inbox).results]
    assert [("scored", "a")] == list(recorded(run))


class PanicException(BaseException):
    """An error that, like a panic in a Rust library, is not an `Exception`."""


@pytest.mark.parametrize("error_type", [ZeroDivisionError, PanicException])
def test_a_bug(
    error_type: type[BaseException],
    run: Path,
    inbox: Path,
    monkeypatch: pytest.MonkeyPatch,
    events: Events,
) -> None:
    """A bug in one file is logged with its traceback; the others are scored; the exit code is 1."""
    for number, name in enumerate("abc"):
        put_images(inbox / name, number)
    init = IdxSplit.__init__

    def broken(split: IdxSplit, name: str, images: Path, *others: Any) -> None:
        init(split, name, images, *others)
        if images.name == "b":
            raise error_type("a bug")

    monkeypatch.setattr(IdxSplit, "__init__", broken)
    for _ in range(2):
        result = score_inbox(run, inbox)
        assert ["a", "c"] == [one.file for one in result.results]
        assert isinstance(result.error, InternalError)
        assert 1 == result.error.exit_code
    (line,) = [line for line in ledger(run) if line["event"] == "failed"]
    words = f"internal error (please report it): {error_type.__name__}: a bug"
    assert ("b", 1, words) == (line["file"], line["exit"], line["error"])
    assert "in broken" in line["traceback"]
    assert "in broken" in events.named("failed")[0]["text"]
    (inbox / "junk").write_bytes(b"no images")
    settle(inbox / "junk")
    assert isinstance(score_inbox(run, inbox).error, BadDataError)  # the more severe error
    monkeypatch.undo()
    (inbox / "junk").unlink()
    assert score_inbox(run, inbox).error is None
    assert [] == Ledger(open_location(run)).failures()
