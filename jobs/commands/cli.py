"""The commands: parse, call a job, print. Those of scoring and of the schedule lie beside this.

Everything heavier than click is imported when a command runs, so that help answers at once.
"""

import atexit
import io
import os
import signal
import sys
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.choices import DEFAULT_DATASET
from jobs.commands import options
from jobs.commands.schedule import schedule
from jobs.commands.score import promote, score, scores
from jobs.output import UNREAD_OUTPUT, one_line, print_aside
from jobs.signals import stop_on_signals
from storage.errors import (
    REMOVED_DIRECTORY,
    BadDataError,
    PipelineError,
    StoppedError,
    UsageError,
    as_pipeline_error,
    did_you_mean,
    is_directory_there,
)

if TYPE_CHECKING:
    from jobs.commands.console import Console, Report
    from pipeline.ingest import Scaling
    from storage.location import TakeOver

DATA_ROOT = "data"
DEFECT = "This is an internal error of mnist-stream. Please report it with the lines above."


ELSEWHERE = {
    "--bs": "--batch-size",
    "--early-stopping": "--patience",
    "--force": "--overwrite",
    "--iterations": "--epochs",
    "--layers": "--network",
    "--lr": "--learning-rate",
    "--tz": "--timezone",
    "--val-split": "--holdout",
    "--wd": "--l2",
    "--weight-decay": "--l2",
    "check": "verify",
    "convert": "ingest",
    "evaluate": "score",
    "fit": "train",
    "predict": "score",
}
"""What other programs call the same option or command."""


class _InOrderOfUse(click.Group):
    """Lists its commands as they stand in this file, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrderOfUse,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(package_name="mnist-stream", prog_name="pipeline")
def cli() -> None:
    """Turn IDX files into chunked arrays, train a network on them, score with it.

    \b
    pipeline ingest && pipeline train --resume && pipeline score

    \b
    Exit codes:
      0         done, or already done
      1         internal error: traceback, and where to report it
      2         wrong usage
      3         bad data: IDX, dataset, checkpoint, scores
      4         conflict: locked, exists already, configuration differs
      5         a quality gate was missed
      6         storage or cluster unreachable: worth trying again
      130, 143  interrupted, checkpoint saved
    """


@cli.command()
@click.argument("source", default="mnist")
@click.option("--out", help="The path or URL to make.  [default: data/ and the source's name]")
@click.option(
    "--rows-per-chunk",
    type=click.IntRange(1),
    help="Rows that are stored and read together.  [default: about 1.5 MB of them]",
)
@click.option(
    "--compression",
    type=click.Choice(["lz4", "lz4hc", "zstd"]),
    help="How rows are stored: lz4 is read in half the time of zstd, which takes a quarter less "
    "space; lz4hc is read as fast as lz4, takes nearly as little space as zstd, but is slow to "
    "make.  [default: lz4]",
)
@click.option(
    "--scale",
    metavar="none|LOW,HIGH",
    help="Range of values that is mapped to [0, 1] for training and scoring; none keeps values as "
    "they are.  [default: 0,255 for bytes, else the training split's smallest and largest value]",
)
@click.option(
    "--transpose",
    is_flag=True,
    default=None,
    help="Swap height and width of each image, as EMNIST's need.",
)
@click.option("--overwrite", is_flag=True, help="Replace the dataset that is there already.")
@click.option("--seed", default=0, type=click.IntRange(0), help="Seed of drawn digits.")
@options.storage
@options.take_over
@options.cluster
@options.output
def ingest(
    console: "Console",
    source: str,
    out: str | None,
    scale: str | None,
    seed: int,
    storage_options: tuple[str, ...],
    take_over: "TakeOver | None",
    **asked: Any,
) -> "Report":
    """Make a dataset of SOURCE.

    SOURCE is a directory with IDX files (raw, .gz or .xz), or mnist (the default), fashion-mnist
    or kmnist, which are downloaded, or synthetic[:TRAIN[,TEST]]: digits drawn for you.
    """
    from jobs.commands.reports import ingest_report
    from pipeline.ingest import ingest as run_ingest
    from pipeline.sources.source import open_source
    from storage.places import open_location
    from storage.preparation import parse_range

    try:
        scaling: Scaling = None if scale is None else parse_range(scale) or "none"
    except ValueError as error:
        raise UsageError(f"--scale is {scale!r}; {error}.") from None
    store = options.store_options(storage_options, out)
    place = None if out is None else open_location(out, store)  # refused before downloads
    with stop_on_signals() as stop, options.cluster_of("ingest", asked, stop) as cluster:

        def progress(stage: str, done: int, total: int, note: str = "") -> None:
            console.progress(stage, done, total, note)
            stop.check("Stopped; nothing was published. Run the same command to begin again.")

        opened = open_source(source, seed=seed)
        result = run_ingest(
            opened,
            place or f"{DATA_ROOT}/{opened.name}",
            rows_per_chunk=asked["rows_per_chunk"],
            compression=asked["compression"],
            scale=scaling,
            transpose=asked["transpose"],
            overwrite=asked["overwrite"],
            take_over=take_over,
            progress=progress,
            cluster=cluster(),
        )
    return ingest_report(result)


@cli.command()
@click.argument("place")
@click.option("--images", metavar="FILE.png", help="Write a grid of a dataset's images.")
@options.storage
@options.output
def inspect(
    console: "Console", place: str, images: str | None, storage_options: tuple[str, ...]
) -> None:
    """Show what PLACE, a dataset or a run, is and holds."""
    from jobs.commands.reports import inspect_location

    location = options.location_of(place, storage_options)
    if images is None:
        console.result(inspect_location(location))
        return
    from jobs.commands.pictures import check_picture, write_examples

    check_picture(Path(images))
    report = inspect_location(location)
    if report.document["kind"] != "dataset":
        raise UsageError(f"--images shows a dataset's images; {place} is a run.")
    write_examples(location, Path(images))
    console.result(report)
    console.say(f"\n{images} shows examples.")


@cli.command()
@click.argument("place")
@options.storage
@options.output
def verify(console: "Console", place: str, storage_options: tuple[str, ...]) -> None:
    """Read all of PLACE, a dataset or a run, and check every digest."""
    from jobs.commands.console import Report
    from jobs.commands.reports import check_something_there
    from storage.verify import verify_location

    location = options.location_of(place, storage_options)
    check_something_there(location)
    mentioned: list[str] = []
    checked = list(verify_location(location, mentioned.append))
    wrong = [{"what": what, "error": str(error)} for what, error in checked if error is not None]
    verdicts = [item["error"] for item in wrong] or [f"{place} is sound: {len(checked):,} checks."]
    document = {"place": place, "checked": len(checked), "wrong": wrong, "mentioned": mentioned}
    text, summary = ("\n".join(map(one_line, lines)) for lines in (mentioned + verdicts, verdicts))
    console.result(Report(document, text, summary))
    if wrong:
        raise BadDataError(f"{place} is damaged: {len(wrong)} of {len(checked):,} checks failed.")


class _TrainCommand(click.Command):
    """`train`, whose options are the fields of `TrainConfig`; they are looked up when needed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        return [*own[:-1], *_setting_options(), own[-1]]


@cli.command(cls=_TrainCommand)
@click.option(
    "--dataset",
    help="The dataset's path or URL.  [default: the resumed run's, or " + DEFAULT_DATASET + "]",
)
@options.run
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the run with its own settings, or start it if it is new.",
)
@click.option("--config", "config_file", metavar="FILE.toml", help="Settings; options override.")
@options.storage
@options.take_over
@options.cluster
@options.output
def train(
    console: "Console",
    dataset: str | None,
    run: str,
    resume: bool,
    config_file: str | None,
    storage_options: tuple[str, ...],
    take_over: "TakeOver | None",
    **asked: Any,
) -> "Report":
    """Train a network on a dataset.

    The results lie in a run. --resume continues a run wherever it stopped, to the same bits as if
    it never had; settings that are not given are the run's own. Each setting below is also a key of
    the TOML file for --config.
    """
    given = _given_settings(config_file, asked)
    from jobs.commands.reports import train_report
    from jobs.training.job import train as run_train

    # Without --dataset its place may be one that the run records.
    places = () if dataset is None else (dataset, run)
    store = options.store_options(storage_options, *places)
    with stop_on_signals() as stop, options.cluster_of("train", asked, stop) as cluster:
        result = run_train(
            given,
            dataset=dataset,
            run=run,
            storage_options=store,
            resume=resume,
            take_over=take_over,
            progress=console.progress,
            stop=stop,
            cluster=cluster(),
        )
    return train_report(result)


cli.add_command(score)
cli.add_command(scores)
cli.add_command(promote)
cli.add_command(schedule)


@cli.command()
@click.argument("directory", default="mnist-demo")
@options.output
def demo(console: "Console", directory: str) -> "Report":
    """Go the whole way in one directory.

    Makes DIRECTORY (mnist-demo unless told otherwise) and in it ingests, trains, scores and draws
    a picture of the worst mistakes. Takes MNIST where it can be had (the directory that MNIST_DIR
    names, the cache, a download), else draws digits.
    """
    from jobs.commands.demo import run_demo

    with stop_on_signals() as stop:
        return run_demo(Path(directory), console, stop)


def _setting_options() -> list[click.Parameter]:
    """Return an option for each field of `TrainConfig`, without a default: TOML comes before."""
    from dataclasses import fields

    from jobs.training.config import TrainConfig

    return [_setting_option(setting) for setting in fields(TrainConfig)]


def _setting_option(setting: Any) -> click.Parameter:
    from jobs.training.settings import option_type

    name = "--" + setting.name.replace("_", "-")
    text = setting.metadata["help"]
    if isinstance(setting.default, bool):
        text += f"  [default: {str(setting.default).lower()}]"
        return click.Option([f"{name}/--no-{name[2:]}"], default=None, help=text)
    default = setting.metadata["default_text"] or setting.default
    text += f"  [default: {default}]"
    choices = setting.metadata["choices"]
    kind = click.Choice(choices) if choices else option_type(setting)
    return click.Option([name], type=kind, default=None, help=text)


def _given_settings(config_file: str | None, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the file, overridden by those given as options."""
    from jobs.training.config import TrainConfig, given_settings, read_toml

    from_file = read_toml(Path(config_file)) if config_file else {}
    chosen = options.picked(TrainConfig, asked)
    from_options = {name: value for name, value in chosen.items() if value is not None}
    return given_settings(from_file, str(config_file)) | given_settings(
        from_options, "The command line"
    )


def main() -> None:
    """Run a command; any failure ends in a message and the documented exit code."""
    atexit.register(_ignore_signals)
    # Products are computed by one BLAS thread each; without this OpenBLAS starts one for each core
    # when NumPy is imported, and interrupts the process where the system gives it none.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _prepare_streams()
    sys.exit(_run())


def _prepare_streams() -> None:
    """Give every standard stream a descriptor, and every character a form that it can print.

    Where a stream is closed, the next file that is opened would take its number.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _ignore_signals() -> None:
    """While Python winds down the job is over, and a signal must not give it another exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _run() -> int:
    try:
        cli.main(prog_name="pipeline", standalone_mode=False)
    except click.ClickException as error:
        _show_usage_error(error)
        _end_log(error)
        return UsageError.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 128 + signal.SIGINT
    except SystemExit:  # click's way to end after a broken pipe
        return _report(StoppedError(UNREAD_OUTPUT, signal.SIGPIPE))
    except BaseException as error:  # noqa: BLE001 - the last resort, also for panics of Rust's
        return _report(error)
    return 0


def _show_usage_error(error: click.ClickException) -> None:
    """Print how the command is used and what is wrong with it, on stderr."""
    if type(error).__name__ == "NoArgsIsHelpError":  # not in older releases of click
        print_aside(error.format_message())
        return
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        print_aside(f"Error: {one_line(error.format_message())}")
        return
    hint = f"Try '{context.command_path} --help' for help."
    message = one_line(error.format_message())
    if name := getattr(error, "option_name", getattr(error, "command_name", "")):
        known = _known(context)
        begun = next((one for one in known if one.startswith(name)), name)
        message = f"{one_line(error.message)}{did_you_mean(ELSEWHERE.get(name, begun), known)}"
    print_aside(f"{context.get_usage()}\n{hint}\n\nError: {message}")


def _known(context: click.Context) -> list[str]:
    """Return the commands or options that there are."""
    options = [name for one in context.command.get_params(context) for name in one.opts]
    return [*getattr(context.command, "commands", ()), *options]


def _report(error: BaseException) -> int:
    """Print what went wrong and return the exit code; a traceback only for an internal error."""
    known = as_pipeline_error(error) if isinstance(error, Exception) else None
    if known is None:
        try:
            import traceback
        except (OSError, MemoryError) as shortage:
            return _report(shortage)
        print_aside(f"{traceback.format_exc()}{DEFECT}")
        return 1
    prefix = "" if isinstance(known, StoppedError) else "Error: "
    hint = "" if is_directory_there() else f" {REMOVED_DIRECTORY}"
    if str(known) == REMOVED_DIRECTORY:
        hint = ""
    notes = getattr(known, "__notes__", [])
    print_aside("\n".join([f"{prefix}{one_line(str(known))}{hint}", *notes]))
    return known.exit_code


def _end_log(error: click.ClickException) -> None:
    """Print the summary that --log-json promises, where click refuses what stands beside it."""
    if "--log-json" in takewhile(lambda word: word != "--", sys.argv[1:]):
        from jobs.commands.logs import JsonHandler

        with suppress(PipelineError):
            refused = UsageError(error.format_message())
            JsonHandler(counting=False).summary(refused)


if __name__ == "__main__":
    main()
