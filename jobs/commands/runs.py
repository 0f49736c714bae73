"""The commands of several runs: runs, which compares them, and export-logs."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.choices import DEFAULT_RUNS
from jobs.commands import completion, options
from jobs.commands.sections import Choice, Command, option
from storage.errors import UsageError

if TYPE_CHECKING:
    from jobs.commands.console import Console, Report

COLUMNS = ("name", "network", "settings", "epochs", "accuracy", "time", "state")
"""The columns of the table; `--sort` takes the name of one."""


@click.command(cls=Command)
@click.argument("place", default=DEFAULT_RUNS, shell_complete=completion.directories)
@option(
    "--sort",
    default="name",
    type=Choice(COLUMNS),
    help="Column to sort by. Accuracy and epochs begin with the highest.",
)
@option("--csv", "as_csv", is_flag=True, help="Print the table as CSV.")
@options.storage
@options.output
def runs(
    _: "Console", place: str, sort: str, as_csv: bool, storage_options: tuple[str, ...]
) -> "Report":
    """Compare all runs below a directory.

    PLACE is the path or URL of the directory, by default runs. Settings are shown that differ from
    the defaults and among the runs. A run is running, finished, stopped (it has fewer epochs than
    it was started for), or failed: the training diverged, its data was damaged, or the run itself
    is damaged or unreadable.
    """
    from jobs.commands.run_table import csv_report, find_runs, runs_report

    if as_csv and click.get_current_context().params["as_json"]:
        raise UsageError("--csv cannot be combined with --json; leave one of them out.")
    location = options.location_of(place, storage_options)
    entries = find_runs(location, sort)
    return csv_report(entries) if as_csv else runs_report(location, entries)


@click.command("export-logs", cls=Command)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", shell_complete=completion.runs)
@option(
    "--to",
    "directory",
    required=True,
    metavar="DIR",
    shell_complete=completion.directories,
    help="Directory to write to. Each run has its own subdirectory there.",
)
@options.storage
@options.output
def export_logs(
    _: "Console", runs: tuple[str, ...], directory: str, storage_options: tuple[str, ...]
) -> "Report":
    """Export the metrics of a run, or several, to TensorBoard.

    RUN is the path or URL of a run. Its losses, accuracies, learning rate and times are written to
    one event file, with the epoch as step. The file of an earlier export is replaced.
    """
    from jobs.commands.console import Report
    from jobs.commands.event_files import write_event_files
    from storage.errors import counted

    store = options.store_options(storage_options, *runs)
    files = write_event_files(runs, Path(directory), store)
    document = {"directory": directory, "files": [str(file) for file in files]}
    summary = f"Metrics of {counted(len(files), 'run')} in {directory}"
    advice = f"Show them with `tensorboard --logdir {directory}`."
    return Report(document, f"{summary}\n{advice}", summary)
