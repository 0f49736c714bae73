"""The history of a run: bad records are refused; columns and lines of an epoch."""

import re
from typing import Any

import pandas
import pytest

from jobs.training.history import EpochTable, check_history, history_columns, history_of
from storage.checkpoints import Checkpoint, CheckpointName
from storage.errors import BadDataError


def line(number: int, /, **changes: Any) -> dict[str, Any]:
    """The metrics of an epoch, with some fields overridden."""
    return {
        "epoch": number,
        "steps": 3 * number,
        "loss": 0.5,
        "accuracy": 0.75,
        "evaluation": {"test": {"accuracy": 0.5, "cross_entropy": 1.5}},
        "order_digest": "0" * 64,
        "parameters_digest": "1" * 64,
        "timing": {"seconds": 0.1, "rows_per_second": 900, "seconds_waited": 0.0},
    } | changes


def checkpoint(epoch: int, metrics: Any) -> Checkpoint:
    """A checkpoint after an epoch, with these metrics."""
    return Checkpoint(CheckpointName(epoch, 2), {}, "1" * 64, {"metrics": metrics})


def test_a_sound_history() -> None:
    """Valid lines are returned unchanged, as is an empty list."""
    assert [line(1), line(2)] == check_history([line(1), line(2)], "metrics.jsonl")
    assert [line(1)] == history_of(checkpoint(1, [line(1)]))
    assert [] == history_of(checkpoint(0, []))


@pytest.mark.parametrize(
    "bad",
    [
        line(1),
        line(3),
        line(2, epoch="2"),
        line(2, loss=10**400),
        line(2, evaluation=[]),
        line(2, evaluation={}),
        line(2, evaluation={"test": {"accuracy": 0.5}}),
        line(2, timing={"seconds": None}),
        line(2, learning_rate="0.1"),
        line(2, timing=line(2)["timing"] | {"time": 1764300000}),
        None,
    ],
)
def test_a_bad_line(bad: Any) -> None:
    """A field of another type, a wrong epoch, other splits: the error names the epoch."""
    with pytest.raises(BadDataError, match=r"^Epoch 2 in metrics.jsonl "):
        check_history([line(1), bad], "metrics.jsonl")


@pytest.mark.parametrize("metrics", [None, {}, [], [line(1), line(2)]])
def test_a_checkpoint_has_the_lines_of_its_epochs(metrics: Any) -> None:
    """More or fewer lines than whole epochs, or no list at all, are refused with its name."""
    with pytest.raises(BadDataError, match="manifest of checkpoint 000001-000002 has"):
        history_of(checkpoint(1, metrics))


def test_columns() -> None:
    """A history as columns makes a data frame with a row per epoch; an empty one has no columns."""
    frame = pandas.DataFrame(history_columns([line(1), line(2, loss=0.25)]))
    assert [1, 2] == list(frame["epoch"])
    assert [0.5, 0.25] == list(frame["loss"])
    assert [1.5, 1.5] == list(frame["test_cross_entropy"])
    assert {
        *("epoch", "steps", "loss", "accuracy", "learning_rate"),
        *("test_accuracy", "test_cross_entropy"),
        *("seconds", "rows_per_second", "seconds_waited", "time"),
    } == {*frame.columns}
    assert {} == history_columns([])


def test_columns_that_a_later_release_added() -> None:
    """Epochs of an earlier release, which the run was resumed after, have None in new columns."""
    late = line(2, learning_rate=0.25)
    late["timing"] |= {"time": "2026-01-02T03:04:05.678+00:00"}
    columns = history_columns(check_history([line(1), late], "metrics.jsonl"))
    assert [None, 0.25] == columns["learning_rate"]
    assert [None, "2026-01-02T03:04:05.678+00:00"] == columns["time"]
    assert {2} == {len(column) for column in columns.values()}


@pytest.mark.parametrize("splits", [(), ("test",), ("validation", "test"), ("train", "test")])
@pytest.mark.parametrize("epochs", [1, 100, 9999])
def test_lines_fit_and_are_aligned(epochs: int, splits: tuple[str, ...]) -> None:
    """The header and every line are equally long and fit 80 columns, with the largest figures."""
    table = EpochTable(epochs, splits)
    small = {"accuracy": 0.01234, "cross_entropy": 0.00004}
    large = {"accuracy": 1.0, "cross_entropy": 12.3456}
    first = line(1, evaluation=dict.fromkeys(splits, small))
    last = line(epochs, loss=123.4567, accuracy=1.0, evaluation=dict.fromkeys(splits, large))
    last["timing"] = first["timing"] | {"seconds": 12.3}
    lines = [table.header, table.row(first), table.row(last)]
    assert 1 == len({*map(len, lines)})
    assert len(lines[0]) <= 80
    ends = [[match.end() for match in re.finditer(r"\S+( [%s(]\S*)*", text)] for text in lines]
    assert ends[0] == ends[1] == ends[2]


def test_three_evaluations() -> None:
    """Three evaluations still fit 80 columns, without their losses."""
    splits = ("train", "validation", "test")
    table = EpochTable(100, splits)
    text = table.row(
        line(100, evaluation={key: {"accuracy": 1.0, "cross_entropy": 2.5} for key in splits})
    )
    assert "epoch     loss     train  train split  validation      test    time" in table.header
    assert 3 == text.count("100.00 %")
    assert "2.5" not in text
    assert len(text) == len(table.header) <= 80


def test_enormous_losses() -> None:
    """A loss that grows beyond its column stays a short number."""
    row = EpochTable(1, ()).row
    assert "1234.50  " in row(line(1, loss=1234.5))
    assert "1.2e+09  " in row(line(1, loss=1.2345e9))
