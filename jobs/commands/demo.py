"""The demo: the whole way from files to a scored model, in one directory."""

import time
from pathlib import Path

from jobs.commands.console import Console, Report
from jobs.commands.pictures import worst_mistakes, write_grid
from jobs.commands.reports import ingest_report, train_report
from jobs.commands.tables import facts
from jobs.output import percent
from jobs.scoring.job import score
from jobs.signals import StopSignal
from jobs.training.job import train
from pipeline.ingest import ingest
from pipeline.sources.source import Source, open_source
from storage.dataset import Dataset
from storage.errors import StoppedError, UnreachableError, UsageError
from storage.scores import Scores

PICTURE = "worst-mistakes.png"


def run_demo(directory: Path, console: Console, stop: StopSignal) -> Report:
    """Ingest, train, score and draw the mistakes, below `directory`; resume what was begun."""
    try:
        return _run_demo(directory, console, stop)
    except StoppedError:  # each job would name its own command
        stop.raise_stopped("Stopped; what is done is kept. Run the same command to go on.")


def _run_demo(directory: Path, console: Console, stop: StopSignal) -> Report:
    if directory.parts and directory.parts[0].endswith(":"):
        raise UsageError(f"'{directory}' is a URL; the demo works in a local directory.")
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"'{directory}' is not a directory; give a directory or an unused name.")
    began = time.perf_counter()
    source = _source(console)

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        console.progress(stage, done, total, note)
        stop.check("Stopped.")

    dataset_place = directory / "data" / source.name
    made = ingest(source, dataset_place, progress=report)
    console.say(ingest_report(made).text + "\n")
    run_place = directory / "runs" / source.name
    trained = train(
        dataset=dataset_place,
        run=run_place,
        resume=True,
        progress=console.progress,
        stop=stop,
    )
    console.say(train_report(trained).text + "\n")
    scored = score(run=run_place, dataset=dataset_place, progress=console.progress, stop=stop)
    picture = _picture(directory / PICTURE, made.dataset, scored.scores, console)
    quality = scored.metrics["quality"]
    seconds = time.perf_counter() - began
    places = {
        "dataset": dataset_place,
        "run": run_place,
        "scores": scored.scores.location,
        "picture": picture,
    }
    text = (
        f"{percent(quality['accuracy'])} of {scored.metrics['rows']:,} test images are recognised, "
        f"{seconds:.0f} s from the start."
    )
    shown = facts([(name, place) for name, place in places.items() if place])
    document = {
        "source": source.description,
        **{name: place and str(place) for name, place in places.items()},
        "accuracy": quality["accuracy"],
        "parameters_digest": trained.parameters_digest,
        "seconds": round(seconds, 1),
    }
    return Report(document, f"{text}\n{shown}\nLook closer: pipeline inspect {run_place}", text)


def _source(console: Console) -> Source:
    """Return MNIST where it can be had, else generated digits."""
    try:
        source = open_source("mnist")
    except UnreachableError as error:
        console.say(f"{error}\nThe demo uses generated digits instead.")
        source = open_source("synthetic")
    console.say(f"Using {source.name}: {source.description}.")
    return source


def _picture(path: Path, dataset: Dataset, scores: Scores, console: Console) -> Path | None:
    """Write the worst mistakes; without matplotlib the demo goes without them."""
    try:
        write_grid(worst_mistakes(dataset, scores), path, "The worst mistakes on the test images")
    except UsageError as error:
        console.warn(str(error))
        return None
    return path
