"""`pipeline export-logs`: TensorBoard reads a run's metrics from the event files."""

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from storage.places import open_location
from storage.runs import open_run
from tests.commands.conftest import Call
from tests.commands.process import assert_refused
from tests.commands.sets import copy

Curves = dict[str, list[tuple[int, float, float]]]
"""Step, value and wall time of each point, by tag."""


def exported(call: Call, *runs: Path) -> dict[str, Curves]:
    """The curves of each run in `logs`, as TensorBoard reads them, after an export."""
    ended = call("export-logs", *runs, "--to", "logs")
    assert 0 == ended.code, ended.err
    multiplexer = EventMultiplexer().AddRunsFromDirectory("logs").Reload()
    return {
        run: {
            tag: [(point.step, point.value, point.wall_time) for point in points]
            for tag in tags["scalars"]
            for points in [multiplexer.Scalars(run, tag)]
        }
        for run, tags in multiplexer.Runs().items()
    }


def change_lines(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change each line of a run's metrics.jsonl."""
    record = open_run(open_location(run))
    lines = record.metrics()
    for line in lines:
        change(line)
    record.rewrite_metrics(lines)


def test_round_trip(run: Path, call: Call) -> None:
    """TensorBoard reads every figure of every epoch, at the time when the epoch ended."""
    lines = open_run(open_location(run)).metrics()
    expected = {
        "loss/training": [line["loss"] for line in lines],
        "accuracy/training": [line["accuracy"] for line in lines],
        "loss/test": [line["evaluation"]["test"]["cross_entropy"] for line in lines],
        "accuracy/test": [line["evaluation"]["test"]["accuracy"] for line in lines],
        "learning_rate": [line["learning_rate"] for line in lines],
        "timing/seconds": [line["timing"]["seconds"] for line in lines],
        "timing/rows_per_second": [line["timing"]["rows_per_second"] for line in lines],
        "timing/seconds_waited": [line["timing"]["seconds_waited"] for line in lines],
    }
    ends = [datetime.fromisoformat(line["timing"]["time"]).timestamp() for line in lines]
    curves = exported(call, run)["mnist"]
    assert expected.keys() == curves.keys()
    for tag, points in curves.items():
        steps, values, times = map(list, zip(*points, strict=True))
        assert [1, 2] == steps
        assert values == pytest.approx(expected[tag], rel=1e-6)  # TensorBoard's are float32
        assert ends == times


def test_runs_of_early_releases(run: Path, call: Call) -> None:
    """Without recorded times, epochs have the time at which the run was last written."""
    early = copy(run, run.parent / "early")

    def forget(line: dict[str, Any]) -> None:
        del line["learning_rate"], line["timing"]["time"]

    change_lines(early, forget)
    written = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
    os.utime(early / "metrics.jsonl", (written, written))
    curves = exported(call, run, early)
    assert {"mnist", "early"} == curves.keys()
    assert {"learning_rate"} == curves["mnist"].keys() - curves["early"].keys()
    assert {written} == {time for _, _, time in curves["early"]["loss/test"]}


def test_a_second_export_replaces_the_first(run: Path, call: Call) -> None:
    """Epochs trained since are added, without points that are there twice."""
    record = open_run(open_location(run))
    lines = record.metrics()
    record.rewrite_metrics(lines[:1])
    assert [1] == [step for step, *_ in exported(call, run)["mnist"]["loss/test"]]
    record.rewrite_metrics(lines)
    assert [1, 2] == [step for step, *_ in exported(call, run)["mnist"]["loss/test"]]


def test_event_files_of_another_program(run: Path, here: Path, call: Call) -> None:
    """TensorBoard would mix them with the run's, so nothing is written."""
    other = here / "logs" / "mnist" / "events.out.tfevents.1764300000.host"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"")
    second = copy(run, run.parent / "second")
    assert_refused(call("export-logs", second, run, "--to", "logs"), 4, other.name, "--to")
    assert [other] == [path for path in Path("logs").absolute().rglob("*") if path.is_file()]


def test_refused_runs(run: Path, call: Call) -> None:
    """Runs of one name, a run without epochs, and a time that is none are refused."""
    twin = copy(run, run.parent / "other" / "mnist")
    assert_refused(call("export-logs", run, twin, "--to", "logs"), 2, "2 runs are named 'mnist'")
    change_lines(twin, lambda line: line["timing"].update(time="yesterday"))
    assert_refused(call("export-logs", twin, "--to", "logs"), 3, "Epoch 1", "'yesterday'")
    (twin / "metrics.jsonl").unlink()
    assert_refused(call("export-logs", twin, "--to", "logs"), 3, "other/mnist has no finished")
    assert_refused(call("export-logs", run, "none", "--to", "logs"), 3, "There is no run at none")
    assert not Path("logs").exists()


def test_missing_extra(run: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tensorboardX, the command names the extra."""
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert_refused(
        call("export-logs", run, "--to", "logs"), 2, "library tensorboardX", "'.[tensorboard]'"
    )
