"""The command sweep: its table, what it refuses, and what runs and report make of a sweep."""

import json
from pathlib import Path

import pytest

from tests.commands.conftest import Call
from tests.commands.process import assert_refused

USAGE, BAD_DATA, CONFLICT, GATE = 2, 3, 4, 5
SETTINGS = ("--network", "relu-8", "--batch-size", "50", "--epochs", "2", "--holdout", "40")
SWEEP = ("sweep", "--out", "sweeps/a", *SETTINGS)
GRID = ("--grid", "lr=0.01,0.05", "--grid", "optimizer=adam,adamw", "--seeds", "2")


@pytest.fixture
def swept(dataset: Path, call: Call) -> Path:
    """A sweep of four configurations with two seeds, in `sweeps/a`."""
    assert 0 == call(*SWEEP, *GRID).code
    return Path("sweeps/a")


@pytest.mark.slow
def test_table(swept: Path, call: Call) -> None:
    """The table has means and deviations, the best configuration first, in 80 columns."""
    ended = call(*SWEEP, *GRID)
    first, *lines = ended.out.splitlines()
    assert "Sweep sweeps/a: 8 trials (4 configurations x 2 seeds), 8 ended before" == first
    assert ["learning_rate", "optimizer", "accuracy", "loss", "epochs", "state"] == lines[0].split()
    assert 4 == len(lines[1:5])
    assert all("±" in line and line.split()[-2] == "2" for line in lines[1:5])
    assert ["best", "finished", "finished", "finished"] == [line.split()[-1] for line in lines[1:5]]
    losses = [float(line.split()[6]) for line in lines[1:5]]
    assert losses == sorted(losses)
    assert lines[6].startswith("Best: learning_rate=")
    assert max(map(len, lines)) <= 80
    assert 1 == len(call(*SWEEP, *GRID, "--quiet").out.splitlines())


@pytest.mark.slow
def test_json(swept: Path, call: Call) -> None:
    """--json has every trial with its run, and means that follow from them."""
    document = json.loads(call(*SWEEP, *GRID, "--json").out)
    assert [0, 1] == document["seeds"]
    best = document["configurations"][0]
    assert document["best"] == best["settings"]
    lowest = [min(trial["cross_entropy"]) for trial in best["trials"]]
    assert pytest.approx(sum(lowest) / 2) == best["cross_entropy"]["mean"]
    assert pytest.approx(abs(lowest[0] - lowest[1]) / 2**0.5) == best["cross_entropy"]["deviation"]
    assert all(Path(trial["run"], "run.json").is_file() for trial in best["trials"])


@pytest.mark.slow
def test_runs(swept: Path, call: Call) -> None:
    """The trials are listed as runs."""
    runs = json.loads(call("runs", "sweeps/a", "--json").out)["runs"]
    assert 8 == len(runs)
    assert {"finished"} == {run["state"] for run in runs}
    assert {"trials/001-seed0", "trials/004-seed1"} < {run["name"] for run in runs}


@pytest.mark.slow
def test_report(swept: Path, call: Call) -> None:
    """The report has a row for each configuration, the best first, and one for each trial."""
    ended = call("report", "sweeps/a", "--json")
    assert 0 == ended.code, ended.err
    page = Path(json.loads(ended.out)["report"]).read_text()
    best = json.loads(call(*SWEEP, *GRID, "--json").out)["configurations"][0]
    rows = [row for row in page.split("<tr>") if "</td>" in row]
    assert 4 + 8 == len(rows)
    assert str(best["settings"]["learning_rate"]) in rows[0]
    assert best["settings"]["optimizer"] in rows[0]
    mean, deviation = (100 * best["accuracy"][name] for name in ("mean", "deviation"))
    assert f"{mean:.2f} ± {deviation:.2f} %" in rows[0]
    assert rows[-1].startswith('<th scope="row">004-seed1')


def test_failures(dataset: Path, call: Call) -> None:
    """A failed trial is a warning; the exit code is 0 if another one has finished."""
    others = [*SETTINGS[:2], *SETTINGS[4:]]
    ended = call("sweep", "--out", "sweeps/a", *others, "--grid", "batch_size=50,7000")
    assert 0 == ended.code, ended.err
    assert "Warning: Trial 002-seed0 failed: --batch-size 7,000 is more than" in ended.err
    assert "0 of 1" in ended.out
    assert 0 == call("report", "sweeps/a").code
    assert "Trial 002-seed0 failed: --batch-size 7,000" in Path("report.html").read_text()
    failed = call("sweep", "--out", "sweeps/b", *SETTINGS, "--grid", "lr=1e6")
    assert GATE == failed.code
    assert "No trial of the sweep sweeps/b has a result" in failed.err


def test_sample_and_configuration(dataset: Path, call: Call, here: Path) -> None:
    """Ranges are drawn from; settings of a file stand back behind those that vary."""
    (here / "few.toml").write_text("epochs = 1\nlearning_rate = 0.5\nholdout = 40\n")
    drawn = ("--range", "lr=0.001:0.1", "--sample", "2", "--config", "few.toml")
    document = json.loads(call("sweep", "--out", "sweeps/a", *drawn, "--json").out)
    rates = [one["settings"]["learning_rate"] for one in document["configurations"]]
    assert 2 == len({rate for rate in rates if 0.001 <= rate <= 0.1})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--grid", "lr"), "expected NAME=VALUES"),
        (("--grid", "lr=0.1,x"), "learning_rate is given as 'x'; expected a number"),
        (("--grid", "shuffle=maybe"), "shuffle is given as 'maybe'; expected true or false"),
        (("--grid", "lr=0.1", "--grid", "learning-rate=1"), "two lists or ranges"),
        (("--grid", "lr=0.1", "--lr", "1"), "learning_rate varies in the sweep"),
        (("--range", "lr=0.1", "--sample", "1"), "expected LOW:HIGH"),
        (("--range", "lr=0.1:1"), "needs --sample N"),
        (("--grid", "optimiser=adam"), "Did you mean 'optimizer'"),
        (("--grid", "lr=0.1", "--workers", "1", "--scheduler", "tcp://a:1"), "Give only one of"),
    ],
)
def test_wrong_usage(options: tuple[str, ...], words: str, dataset: Path, call: Call) -> None:
    """Wrong options are refused, and nothing is written."""
    assert_refused(call(*SWEEP, *options), USAGE, words)
    assert not Path("sweeps").exists()


def test_other_refusals(dataset: Path, call: Call, here: Path) -> None:
    """A sweep needs validation rows, a place of its own and the same options."""
    assert_refused(call("sweep", "--out", "s"), USAGE, "Keep training rows for it with --holdout")
    assert_refused(call("sweep"), USAGE, "Missing option '--out'")
    assert_refused(call(*SWEEP, "--dataset", "no"), BAD_DATA, "no dataset at no")
    assert 0 == call(*SWEEP).code
    assert_refused(call(*SWEEP, "--seeds", "2"), CONFLICT, "seeds: [0] recorded, [0, 1] given")
    record = here / "sweeps" / "a" / "sweep.json"
    record.write_text(record.read_text().replace('"epochs": 2', '"epochs": 3'))
    assert_refused(call(*SWEEP), BAD_DATA, "sweep.json is damaged")
