"""`pipeline runs`: every run below a place, whatever its state."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from jobs.commands.runs import COLUMNS
from storage import documents
from storage.errors import QualityGateError
from storage.places import open_location
from storage.runs import open_run, run_lock
from tests.commands.conftest import Call
from tests.commands.process import assert_refused
from tests.commands.sets import copy


def rename(run: Path, epochs: int, **settings: Any) -> None:
    """Change what a run was started with; it has two epochs."""
    record = open_run(open_location(run))
    record.reconfigured(record.configuration | {"epochs": epochs} | settings)


@pytest.fixture
def runs(run: Path) -> Path:
    """Five runs: finished, stopped, running with other settings, damaged, without its record."""
    place = run.parent
    rename(copy(run, place / "night" / "stopped"), 7)
    rename(copy(run, place / "a-run-that-is-still-running"), 9, optimizer="sgd", l2=0.25)
    (copy(run, place / "torn") / "run.json").write_text("{")
    (copy(run, place / "headless") / "run.json").unlink()
    (place / "not-a-run").mkdir()
    return place


def entries(call: Call, *arguments: str) -> dict[str, dict[str, Any]]:
    """The runs of --json, by name, in their order."""
    ended = call("runs", *arguments, "--json")
    assert 0 == ended.code, ended.err
    return {entry["name"]: entry for entry in json.loads(ended.out)["runs"]}


def test_states(runs: Path, call: Call) -> None:
    """Each run has its state; a failed one has the reason, a running one names its process."""
    with run_lock(open_location(runs / "a-run-that-is-still-running")):
        held = entries(call)
    free = entries(call)
    states = {name: entry["state"] for name, entry in held.items()}
    assert states == {
        "a-run-that-is-still-running": "running",
        "headless": "failed",
        "mnist": "finished",
        "night/stopped": "stopped",
        "torn": "failed",
    }
    assert "process " in held["a-run-that-is-still-running"]["reason"]
    assert "stopped" == free["a-run-that-is-still-running"]["state"]
    assert "run.json" in held["headless"]["reason"]
    assert "not valid JSON" in held["torn"]["reason"]
    stopped, finished = held["night/stopped"], held["mnist"]
    assert (2, 7) == (stopped["epochs_done"], stopped["epochs"])
    lines = open_run(open_location(runs / "mnist")).metrics()
    assert lines[-1]["evaluation"]["test"]["accuracy"] == finished["accuracy"]
    assert "test" == finished["split"]
    assert sum(line["timing"]["seconds"] for line in lines) == pytest.approx(finished["seconds"])


def test_a_failed_training(runs: Path, call: Call) -> None:
    """A training that diverged has failed, for its reason, unless all epochs are there."""
    stopped = open_run(open_location(runs / "night" / "stopped"))
    stopped.record_failure(QualityGateError("Training diverged: the loss of step 2 is nan."))
    failed = entries(call)["night/stopped"]
    assert ("failed", 2, 7) == tuple(failed[name] for name in ("state", "epochs_done", "epochs"))
    assert "Training diverged: the loss of step 2 is nan." == failed["reason"]
    assert "night/stopped: Training diverged: " in call("runs").out
    rename(runs / "night" / "stopped", 2)
    finished = entries(call)["night/stopped"]
    assert ("finished", None) == (finished["state"], finished["reason"])


def test_settings_that_differ(runs: Path, call: Call) -> None:
    """Settings that all runs share are left out; a single run shows all that are not default."""
    several = entries(call)
    assert {} == several["mnist"]["settings"]
    changed = {"optimizer": "sgd", "l2": 0.25}
    assert changed.items() <= several["a-run-that-is-still-running"]["settings"].items()
    assert "batch_size" not in several["a-run-that-is-still-running"]["settings"]
    assert {"batch_size": 50} == entries(call, "runs/mnist")["mnist"]["settings"]


def test_an_early_stop_is_an_end(runs: Path, call: Call) -> None:
    """A run that ended by patience is finished, though it has fewer epochs than asked."""
    run = open_run(open_location(runs / "night" / "stopped"))
    lines = run.metrics()
    for line, loss in zip(lines, (0.5, 0.75), strict=True):
        line["evaluation"] = {"validation": {"accuracy": 0.5, "cross_entropy": loss}}
    run.rewrite_metrics(lines)
    rename(runs / "night" / "stopped", 7, patience=2)
    assert "stopped" == entries(call)["night/stopped"]["state"]
    rename(runs / "night" / "stopped", 7, patience=1)
    assert "finished" == entries(call)["night/stopped"]["state"]


def test_table_fits_the_terminal(runs: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns each run has a line; settings that do not fit have their own."""
    monkeypatch.setenv("COLUMNS", "80")
    narrow = call("runs").out.splitlines()
    assert all(len(line) <= 80 for line in narrow)
    assert ["name", "network", "epochs", "accuracy", "time", "state"] == narrow[0].split()
    names = [line.split()[0] for line in narrow[1:6]]
    assert names == sorted(entries(call))
    assert any(line.startswith("a-run-that-is-still-running: optimizer=sgd") for line in narrow)
    assert narrow[-1].startswith("5 runs in runs: 1 finished, 2 stopped, 2 failed")
    monkeypatch.setenv("COLUMNS", "200")
    assert list(COLUMNS) == call("runs").out.splitlines()[0].split()


@pytest.mark.parametrize(
    ("column", "place", "name"),
    [
        ("epochs", 0, "a-run-that-is-still-running"),
        ("state", 0, "mnist"),
        ("accuracy", 0, "night/stopped"),
        ("settings", 0, "mnist"),
        ("time", 2, "night/stopped"),
    ],
)
def test_sort(column: str, place: int, name: str, runs: Path, call: Call) -> None:
    """Runs are sorted by any column; those without a value come last."""
    run = open_run(open_location(runs / "night" / "stopped"))
    lines = run.metrics()
    lines[-1]["evaluation"]["test"]["accuracy"] = 1.0
    lines[-1]["timing"]["seconds"] = 1000.0
    run.rewrite_metrics(lines)
    names = list(entries(call, "--sort", column))
    assert name == names[place]
    assert {"headless", "torn"} == set(names[-2:])


def test_csv(runs: Path, call: Call) -> None:
    """--csv has a line per run and the fields of --json."""
    rows = list(csv.DictReader(call("runs", "--csv").out.splitlines()))
    expected = entries(call)
    assert list(expected) == [row["name"] for row in rows]
    assert all(list(row) == list(expected["mnist"]) for row in rows)
    assert "0.25" in next(row for row in rows if row["state"] == "stopped")["settings"]
    assert_refused(call("runs", "--csv", "--json"), 2, "--csv")


def test_hostile_names(runs: Path, call: Call) -> None:
    """Control characters of a name are escaped; lines of metrics that are no metrics are named."""
    hostile = copy(runs / "mnist", runs / "a\x1b[31m\nb")
    (hostile / "metrics.jsonl").write_bytes(documents.sealed_bytes({"epoch": 1}, indent=None))
    shown = call("runs").out
    assert "\x1b" not in shown
    assert "a\\x1b[31m\\nb" in shown
    assert "failed" == entries(call)["a\x1b[31m\nb"]["state"]


def test_nothing_there(here: Path, call: Call) -> None:
    """Without runs there is a message; only a place that was given must exist."""
    ended = call("runs")
    assert (0, "There are no runs in runs. Train one with `pipeline train`.\n") == (
        ended.code,
        ended.out,
    )
    assert_refused(call("runs", "nowhere"), 3, "nowhere does not exist")
    (here / "file").touch()
    assert_refused(call("runs", "file"), 3, "file is a file")


def test_inspect_points_here(runs: Path, call: Call) -> None:
    """`inspect` of a directory of runs names this command."""
    assert_refused(call("inspect", "runs"), 3, "`pipeline runs runs`")


def test_runs_in_a_store(home: str, call: Call) -> None:
    """The runs below a prefix of a store are found, and a held lock is seen."""
    with run_lock(open_location(f"{home}/run")):
        assert "running" == entries(call, home)["run"]["state"]
    entry = entries(call, home)["run"]
    assert ("finished", 1) == (entry["state"], entry["epochs_done"])
    assert "set" not in entries(call, home)
