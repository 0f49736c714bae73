"""The command `pipeline`: its subcommands, its exit codes, and its error messages.

Libraries heavier than click are imported when a command runs, so that help is fast.
"""

import atexit
import io
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from itertools import takewhile

import click

from jobs.choices import known_name
from jobs.commands.datasets import ingest, inspect, verify
from jobs.commands.demo import demo
from jobs.commands.export import export
from jobs.commands.predict import predict
from jobs.commands.reproduce import reproduce
from jobs.commands.runs import export_logs, runs
from jobs.commands.schedule import schedule
from jobs.commands.score import promote, score, scores
from jobs.commands.sweep import sweep
from jobs.commands.train import train
from jobs.commands.write_report import report
from jobs.output import UNREAD_OUTPUT, one_line, print_aside
from storage.errors import (
    REMOVED_DIRECTORY,
    PipelineError,
    RestartError,
    StoppedError,
    UsageError,
    as_pipeline_error,
    did_you_mean,
    is_directory_there,
)

COMPLETION = "_PIPELINE_COMPLETE"
"""The environment variable with which a shell requests completions."""
GPU_NAMES = {"--cuda", "--device", "--gpu", "--gpus", "-g"}
GPU_HINT = " mnist-stream computes on CPU cores: see --threads and --workers."
INTERNAL_ERROR = "This is an internal error of mnist-stream. Please report it with the lines above."
EPILOG = """\b
Exit codes:
  0         success, or nothing left to do
  1         internal error: please report it with its traceback
  2         wrong usage
  3         bad data: image file, dataset, checkpoint or scores
  4         conflict: locked, already exists, or other settings
  5         below a quality gate
  6         storage or cluster unreachable: try again later
  130, 143  interrupted; progress is saved

\b
Shell completion, also for zsh and fish:
  eval "$(_PIPELINE_COMPLETE=bash_source pipeline)"
"""


class _Group(click.Group):
    """Lists its commands in the order in which they are used, and before the options."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)


@click.group(
    cls=_Group,
    epilog=EPILOG,
    invoke_without_command=True,
    no_args_is_help=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.option("--version", is_flag=True, help="Show the version; -v adds those of the libraries.")
@click.option("--verbose", "-v", is_flag=True, hidden=True)
@click.pass_context
def cli(context: click.Context, version: bool, verbose: bool) -> None:
    """Train neural networks on image files, out of core and reproducibly.

    Images are stored as chunked Zarr arrays and streamed through Dask into a network written in
    NumPy.

    \b
    pipeline ingest     # download MNIST to data/mnist
    pipeline train      # train a network on it, in runs/mnist
    pipeline score      # predict the test images and measure accuracy
    """
    if version:
        click.echo(_version(verbose))
        context.exit()
    if verbose:
        raise UsageError("-v belongs after the command, as in pipeline train -v.")
    if context.invoked_subcommand is None:
        raise click.UsageError("Missing command.", context)


for command in (
    *(ingest, train, score, demo, predict, inspect, report, runs),
    *(sweep, export, export_logs, verify, reproduce, scores, promote, schedule),
):
    cli.add_command(command)


def _version(verbose: bool) -> str:
    """Return the version; `verbose` adds those of everything that results may depend on."""
    from importlib.metadata import version

    line = f"pipeline, version {version('mnist-stream')}"
    if not verbose:
        return line
    import platform

    from jobs.commands.tables import facts
    from jobs.training.environment import environment

    computed_by = environment()
    versions = {
        "Python": platform.python_version(),
        "NumPy": computed_by["numpy"],
        "BLAS": f"{computed_by['blas']}, kernel {computed_by['blas_kernel']}",
        "Zarr": version("zarr"),
        "Dask": version("dask"),
        "platform": f"{platform.platform()}, {os.cpu_count()} cores",
    }
    return f"{line}\n{facts(list(versions.items()))}"


def main() -> None:
    """Run a command; print any error and exit with its documented code."""
    atexit.register(_ignore_signals)
    # Set before NumPy is imported: OpenBLAS would start a thread per core, of which one is used,
    # and interrupt the process if the system refuses them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _prepare_streams()
    sys.exit(_complete() if COMPLETION in os.environ else _run())


def _complete() -> int:
    """Print completions, or the script that enables them in a shell."""
    from click.shell_completion import shell_complete

    with suppress(Exception):  # a traceback would be printed into the user's command line
        return shell_complete(cli, {}, "pipeline", COMPLETION, os.environ[COMPLETION])
    return 1


def _prepare_streams() -> None:
    """Open closed standard streams, and escape characters that their encoding lacks.

    Otherwise the next file to be opened would get a closed stream's descriptor.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - stays open until exit
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _ignore_signals() -> None:
    """Keep the exit code: the job is done when Python shuts down."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _run() -> int:
    try:
        cli.main(prog_name="pipeline", standalone_mode=False)
    except click.ClickException as error:
        print_aside(_usage_message(error))
        _end_log(error)
        return UsageError.exit_code
    except RestartError as error:
        return _restart(error)
    except (KeyboardInterrupt, click.Abort):
        return 128 + signal.SIGINT
    except SystemExit:  # raised by click after a broken pipe
        return _report(StoppedError(UNREAD_OUTPUT, signal.SIGPIPE))
    except BaseException as error:  # noqa: BLE001 - the last resort, for panics of Rust's too
        return _report(error)
    return 0


def _restart(error: RestartError) -> int:
    """Run the same command in this process anew, with the environment variables that it needs.

    A program that called `main` is not run anew: the error is reported instead.
    """
    from jobs.training.portable import RESTARTED

    arguments = sys.argv[1:]
    if sys.orig_argv[-len(arguments) :] != arguments:
        code = _report(error)
        _end_log(error)
        return code
    variables = {**os.environ, **error.variables, RESTARTED: str(os.getpid())}
    given = {name: value for name, value in variables.items() if value is not None}
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], given)  # noqa: S606 - no shell
    except OSError as failure:
        return _report(failure)


def _report(error: BaseException) -> int:
    """Print an error and return its exit code; an internal error has a traceback."""
    known = as_pipeline_error(error) if isinstance(error, Exception) else None
    if known is None:
        try:
            import traceback
        except (OSError, MemoryError) as shortage:
            return _report(shortage)
        print_aside(f"{traceback.format_exc()}{INTERNAL_ERROR}")
        return 1
    prefix = "" if isinstance(known, StoppedError) else "Error: "
    is_said = is_directory_there() or str(known) == REMOVED_DIRECTORY
    hint = "" if is_said else f" {REMOVED_DIRECTORY}"
    notes = getattr(known, "__notes__", [])
    print_aside("\n".join([f"{prefix}{one_line(str(known))}{hint}", *notes]))
    return known.exit_code


def _usage_message(error: click.ClickException) -> str:
    """Return a command's usage and the error."""
    message = _explain(error)
    context = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return message
    if context is None:
        return f"Error: {one_line(message)}"
    help_command = f"Try '{context.command_path} --help' for help."
    return f"{context.get_usage()}\n{help_command}\n\nError: {one_line(message)}"


def _explain(error: click.ClickException) -> str:
    """Return the error, with the nearest command or option as a suggestion."""
    if isinstance(error, click.exceptions.NoSuchOption) and error.ctx:
        return error.message + _hint(error.option_name, error.ctx)
    if isinstance(error, click.exceptions.NoSuchCommand) and error.ctx:
        return error.message + _hint(error.command_name, error.ctx)
    return error.format_message()


def _hint(name: str, context: click.Context) -> str:
    if name in GPU_NAMES:
        return GPU_HINT
    for argument in context.command.get_params(context):
        of_argument = (f"--{argument.name}", f"--{str(argument.name).removesuffix('s')}")
        if isinstance(argument, click.Argument) and name in of_argument:
            usage = f"{context.command_path} {argument.make_metavar(context)}"
            return f" Give it as an argument: {usage}"
    known = [*getattr(context.command, "commands", ()), *_option_names(context)]
    return did_you_mean(known_name(name, known), known)


def _option_names(context: click.Context) -> Iterable[str]:
    for parameter in context.command.get_params(context):
        if isinstance(parameter, click.Option):
            yield from parameter.opts
            yield from parameter.secondary_opts


def _end_log(error: click.ClickException | RestartError) -> None:
    """Print the summary that --log-json promises, for errors that do not end the log."""
    if "--log-json" in takewhile(lambda word: word != "--", sys.argv[1:]):
        from jobs.commands.logs import JsonHandler

        with suppress(PipelineError):
            text = _explain(error) if isinstance(error, click.ClickException) else str(error)
            JsonHandler(counting=False).summary(UsageError(text))


if __name__ == "__main__":
    main()
