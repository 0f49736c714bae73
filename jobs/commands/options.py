"""Options that several commands share: places, output, storage and the cluster."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import click

from jobs.choices import DEFAULT_CHECKPOINT, DEFAULT_DATASET, DEFAULT_MODELS, DEFAULT_RUN
from jobs.commands import completion
from jobs.commands.sections import IntRange, option
from pipeline.cluster.options import (
    DEFAULT_TIMEOUT,
    ClusterOptions,
    translate_configuration_errors,
)
from storage.errors import UsageError

if TYPE_CHECKING:
    from jobs.signals import StopSignal
    from jobs.training.choose_model import Runs
    from pipeline.cluster.client import Cluster
    from storage.location import Location

logger = logging.getLogger(__name__)

Callback = Callable[..., Any]
"""The function of a command."""


def combined(*decorators: Callable[[Callback], Callback]) -> Callable[[Callback], Callback]:
    """Return several options as one decorator."""

    def decorate(command: Callback) -> Callback:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def picked(config: type[Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Return the given parameters of a command that are fields of a configuration."""
    names = {field.name for field in fields(config)}
    given = {name: value for name, value in asked.items() if value is not None}
    return {name: value for name, value in given.items() if name in names}


dataset = option(
    "--dataset",
    section="Data",
    metavar="PLACE",
    shell_complete=completion.datasets,
    show_default=f"the run's, or {DEFAULT_DATASET}",
    help="Path or URL of the dataset.",
)
train_dataset = option(
    "--dataset",
    section="Data",
    metavar="PLACE",
    shell_complete=completion.datasets,
    show_default=DEFAULT_DATASET,
    help="Path or URL of the dataset.",
)
train_config = option(
    "--config",
    "config_file",
    section="Data",
    metavar="FILE.toml",
    shell_complete=completion.toml_files,
    help="Read settings from a TOML file; options override it.",
)
models = option(
    "--models",
    section="Model",
    advanced=True,
    metavar="PLACE",
    default=DEFAULT_MODELS,
    shell_complete=completion.directories,
    help="Path or URL where promoted names are kept.",
)
checkpoint = option(
    "--checkpoint",
    section="Model",
    metavar="NAME",
    show_default=DEFAULT_CHECKPOINT,
    shell_complete=completion.checkpoints,
    help="best (by validation, else latest), latest, an epoch or a model digest; a list such as "
    "8,9,10, or average (all snapshots), for the mean of their probabilities.",
)
average_shifts = option(
    "--average-shifts",
    section="Model",
    advanced=True,
    topic="averages",
    type=IntRange(0, 3),
    metavar="N",
    show_default="the run's setting",
    help="Average over each image and its shifts by up to N pixels.",
)
promoted = option(
    "--model",
    section="Model",
    metavar="NAME",
    shell_complete=completion.model_names,
    help="Promoted name, instead of a run and --checkpoint.",
)
sweep = combined(
    option(
        "--sweep",
        section="Model",
        advanced=True,
        topic="averages",
        metavar="PLACE",
        shell_complete=completion.sweeps,
        help="Path or URL of a sweep, instead of a run.",
    ),
    option(
        "--best",
        section="Model",
        advanced=True,
        topic="averages",
        type=IntRange(1),
        metavar="N",
        show_default="1",
        help="Average the N best trials of --sweep, by their validation loss.",
    ),
)
model = combined(
    option(
        "--run",
        section="Model",
        multiple=True,
        metavar="PLACE",
        show_default=DEFAULT_RUN,
        shell_complete=completion.runs,
        help="Path or URL of a run; repeatable.",
    ),
    sweep,
    checkpoint,
    average_shifts,
    promoted,
    models,
)
provenance = option(
    "--provenance",
    metavar="FILE.json",
    shell_complete=completion.files,
    help="Also write how the model was made, as an in-toto statement with SLSA provenance.",
)
wait = option(
    "--wait",
    section="Retries",
    default=0.0,
    show_default="do not wait",
    metavar="SECONDS",
    help="Wait up to SECONDS for another job that is doing the same work.",
)
threads = option(
    "--threads",
    section="Model",
    default=0,
    show_default="all cores",
    metavar="N",
    type=IntRange(0, 1024),
    help="CPU cores to compute on.",
)
log_json = option(
    "--log-json",
    advanced=True,
    is_flag=True,
    help="Print a line of JSON for each event instead.",
)
metrics_file = option(
    "--metrics-file",
    advanced=True,
    metavar="FILE.prom",
    shell_complete=completion.files,
    help="Write metrics for node_exporter's textfile collector at the end, also after a failure.",
)
output_flags = combined(
    option("--quiet", "-q", is_flag=True, help="Print one line with the result."),
    option("--verbose", "-v", is_flag=True, help="Also print memory bounds, speed and digests."),
    option("--json", "as_json", is_flag=True, help="Print the result as one JSON document."),
)


def output(command: Callback) -> Callback:
    """Add the flags of output; pass the command a console, which prints the report it returns."""

    @output_flags
    @wraps(command)
    def run(log_json: bool = False, as_json: bool = False, **asked: Any) -> None:
        flags = {name: asked.pop(name) for name in ("quiet", "verbose")}
        with console_of(log_json, as_json=as_json, counting=False, **flags) as console:
            report = command(console, **asked)
            if report is not None:
                console.result(report)

    return run


@contextmanager
def console_of(
    log_json: bool, *, as_json: bool, counting: bool = True, **flags: bool
) -> Iterator[Any]:
    """Give a console, or with `log_json` a log of JSON that ends in a summary.

    Raises `UsageError` for both --json and --log-json.
    """
    from jobs.commands.console import Console
    from jobs.commands.logs import attached, json_log

    log = json_log(counting=counting) if log_json else attached(Console(as_json=as_json, **flags))
    with log as console:
        if log_json and as_json:
            raise UsageError("--log-json cannot be combined with --json; leave one of them out.")
        yield console


storage = option(
    "--storage-option",
    "storage_options",
    section="Storage",
    multiple=True,
    metavar="KEY=VALUE",
    help="Setting of an s3:// store, such as endpoint_url=URL; repeatable.",
)
take_over = option(
    "--take-over",
    section="Storage",
    is_flag=True,
    callback=lambda context, option, given: logger.warning if given else None,
    help="Take the lock that a killed writer left in a store.",
)


def store_options(storage_options: tuple[str, ...], *places: str | None) -> dict[str, str]:
    """Return the options by key, for `open_location` of each of the command's places.

    Raises `UsageError` for one that is not `KEY=VALUE`, or if no given place is in a store.
    """
    from storage.places import is_url_of_store
    from storage.s3_options import checked_options

    options = dict(map(_key_and_value, storage_options))
    checked_options(options)
    given = [place for place in places if place is not None]
    if options and places and not any(map(is_url_of_store, given)):
        raise UsageError(
            "--storage-option applies to places in a store, s3://BUCKET/PREFIX; none is given."
        )
    return options


def chosen_runs(asked: dict[str, Any], store: dict[str, str]) -> "Runs | None":
    """Return the runs that the command names, or the best of its sweep; None without either."""
    run, sweep, best = asked["run"], asked["sweep"], asked["best"]
    if sweep is None:
        if best is not None:
            raise UsageError("--best requires --sweep; pass --sweep, or leave it out.")
        return run or None
    if asked.get("model") is not None:
        raise UsageError("--model determines the run; leave out --sweep.")
    if run:
        raise UsageError("--sweep cannot be combined with a run; leave one of them out.")
    from storage.places import open_location
    from storage.sweeps import best_runs

    return best_runs(open_location(sweep, store), best or 1)


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
    "ingest": "Nothing was published. Run the command again, with or without a cluster.",
    "train": "All checkpoints are kept. Run the command again with --resume, with or without a "
    "cluster.",
    "reproduce": "The run is unchanged. Run the command again, with or without a cluster.",
    "sweep": "All trials keep their checkpoints. Run the command again, with or without a cluster.",
    "score": "Finished scores are kept. Run the command again, with or without a cluster.",
}
"""What to do after a command has lost its cluster."""


def _cluster_file(name: str, text: str) -> Callable[[Callback], Callback]:
    return option(
        name, section="Cluster", metavar="FILE", shell_complete=completion.files, help=text
    )


cluster = combined(
    option(
        "--workers",
        section="Cluster",
        metavar="N",
        type=IntRange(0, 1024),
        help="Start a local Dask cluster of N processes; 0 uses no cluster, whatever Dask's "
        "configuration says.",
    ),
    option(
        "--scheduler",
        section="Cluster",
        metavar="ADDRESS",
        help="Use the Dask cluster at this address.",
    ),
    _cluster_file("--scheduler-file", "Use the Dask cluster whose scheduler wrote this file."),
    option(
        "--cluster-timeout",
        "timeout",
        section="Cluster",
        default=DEFAULT_TIMEOUT,
        show_default=f"{DEFAULT_TIMEOUT:g}",
        metavar="SECONDS",
        type=click.FloatRange(1, 86_400),
        help="Longest wait for a scheduler or for its first worker.",
    ),
    _cluster_file("--tls-ca", "CA certificate of a tls:// cluster."),
    _cluster_file("--tls-cert", "Client certificate for a tls:// cluster."),
    _cluster_file("--tls-key", "Private key of the client certificate."),
)


@contextmanager
def cluster_of(
    command: str, asked: dict[str, Any], stop: "StopSignal"
) -> Iterator[Callable[[], "Cluster | None"]]:
    """Yield a function that connects to the cluster when first called, and close it at the end.

    It returns None if neither the options nor Dask's configuration name a cluster.
    """
    chosen = ClusterOptions(**picked(ClusterOptions, asked))
    with ExitStack() as opened:

        def open_cluster() -> "Cluster | None":
            if not chosen.names_a_cluster:
                return None  # importing distributed takes longer than many jobs
            with translate_configuration_errors():
                from pipeline.cluster.connect import connect
            cluster = connect(chosen, stop.check, AFTER_LOSS[command])
            if cluster is not None:
                opened.callback(cluster.close)
            return cluster

        yield cache(open_cluster)
