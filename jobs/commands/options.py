"""What several commands have in common: options, the console, the signals."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from jobs.defaults import DEFAULT_DATASET, DEFAULT_MODELS, DEFAULT_RUN

if TYPE_CHECKING:
    from jobs.commands.console import Console
    from pipeline.ingest import Scaling

Command = Callable[..., Any]


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


output_options = options(
    click.option("--quiet", is_flag=True, help="Print only the result and warnings."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document."),
)
dataset_option = click.option(
    "--dataset",
    help=f"The dataset's path or URL.  [default: that of the run's training, or {DEFAULT_DATASET}]",
)
run_option = click.option(
    "--run", default=DEFAULT_RUN, show_default=True, help="The run's path or URL."
)
seed_option = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of drawn digits."
)
models_option = click.option(
    "--models",
    default=DEFAULT_MODELS,
    show_default=True,
    help="Where the promoted names lie: a path or URL.",
)
wait_option = click.option(
    "--wait",
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for another job that has the same work in hand.",
)
threads_option = click.option(
    "--threads",
    default=0,
    show_default=True,
    type=click.IntRange(0, 1024),
    help="Threads for the arithmetic; 0 for one per core.",
)


def parsed_scale(text: str | None) -> "Scaling":
    """What `--scale` says; `UsageError` for what it cannot."""
    if text is None:
        return None
    from storage.errors import UsageError
    from storage.preparation import parse_range

    try:
        return parse_range(text) or "none"
    except ValueError as error:
        raise UsageError(f"--scale is {text!r}; {error}.") from None


@contextmanager
def console_of(quiet: bool, as_json: bool) -> Iterator["Console"]:
    """The console of a command, which leaves the terminal as it was."""
    from jobs.commands.console import Console

    console = Console(quiet=quiet, as_json=as_json)
    try:
        yield console
    finally:
        console.close()


@contextmanager
def stopping() -> Iterator[Any]:
    """Heed SIGINT and SIGTERM while the command runs."""
    from jobs.stop import stop_on_signals

    with stop_on_signals() as stop:
        yield stop
