"""Options that several commands share: places, storage, the cluster, output."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from jobs.choices import DEFAULT_DATASET, DEFAULT_MODELS, DEFAULT_RUN
from storage.errors import UsageError

if TYPE_CHECKING:
    from jobs.commands.console import Console
    from jobs.signals import StopSignal
    from pipeline.cluster.connect import Cluster
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
    """Show what is logged on a console, which leaves the terminal as it was."""
    from jobs.commands.console import Console
    from jobs.commands.logs import ConsoleHandler, attached

    console = Console(quiet=quiet, as_json=as_json)
    try:
        with attached(ConsoleHandler(console)):
            yield console
    finally:
        console.close()


@contextmanager
def stopping() -> Iterator[Any]:
    """Heed SIGINT and SIGTERM while the command runs."""
    from jobs.signals import stop_on_signals

    with stop_on_signals() as stop:
        yield stop


storage_option = click.option(
    "--storage-option",
    "storage_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="How to reach an s3:// store, such as endpoint_url=URL; may be given again.",
)
take_over_option = click.option(
    "--take-over",
    is_flag=True,
    help="Take the lock that a dead writer has left in a store, and say whose it was.",
)


def store_options(storage_options: tuple[str, ...], *places: str | None) -> dict[str, str]:
    """The options by key, for `open_location` of each of the command's places.

    Raises `UsageError` for one that is not `KEY=VALUE`, or if none of the given places is in a
    store.
    """
    from storage.places import is_url_of_store
    from storage.s3_options import checked_options

    options = dict(map(_parted, storage_options))
    checked_options(options)
    if (
        options
        and places
        and not any(place is not None and is_url_of_store(place) for place in places)
    ):
        raise UsageError(
            "--storage-option is for places in a store, s3://BUCKET/PREFIX; there is none."
        )
    return options


def _parted(option: str) -> tuple[str, str]:
    key, equals, value = option.partition("=")
    if not key or not equals:
        # The text is not shown: it may be a secret.
        raise UsageError("A --storage-option has no key or no '='; expected KEY=VALUE.")
    return key.strip(), value


AFTER_LOSS = {
    "ingest": "Nothing was published; run the same command again, on any cluster or on none.",
    "train": "What was saved is untouched; run the same command again, with --resume, on any "
    "cluster or on none.",
    "score": "What was scored is kept; run the same command again, on any cluster or on none.",
}
"""What to say, by the command, where it loses its cluster."""

OPTIONS = (
    click.option(
        "--scheduler", metavar="ADDRESS", help="Work on the Dask cluster at this address."
    ),
    click.option(
        "--scheduler-file", metavar="FILE", help="The same, by the file that its scheduler writes."
    ),
    click.option(
        "--workers",
        metavar="N",
        type=click.IntRange(0, 1024),
        help="Work on N processes of this machine; 0 for none, whatever Dask is configured to.",
    ),
    click.option("--tls-ca", metavar="FILE", help="Authority's certificate, for a tls:// cluster."),
    click.option("--tls-cert", metavar="FILE", help="Certificate of this client."),
    click.option("--tls-key", metavar="FILE", help="Key of this client's certificate."),
    click.option(
        "--cluster-timeout",
        default=120.0,
        show_default=True,
        metavar="SECONDS",
        type=click.FloatRange(1, 86_400),
        help="How long to wait for a scheduler, or for workers where there are none.",
    ),
)


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; `take_cluster_options` finds them."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


KEYWORDS = (
    "scheduler",
    "scheduler_file",
    "workers",
    "tls_ca",
    "tls_cert",
    "tls_key",
    "cluster_timeout",
)


def take_cluster_options(given: dict[str, Any]) -> dict[str, Any]:
    """Take the values of these options out of a command's keywords."""
    return {name: given.pop(name) for name in KEYWORDS}


@contextmanager
def cluster_on_call(
    command: str, chosen: dict[str, Any], announce: Callable[[str], None], stop: "StopSignal"
) -> Iterator[Callable[[], "Cluster | None"]]:
    """Gives a function that opens the cluster when it is first called: there may be no work."""
    with ExitStack() as opened:
        yield cache(lambda: opened.enter_context(opened_cluster(command, chosen, announce, stop)))


@contextmanager
def opened_cluster(
    command: str, chosen: dict[str, Any], announce: Callable[[str], None], stop: "StopSignal"
) -> Iterator["Cluster | None"]:
    """The cluster that the options, or Dask's configuration, name; None where none is named."""
    timeout = chosen["cluster_timeout"]
    chosen = {name: chosen[name] for name in KEYWORDS if name != "cluster_timeout"}
    from pipeline.cluster.options import ClusterOptions

    options = ClusterOptions(**chosen, timeout=timeout)
    if not options.names_a_cluster:
        yield None  # without the time that importing Dask's cluster takes
        return
    from pipeline.cluster.connect import connect

    cluster = connect(options, announce, stop.check, AFTER_LOSS[command])
    try:
        yield cluster
    finally:
        if cluster is not None:
            cluster.close()
