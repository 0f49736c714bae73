"""Options that several commands share: places, storage, the cluster, output."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import click

from jobs.choices import DEFAULT_DATASET, DEFAULT_MODELS, DEFAULT_RUN
from pipeline.cluster.options import DEFAULT_TIMEOUT, ClusterOptions
from storage.errors import UsageError

if TYPE_CHECKING:
    from jobs.signals import StopSignal
    from pipeline.cluster.client import Cluster
    from storage.location import Location

logger = logging.getLogger(__name__)

Command = Callable[..., Any]


def combined(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return several options as one decorator."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def picked(config: type[Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Return those of a command's parameters that are fields of a configuration."""
    names = {field.name for field in fields(config)}
    return {name: value for name, value in asked.items() if name in names}


dataset = click.option(
    "--dataset",
    help=f"The dataset's path or URL.  [default: that of the run's training, or {DEFAULT_DATASET}]",
)
run = click.option("--run", default=DEFAULT_RUN, help="The run's path or URL.")
models = click.option(
    "--models", default=DEFAULT_MODELS, help="Where the promoted names lie: a path or URL."
)
wait = click.option(
    "--wait",
    default=0.0,
    metavar="SECONDS",
    help="Wait up to SECONDS for another job that is doing the same work.",
)
threads = click.option(
    "--threads",
    default=0,
    type=click.IntRange(0, 1024),
    help="Threads for the arithmetic; 0 for one per core.",
)
output_flags = combined(
    click.option("--quiet", is_flag=True, help="Print only the result and warnings."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document."),
)


def output(command: Command) -> Command:
    """Add --quiet and --json; give the command a console, which prints the report it returns."""

    @output_flags
    @wraps(command)
    def run(quiet: bool, as_json: bool, **asked: Any) -> None:
        from jobs.commands.console import Console
        from jobs.commands.logs import attached

        with attached(Console(quiet=quiet, as_json=as_json)) as console:
            report = command(console, **asked)
            if report is not None:
                console.result(report)

    return run


storage = click.option(
    "--storage-option",
    "storage_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="How to reach an s3:// store, such as endpoint_url=URL. May be repeated.",
)
take_over = click.option(
    "--take-over",
    is_flag=True,
    callback=lambda context, option, given: logger.warning if given else None,
    help="Take the lock that a dead writer has left in a store, and say whose it was.",
)


def store_options(storage_options: tuple[str, ...], *places: str | None) -> dict[str, str]:
    """Return the options by key, for `open_location` of each of the command's places.

    Raises `UsageError` for one that is not `KEY=VALUE`, or if none of the given places is in a
    store.
    """
    from storage.places import is_url_of_store
    from storage.s3_options import checked_options

    options = dict(map(_key_and_value, storage_options))
    checked_options(options)
    given = [place for place in places if place is not None]
    if options and places and not any(map(is_url_of_store, given)):
        raise UsageError(
            "--storage-option is for places in a store, s3://BUCKET/PREFIX; there is none."
        )
    return options


def _key_and_value(option: str) -> tuple[str, str]:
    key, equals, value = option.partition("=")
    if not key or not equals:
        # The text is not shown: it may be a secret.
        raise UsageError("A --storage-option has no key or no '='; expected KEY=VALUE.")
    return key.strip(), value


def location_of(place: str, storage_options: tuple[str, ...]) -> "Location":
    """Return the location of a command's only place."""
    from storage.places import open_location

    return open_location(place, store_options(storage_options, place))


AFTER_LOSS = {
    "ingest": "Nothing was published; run the same command again, on any cluster or on none.",
    "train": "What was saved is untouched; run the same command again, with --resume, on any "
    "cluster or on none.",
    "score": "What was scored is kept; run the same command again, on any cluster or on none.",
}
"""What to say, by the command, where it loses its cluster."""

cluster = combined(
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
        "timeout",
        default=DEFAULT_TIMEOUT,
        metavar="SECONDS",
        type=click.FloatRange(1, 86_400),
        help="How long to wait for a scheduler, or for workers where there are none.",
    ),
)


@contextmanager
def cluster_of(
    command: str, asked: dict[str, Any], stop: "StopSignal"
) -> Iterator[Callable[[], "Cluster | None"]]:
    """Give a function that opens the cluster when it is first called: there may be no work.

    It returns None if neither the options nor Dask's configuration name a cluster.
    """
    chosen = ClusterOptions(**picked(ClusterOptions, asked))
    with ExitStack() as opened:

        def open_cluster() -> "Cluster | None":
            if not chosen.names_a_cluster:
                return None  # without the time that importing Dask's cluster takes
            from pipeline.cluster.connect import connect

            cluster = connect(chosen, stop.check, AFTER_LOSS[command])
            if cluster is not None:
                opened.callback(cluster.close)
            return cluster

        yield cache(open_cluster)
