"""The curves of trainings: one run's in several plots, or several runs' over one another."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from jobs.commands.report import plots
from jobs.commands.report.collect import Subject
from jobs.output import percent
from jobs.training.trainer import rate_of_step
from storage.errors import BadDataError

RATE_POINTS = 200


def learning(run: Subject) -> dict[str, Any]:
    """Return the curves of the training, and its table."""
    epochs = run.epochs
    if not epochs:
        raise BadDataError("No epoch is finished yet.")
    numbers = [line["epoch"] for line in epochs]
    splits = list(epochs[0]["evaluation"])

    def lines(name: str, own: str, factor: float = 1.0) -> list[plots.Line]:
        training = [factor * line[own] for line in epochs]
        evaluated = {
            split: [factor * line["evaluation"][split][name] for line in epochs] for split in splits
        }
        names = {"train": "train (all rows, after)"}
        return [plots.Line("train (during)", numbers, training)] + [
            plots.Line(names.get(split, split), numbers, values)
            for split, values in evaluated.items()
        ]

    last = epochs[-1]
    accuracy = ", ".join(
        f"{split} {percent(last['evaluation'][split]['accuracy'])}" for split in splits
    )
    waited = [
        100 * line["timing"]["seconds_waited"] / max(line["timing"]["seconds"], 1e-9)
        for line in epochs
    ]
    speed = [float(line["timing"]["rows_per_second"]) for line in epochs]
    curve = partial(plots.line_plot, x_label="epoch")
    figures = [
        curve(
            title="Cross-entropy",
            description=f"After epoch {len(epochs)}: training {last['loss']:.4f}.",
            lines=lines("cross_entropy", "loss"),
            y_label="cross-entropy in nats",
            is_log=True,
        ),
        curve(
            title="Accuracy",
            description=f"After epoch {len(epochs)}: training {percent(last['accuracy'])}"
            + (f", {accuracy}." if accuracy else "."),
            lines=lines("accuracy", "accuracy", 100.0),
            y_label="accuracy",
            percent=True,
        ),
        *_rate_figure(run),
        curve(
            title="Speed",
            description=f"From {min(speed):,.0f} to {max(speed):,.0f} rows a second.",
            lines=[plots.Line("rows a second", numbers, [value / 1000 for value in speed])],
            y_label="thousand rows a second",
        ),
        curve(
            title="Time waiting for data",
            description=f"From {min(waited):.0f} to {max(waited):.0f} % of an epoch's time.",
            lines=[plots.Line("waiting", numbers, waited)],
            y_label="share of the time",
            percent=True,
        ),
    ]
    return {"plots": figures, "epochs": epochs, "splits": splits, "best": run.best_epoch["epoch"]}


def _rate_figure(run: Subject) -> list[plots.Plot]:
    """Return the plot of the learning rate; none if it is not one rate for all rows."""
    batches = run.epochs[0]["steps"]
    total = batches * run.config.epochs
    if run.config.parallel == "rounds" or total < 2:
        return []
    steps = sorted({round(part * (total - 1) / RATE_POINTS) for part in range(RATE_POINTS + 1)})
    rate = partial(rate_of_step, run.config, run.config.learning_rate, batches=batches)
    rates = [rate(step=step) for step in steps]
    return [
        plots.line_plot(
            "Learning rate",
            f"At most {max(rates):g}; {rates[0]:g} at the first step, {rates[-1]:.2g} at the last.",
            [plots.Line("rate", [step / batches for step in steps], rates)],
            "epoch",
            "learning rate",
        )
    ]


def compared(
    subjects: Sequence[Subject], split: str, name: str, *, is_log: bool
) -> plots.Plot | None:
    """Return a plot with the same curve of each run that has it."""
    lines = []
    for style, subject in enumerate(subjects):
        epochs = subject.part("epochs").value or []
        if split == "train":
            field = "loss" if is_log else "accuracy"
            values = [line[field] for line in epochs]
        else:
            field = "cross_entropy" if is_log else "accuracy"
            splits = [line["evaluation"].get(split) for line in epochs]
            values = [figures[field] for figures in splits if figures]
        if values:
            factor = 1.0 if is_log else 100.0
            numbers = list(range(1, len(values) + 1))
            values = [factor * value for value in values]
            lines.append(plots.Line(str(subject), numbers, values, style))
    if not lines:
        return None
    title = f"{name.capitalize()} on {'training' if split == 'train' else split} rows"
    unit = "" if is_log else " %"
    last = "; ".join(f"{line.name}: {line.y[-1]:.4g}{unit}" for line in lines)
    unit_label = f"{name} in nats" if is_log else name
    return plots.line_plot(
        title,
        f"After the last epoch: {last}.",
        lines,
        "epoch",
        unit_label,
        is_log=is_log,
        percent=not is_log,
    )
