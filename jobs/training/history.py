"""A run's history: what is recorded of each of its epochs, checked as it is read."""

from typing import Any

from jobs.output import percent
from storage.checkpoints import Checkpoint
from storage.documents import check_fields
from storage.errors import BadDataError

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

WORTH_MENTIONING = 0.1
"""Share of an epoch that training waited for data, from which on its line says so."""

Metrics = dict[str, Any]


def history_of(checkpoint: Checkpoint) -> list[Metrics]:
    """Return the lines of metrics up to a checkpoint: as many as it has whole epochs.

    Raises `BadDataError` for anything else.
    """
    place = f"The manifest of checkpoint {checkpoint.name}"
    lines = check_history(checkpoint.progress.get("metrics"), place)
    if len(lines) != checkpoint.name.epoch:
        raise BadDataError(
            f"{place} has the metrics of {len(lines):,} epochs; expected {checkpoint.name.epoch:,}."
        )
    return lines


def check_history(lines: Any, place: str) -> list[Metrics]:
    """Return the same lines; raise `BadDataError`, naming `place`, unless they are of epochs."""
    if not isinstance(lines, list):
        raise BadDataError(f"{place} has no list of metrics.")
    for number, line in enumerate(lines, 1):
        here = f"Epoch {number} in {place}"
        check_fields(line, LINE, here)
        check_fields(line["timing"], TIMING, here)
        for figures in line["evaluation"].values():
            check_fields(figures, EVALUATION, here)
        if line["epoch"] != number or line["evaluation"].keys() != lines[0]["evaluation"].keys():
            raise BadDataError(f"{here} is another epoch's, or of other splits.")
    return lines


def epoch_text(metrics: Metrics, epochs: int) -> str:
    """Return what to say at the end of one of `epochs` epochs."""
    evaluations = "".join(
        f"  {name} {percent(figures['accuracy'])} ({figures['cross_entropy']:.4f})"
        for name, figures in metrics["evaluation"].items()
    )
    timing = metrics["timing"]
    waited = timing["seconds_waited"] / max(timing["seconds"], 1e-9)
    waiting = f" ({100 * waited:.0f} % waiting)" if waited >= WORTH_MENTIONING else ""
    return (
        f"epoch {metrics['epoch']:>{len(str(epochs))}}/{epochs}  loss {metrics['loss']:.4f}  "
        f"accuracy {percent(metrics['accuracy'])}{evaluations}  "
        f"{timing['seconds']:.1f} s{waiting}  {timing['rows_per_second']:,} rows/s"
    )
