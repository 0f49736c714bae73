"""The table of all runs below a place: what was trained, how far, how well, and its state.

Only the small documents of a run are read, not its checkpoints. A run that cannot be read is an
entry with the reason, so that it hides no other.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from jobs.choices import DEFAULT_RUNS
from jobs.commands.console import Report, duration
from jobs.commands.tables import fit, fits, table, terminal_width, wrap
from jobs.output import one_line, percent
from jobs.training.config import TrainConfig
from jobs.training.history import Metrics, check_history
from jobs.training.select_checkpoint import best_checkpoint, stopped_early
from storage.checkpoints import DIRECTORY
from storage.errors import BadDataError, PipelineError, counted, nearest_place
from storage.local import LocalLocation
from storage.location import Location
from storage.runs import LOCK, METRICS, RECORD, Run, open_run
from storage.schema import METADATA_NAME

DEPTH = 4
"""Levels of directories that are searched."""
LEFT_OUT = {"network", "epochs", "evaluate", "micro_batches"}
"""Settings with a column of their own, and those whose default depends on the dataset."""
HEADER = ("name", "network", "settings", "epochs", "accuracy", "time", "state")
LEFT = ("network", "settings", "state")
"""Columns that are aligned left, as the first is."""
STATES = ("running", "finished", "stopped", "failed")
TRAINING = "training"
"""In place of a split's name: the rows of the training epoch itself."""


@dataclass(frozen=True)
class RunEntry:
    """A run's line in the table; None where something is not known."""

    name: str
    """Its path below the place that was searched."""
    state: str
    """One of `STATES`."""
    location: str
    network: str | None = None
    """The hidden layers."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Other settings that differ from their defaults and among the runs."""
    parent: str | None = None
    """The checkpoint that it was started from, as `train --from` takes it."""
    epochs_done: int | None = None
    epochs: int | None = None
    """Epochs that the run was started for."""
    accuracy: float | None = None
    """Accuracy of the best epoch on the test split, else on the best one of the others."""
    split: str | None = None
    """The split of the accuracy; `training` without an evaluation."""
    seconds: float | None = None
    """Time of all epochs."""
    reason: str | None = None
    """Why it failed, or the process that is running it."""


def find_runs(place: Location, sort: str = "name") -> list[RunEntry]:
    """Return an entry for each run at or below a place, sorted by a column of `KEYS`.

    Raises `BadDataError` for a file, and if a place other than the default one does not exist.
    """
    if not place.exists() and str(place) != DEFAULT_RUNS:
        raise BadDataError(
            f"{place} does not exist.{nearest_place(str(place))} Give a directory that contains "
            "runs."
        )
    if isinstance(place, LocalLocation) and place.path.is_file():
        raise BadDataError(f"{place} is a file; give a directory that contains runs.")
    entries = _only_differences([_entry(place, key) for key in _search(place, "", DEPTH)])
    return sorted(entries, key=lambda entry: (*KEYS[sort](entry), entry.name))


def _search(place: Location, key: str, depth: int) -> Iterator[str]:
    """Yield the key of each run at or below `key`, also of damaged ones, and of failures to look.

    Runs, datasets and hidden directories are not searched.
    """
    try:
        names = place.names(key)
    except PipelineError:
        yield key
        return
    if RECORD in names or {METRICS, DIRECTORY}.intersection(names):
        yield key
    elif depth and METADATA_NAME not in names:
        for name in names:
            if not name.startswith("."):
                yield from _search(place, f"{key}/{name}" if key else name, depth - 1)


def _entry(place: Location, key: str) -> RunEntry:
    name, location = key or place.name, f"{place}/{key}" if key else str(place)
    try:
        run = place.child(key) if key else place
        return _read(run, name)
    except PipelineError as error:
        return RunEntry(name, "failed", location, reason=str(error))


def _read(location: Location, name: str) -> RunEntry:
    # The lock first: a run that ends in between has all its epochs.
    holder = location.child(LOCK).lock_holder()
    run = open_run(location)
    config = TrainConfig.from_json(run.configuration, f"{location}/{RECORD}")
    metrics = check_history(run.metrics(), f"{location}/{METRICS}")
    best = best_checkpoint(metrics)
    split, accuracy = _accuracy(metrics[best.epoch - 1 if best else -1]) if metrics else (None,) * 2
    state, reason = ("running", holder) if holder else _state(run, config, metrics)
    return RunEntry(
        name=name,
        state=state,
        location=str(location),
        network=_hidden_layers(run),
        settings={n: value for n, value in config.changed().items() if n not in LEFT_OUT},
        parent=run.parent_checkpoint,
        epochs_done=len(metrics),
        epochs=config.epochs,
        accuracy=accuracy,
        split=split,
        seconds=round(sum(line["timing"]["seconds"] for line in metrics), 3),
        reason=reason,
    )


def _state(run: Run, config: TrainConfig, metrics: list[Metrics]) -> tuple[str, str | None]:
    """Return the state of a run that no process is training, and the reason if it failed."""
    if len(metrics) >= config.epochs or stopped_early(config, metrics):
        return "finished", None
    reason = run.failure()
    return "failed" if reason else "stopped", reason


def _accuracy(line: Metrics) -> tuple[str, float]:
    """Return the split on which an epoch is judged, and its accuracy there."""
    for split in ("test", "validation", *line["evaluation"]):
        if split in line["evaluation"]:
            return split, line["evaluation"][split]["accuracy"]
    return TRAINING, line["accuracy"]


def _hidden_layers(run: Run) -> str:
    """Return a network without its input, and its output of softmax, as `--network` takes it."""
    network = str(run.configuration["network"])
    inputs, *layers = network.split("-")
    if inputs.isdecimal() and len(layers) > 2 and layers[-2] == "softmax":
        return "-".join(layers[:-2])
    return network


def _only_differences(entries: list[RunEntry]) -> list[RunEntry]:
    """Leave out the settings that several runs share."""
    readable = [entry.settings.items() for entry in entries if entry.network is not None]
    if len(readable) < 2:
        return entries
    shared = [pair for pair in readable[0] if all(pair in settings for settings in readable)]
    return [
        replace(entry, settings=dict(pair for pair in entry.settings.items() if pair not in shared))
        for entry in entries
    ]


def _descending(number: float | None) -> tuple[bool, float]:
    return number is None, -(number or 0.0)


KEYS: dict[str, Callable[[RunEntry], tuple[Any, ...]]] = {
    "name": lambda entry: (),
    "network": lambda entry: (entry.network is None, entry.network or ""),
    "settings": lambda entry: (entry.network is None, _settings_text(entry)),
    "epochs": lambda entry: _descending(entry.epochs_done),
    "accuracy": lambda entry: _descending(entry.accuracy),
    "time": lambda entry: (entry.seconds is None, entry.seconds or 0.0),
    "state": lambda entry: (STATES.index(entry.state),),
}
"""What entries are sorted by, for each column; entries of equal keys by their names."""


def runs_report(place: Location, entries: list[RunEntry]) -> Report:
    """Report all runs below a place: a line each, then settings that need more room, and reasons.

    The settings are a column if that fits the terminal.
    """
    document = {"place": str(place), "runs": [vars(entry) for entry in entries]}
    if not entries:
        text = f"There are no runs in {place}. Train one with `pipeline train`."
        return Report(document, text, text)
    splits = sorted({entry.split for entry in entries if entry.split})
    rows = [_row(entry, several_splits=len(splits) > 1) for entry in entries]
    text = table(HEADER, rows, LEFT, wrapped=())
    notes = [(entry, entry.reason) for entry in entries]
    if not fits(text):
        text = table(HEADER, rows, LEFT, wrapped=("name",), optional=("settings",))
        notes = [(entry, _settings_text(entry)) for entry in entries] + notes
    lines = [
        line
        for entry, note in notes
        if note
        for line in wrap(one_line(f"{entry.name}: {note}"), terminal_width())
    ]
    summary = _summary(place, entries, splits)
    parts = [text, "\n".join(lines), fit(summary)]
    return Report(document, "\n\n".join(filter(None, parts)), summary)


def _summary(place: Location, entries: list[RunEntry], splits: list[str]) -> str:
    states = Counter(entry.state for entry in entries)
    counts = ", ".join(f"{states[state]:,} {state}" for state in STATES if states[state])
    summary = f"{counted(len(entries), 'run')} in {place}: {counts}"
    if len(splits) == 1:
        summary += f"; accuracy on the {splits[0]} {'rows' if splits == [TRAINING] else 'split'}"
    return summary


def _row(entry: RunEntry, *, several_splits: bool) -> list[str]:
    accuracy = "-" if entry.accuracy is None else percent(entry.accuracy)
    if several_splits and entry.split:
        accuracy = f"{entry.split} {accuracy}"
    return [
        entry.name,
        entry.network or "-",
        _settings_text(entry) or "-",
        "-" if entry.epochs is None else f"{entry.epochs_done}/{entry.epochs}",
        accuracy,
        "-" if entry.seconds is None else duration(entry.seconds),
        entry.state,
    ]


def _settings_text(entry: RunEntry) -> str:
    """Return the settings and the parent, as texts that a table and CSV show."""
    settings = entry.settings | ({"from": entry.parent} if entry.parent else {})
    return " ".join(f"{name}={value}" for name, value in settings.items())


def csv_report(entries: list[RunEntry]) -> Report:
    """Report the entries as CSV, with the fields of `RunEntry` as columns."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([column.name for column in fields(RunEntry)])
    for entry in entries:
        rows.writerow(
            (vars(entry) | {"settings": _settings_text(replace(entry, parent=None))}).values()
        )
    table_text = text.getvalue().rstrip("\n")
    return Report({}, table_text, table_text)
