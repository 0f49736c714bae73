"""Clusters: the one place that opens a Dask client, and sees that all are fit for the work."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

from distributed import Client

from pipeline.clusters.client import Cluster
from pipeline.clusters.greeting import address_in, greet, no_scheduler
from pipeline.clusters.options import ClusterOptions
from pipeline.clusters.own import OwnCluster, security_of
from pipeline.clusters.setup import check_versions, end_dead_jobs, set_workers_up
from pipeline.clusters.waiting import STOPPED, Announce, Check, Waiting
from pipeline.clusters.worker_side import WorkerSide, reason, versions_here
from storage.errors import PipelineError

__all__ = ["Cluster", "OpenCluster", "connect"]

AFTER_LOSS = "What was saved is untouched; do the same again, on any cluster or on none."
LOGGERS = ("distributed", "distributed.client", "tornado.application", "asyncio")

OpenCluster: TypeAlias = Callable[[], Cluster | None]
"""Opens the cluster when there is work for it, and gives the same one after that."""


def connect(
    options: ClusterOptions,
    announce: Announce = lambda text: None,
    check: Check = lambda text: None,
    after_loss: str = AFTER_LOSS,
) -> Cluster | None:
    """A cluster by the options, else by Dask's own configuration; None where neither names one.

    Dask's configuration has `scheduler-address`, which DASK_SCHEDULER_ADDRESS sets. `check` is
    called here, and as long as the cluster is open, while there is no worker; `after_loss` is what
    to say where the cluster is lost: what is left of the job, and how to go on. Raises
    `UnreachableError` where no scheduler or no worker answers in time, or where the versions of
    Python, NumPy, Zarr, Dask or this project differ on any side.
    """
    for name in LOGGERS:  # a lost worker is told by us, once, and not with a traceback
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    waiting = Waiting(options.timeout, announce, check)
    address, own = _place(options, waiting)
    if address is None and own is None:
        return None
    with ExitStack() as on_failure:
        if own is not None:
            on_failure.enter_context(own)
        try:
            if address is not None:
                greet(address, options, waiting)
            client = _client(own.cluster if own else address, options)
        except PipelineError:
            raise
        except Exception as error:  # whatever Dask makes of what answers there
            raise no_scheduler(address, error) from error
        cluster = Cluster(client, own, options.timeout, announce, check, after_loss)
        on_failure.pop_all()
        on_failure.enter_context(cluster)
        cluster.wait_for_workers(options.workers or 1, stopped=STOPPED)
        check_versions(cluster)
        end_dead_jobs(cluster)
        set_workers_up(cluster, WorkerSide(cluster.job, versions_here(), own=own is not None))
        count = len(cluster.workers(now=True))
        announce(f"cluster {cluster.address}, {count} worker{'' if count == 1 else 's'}")
        if cluster.dashboard:
            announce(f"dashboard {cluster.dashboard}")
        check(STOPPED)
        on_failure.pop_all()
    return cluster


def _client(place: Any, options: ClusterOptions) -> Client:
    """Return a client of the scheduler at an address, or of a `LocalCluster`."""
    client = Client.__new__(Client)
    try:
        Client.__init__(
            client,
            place,
            timeout=options.timeout,
            security=security_of(options),
            set_as_default=False,
            direct_to_workers=True,  # rows and gradients have no business at the scheduler
        )
    except ValueError as error:  # the address is right: it is what answers there
        client.status = "closed"
        raise RuntimeError(reason(error)) from error
    except BaseException:
        client.status = "closed"  # its finalizer would try to close it, wait, and print why not
        raise
    return client


def _place(options: ClusterOptions, waiting: Waiting) -> tuple[str | None, OwnCluster | None]:
    """Return the scheduler's address, or the job's own cluster; neither if none is named."""
    if options.workers:
        return None, OwnCluster(options)
    if options.scheduler_file:
        return address_in(Path(options.scheduler_file), waiting), None
    return options.address, None
