"""The options of commands that can work on a Dask cluster, and the cluster that they name."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from jobs.stop import StopSignal
    from pipeline.cluster import Cluster

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
    from pipeline.clusters.options import ClusterOptions

    options = ClusterOptions(**chosen, timeout=timeout)
    if not options.names_a_cluster:
        yield None  # without the time that importing Dask's cluster takes
        return
    from pipeline.cluster import connect

    cluster = connect(options, announce, stop.check, AFTER_LOSS[command])
    try:
        yield cluster
    finally:
        if cluster is not None:
            cluster.close()
