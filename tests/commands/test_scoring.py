"""The scoring commands in scripts and schedulers: exit codes, output, imports."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import Call
from tests.commands.process import Ended, assert_refused
from tests.commands.test_weight import imported
from tests.jobs.inboxes import put_images, settle

USAGE, BAD_DATA, BELOW_GATE, UNREACHABLE = 2, 3, 5, 6


def lines(ended: Ended) -> list[dict[str, object]]:
    """The lines of a JSON log."""
    return [json.loads(line) for line in ended.out.splitlines()]


def test_a_rerun_imports_little(dataset: Path, run: Path, call: Call) -> None:
    """A rerun whose scores exist imports neither Zarr nor Dask."""
    assert 0 == call("score").code
    modules = imported("score", cwd=dataset.parent.parent)
    assert {"click", "jobs", "storage"} <= modules
    assert set() == {"zarr", "dask", "distributed"} & modules


def test_gate(dataset: Path, run: Path, call: Call) -> None:
    """A missed gate exits with 5 after the result is printed, and is in the ledger."""
    ended = call("score", "--min-accuracy", "1")
    assert BELOW_GATE == ended.code
    assert "Test accuracy " in ended.out
    assert re.fullmatch(r"Error: test scored by .* as test-\w+\.\n", ended.err)
    shown = call("scores").out.splitlines()
    assert shown[0].split() == ["time", "what", "outcome", "rows", "accuracy", "drift"]
    assert "below gate" in shown[1]
    entries = json.loads(call("scores", "--failed", "--json").out)["entries"]
    assert [5] == [entry["exit"] for entry in entries]


def test_drift(dataset: Path, run: Path, call: Call, here: Path) -> None:
    """Rows far from training are told in words, with the number after -v, and can end in 5."""
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
    np.savez(here / "noise.npz", x_test=images)
    assert 0 == call("ingest", "noise.npz", "--out", "noise").code
    ended = call("score", "--dataset", "noise")
    assert 0 == ended.code
    assert re.search(r"from training.*: noise\?", ended.out.replace("\n", " "))
    assert re.search(r"; drift \d+\.\d; scores in", call("score", "--dataset", "noise", "-q").out)
    table = call("scores").out.splitlines()
    assert "drift" in table[0]
    assert 80 >= max(map(len, table))
    assert re.search(r"drift +\d+\.\d\d \(\w", call("score", "--dataset", "noise", "-v").out)
    ended = call("score", "--dataset", "noise", "--max-drift", "3")
    assert BELOW_GATE == ended.code
    assert "(--max-drift)" in ended.err
    assert 0 == call("score", "--max-drift", "3").code


def test_drift_of_several(dataset: Path, run: Path, call: Call, here: Path) -> None:
    """Several splits or files have their drift in the table, and a count that -q shows, too."""
    rng = np.random.default_rng(0)
    names = ("train", "test")
    noise = {name: rng.integers(0, 256, (40, 28, 28), np.uint8) for name in names}
    np.savez(here / "noise.npz", **{f"x_{name}": images for name, images in noise.items()})
    assert 0 == call("ingest", "noise.npz", "--out", "noise").code
    splits = ("--dataset", "noise", "--split", "train", "--split", "test")
    shown = call("score", *splits).out
    assert "drift" in shown.splitlines()[0]
    assert all(re.search(rf"^{name}: [^:]* from training", shown, re.MULTILINE) for name in names)
    assert "2 with drift above 3; " in call("score", *splits, "-q").out


def test_drop_from_nothing(dataset: Path, run: Path, call: Call) -> None:
    """Without an earlier accuracy a drop is not judged; the job says so and succeeds."""
    ended = call("score", "--max-drop", "0")
    assert (0, 1) == (ended.code, ended.out.count("--max-drop is not judged"))


def test_log_ends_in_a_summary(dataset: Path, run: Path, call: Call) -> None:
    """--log-json prints a line per event; the last has the exit code and the totals."""
    log = lines(call("score", "--split", "test", "--split", "train", "--log-json"))
    assert "started" == log[0]["event"]
    summary = log[-1]
    assert ("summary", 0, 2, 0) == tuple(
        summary[name] for name in ("event", "exit", "scored", "found")
    )
    again = lines(call("score", "--log-json", "--min-accuracy", "1"))[-1]
    assert (5, 1, 1) == tuple(again[name] for name in ("exit", "found", "below_gate"))


def test_summary_of_a_failed_job(dataset: Path, run: Path, call: Call) -> None:
    """The summary counts the rows that were scored before the error."""
    summary = lines(call("score", "--split", "test", "--split", "none", "--log-json"))[-1]
    assert (USAGE, 1) == (summary["exit"], summary["scored"])
    assert summary["rows"]
    assert summary["model_digest"]


def test_inbox(run: Path, call: Call) -> None:
    """The files of an inbox are listed in a table, or in a document."""
    inbox = run.parent.parent / "inbox"
    put_images(inbox / "a-images-idx3-ubyte", 1, labelled=True)
    ended = call("score", "--inbox", "inbox")
    assert 0 == ended.code, ended.err
    assert "1 scored, 0 scored before; scores in runs/mnist/scores\n" in ended.out
    (inbox / "bad").write_bytes(b"no images")
    settle(inbox / "bad")
    ended = call("score", "--inbox", "inbox", "--json")
    document = json.loads(ended.out)
    assert BAD_DATA == ended.code
    assert [("a-images-idx3-ubyte", True)] == [
        (result["file"], result["already_done"]) for result in document["results"]
    ]
    assert ["bad"] == [failure["file"] for failure in document["failed"]]
    put_images(inbox / "unlabelled", 2)
    ended = call("score", "--inbox", "inbox", "--min-accuracy", "0")
    assert "1 scored, 1 scored before, 1 failed, 1 not judged by any gate\n" in ended.out
    log = lines(call("score", "--inbox", "inbox", "--min-accuracy", "0", "--log-json"))
    assert ("summary", 1) == (log[-1]["event"], log[-1]["unjudged"])
    *_, last = ended.err.splitlines()
    assert last.startswith("Error: 1 file of the inbox could not be scored: bad.")


def test_predictions_of_an_inbox(run: Path, call: Call) -> None:
    """Each file that --out writes is named, however many files are scored."""
    for number in (1, 2):
        put_images(run.parent.parent / "inbox" / f"{number}-images-idx3-ubyte", number)
        ended = call("score", "--inbox", "inbox", "--out", "night/{home}.csv")
        named = re.findall(r"^Predictions in (night/\S+\.csv)$", ended.out, re.MULTILINE)
        assert number == len(named), ended.err
        assert all((run.parent.parent / name).is_file() for name in named)


def test_an_inbox_that_is_a_file(run: Path, call: Call) -> None:
    """A file given as the inbox is a usage error, which is not retried."""
    put_images(run.parent.parent / "inbox" / "a-images-idx3-ubyte", 1)
    file = "inbox/a-images-idx3-ubyte"
    ended = call("score", "--inbox", file, "--retries", "2", "--retry-wait", "0")
    assert_refused(ended, USAGE, f"The inbox {file} is a file; give the directory")


def test_retries(run: Path, call: Call) -> None:
    """An unreachable inbox is retried --retries times; then the job exits with 6."""
    ended = call("score", "--inbox", "absent", "--retries", "2", "--retry-wait", "0")
    assert UNREACHABLE == ended.code
    assert 2 == ended.err.count("Retrying in")


def test_promote_score_undo(dataset: Path, run: Path, call: Call) -> None:
    """A name is given to a model, used, listed and returned to the previous model."""
    assert_refused(call("score", "--model", "champion"), USAGE, "No model is called 'champion'")
    assert 0 == call("promote", "--as", "champion", "--checkpoint", "1").code
    promoted = call("promote", "--as", "champion", "--not-worse-than", "champion")
    assert promoted.out.startswith("Before: model ")
    assert "champion: model " in promoted.out
    document = json.loads(call("score", "--model", "champion", "--json").out)
    assert "000002-000000" == document["checkpoint"]
    assert "000001-000000" in call("promote", "--as", "champion", "--undo", "--verbose").out
    document = json.loads(call("promote", "--list", "--json").out)
    assert ["promoted", "promoted", "undone"] == [
        event["event"] for event in document["names"][0]["events"]
    ]
    entries = json.loads(call("scores", "--json").out)["entries"]
    assert {"000001-000000", "000002-000000"} == {entry["checkpoint"] for entry in entries}


def test_since(dataset: Path, run: Path, call: Call) -> None:
    """--since leaves out older scorings."""
    call("score")
    for since, expected in (("1h", 1), ("2020-01-01", 1), ("2999-01-01T12:00", 0)):
        document = json.loads(call("scores", "--since", since, "--json").out)
        assert expected == len(document["entries"])


def test_scores_of_a_ledger_that_lost_lines(dataset: Path, run: Path, call: Call) -> None:
    """Incomplete and missing lines cause warnings; the next job writes them again."""
    score = ("score", "--split", "test", "--split", "train")
    assert 0 == call(*score).code
    path = run / "scores" / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    ended = call("scores", "--json")
    torn, missing = ended.err.splitlines()
    assert torn.startswith("Warning: The last line of runs/mnist/scores/ledger.jsonl is incomplete")
    assert missing.startswith("Warning: The ledger has no line for 1 of the complete scores in ")
    document = json.loads(ended.out)
    assert ["test"] == [entry["split"] for entry in document["entries"]]
    assert 2 == len(document["warnings"])
    path.unlink()
    ended = call("scores")
    assert (0, "Nothing in the ledger of runs/mnist.\n") == (ended.code, ended.out)
    assert (
        "The ledger has no line for 2 of the complete scores in runs/mnist/scores: test-"
        in ended.err
    )
    assert 0 == call(*score).code
    shown = call("scores")
    assert "" == shown.err
    assert "\nruns/mnist/scores/ledger.jsonl: 2 scored; model " in shown.out
    assert_refused(call("scores", "absent"), BAD_DATA, "There is no run at absent")


def test_one_line_for_each_scoring(dataset: Path, run: Path, call: Call) -> None:
    """Long file names fit on a line of `scores`, and splits of several datasets differ."""
    bad, good = "thursday-east-images-idx3-ubyte.gz", "wednesday-east-images-idx3-ubyte"
    put_images(run.parent.parent / "inbox" / good, 1)
    (run.parent.parent / "inbox" / bad).write_bytes(b"no images")
    call("score")
    call("score", "--inbox", "inbox", "--settle", "0")
    for rows in (20, 30):
        call("ingest", f"synthetic:60,{rows}", "--out", "data/other", "--overwrite")
        assert 0 == call("score", "--dataset", "data/other").code
    entries = json.loads(call("scores", "--json").out)["entries"]
    digests = [entry.get("dataset_digest", "")[:12] for entry in entries]
    _, *shown = call("scores").out.partition("\n\n")[0].splitlines()
    names = ["test of data/mnist", bad, good]
    names += [f"test of data/other ({digest})" for digest in digests[-2:]]
    assert names == [re.split("  +", line)[1] for line in shown]
    assert "failed" == shown[1].split()[-1]


def test_ten_times(call: Call) -> None:
    """--dry-run prints the next ten times, with their offset."""
    ended = call("schedule", "0 3 * * *", "--timezone", "UTC", "--dry-run", "--", "score")
    times = ended.out.splitlines()
    assert (0, 10) == (ended.code, len(times))
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d 03:00:00\+00:00  \w{3} UTC", one) for one in times)


def test_printed_into_files(here: Path, call: Call) -> None:
    """--to writes the files that are printed without it."""
    arguments = ("schedule", "0 3 * * *", "--print", "systemd", "--name", "nightly")
    written = call(*arguments, "--to", "units", "--", "score").out.splitlines()
    assert ["units/nightly.service", "units/nightly.timer"] == written
    printed = call(*arguments, "--", "score").out
    for name in written:
        assert (here / name).read_text().strip() in printed


@pytest.mark.slow
def test_the_printed_cron_line_runs(dataset: Path, run: Path, call: Call) -> None:
    """The command of the crontab works in a shell without any environment variable."""
    if not shutil.which("sh"):
        pytest.skip("there is no sh")
    text = call("schedule", "0 3 * * *", "--print", "cron", "--", "score", "--quiet").out
    command = text.splitlines()[-1].split(" ", 5)[5]
    ended = subprocess.run(
        ["sh", "-c", command], cwd="/", capture_output=True, text=True, env={}, check=False
    )
    assert 0 == ended.returncode, ended.stderr
    assert "accuracy " in ended.stdout.casefold()
