"""The command `reproduce`: its output, its exit codes, and the forms of a range."""

import json
import os
import signal
import tempfile
from pathlib import Path

import pytest

from jobs.commands.console import Console
from jobs.commands.reproduce import epoch_range
from storage.errors import UsageError
from tests.commands.conftest import Call
from tests.commands.process import assert_refused, document, succeeded


def test_same(call: Call, dataset: Path, run: Path) -> None:
    """Each epoch has a line, and the last line counts those with the same bits."""
    lines = succeeded(call("reproduce")).splitlines()
    assert "Training epochs 1 to 2 of runs/mnist again, on data/mnist" == lines[0]
    assert lines[1].endswith("time  bits")
    assert [("1/2", "same"), ("2/2", "same")] == [
        (line.split()[0], line.split()[-1]) for line in lines[2:4]
    ]
    assert ["The same bits: 2 of 2 epochs"] == lines[4:]
    line = succeeded(call("reproduce", "runs/mnist", "-q", "--epochs", "2-", "--threads", 1))
    assert "The same bits: 1 of 1 epoch (2 of 2)\n" == line


def test_document(call: Call, dataset: Path, run: Path) -> None:
    """--json has the computed metrics and what differs; a difference ends with exit code 5."""
    written = document(call("reproduce", "--json"))
    assert (True, 2, [1, 2]) == (
        written["same"],
        written["recorded_epochs"],
        [written["first"], written["last"]],
    )
    digests = [epoch["parameters_digest"] for epoch in written["epochs"]]
    assert [json.loads(line)["parameters_digest"] for line in _metrics(run)] == digests
    (run / "checkpoints/000002-000000/state.safetensors").write_bytes(b"")
    ended = call("reproduce", "--json")
    written = json.loads(ended.out)
    assert (5, False) == (ended.code, written["same"])
    assert [[], ["checkpoint 000002-000000"]] == [
        list(epoch["differences"]) for epoch in written["epochs"]
    ]
    words = ("Epoch 2 of runs/mnist was not reproduced", "has 0 bytes", "1 of 2 epochs.")
    ended = call("reproduce", "-q")
    assert_refused(ended, 5, *words)
    lines = call("reproduce", "--log-json").out.splitlines()
    events = [json.loads(line) for line in lines]
    assert ["reproduced", "summary"] == [event["event"] for event in events[-2:]]
    assert (5, 2) == (events[-1]["exit"], events[-2]["epoch"])


def _metrics(run: Path) -> list[bytes]:
    return (run / "metrics.jsonl").read_bytes().splitlines()


def test_bad_input(call: Call, dataset: Path, run: Path) -> None:
    """Wrong ranges, runs and datasets are refused with what to do."""
    assert_refused(call("reproduce", "--epochs", "last"), 2, "'last'; expected a range such as 3-5")
    assert_refused(call("reproduce", "--epochs", "2-3"), 2, "epochs 1 to 2", "from epoch 2 to 3")
    assert_refused(call("reproduce", "runs/none"), 3, "There is no run at runs/none")
    assert_refused(call("reproduce", "--dataset", "data/none"), 3, "data/none")
    (run / "metrics.jsonl").write_bytes(b"{}\n")
    assert_refused(call("reproduce"), 3, "metrics.jsonl line 1 is damaged")


def test_ranges() -> None:
    """A range is A-B, A for one epoch, or A- for all from there."""
    assert (1, None) == epoch_range(None)
    assert [(3, 5), (8, 8), (8, None)] == [epoch_range(text) for text in ("3-5", "8", "8-")]
    for text in ("", "-", "-5", "3-5-7", "3..5", "³", "1e3", "12345678"):
        with pytest.raises(UsageError, match="expected a range"):
            epoch_range(text)


def test_interrupted(
    call: Call, here: Path, dataset: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGINT ends it with exit code 130, and leaves no file anywhere."""
    temporary = here / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(Console, "progress", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    before = sorted(here.rglob("*"))
    ended = call("reproduce")
    assert (130, True) == (ended.code, ended.err.startswith("Stopped. The run is unchanged"))
    assert before == sorted(here.rglob("*"))


@pytest.mark.slow
def test_in_store(call: Call, home: str) -> None:
    """A run in an object store is reproduced with its dataset."""
    assert "The same bits: 1 of 1 epoch\n" == succeeded(call("reproduce", f"{home}/run", "-q"))
