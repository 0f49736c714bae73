"""Clusters: the one place that opens a Dask client, and sees that all are fit for the work."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import dask
from distributed import Client, Future, LocalCluster
from distributed.comm.addressing import parse_address
from distributed.comm.registry import get_backend
from distributed.security import Security

from pipeline.cluster_options import ClusterOptions
from pipeline.worker_side import PACKAGES, WorkerSide, versions_here
from storage.closing import Closing
from storage.errors import UnreachableError, UsageError

Announce = Callable[[str], None]

SAY_SECONDS = 5.0
"""Between two lines that tell what is being waited for."""
LOOK_SECONDS = 2.0
"""For how long the list of workers is believed."""
CLOSE_SECONDS = 5.0
LOGGERS = ("distributed", "distributed.client", "tornado.application", "asyncio")


class Cluster(Closing):
    """An open client with its workers made ready for one job."""

    def __init__(self, client: Client, local: LocalCluster | None, timeout: float) -> None:
        """Takes over both, and closes them; `connect` makes one of these."""
        self.client = client
        self.timeout = timeout
        self.address = str(client.scheduler.address) if client.scheduler else ""
        self.job = f"mnist-stream-{uuid.uuid4().hex}"
        """The name under which workers hold what is this job's."""
        self._local = local
        self._gone = False
        self._numbers = 0
        self._workers: list[str] = []
        self._looked = -LOOK_SECONDS
        self._groups: dict[str, Future[int]] = {}

    def key(self, name: str) -> str:
        """A key that no other task has or had: `name` for people, the rest for Dask."""
        self._numbers += 1
        return f"{name}-{self.job[-8:]}-{self._numbers}"

    def keep_group(self, name: str) -> None:
        """Have the scheduler know of one task of this name for as long as the job lasts.

        With a group's last task it forgets the group, and with the next task begins another, of
        which something stays for ever (`distributed.spans`): 3 KB for each task that comes alone.
        """
        if name not in self._groups:
            self._groups[name] = self.client.submit(int, key=self.key(name), pure=False)

    def workers(self, *, now: bool = False) -> list[str]:
        """The addresses of the workers that are there, sorted; looked up `now` or a moment ago.

        Raises `UnreachableError` where the scheduler does not answer.
        """
        if now or time.monotonic() - self._looked > LOOK_SECONDS:
            with self.reaching():
                found = self._ask(lambda scheduler: scheduler.ncores(), self.timeout)
            self._workers = sorted(found)
            self._looked = time.monotonic()
        return self._workers

    def _ask(self, question: Callable[[Any], Awaitable[Any]], seconds: float) -> Any:
        """The scheduler's answer; Dask's own calls would wait for it without a limit."""

        async def ask() -> Any:
            if self.client.scheduler is None:
                raise OSError("the client is closed")
            return await asyncio.wait_for(question(self.client.scheduler), seconds)

        return self.client.sync(ask)

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Turn what Dask raises about lost connections into `UnreachableError`."""
        try:
            yield
        except (OSError, TimeoutError) as error:
            raise self.lost(error) from error

    def lost(self, cause: object = "") -> UnreachableError:
        """What to raise where the scheduler is gone."""
        self._gone = True
        told = f" ({cause})" if str(cause) else ""
        return UnreachableError(
            f"Lost the Dask scheduler at {self.address}{told}. What was saved is untouched; run "
            "the same command again, with --resume for a training, on any cluster or on none."
        )

    @property
    def is_there(self) -> bool:
        """Whether the connection to the scheduler stands."""
        return self.client.status == "running"

    @property
    def dashboard(self) -> str | None:
        """The address of Dask's dashboard, where there is one."""
        if find_spec("bokeh") is None:
            return None  # then the scheduler's page says only that there is none
        with suppress(Exception):
            return str(self.client.dashboard_link or "") or None
        return None

    def close(self) -> None:
        """Let go of the workers and, of a cluster of our own, end them."""
        self._groups.clear()
        with suppress(Exception):
            if self.is_there and not self._gone:
                job = self.job
                self._ask(
                    lambda scheduler: scheduler.unregister_worker_plugin(name=job), CLOSE_SECONDS
                )
        with suppress(Exception):
            self.client.close(timeout=CLOSE_SECONDS)
        if self._local is not None:
            with suppress(Exception):
                self._local.close(timeout=CLOSE_SECONDS)
            self._local = None


OpenCluster: TypeAlias = Callable[[], Cluster | None]
"""Opens the cluster when there is work for it, and gives the same one after that."""


def connect(options: ClusterOptions, announce: Announce = lambda text: None) -> Cluster | None:
    """A cluster by the options, else by Dask's own configuration; None where neither names one.

    Dask's configuration has `scheduler-address`, which DASK_SCHEDULER_ADDRESS sets. Raises
    `UnreachableError` where no scheduler or no worker answers in time, or where the versions of
    Python, NumPy, Zarr, Dask or this project differ on any side.
    """
    for name in LOGGERS:  # a lost worker is told by us, once, and not with a traceback
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address, local = _place(options, announce)
    if address is None and local is None:
        return None
    try:
        if address is not None:
            _check_scheme(address, options)
        client = Client(
            local if address is None else address,
            timeout=options.timeout,
            security=_security(options),
            set_as_default=False,
            direct_to_workers=True,  # rows and gradients have no business at the scheduler
        )
    except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
        raise _no_scheduler(address, error) from error
    cluster = Cluster(client, local, options.timeout)
    try:
        _wait_for_workers(cluster, options.workers or 1, announce)
        _check_versions(cluster)
        cluster.client.register_plugin(
            WorkerSide(cluster.job, versions_here(), own=local is not None)
        )
        count = len(cluster.workers(now=True))
        announce(f"cluster {cluster.address}, {count} worker{'s' if count > 1 else ''}")
        if cluster.dashboard:
            announce(f"dashboard {cluster.dashboard}")
    except BaseException:
        cluster.close()
        raise
    return cluster


def _place(options: ClusterOptions, announce: Announce) -> tuple[str | None, LocalCluster | None]:
    """The scheduler's address, or a cluster of our own that was started; neither where none is."""
    if options.workers:
        return None, _local_cluster(options)
    if options.scheduler_file:
        return _address_in(Path(options.scheduler_file), options.timeout, announce), None
    return options.address, None


def _local_cluster(options: ClusterOptions) -> LocalCluster:
    """Processes with one thread each that listen on loopback only.

    Their profiler looks at every thread a hundred times a second, between any two NumPy calls: it
    took a tenth of the time of short steps. On a cluster of the user's own it is his to choose.
    """
    try:
        with dask.config.set({"distributed.worker.profile.enabled": False}):
            return LocalCluster(
                n_workers=options.workers,
                threads_per_worker=1,
                processes=True,
                host="tls://127.0.0.1" if options.tls_ca else "127.0.0.1",
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
                security=_security(options),
            )
    except (OSError, TimeoutError, RuntimeError) as error:
        raise UnreachableError(f"Cannot start {options.workers} workers ({error}).") from error


def _security(options: ClusterOptions) -> Security | None:
    """TLS by the options; None leaves it to Dask's own configuration."""
    if not options.tls_ca:
        return None
    pair = {
        f"tls_{side}_{kind}": getattr(options, f"tls_{kind}")
        for side in ("client", "scheduler", "worker")
        for kind in ("cert", "key")
    }
    return Security(tls_ca_file=options.tls_ca, require_encryption=True, **pair)


def _address_in(file: Path, timeout: float, announce: Announce) -> str:
    """The scheduler's address in the file that it writes when it has started."""
    waiting = _Waiting(timeout, announce)
    while True:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads(file.read_text())["address"])
        if waiting.over(f"the scheduler file {file}"):
            raise UnreachableError(
                f"There is no scheduler file {file}, or no address in it, after {timeout:.0f} s. "
                f"Start one with `dask scheduler --scheduler-file {file}`."
            )


def _check_scheme(address: str, options: ClusterOptions) -> None:
    """Raise `ValueError` for an address of no known kind, `OSError` for TLS without certificates.

    With either, Dask's client would try until its time is over.
    """
    scheme, _ = parse_address(address)
    get_backend(scheme)
    security = _security(options) or Security()  # the latter by Dask's own configuration
    if scheme == "tls" and not security.get_connection_args("client").get("ssl_context"):
        raise OSError("no certificates were given")


def _no_scheduler(address: str | None, error: Exception) -> UnreachableError | UsageError:
    if isinstance(error, ValueError):
        return UsageError(
            f"--scheduler is {address!r} ({error}); expected an address such as tcp://host:8786."
        )
    tls = str(address).startswith("tls://")
    remedy = (
        "Give the certificates with --tls-ca, --tls-cert and --tls-key."
        if tls
        else "If it listens with TLS, give its tls:// address and certificates."
    )
    return UnreachableError(
        f"No Dask scheduler of ours answers at {address} ({str(error) or type(error).__name__}). "
        f"Check that it runs and can be reached. {remedy}"
    )


class _Waiting:
    """A wait with a limit, that now and then says what it waits for."""

    def __init__(self, seconds: float, announce: Announce) -> None:
        self._began = self._said = time.monotonic()
        self._seconds = seconds
        self._announce = announce

    def over(self, what: str) -> bool:
        """Whether the limit is reached; else a moment passes."""
        now = time.monotonic()
        left = self._seconds - (now - self._began)
        if now - self._said > SAY_SECONDS:
            self._said = now
            self._announce(f"waiting for {what}, {left:.0f} s left")
        time.sleep(min(0.1, max(0.0, left)))
        return left <= 0


def _wait_for_workers(cluster: Cluster, wanted: int, announce: Announce) -> None:
    waiting = _Waiting(cluster.timeout, announce)
    while (found := len(cluster.workers(now=True))) < wanted:
        if waiting.over(f"workers of {cluster.address}: {found} of {wanted} are there"):
            raise UnreachableError(
                f"The scheduler at {cluster.address} has {found} of {wanted} workers after "
                f"{cluster.timeout:.0f} s. Start one with `dask worker {cluster.address}`."
            )


def _check_versions(cluster: Cluster) -> None:
    """Raise `UnreachableError` with a table where any side has another version of something."""
    with cluster.reaching():
        found: Any = cluster.client.get_versions(packages=list(PACKAGES))
    sides = {"client": found["client"], "scheduler": found["scheduler"], **found["workers"]}
    table = {name: _of_side(side) for name, side in sides.items()}
    if any(versions != table["client"] for versions in table.values()):
        raise UnreachableError(
            "The versions differ between the sides of the cluster; install the same on each.\n"
            + _version_table(table)
        )


def _of_side(side: Any) -> dict[str, str]:
    packages = side["packages"] if side else {}
    return {name: str(packages.get(name) or "missing") for name in ("python", *PACKAGES)}


def _version_table(table: dict[str, dict[str, str]]) -> str:
    """A line for each side, a column for each thing."""
    rows = [["", "python", *PACKAGES]]
    rows += [[side, *versions.values()] for side, versions in table.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
