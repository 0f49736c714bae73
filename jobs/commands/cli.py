"""The commands: parse, call a job, print; those of scoring and of the schedule are in `commands/`.

Everything heavier than click is imported when a command runs, so that help answers at once.
"""

import atexit
import io
import os
import signal
import sys
from contextlib import suppress
from itertools import takewhile
from typing import Any

import click

from jobs.choices import DEFAULT_DATASET
from jobs.commands.options import (
    cluster_options,
    console_of,
    opened_cluster,
    output_options,
    parsed_scale,
    run_option,
    seed_option,
    stopping,
    storage_option,
    store_options,
    take_cluster_options,
    take_over_option,
)
from jobs.commands.schedule import schedule
from jobs.commands.score import promote, score, scores
from jobs.commands.usage_errors import NearestChoice, check_command, show_usage_error
from jobs.output import UNREAD_OUTPUT, one_line, print_aside
from storage.errors import PipelineError, StoppedError, UsageError
from storage.files import REMOVED_DIRECTORY, as_pipeline_error, is_directory_there

DATA_ROOT = "data"
DEFECT = "This is a defect of mnist-stream. Please report it with the lines above."


class _InOrderOfUse(click.Group):
    """Lists its commands as they stand in this file, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        check_command(args[0], ctx, self.commands)
        return super().resolve_command(ctx, args)


@click.group(cls=_InOrderOfUse, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mnist-stream", prog_name="pipeline")
def cli() -> None:
    """Turn IDX files into chunked arrays, train a network on them, score with it.

    \b
    pipeline ingest && pipeline train --resume && pipeline score

    \b
    Exit codes:
      0         done, or already done
      1         a defect of ours: traceback, and where to report it
      2         wrong usage
      3         bad data: IDX, dataset, checkpoint, scores
      4         conflict: locked, exists already, configuration differs
      5         a quality gate was missed
      6         storage or cluster out of reach: worth trying again
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
    type=NearestChoice(["lz4", "lz4hc", "zstd"]),
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
@seed_option
@storage_option
@take_over_option
@cluster_options
@output_options
def ingest(
    source: str,
    out: str | None,
    rows_per_chunk: int | None,
    compression: str | None,
    scale: str | None,
    transpose: bool | None,
    overwrite: bool,
    seed: int,
    storage_options: tuple[str, ...],
    take_over: bool,
    quiet: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Make a dataset of SOURCE.

    SOURCE is a directory with IDX files (raw, .gz or .xz), or mnist (the default), fashion-mnist
    or kmnist, which are downloaded, or synthetic[:TRAIN[,TEST]]: digits drawn for you.
    """
    with console_of(quiet, as_json) as console, stopping() as stop:
        from jobs.commands.reports import ingest_report
        from pipeline.ingest import ingest as run_ingest
        from pipeline.sources.source import open_source
        from storage.places import open_location

        scaling = parsed_scale(scale)
        options = store_options(storage_options, out)
        place = None if out is None else open_location(out, options)  # refused before downloads

        def progress(stage: str, done: int, total: int, note: str = "") -> None:
            console.progress(stage, done, total, note)
            stop.check("Stopped; nothing was published. Run the same command to begin again.")

        opened = open_source(source, seed=seed)
        with opened_cluster("ingest", chosen, console.say, stop) as cluster:
            result = run_ingest(
                opened,
                place or f"{DATA_ROOT}/{opened.name}",
                rows_per_chunk=rows_per_chunk,
                compression=compression,
                scale=scaling,
                transpose=transpose,
                overwrite=overwrite,
                take_over=console.warn if take_over else None,
                progress=progress,
                cluster=cluster,
            )
        told = ingest_report(result)
        console.result(told.document, told.text)


@cli.command()
@click.argument("place")
@click.option("--images", metavar="FILE.png", help="Write a grid of a dataset's images.")
@storage_option
@output_options
def inspect(
    place: str,
    images: str | None,
    storage_options: tuple[str, ...],
    quiet: bool,
    as_json: bool,
) -> None:
    """Tell what PLACE, a dataset or a run, is and holds."""
    with console_of(quiet, as_json) as console:
        from pathlib import Path

        from jobs.commands.reports import inspect_location
        from storage.places import open_location

        location = open_location(place, store_options(storage_options, place))
        if images is not None:
            from jobs.commands.pictures import check_picture

            check_picture(Path(images))
        told = inspect_location(location)
        if images is not None:
            if told.document["kind"] != "dataset":
                raise UsageError(f"--images shows a dataset's images; {place} is a run.")
            from jobs.commands.pictures import write_examples

            write_examples(location, Path(images))
        console.result(told.document, told.text)
        if images is not None:
            console.say(f"\n{images} shows examples.")


@cli.command()
@click.argument("place")
@storage_option
@output_options
def verify(place: str, storage_options: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Read all of PLACE, a dataset or a run, and check every digest."""
    with console_of(quiet, as_json) as console:
        from jobs.commands.reports import check_something_there
        from storage.places import open_location
        from storage.verify import verify_location

        location = open_location(place, store_options(storage_options, place))
        check_something_there(location)
        checked, wrong = 0, []
        mentioned: list[str] = []
        for what, error in verify_location(location, mentioned.append):
            checked += 1
            if error is not None:
                wrong.append({"what": what, "error": str(error)})
        verdicts = [item["error"] for item in wrong]
        sound = f"{place} is sound: {checked:,} things checked."
        console.result(
            {"place": place, "checked": checked, "wrong": wrong, "mentioned": mentioned},
            "\n".join(map(one_line, [*mentioned, *(verdicts or [sound])])),
        )
        if wrong:
            from storage.errors import BadDataError

            raise BadDataError(f"{place} is damaged in {len(wrong)} of {checked:,} things checked.")


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
@run_option
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the run with its own settings, or start it if it is new.",
)
@click.option("--config", "config_file", metavar="FILE.toml", help="Settings; options override.")
@storage_option
@take_over_option
@cluster_options
@output_options
def train(
    dataset: str | None,
    run: str,
    resume: bool,
    config_file: str | None,
    storage_options: tuple[str, ...],
    take_over: bool,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a network on a dataset.

    The results lie in a run. --resume continues a run wherever it stopped, to the same bits as if
    it never had; settings that are not given are the run's own. Each setting below is also a key of
    the TOML file for --config.
    """
    with console_of(quiet, as_json) as console, stopping() as stop:
        chosen = take_cluster_options(settings)
        given = _given_settings(config_file, settings)
        from jobs.commands.train_console import ConsoleListener, train_report
        from jobs.training.job import train as run_train

        # Without --dataset its place may be one that the run records.
        places = () if dataset is None else (dataset, run)
        options = store_options(storage_options, *places)
        with opened_cluster("train", chosen, console.say, stop) as cluster:
            result = run_train(
                given,
                dataset=dataset,
                run=run,
                storage_options=options,
                resume=resume,
                take_over=console.warn if take_over else None,
                listener=ConsoleListener(console),
                stop=stop,
                cluster=cluster,
            )
        told = train_report(result)
        console.result(told.document, told.text)


cli.add_command(score)
cli.add_command(scores)
cli.add_command(promote)
cli.add_command(schedule)


@cli.command()
@click.argument("directory", default="mnist-demo")
@output_options
def demo(directory: str, quiet: bool, as_json: bool) -> None:
    """Go the whole way in one directory.

    Makes DIRECTORY (mnist-demo unless told otherwise) and in it ingests, trains, scores and draws
    a picture of the worst mistakes. Takes MNIST where it can be had (the directory that MNIST_DIR
    names, the cache, a download), else draws digits.
    """
    with console_of(quiet, as_json) as console, stopping() as stop:
        from pathlib import Path

        from jobs.commands.demo import run_demo

        told = run_demo(Path(directory), console, stop)
        console.result(told.document, told.text)


def _setting_options() -> list[click.Parameter]:
    """An option for each field of `TrainConfig`, without a default: TOML has its say before."""
    from dataclasses import fields

    from jobs.training.config import TrainConfig

    return [_setting_option(setting) for setting in fields(TrainConfig)]


def _setting_option(setting: Any) -> click.Parameter:
    from jobs.training.config import setting_type

    name = "--" + setting.name.replace("_", "-")
    text = setting.metadata["help"]
    if setting.default is not None:
        text += f"  [default: {_shown(setting.default)}]"
    if isinstance(setting.default, bool):
        return click.Option([f"{name}/--no-{name[2:]}"], default=None, help=text)
    choices = setting.metadata["choices"]
    kind = NearestChoice(choices) if choices else setting_type(setting)
    return click.Option([name], type=kind, default=None, help=text)


def _shown(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def _given_settings(config_file: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the file, overridden by those given as options."""
    from pathlib import Path

    from jobs.training.config import given_settings, read_toml

    from_file = read_toml(Path(config_file)) if config_file else {}
    from_options = {name: value for name, value in settings.items() if value is not None}
    return given_settings(from_file, str(config_file)) | given_settings(
        from_options, "The command line"
    )


def main() -> None:
    """Run a command; whatever goes wrong ends in a message and the documented exit code."""
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
        show_usage_error(error)
        _end_log(error)
        return UsageError.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 128 + signal.SIGINT
    except SystemExit:  # click's way to end after a broken pipe
        return _report(StoppedError(UNREAD_OUTPUT, signal.SIGPIPE))
    except BaseException as error:  # noqa: BLE001 - the last resort, also for panics of Rust's
        return _report(error)
    return 0


def _report(error: BaseException) -> int:
    """Print what went wrong and return the exit code; a traceback only for a defect."""
    known = as_pipeline_error(error) if isinstance(error, Exception) else None
    if known is None:
        try:
            import traceback
        except (OSError, MemoryError) as shortage:
            return _report(shortage)
        print_aside(f"{traceback.format_exc()}{DEFECT}")
        return 1
    prefix = "" if isinstance(known, StoppedError) else "Error: "
    there = is_directory_there() or str(known) == REMOVED_DIRECTORY
    hint = "" if there else f" {REMOVED_DIRECTORY}"
    print_aside(
        "\n".join([f"{prefix}{one_line(str(known))}{hint}", *getattr(known, "__notes__", [])])
    )
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
