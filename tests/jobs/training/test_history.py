"""The history of a run: what is no epoch's metrics is refused, however well it is sealed."""

from typing import Any

import pytest

from jobs.training.history import check_history, history_of
from storage.checkpoints import Checkpoint, CheckpointName
from storage.errors import BadDataError


def line(number: int, /, **changes: Any) -> dict[str, Any]:
    """What is recorded of an epoch, with other values for some fields."""
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
    """A checkpoint after so many epochs that carries these metrics."""
    return Checkpoint(CheckpointName(epoch, 2), {}, "1" * 64, {"metrics": metrics})


def test_a_history_is_as_it_was_recorded() -> None:
    """Sound lines, none too, come back as they are."""
    assert [line(1), line(2)] == check_history([line(1), line(2)], "metrics.jsonl")
    assert [line(1)] == history_of(checkpoint(1, [line(1)]))
    assert [] == history_of(checkpoint(0, []))


@pytest.mark.parametrize(
    "strange",
    [
        line(1),
        line(3),
        line(2, epoch="2"),
        line(2, loss=10**400),
        line(2, evaluation=[]),
        line(2, evaluation={}),
        line(2, evaluation={"test": {"accuracy": 0.5}}),
        line(2, timing={"seconds": None}),
        None,
    ],
)
def test_a_line_that_is_none_is_told(strange: Any) -> None:
    """A field of another type, an epoch out of its place, other splits: the epoch is named."""
    with pytest.raises(BadDataError, match=r"^Epoch 2 in metrics.jsonl "):
        check_history([line(1), strange], "metrics.jsonl")


@pytest.mark.parametrize("metrics", [None, {}, [], [line(1), line(2)]])
def test_a_checkpoint_has_the_lines_of_its_epochs(metrics: Any) -> None:
    """More or fewer of them than whole epochs, or no list at all, are told with its name."""
    with pytest.raises(BadDataError, match="manifest of checkpoint 000001-000002 has"):
        history_of(checkpoint(1, metrics))
