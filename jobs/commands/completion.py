"""Shell completion of values: places, files, promoted names, splits and checkpoints.

`eval "$(_PIPELINE_COMPLETE=bash_source pipeline)"` switches it on. click itself completes options,
commands and choices. URLs are not completed, because that would need requests to the store.
"""

import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from jobs.choices import (
    DEFAULT_DATASET,
    DEFAULT_MODELS,
    DEFAULT_RUN,
    DISTORTION_SETS,
    EXPORT_ENDINGS,
    RECIPES,
)

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SOURCES = ("mnist", "fashion-mnist", "kmnist", "synthetic")
DEPTH = 3
"""Levels of directories that are searched."""
MOST_ENTRIES = 2_000
"""The most files and directories that are searched, which keeps completion fast."""
DATASET_FORMAT = "mnist-stream dataset"
"""Equal to `storage.schema.FORMAT`, whose import needs NumPy."""
Items: TypeAlias = "list[CompletionItem[str]]"
Check = Callable[[Path], bool]


def sources(_context: click.Context, _parameter: click.Parameter, start: str) -> Items:
    """Complete a source of `ingest`: a name or a directory."""
    return _paths(start, Path.is_dir, "dir") + _items(SOURCES, start)


def datasets(_context: click.Context, _parameter: click.Parameter, start: str) -> Items:
    """Complete a dataset's directory."""
    return _paths(start, _is_dataset, "dir")


def runs(_context: click.Context, _parameter: click.Parameter, start: str) -> Items:
    """Complete a run's directory."""
    return _paths(start, _is_run, "dir")


def datasets_and_runs(_context: click.Context, _parameter: click.Parameter, start: str) -> Items:
    """Complete the directory of a dataset or a run."""
    return _paths(start, lambda path: _is_dataset(path) or _is_run(path), "dir")


def sweeps(_context: click.Context, _parameter: click.Parameter, start: str) -> Items:
    """Complete a sweep's directory."""
    return _paths(start, lambda path: (path / "sweep.json").is_file(), "dir")


def setting_values(_context: click.Context, _parameter: click.Parameter, start: str) -> Items:
    """Complete the name of a setting of training, then the last of several values."""
    from dataclasses import fields

    from jobs.training.setting_fields import TrainSettings

    settings = {setting.name: setting for setting in fields(TrainSettings)}
    name, equals, _ = start.partition("=")
    if not equals:
        return _items((f"{name}=" for name in settings), start)
    before = start[: max(start.rfind(","), start.find("=")) + 1]
    choices = settings[name].metadata["choices"] if name in settings else None
    return _items((before + value for value in choices or ()), start)


def inspected(_context: click.Context, _parameter: click.Parameter, start: str) -> Items:
    """Complete what `inspect` shows: a dataset, a run or an exported model."""

    def is_shown(path: Path) -> bool:
        return path.suffix in EXPORT_ENDINGS or _is_dataset(path) or _is_run(path)

    return _paths(start, is_shown, "file")


def toml_files(_context: click.Context, _parameter: click.Parameter, start: str) -> Items:
    """Complete a TOML file."""
    return _paths(start, lambda path: path.suffix == ".toml" and path.is_file(), "file")


def distortions(context: click.Context, parameter: click.Parameter, start: str) -> Items:
    """Complete a set of distortions, a recipe or a TOML file."""
    names = _items((*DISTORTION_SETS, *RECIPES), start)
    return names + toml_files(context, parameter, start)


def files(_context: click.Context, _parameter: click.Parameter, start: str) -> Items:
    """Leave the completion of any file to the shell."""
    return _left_to_the_shell(start, "file")


def directories(_context: click.Context, _parameter: click.Parameter, start: str) -> Items:
    """Leave the completion of a directory to the shell."""
    return _left_to_the_shell(start, "dir")


def model_names(context: click.Context, _parameter: click.Parameter, start: str) -> Items:
    """Complete a promoted name."""
    place = Path(context.params.get("models") or DEFAULT_MODELS)
    files = [path for path in _entries(place) if path.suffix == ".json"]
    return _items((path.stem for path in files if not path.name.startswith(".")), start)


def splits(context: click.Context, _parameter: click.Parameter, start: str) -> Items:
    """Complete a split of the dataset that the command line names, or else of the run's."""
    return _items(_splits(context), start)


def evaluated_splits(context: click.Context, _parameter: click.Parameter, start: str) -> Items:
    """Complete the last of several splits with commas between them."""
    before = start[: start.rfind(",") + 1]
    names = [*_splits(context), *([] if before else ["none"])]
    return _items([before + name for name in names], start)


def checkpoints(context: click.Context, _parameter: click.Parameter, start: str) -> Items:
    """Complete best, latest, average, or the epoch of one of the run's checkpoints.

    After a comma the next checkpoint is completed.
    """
    place = _run(context) / "checkpoints"
    ends = [path.name for path in _entries(place) if re.fullmatch(r"\d+-0+", path.name)]
    epochs = [str(int(name.partition("-")[0])) for name in ends]
    before = start[: start.rfind(",") + 1]
    names = ["best", "latest", *([] if before else ["average"]), *epochs]
    return _items([before + name for name in names], start)


def time_zones(_context: click.Context, _parameter: click.Parameter, start: str) -> Items:
    """Complete the name of a time zone."""
    from zoneinfo import available_timezones

    return _items(sorted(available_timezones()), start)


def scheduled_command(context: click.Context, _parameter: click.Parameter, start: str) -> Items:
    """Complete the command of a schedule as if it were not scheduled."""
    from click.shell_completion import ShellComplete

    words = list(context.params.get("job") or ())
    shell = ShellComplete(context.find_root().command, {}, "pipeline", "")
    items = shell.get_completions(words, start)
    return items if words else [item for item in items if item.value != "schedule"]


def _items(values: Iterable[str], start: str) -> Items:
    from click.shell_completion import CompletionItem

    return [CompletionItem(value) for value in values if value.startswith(start)]


def _left_to_the_shell(start: str, item_type: str) -> Items:
    from click.shell_completion import CompletionItem

    return [] if "://" in start else [CompletionItem(start, type=item_type)]


def _paths(start: str, is_wanted: Check, item_type: str) -> Items:
    """Return the wanted paths that begin with `start`; without any the shell completes."""
    shell = _left_to_the_shell(start, item_type)  # first: bash forgets values before it
    return shell + _items(_search(start, is_wanted), start) if shell else []


def _search(start: str, is_wanted: Check) -> Iterator[str]:
    """Yield the wanted paths that begin with `start`, nearest first, as a shell takes them."""
    parent = start[: start.rfind("/") + 1]
    root = Path(os.path.expanduser(parent))
    level, seen = [path for path in _entries(root) if path.name.startswith(start[len(parent) :])], 0
    for _ in range(DEPTH):
        below: list[Path] = []
        for path in level[: MOST_ENTRIES - seen]:
            name = path.relative_to(root).as_posix()
            if name != shlex.quote(name) or path.name.startswith("."):
                continue
            if is_wanted(path):
                yield parent + name
            else:
                below += _entries(path)
        seen += len(level)
        level = below


def _entries(place: Path) -> list[Path]:
    try:
        return sorted(place.iterdir())
    except OSError:
        return []


def _is_dataset(path: Path) -> bool:
    return _part(path / "zarr.json", "attributes").get("format") == DATASET_FORMAT


def _is_run(path: Path) -> bool:
    return (path / "run.json").is_file()


def _run(context: click.Context) -> Path:
    """Return the run that the command line names, the first of several."""
    runs = context.params.get("run") or DEFAULT_RUN
    return Path(runs if isinstance(runs, str) else runs[0])


def _splits(context: click.Context) -> list[str]:
    run = _run(context)
    recorded = _part(run / "run.json", "dataset").get("place")
    place = context.params.get("dataset") or (run / recorded if recorded else DEFAULT_DATASET)
    return list(_part(Path(place) / "zarr.json", "attributes").get("splits", ()))


def _part(path: Path, key: str) -> dict[str, Any]:
    """Return an object within a JSON document; an empty one for anything else."""
    try:
        part = json.loads(path.read_bytes())[key] if path.is_file() else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return part if isinstance(part, dict) else {}
