"""The command report: a run, several side by side, or a sweep, as one HTML file."""

import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.commands import completion, options
from jobs.commands.sections import Command, option
from storage.errors import MissingExtraError, UsageError
from storage.files import file_to_write

if TYPE_CHECKING:
    from jobs.commands.console import Console, Report

REPORT = "report.html"


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", shell_complete=completion.runs)
@option(
    "--out",
    "-o",
    metavar="FILE.html",
    default=REPORT,
    shell_complete=completion.files,
    help="File to write; an existing one is replaced.",
)
@options.dataset
@options.provenance
@option("--open", "opens", is_flag=True, help="Open the file in the default browser.")
@options.storage
@options.output
def report(
    console: "Console",
    runs: tuple[str, ...],
    out: str,
    dataset: str | None,
    provenance: str | None,
    opens: bool,
    storage_options: tuple[str, ...],
) -> "Report":
    """Write a report on a run, or several, as one HTML file.

    RUN is the path or URL of a run or of a sweep. The report of one run shows its curves, mistakes,
    confidence, data and scorings; that of a sweep compares its configurations. Damaged or missing
    parts are left out with the reason. The file needs no network.
    """
    from jobs.commands.console import Report
    from jobs.commands.tables import size

    path = Path(out)
    store = options.store_options(storage_options, *runs, dataset, provenance)
    if provenance is not None:
        _write_provenance(runs, provenance, dataset, store)
    written = write_report(runs, path, dataset, store)
    if opens and not webbrowser.open(path.absolute().as_uri()):
        console.warn(f"No browser could be started; open {path} yourself.")
    document: dict[str, Any] = {"report": str(path), "runs": list(runs), "bytes": written}
    document |= {"provenance": provenance} if provenance else {}
    text = f"Report in {path}, {size(written)}"
    return Report(document, text, text)


def write_report(
    runs: Sequence[str],
    path: Path,
    dataset: str | None = None,
    storage_options: Mapping[str, str] | None = None,
) -> int:
    """Write the report atomically and return its size in bytes.

    `dataset` is the place of the runs' dataset, by default the one that they record.

    Raises `BadDataError` for a run that cannot be read at all, `UsageError` if a name does not end
    in .html or a run is named twice, and `MissingExtraError` without jinja2 or matplotlib.
    """
    if path.suffix != ".html":
        raise UsageError(f"--out is {str(path)!r}; expected a name that ends in .html.")
    if len(set(runs)) < len(runs):
        raise UsageError("A run is named twice; name each run once.")
    path = file_to_write(path, "--out")
    try:
        from jobs.commands.report.collect import Subject
        from jobs.commands.report.page import comparison_page, run_page, sweep_page
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        raise MissingExtraError("A report", library, "plot") from None
    from jobs.sweeps.job import SweepResult
    from storage.places import open_location
    from storage.sweeps import sweep_exists

    places = [open_location(run, storage_options) for run in runs]
    if len(places) == 1 and sweep_exists(places[0]):
        page = sweep_page(SweepResult.read(places[0]))
    else:
        subjects = [Subject(place, dataset, storage_options) for place in places]
        page = run_page(subjects[0]) if len(subjects) == 1 else comparison_page(subjects)
    data = page.encode("utf-8", "backslashreplace")
    open_location(path).write_object(data)
    return len(data)


def _write_provenance(
    runs: Sequence[str], place: str, dataset: str | None, storage_options: Mapping[str, str]
) -> None:
    """Write how a run's best model was made; raise `UsageError` for several runs."""
    from jobs.exports.provenance import checkpoint_subjects, statement, statement_file
    from jobs.training.model import Model
    from storage.documents import document_bytes

    if len(runs) > 1:
        raise UsageError("--provenance is about one run; give a single one, or leave it out.")
    file = statement_file(place, storage_options)
    model = Model.load(runs[0], storage_options=storage_options)
    subjects = checkpoint_subjects(model)
    made = statement(model, subjects, dataset=dataset, storage_options=storage_options)
    file.write_object(document_bytes(made))
