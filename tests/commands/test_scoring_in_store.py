"""Scheduled scoring with the inbox, the names, the run and the ledger in an object store."""

import json
import tempfile
from pathlib import Path

import pytest

from pipeline.sources.digits import draw_digits
from storage import ledger
from tests.commands.conftest import SMALL, Call
from tests.commands.process import assert_refused, document
from tests.jobs.inboxes import put_images
from tests.jobs.scoring.test_inbox_formats import put_csv, put_npz, put_pair, put_pictures
from tests.object_store.server import Store

pytestmark = pytest.mark.slow


def key_of(place: str) -> str:
    """Return a URL's key in its bucket."""
    return place.split("/", 3)[3]


def upload(store: Store, place: str, path: Path, name: str | None = None) -> None:
    """Copy a file to the inbox."""
    store.location(f"{key_of(place)}/inbox").put(name or path.name, path.read_bytes())


def test_an_inbox_in_a_store(store: Store, home: str, call: Call, here: Path) -> None:
    """Each object is scored once, by content; a bad one is recorded, and the others are scored."""
    score = ("score", "--run", f"{home}/run", "--inbox", f"{home}/inbox", "--json", "--settle", 0)
    assert 0 == call(*score).code
    upload(store, home, put_images(here / "one.idx3", seed=1, labelled=False))
    upload(store, home, put_images(here / "two.idx3", seed=2, labelled=False), "deep/two.idx3")
    upload(store, home, put_images(here / "part.idx3", seed=3, labelled=False), "three.idx3.part")
    bad = here / "bad.idx3"
    bad.write_bytes(b"no images")
    upload(store, home, bad)

    out = ("--out", f"{home}/rows/{{home}}.csv")
    for _ in range(2):
        ended = call(*score, *out)
        assert 3 == ended.code
    assert "Warning: bad.idx3: not scored: this is not an IDX file" in ended.err
    entries = document(call("scores", f"{home}/run", "--json"))["entries"]
    lines = {(line["event"], line["file"]) for line in entries}
    assert {("scored", "one.idx3"), ("scored", "deep/two.idx3"), ("failed", "bad.idx3")} == lines
    assert 3 == len(entries)
    assert 2 == len(store.location(f"{key_of(home)}/rows").names())
    assert [] == document(call("verify", f"{home}/run", "--json"))["wrong"]

    store.location(f"{key_of(home)}/inbox").delete("bad.idx3")
    upload(store, home, here / "one.idx3", "renamed.idx3")
    assert 0 == call(*score, *out).code
    assert entries == document(call("scores", f"{home}/run", "--json"))["entries"]
    assert [] == store.location(f"{key_of(home)}/run/scores/failed").names()


def test_an_ensemble_in_a_store(store: Store, home: str, call: Call) -> None:
    """Several runs in a store are averaged and promoted, and the name finds them again."""
    runs = f"{home}/run", f"{home}/other"
    where = ("--dataset", f"{home}/set", "--run", runs[1], "--schedule", "constant")
    assert 0 == call("train", *SMALL, *where, "--epochs", 1, "--seed", 7).code
    scored = document(call("score", "--run", f"{runs[0]}@1", "--run", runs[1], "--json"))
    assert list(runs) == scored["runs"]
    names = ("--models", f"{home}/models")
    assert 0 == call("promote", f"{runs[0]}@1", runs[1], "--as", "champion", *names).code
    named = document(call("score", "--model", "champion", *names, "--json"))
    assert (True, scored["location"]) == (named["already_done"], named["location"])
    for run in runs:
        assert ["000001-000000.json"] == store.location(f"{key_of(run)}/pins").names()
    assert [] == document(call("verify", runs[0], "--json"))["wrong"]


def test_formats_in_a_store(store: Store, home: str, call: Call, here: Path) -> None:
    """Objects of other formats are scored once; a folder of pictures is copied as one batch."""
    images, labels = draw_digits(1, "inbox", 0, 20)
    put_pair(here / "x_test.npy", 1)
    put_npz(here / "set.npz", x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    put_csv(here / "a.csv", 1)
    for name in ("x_test.npy", "y_test.npy", "set.npz", "a.csv"):
        upload(store, home, here / name, f"deep/{name}")
    for number, picture in enumerate(sorted(put_pictures(here / "pictures", 2).iterdir())):
        upload(store, home, picture, f"monday/{labels[number] % 2}/{picture.name}")
    bad = here / "bad.png"
    bad.write_bytes(b"no picture")
    upload(store, home, bad, "tuesday/bad.png")
    score = ("score", "--run", f"{home}/run", "--inbox", f"{home}/inbox", "--json", "--settle", 0)
    expected = {"deep/a.csv", "deep/set.npz/train", "deep/set.npz/test", "deep/x_test.npy"}
    for _ in range(2):
        ended = call(*score)
        assert 3 == ended.code
        entries = document(call("scores", f"{home}/run", "--json"))["entries"]
        lines = {line["file"]: line["accuracy"] for line in entries if line["event"] != "failed"}
        assert ({*expected, "monday"}, 6) == (set(lines), len(entries))
        assert None not in lines.values()
        warning = "Warning: tuesday: not scored: tuesday/bad.png is not a PNG"
        assert warning in ended.err.replace(f"{home}/inbox/", "")
        assert str(tempfile.gettempdir()) not in ended.err.replace(str(here), "")


@pytest.mark.parametrize("form", ["csv", "parquet", "npz"])
def test_predictions_in_a_store(form: str, store: Store, home: str, call: Call, here: Path) -> None:
    """--out writes the same file to a store as to the local disk."""
    score = ("score", "--run", f"{home}/run", "--probabilities", "--out")
    for place in (f"{home}/rows/x.{form}", f"x.{form}"):
        assert 0 == call(*score, place).code
    assert (
        store.location(f"{key_of(home)}/rows").get(f"x.{form}") == (here / f"x.{form}").read_bytes()
    )


def test_odd_keys_in_a_store(store: Store, home: str, call: Call, here: Path) -> None:
    """Keys that are not valid paths are reported, keys of folders ignored, and others scored."""
    images = put_images(here / "one.idx3", seed=1, labelled=False)
    long_name = "n" * 300 + ".idx3"
    for name in ("one.idx3", f"deep/{long_name}"):
        upload(store, home, images, name)
    for key in ("x/../../y", "a//b", "a/./b", "two\x1b[31m"):
        store.put_raw(f"{key_of(home)}/inbox/{key}", images.read_bytes())
    for folder in ("inbox/", "inbox/deep/", "set/", "set/train/", "empty/"):
        store.put_raw(f"{key_of(home)}/{folder}")
    score = ("score", "--run", f"{home}/run", "--inbox", f"{home}/inbox", "--settle", 0)
    ended = call(*score, "--json")
    assert 3 == ended.code
    assert ["one.idx3", f"deep/{long_name}"] == [
        one["file"] for one in json.loads(ended.out)["results"]
    ]
    assert "\x1b" not in ended.err + ended.out
    assert 0 == call(*score, "--exclude", "*..*", "--exclude", "*b", "--exclude", "two*").code
    assert [] == document(call("verify", f"{home}/set", "--json"))["wrong"]
    assert 0 == call("ingest", "synthetic:30,6", "--out", f"{home}/empty").code


def test_recent_objects_in_a_store(
    store: Store, home: str, call: Call, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recent images whose labels arrive during the pause are left, and scored by the next run."""
    images = put_images(here / "a-images-idx3", seed=1, labelled=True)
    upload(store, home, images)

    def put_labels(seconds: float, stop: object) -> None:
        upload(store, home, here / "a-labels-idx1")

    monkeypatch.setattr("jobs.scoring.inbox.pause", put_labels)
    score = ("score", "--run", f"{home}/run", "--inbox", f"{home}/inbox", "--json")
    left = document(call(*score, "--settle", 600))
    assert ([], ["a-images-idx3"]) == (left["results"], [one["file"] for one in left["left"]])
    (scored,) = document(call(*score, "--settle", 0))["results"]
    assert 20 == scored["rows"]
    assert scored["quality"] is not None


def test_names_in_a_store(home: str, call: Call) -> None:
    """A name in a store is given, judged, used and undone."""
    names = ("--models", f"{home}/models")
    data = ("--dataset", f"{home}/set")
    promote = ("promote", f"{home}/run", "--as", "champion", *names, *data)
    missed = call(*promote, "--min-accuracy", 1)
    assert 5 == missed.code, missed.err
    assert 0 == call(*promote, "--min-accuracy", 0).code
    scored = call("score", "--model", "champion", *names, *data, "--json")
    assert document(scored)["already_done"]
    assert 0 == call("promote", "--as", "champion", *names, "--undo").code
    assert_refused(call("score", "--model", "champion", *names, *data), 2, "champion")


def test_a_stale_lock_of_the_ledger(
    store: Store, home: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that a dead job left is reported, and taken over with --take-over."""
    monkeypatch.setattr(ledger, "LOCK_SECONDS", 0.1)
    scores = store.location(f"{key_of(home)}/run/scores")
    dead = scores.child(".ledger.lock").writer_lock("The ledger")
    dead.__enter__()
    score = ("score", "--run", f"{home}/run", "--dataset", f"{home}/set")
    assert_refused(call(*score), 4, "--take-over")
    ended = call(*score, "--take-over")
    assert 0 == ended.code, ended.err
    assert "was being written by process" in ended.err
    (line,) = document(call("scores", f"{home}/run", "--json"))["entries"]
    assert "scored" == line["event"]


def test_options_for_places_that_are_recorded(
    store: Store, home: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage options also apply to recorded places: a run's dataset, and a name's run."""
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    option = ("--storage-option", f"endpoint_url={store.endpoint}")
    local = ("--dataset", f"{home}/set", "--run", "run")
    assert 0 == call("train", *SMALL, "--epochs", 1, *local, *option).code
    assert 0 == call("score", "--run", "run", *option).code
    promote = ("promote", f"{home}/run", "--as", "champion", "--min-accuracy", 0)
    assert 0 == call(*promote, *option).code
    assert 0 == call("score", "--model", "champion", *option).code
