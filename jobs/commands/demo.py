"""The demo: ingest, train, score, a picture of the worst mistakes, and a report."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.commands import completion, options
from jobs.commands.sections import Command
from jobs.output import percent
from jobs.signals import StopSignal, stop_on_signals
from storage.errors import MissingExtraError, StoppedError, UnreachableError, UsageError

if TYPE_CHECKING:
    from jobs.commands.console import Console, Report
    from pipeline.sources.formats import Source
    from storage.dataset import Dataset
    from storage.scores import Scores

PICTURE = "worst-mistakes.png"
REPORT = "report.html"


@click.command(cls=Command)
@click.argument("directory", default="mnist-demo", shell_complete=completion.directories)
@options.output
def demo(console: "Console", directory: str) -> "Report":
    """Ingest, train and score MNIST in a new directory.

    DIRECTORY is mnist-demo by default. MNIST is read from the directory in the environment variable
    MNIST_DIR, else from the cache, else downloaded. Without a network the demo uses synthetic
    digits. It also draws the worst mistakes and writes a report.
    """
    with stop_on_signals() as stop:
        try:
            return _run(directory, console, stop)
        except StoppedError:  # the original message names one step's command
            stop.raise_stopped("Stopped; finished steps are kept. Run the same command to resume.")


def _run(place: str, console: "Console", stop: StopSignal) -> "Report":
    """Run the steps in the directory `place`; finished steps are skipped."""
    directory = Path(place)
    if "://" in place:
        raise UsageError(f"'{place}' is a URL; the demo needs a local directory.")
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"'{place}' is not a directory; give a directory or a new name.")
    from jobs.commands.console import Report
    from jobs.commands.dataset_reports import ingest_report
    from jobs.commands.run_reports import train_report
    from jobs.commands.tables import facts
    from jobs.scoring.job import score
    from jobs.training.job import train
    from pipeline.ingest import ingest

    began = time.perf_counter()
    source = _source(console)

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        console.progress(stage, done, total, note)
        stop.check("Stopped.")

    dataset = directory / "data" / source.name
    run = directory / "runs" / source.name
    made = ingest(source, dataset, progress=progress)
    console.say(ingest_report(made).text + "\n")
    trained = train(dataset=dataset, run=run, resume=True, progress=console.progress, stop=stop)
    console.say(train_report(trained).text + "\n")
    scored = score(run=run, dataset=dataset, progress=console.progress, stop=stop)
    picture = _picture(directory / PICTURE, made.dataset, scored.scores, console)
    report = _report(directory / REPORT, run, console)
    accuracy = scored.metrics["quality"]["accuracy"]
    seconds = time.perf_counter() - began
    places = {
        "dataset": dataset,
        "run": run,
        "scores": scored.scores.location,
        "picture": picture,
        "report": report,
    }
    summary = (
        f"{percent(accuracy)} of {scored.metrics['rows']:,} test images are classified correctly, "
        f"after {seconds:.0f} s."
    )
    document = {
        "source": source.description,
        **{name: place and str(place) for name, place in places.items()},
        "accuracy": accuracy,
        "parameters_digest": trained.parameters_digest,
        "seconds": round(seconds, 1),
    }
    listed = facts([(name, place) for name, place in places.items() if place])
    return Report(document, f"{summary}\n\n{listed}\n\nNext: pipeline inspect {run}", summary)


def _source(console: "Console") -> "Source":
    """Return MNIST, or synthetic digits if it cannot be downloaded."""
    from pipeline.sources.source import open_source

    try:
        source = open_source("mnist")
    except UnreachableError as error:
        console.say(f"{error}\nThe demo uses synthetic digits instead.")
        source = open_source("synthetic")
    console.say(f"Source: {source.name}, {source.description}.")
    return source


def _picture(path: Path, dataset: "Dataset", scores: "Scores", console: "Console") -> Path | None:
    """Draw the worst mistakes; return None without matplotlib."""
    from jobs.commands.pictures import worst_mistakes, write_grid

    try:
        write_grid(worst_mistakes(dataset, scores), path, "The worst mistakes on the test images")
    except UsageError as error:
        console.warn(str(error))
        return None
    return path


def _report(path: Path, run: Path, console: "Console") -> Path | None:
    """Write the report on the run; return None without jinja2 or matplotlib."""
    from jobs.commands.write_report import write_report

    try:
        write_report([str(run)], path)
    except MissingExtraError as error:
        console.warn(str(error))
        return None
    return path
