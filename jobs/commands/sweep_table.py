"""The table of a sweep: its configurations, the best first, with the spread over their seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.commands.console import Report, duration
from jobs.commands.tables import fit, fits, table
from jobs.output import percent
from jobs.sweeps.halving import Summary
from jobs.sweeps.job import SweepResult
from storage.errors import counted
from storage.sweeps import FAILED, FINISHED, Trial

FIGURES = ("seeds", "accuracy", "loss", "epochs", "state")
"""The columns after those of the settings."""
PLUS_MINUS = "±"


@dataclass(frozen=True)
class Row:
    """A configuration's line in the table."""

    settings: dict[str, Any]
    seeds: str
    """How many of the seeds have a result."""
    accuracy: str
    loss: str
    epochs: str
    state: str
    """`best`, `finished`, `stopped` by halving, `unfinished` or `failed`."""


def rows_of(result: SweepResult) -> list[Row]:
    """Return a line for each configuration, best first."""
    return [_row(result, one) for one in result.ranking]


def _row(result: SweepResult, one: Summary) -> Row:
    lengths = sorted({len(trial.accuracy) for trial in one.results})
    return Row(
        settings=one.configuration,
        seeds=str(one.trials) if _all(one) else f"{len(one.results)} of {one.trials}",
        accuracy=_accuracy_text(one) if one.results else "-",
        loss=_loss_text(one) if one.results else "-",
        epochs="-".join(map(str, dict.fromkeys([*lengths[:1], *lengths[-1:]]))) or "-",
        state=_state(result, one),
    )


def _all(one: Summary) -> bool:
    return len(one.results) == one.trials


def _accuracy_text(one: Summary) -> str:
    share, deviation = one.figures("accuracy")
    if deviation is None:
        return percent(share)
    return f"{100 * share:.2f} {PLUS_MINUS} {percent(deviation)}"


def _loss_text(one: Summary) -> str:
    loss, deviation = one.figures("cross_entropy")
    return f"{loss:.4f}" if deviation is None else f"{loss:.4f} {PLUS_MINUS} {deviation:.4f}"


def _state(result: SweepResult, one: Summary) -> str:
    results = [result.results.get(trial.name) for trial in result.sweep.trials_of(one.number)]
    states = [trial.state if trial else "" for trial in results]
    if all(state == FAILED for state in states):
        return FAILED
    if one.number not in result.kept:
        return "stopped"
    if not all(state in (FINISHED, FAILED) for state in states):
        return "unfinished"
    return "best" if result.best is not None and one.number == result.best.number else FINISHED


def settings_text(configuration: dict[str, Any]) -> str:
    """Return a configuration as `name=value` pairs."""
    return " ".join(_pairs(configuration)) or "the given settings"


def _pairs(configuration: dict[str, Any]) -> list[str]:
    return [f"{name}={_text(value)}" for name, value in configuration.items()]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def sweep_table(result: SweepResult) -> str:
    """Return the table, with a column for each setting that varies if that fits the terminal.

    The seeds are a column only if some of them have no result.
    """
    rows = rows_of(result)
    columns = FIGURES[all(map(_all, result.ranking)) :]
    names = list(rows[0].settings)
    lines = [
        [*(_text(row.settings[name]) for name in names), *_figures_of(row, columns)] for row in rows
    ]
    text = table([*names, *columns], lines, (*names, "state"), wrapped=())
    if fits(text):
        return text
    lines = []  # one line for each setting
    for row in rows:
        first, *others = _pairs(row.settings)
        lines.append([first, *_figures_of(row, columns)])
        lines += [[other, *("" for _ in columns)] for other in others]
    return table(["settings", *columns], lines, ("state",), wrapped=("settings",))


def _figures_of(row: Row, columns: Sequence[str]) -> list[str]:
    return [getattr(row, name) for name in columns]


def sweep_report(result: SweepResult) -> Report:
    """Report a sweep: its table, and the best configuration."""
    sweep = result.sweep
    results = result.results.values()
    failed = sum(one.state == FAILED for one in results)
    parts = f"{len(sweep.configurations)} x {counted(len(sweep.seeds), 'seed')}"
    counts = f"{counted(len(sweep.trials), 'trial')} ({parts}) in {sweep.location}"
    counts += f", {failed} failed" if failed else ""
    counts += f", {duration(sum(one.seconds for one in results))} of training"
    summary = f"{counts}; validation accuracy and loss of each trial's best epoch"
    best = result.best
    document = _document(result)
    if best is not None:
        chosen = settings_text(best.configuration)
        summary = f"Best: {chosen}, validation accuracy {_accuracy_text(best)}; {counts}"
    return Report(document, f"{sweep_table(result)}\n\n{fit(summary)}", summary)


def _document(result: SweepResult) -> dict[str, Any]:
    sweep, best = result.sweep, result.best
    return {
        "sweep": str(sweep.location),
        "dataset_digest": sweep.dataset_digest,
        "seeds": sweep.seeds,
        "rungs": sweep.rungs,
        "best": None if best is None else best.configuration,
        "configurations": [
            {
                "settings": one.configuration,
                "state": _state(result, one),
                **{name: _figures(one, name) for name in ("accuracy", "cross_entropy")},
                "trials": [_trial_document(result, trial) for trial in sweep.trials_of(one.number)],
            }
            for one in result.ranking
        ],
    }


def _figures(one: Summary, name: str) -> dict[str, float | None] | None:
    if not one.results:
        return None
    mean, deviation = one.figures(name)
    return {"mean": mean, "deviation": deviation}


def _trial_document(result: SweepResult, trial: Trial) -> dict[str, Any]:
    ended = result.results.get(trial.name)
    facts = {"run": str(result.sweep.run(trial)), "seed": trial.seed}
    return facts | ({"state": "unfinished"} if ended is None else vars(ended))
