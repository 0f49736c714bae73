"""A run's history: the recorded metrics of its epochs, as a list, as columns and as lines."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jobs.output import percent
from storage.checkpoints import Checkpoint
from storage.documents import check_fields
from storage.errors import BadDataError, counted

LINE = {
    "epoch": int,
    "steps": int,
    "loss": float,
    "accuracy": float,
    "evaluation": dict,
    "order_digest": str,
    "parameters_digest": str,
    "timing": dict,
}
EVALUATION = {"accuracy": float, "cross_entropy": float}
TIMING = {"seconds": float, "rows_per_second": int, "seconds_waited": float}
ADDED_TO_LINE = {"learning_rate": float}
ADDED_TO_TIMING = {"time": str}
"""Fields that epochs of early releases do not have."""

Metrics = dict[str, Any]


def history_of(checkpoint: Checkpoint) -> list[Metrics]:
    """Return the metrics recorded in a checkpoint, one line per completed epoch.

    Raises `BadDataError` if they are invalid or have another number of epochs.
    """
    place = f"The manifest of checkpoint {checkpoint.name}"
    lines = check_history(checkpoint.progress.get("metrics"), place)
    if len(lines) != checkpoint.name.epoch:
        raise BadDataError(
            f"{place} has the metrics of {counted(len(lines), 'epoch')}; expected "
            f"{checkpoint.name.epoch:,}."
        )
    return lines


def check_history(lines: Any, place: str) -> list[Metrics]:
    """Return `lines`; raise `BadDataError`, naming `place`, if they are not metrics of epochs."""
    if not isinstance(lines, list):
        raise BadDataError(f"{place} has no list of metrics.")
    for number, line in enumerate(lines, 1):
        epoch_place = f"Epoch {number} in {place}"
        check_fields(line, LINE, epoch_place)
        check_fields(line["timing"], TIMING, epoch_place)
        _check_added_fields(line, ADDED_TO_LINE, epoch_place)
        _check_added_fields(line["timing"], ADDED_TO_TIMING, epoch_place)
        for figures in line["evaluation"].values():
            check_fields(figures, EVALUATION, epoch_place)
        if line["epoch"] != number or line["evaluation"].keys() != lines[0]["evaluation"].keys():
            raise BadDataError(f"{epoch_place} has another epoch's number, or other splits.")
    return lines


def end_of(line: Metrics) -> float | None:
    """Return when an epoch ended, in seconds since 1970; None if it is not recorded."""
    time = line["timing"].get("time")
    try:
        return None if time is None else datetime.fromisoformat(time).timestamp()
    except (ValueError, OverflowError):
        raise BadDataError(
            f"Epoch {line['epoch']} ended at {time!r}; expected a time in ISO 8601."
        ) from None


def _check_added_fields(document: Metrics, types: Mapping[str, Any], place: str) -> None:
    check_fields(document, {name: types[name] for name in types.keys() & document.keys()}, place)


def history_columns(metrics: Sequence[Metrics]) -> dict[str, list[Any]]:
    """Return metrics as columns of equal length, one value per epoch.

    The columns are `epoch`, `steps`, `loss`, `accuracy`, `learning_rate`, then `NAME_accuracy` and
    `NAME_cross_entropy` of each evaluated split, then those of the timing, such as `seconds`.
    """
    rows = []
    for line in metrics:
        names = ("epoch", "steps", "loss", "accuracy", "learning_rate")
        row = {name: line.get(name) for name in names}
        for split, figures in line["evaluation"].items():
            row |= {f"{split}_{name}": value for name, value in figures.items()}
        rows.append(row | line["timing"] | {"time": line["timing"].get("time")})
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


class EpochTable:
    """The lines that training prints: a header, then one per epoch, in 80 columns.

    Three evaluations leave no room for their cross-entropies.
    """

    def __init__(self, epochs: int, evaluations: Sequence[str]) -> None:
        self._epochs = epochs
        self._evaluations = evaluations
        self._with_loss = len(evaluations) <= 2
        titles = ["train split" if name == "train" else name for name in evaluations]
        figures = "100.00 %"
        if self._with_loss:
            titles = [f"{title} (loss)" for title in titles]
            figures += " (12.3456)"
        self._titles = ["epoch", "loss", "train", *titles, "time"]
        widest = [f"{epochs}/{epochs}", "12.3456", "100.00 %", *(figures for _ in titles), "99.9 s"]
        self._widths = [max(map(len, pair)) for pair in zip(self._titles, widest, strict=True)]

    @property
    def header(self) -> str:
        """The titles of the columns."""
        return self._line(self._titles)

    def row(self, metrics: Metrics) -> str:
        """Return the line of an epoch."""
        cells = [
            f"{metrics['epoch']}/{self._epochs}",
            _loss_text(metrics["loss"]),
            percent(metrics["accuracy"]),
        ]
        for name in self._evaluations:
            figures = metrics["evaluation"][name]
            loss = f" ({_loss_text(figures['cross_entropy'])})" if self._with_loss else ""
            cells.append(percent(figures["accuracy"]) + loss)
        return self._line([*cells, f"{metrics['timing']['seconds']:.1f} s"])

    def _line(self, cells: list[str]) -> str:
        return "  ".join(map(str.rjust, cells, self._widths))


def _loss_text(loss: float) -> str:
    """Return a loss in at most seven characters, unless it is enormous."""
    if loss < 100:
        return f"{loss:.4f}"
    return f"{loss:.2f}" if loss < 10_000 else f"{loss:.1e}"


def timing_text(metrics: Metrics) -> str:
    """Return the speed of an epoch, and the share of its time spent waiting for data."""
    timing = metrics["timing"]
    waiting = percent(timing["seconds_waited"] / max(timing["seconds"], 1e-9), digits=0)
    return f"  {timing['rows_per_second']:,} rows/s, {waiting} waiting for data"
