"""What is bad in an inbox: told and recorded once, and no more when it is mended or gone."""

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


def test_name_that_is_no_text(run: Path, inbox: Path) -> None:
    """Such a file is bad until it is renamed; the ledger can be read, and others are scored."""
    put_images(inbox / "a", 1)
    named = put_images(inbox / os.fsdecode(b"caf\xe9"), 2)
    for _ in range(2):
        assert isinstance(score_inbox(run, inbox).error, BadDataError)
    assert [("scored", "a"), ("failed", "caf\\xe9")] == list(recorded(run))
    named.rename(inbox / "café")
    assert score_inbox(run, inbox).error is None
    assert [] == Ledger(open_location(run)).failures()


def test_bad_ones_do_not_stop_the_others(run: Path, inbox: Path) -> None:
    """A bad file is recorded with its error, the others are scored, and it ends with exit 3."""
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
    ("name", "told"),
    [
        ("notes", "notes is not scored: this is not an IDX file but a text that starts with"),
        (
            "small.idx",
            "Not scored: small.idx has images of 2 x 2; the run was trained on images of",
        ),
    ],
)
def test_a_message_names_its_file_once(
    name: str, told: str, run: Path, inbox: Path, events: Events
) -> None:
    """Whether or not the error begins with the name, the line for people has it once."""
    write_idx(inbox / "small.idx", np.zeros((3, 2, 2), np.uint8))
    (inbox / "notes").write_text("Put images here.")
    for path in inbox.iterdir():
        settle(path)
    score_inbox(run, inbox)
    (text,) = [event["text"] for event in events.named("failed") if event["file"] == name]
    assert text.startswith(told)
    assert 1 == text.count(name)


@pytest.mark.parametrize("mended", [True, False])
def test_bad_no_more(mended: bool, run: Path, inbox: Path) -> None:
    """A bad file that is mended, or taken away, is no failure any more; the ledger remembers."""
    (inbox / "a").write_bytes(b"no images")
    settle(inbox / "a")
    score_inbox(run, inbox)
    if mended:
        put_images(inbox / "a", 1)
    else:
        (inbox / "a").unlink()
    assert score_inbox(run, inbox).error is None
    assert [] == Ledger(open_location(run)).failures()
    assert "failed" in [event for event, _ in recorded(run)]


def test_images_that_the_model_does_not_take(run: Path, inbox: Path) -> None:
    """Images of another shape are bad for this model, also with as many values."""
    write = put_images(inbox / "a", 1)
    data = bytearray(write.read_bytes())
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


def test_labels_that_the_model_does_not_know(run: Path, inbox: Path) -> None:
    """A label of a class that the model has never seen is told with the inbox's own name."""
    put_images(inbox / "a-images-idx3", 1, labelled=True)
    labels = inbox / "a-labels-idx1"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x21")
    settle(labels)
    error = score_inbox(run, inbox).failed[0]["error"]
    told = "a-images-idx3 has classes that the model was not trained on: 33; the model has 0, 1,"
    assert error.startswith(told)


def test_a_bad_file_has_one_line_by_whatever_name(
    run: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renamed, or reached by another path, a bad file is the same: its content is."""
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
    """A dataset with a damaged chunk is bad."""
    shutil.copytree(digits, inbox / "d")
    (inbox / "d" / "test" / "inputs" / "c.0.0").unlink()
    result = score_inbox(run, inbox)
    assert ["d/test"] == [one["file"] for one in result.failed]
    assert ["d/train"] == [one.file for one in result.results]


def test_a_model_that_cannot_be_read_is_no_fault_of_the_files(run: Path, inbox: Path) -> None:
    """Where all checkpoints are damaged nothing is called bad but that."""
    put_images(inbox / "a", 1)
    for state in run.glob("checkpoints/*/state.safetensors"):
        state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(BadDataError, match="None of the 3 checkpoints"):
        score_inbox(run, inbox)
    assert [] == Ledger(open_location(run)).failures()


def test_a_damaged_ledger_is_no_fault_of_the_files(run: Path, inbox: Path) -> None:
    """Where the ledger is damaged nothing is called bad but that, and nothing is lost."""
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
    """What a library in Rust raises where it panics, which is no `Exception`."""


@pytest.mark.parametrize("kind", [ZeroDivisionError, PanicException])
def test_an_error_that_nobody_thought_of(
    kind: type[BaseException],
    run: Path,
    inbox: Path,
    monkeypatch: pytest.MonkeyPatch,
    events: Events,
) -> None:
    """It keeps no other file from being scored; its traceback is logged, the job ends in exit 1."""
    for number, name in enumerate("abc"):
        put_images(inbox / name, number)
    init = IdxSplit.__init__

    def broken(split: IdxSplit, name: str, images: Path, *others: Any) -> None:
        init(split, name, images, *others)
        if images.name == "b":
            raise kind("of our own making")

    monkeypatch.setattr(IdxSplit, "__init__", broken)
    for _ in range(2):
        result = score_inbox(run, inbox)
        assert ["a", "c"] == [one.file for one in result.results]
        assert isinstance(result.error, InternalError)
        assert 1 == result.error.exit_code
    (line,) = [line for line in ledger(run) if line["event"] == "failed"]
    words = f"internal error (please report it): {kind.__name__}: of our own making"
    assert ("b", 1, words) == (line["file"], line["exit"], line["error"])
    assert "in broken" in line["traceback"]
    assert "in broken" in events.named("failed")[0]["text"]
    (inbox / "junk").write_bytes(b"no images")
    settle(inbox / "junk")
    assert isinstance(score_inbox(run, inbox).error, BadDataError)  # which is graver
    monkeypatch.undo()
    (inbox / "junk").unlink()
    assert score_inbox(run, inbox).error is None
    assert [] == Ledger(open_location(run)).failures()
