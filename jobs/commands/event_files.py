"""Event files for TensorBoard: the metrics of a run's epochs as scalars, with the epoch as step."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from jobs.commands.run_table import TRAINING
from jobs.training.history import Metrics, check_history, end_of
from storage.errors import BadDataError, ConflictError, MissingExtraError, UsageError
from storage.location import Location
from storage.places import open_location
from storage.runs import METRICS, open_run

EVENT_FILE = "events.out.tfevents.mnist-stream"
"""The file of a run; TensorBoard reads files with `tfevents` in their names."""
MARK = "tfevents"
VERSION = "brain.Event:2"
"""The content of the first event of a file, by which TensorBoard knows the format."""


def write_event_files(
    runs: Sequence[str], directory: Path, storage_options: Mapping[str, str]
) -> list[Path]:
    """Write an event file for each run, in a subdirectory of the run's name; return the files.

    A file of an earlier export is replaced. All runs are read before anything is written.

    Raises `UsageError` if two runs have one name, `ConflictError` if a subdirectory has another
    program's event files, `BadDataError` for a run that cannot be read or has no epoch yet, and
    `MissingExtraError` without tensorboardX.
    """
    places = [open_location(run, storage_options) for run in runs]
    names = [place.name for place in places]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"{names.count(name)} runs are named {name!r}. Export them to different "
                "directories, each with a --to of its own."
            )
    files = dict(zip(names, map(_event_file, places), strict=True))
    targets = {name: open_location(directory / name) for name in names}
    for target in targets.values():
        _check_target(target)
    for name, target in targets.items():
        target.put(EVENT_FILE, files[name])
    return [directory / name / EVENT_FILE for name in names]


def _check_target(target: Location) -> None:
    """Raise `ConflictError` if TensorBoard would mix other event files with this run's."""
    target.sweep_partial(EVENT_FILE)
    others = [name for name in target.names() if MARK in name and name != EVENT_FILE]
    if others:
        raise ConflictError(
            f"{target} already contains {others[0]}, which TensorBoard would mix with this run. "
            "Remove it, or choose another --to."
        )


def _event_file(place: Location) -> bytes:
    """Return the content of a run's event file."""
    try:
        from tensorboardX import RecordWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
    except ModuleNotFoundError:
        raise MissingExtraError("export-logs", "tensorboardX", "tensorboard") from None
    lines = check_history(open_run(place).metrics(), f"{place}/{METRICS}")
    if not lines:
        raise BadDataError(f"{place} has no finished epoch yet. Export it after the first one.")
    last_written = place.status(METRICS).modified
    times = [end_of(line) or last_written for line in lines]
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / EVENT_FILE
        writer = RecordWriter(str(path))
        writer.write(Event(wall_time=times[0], file_version=VERSION).SerializeToString())
        for line, time in zip(lines, times, strict=True):
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(line)]
            event = Event(wall_time=time, step=line["epoch"], summary=Summary(value=values))
            writer.write(event.SerializeToString())
        writer.close()
        return path.read_bytes()


def _scalars(line: Metrics) -> Iterator[tuple[str, float]]:
    """Yield the values of an epoch by their tags; TensorBoard groups tags by their first part."""
    yield f"loss/{TRAINING}", line["loss"]
    yield f"accuracy/{TRAINING}", line["accuracy"]
    for split, figures in line["evaluation"].items():
        yield f"loss/{split}", figures["cross_entropy"]
        yield f"accuracy/{split}", figures["accuracy"]
    if "learning_rate" in line:
        yield "learning_rate", line["learning_rate"]
    for name in ("seconds", "rows_per_second", "seconds_waited"):
        yield f"timing/{name}", line["timing"][name]
