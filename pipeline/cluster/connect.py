"""Open a cluster: find its scheduler, or start worker processes on this machine, and connect.

Workers started here speak TLS with a certificate made for the run, listen on loopback and keep
their files in a directory that only its owner can enter: Dask's workers import modules and unpickle
data from it. Only a job's own processes can submit work. The dashboard, which needs Bokeh, is
read-only, but any user of this machine can read it.
"""

import asyncio
import fcntl
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import dask
import distributed
from distributed import Client, Scheduler
from distributed.comm.addressing import get_address_host, parse_address, parse_host_port
from distributed.core import rpc
from distributed.security import Security
from distributed.utils import LoopRunner, format_dashboard_link

from pipeline.cluster.client import CLOSE_SECONDS, POLL_SECONDS, STOPPED, Check, Cluster, Deadline
from pipeline.cluster.options import ClusterOptions, address_in
from pipeline.cluster.worker import reason
from storage.errors import PipelineError, UnreachableError, causes, counted
from storage.events import event
from storage.files import check_room
from storage.location import Closing

AFTER_LOSS = "Finished work is kept. Run the same again, with or without a cluster."
LOGGERS = ("distributed", "distributed.client", "tornado.application", "asyncio")
SILENT = logging.CRITICAL + 1
SETTINGS = {"distributed.admin.large-graph-warning-threshold": "1 TB"}
"""A model's parameters pass through the scheduler on purpose, once."""

THREADS, THREADS_PER_WORKER = 15, 15
OPEN_FILES, OPEN_FILES_PER_WORKER = 40, 15
"""Upper bounds for a job and each of its workers, slightly above what was measured.

Dask hangs or prints tracebacks if it gets less.
"""
DIRECTORY_PREFIX = "mnist-stream-workers-"
LOCAL_SETTINGS: dict[str, Any] = {
    # The profiler samples every thread a hundred times a second, which took a tenth of the time of
    # short steps.
    "distributed.worker.profile.enabled": False,
    # Dask makes free memory return to the system at once. A training of small batches then maps
    # its arrays anew in every step, which took a tenth of its time.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
    # Each process wakes to see whether its event loop is late. Every 20 ms, Dask's default, that
    # took 2 % of two cores.
    "distributed.admin.tick.interval": "1 s",
    # No HTTP routes except the dashboard's own.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}
DASHBOARD_ROUTES = [
    f"distributed.http.{name}"
    for name in ("scheduler.prometheus", "scheduler.info", "health", "statics")
]
"""The read-only pages that the dashboard links to."""

logger = logging.getLogger(__name__)


def connect(
    options: ClusterOptions,
    check: Check = lambda text: None,
    after_loss: str = AFTER_LOSS,
) -> Cluster | None:
    """Open the cluster named by the options or by Dask's configuration; return None for no cluster.

    `check` is called here, and during every later wait for workers. `after_loss` ends the message
    of a lost cluster: what is left of the job, and how to continue. Raises `UnreachableError` if no
    scheduler or no worker responds in time, or if the versions of Python, NumPy, Zarr, Dask or this
    project differ between the processes.
    """
    with ExitStack() as on_failure:
        resources = on_failure.enter_context(ExitStack())
        resources.enter_context(quiet_dask())
        resources.enter_context(dask.config.set(SETTINGS))
        local = resources.enter_context(LocalCluster(options)) if options.workers else None
        client = _open_client(local, options, Deadline(options.timeout, check))
        if client is None:
            return None
        cluster = Cluster(client, resources, local is not None, options.timeout, check, after_loss)
        on_failure.enter_context(cluster)
        cluster.wait_for_workers(options.workers or 1, stopped=STOPPED)
        cluster.prepare()
        _announce(cluster)
        check(STOPPED)
        on_failure.pop_all()
    return cluster


@contextmanager
def quiet_dask() -> Iterator[None]:
    """Silence Dask while the block runs; this project reports lost workers itself, once."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger, logger.level) for logger in loggers if logger.level != SILENT]
    for logger, _ in before:
        logger.setLevel(SILENT)
    try:
        yield
    finally:
        for logger, level in before:
            logger.setLevel(level)


def _announce(cluster: Cluster) -> None:
    count = len(cluster.workers(now=True))
    dashboard = dashboard_link(cluster)
    text = f"{counted(count, 'worker')} at {cluster.address}"
    text += f", dashboard {dashboard}" if dashboard else ""
    event(logger, "cluster", text, address=cluster.address, workers=count, dashboard=dashboard)


def dashboard_link(cluster: Cluster) -> str | None:
    """Return the dashboard's address, by Dask's own template; None for a cluster without one."""
    with suppress(Exception):  # a missing link is no reason to fail
        port = cluster.ask(lambda client: client.run_on_scheduler(_dashboard_port), CLOSE_SECONDS)
        host = get_address_host(cluster.address)
        host = f"[{host}]" if ":" in host else host  # IPv6
        return port and str(format_dashboard_link(host, port))
    return None


def _dashboard_port(dask_scheduler: Scheduler) -> int | None:
    """Return the port of the scheduler's dashboard; None if it runs without Bokeh."""
    has_pages = bool(dask_scheduler.http_application.applications)
    return int(dask_scheduler.services["dashboard"].port) if has_pages else None


def _open_client(
    local: "LocalCluster | None", options: ClusterOptions, deadline: Deadline
) -> Client | None:
    """Return a client of the scheduler that the options name; None if they name none."""
    address = local.dask.scheduler_address if local else _scheduler_address(options, deadline)
    if address is None:
        return None
    client = Client.__new__(Client)
    try:
        if local is None:
            _check_scheduler(address, options, deadline)
        Client.__init__(
            client,
            local.dask if local else address,
            timeout=options.timeout,
            security=security_of(options),
            set_as_default=False,
            direct_to_workers=True,  # rows and gradients do not pass through the scheduler
        )
    except BaseException as error:
        client.status = "closed"  # else its finalizer would try to close it, wait, and print why
        if isinstance(error, PipelineError) or not isinstance(error, Exception):
            raise
        raise _no_scheduler(address, error) from error
    return client


def _scheduler_address(options: ClusterOptions, deadline: Deadline) -> str | None:
    """Return the scheduler's address, after waiting for its file if the options name one."""
    file = options.scheduler_file
    if not file:
        return options.address
    while (address := address_in(file)) is None:
        if deadline.has_passed(f"the scheduler file {file}"):
            raise UnreachableError(
                f"The scheduler file {file} is still missing or unfinished after "
                f"{deadline.seconds:.0f} s. Start a scheduler with "
                f"`dask scheduler --scheduler-file {file}`."
            )
        time.sleep(POLL_SECONDS)
    return address


def _check_scheduler(address: str, options: ClusterOptions, deadline: Deadline) -> None:
    """Raise `OSError` unless a scheduler responds at an address.

    Dask's client cannot be interrupted while it connects, and accepts any server that answers.
    """

    async def identify() -> str:
        security = security_of(options) or Security()  # the latter reads Dask's configuration
        arguments = security.get_connection_args("client")
        if address.startswith("tls:") and not arguments.get("ssl_context"):
            raise OSError("TLS needs certificates")
        # The deadline ends the wait; Dask's own limit must not come first.
        async with rpc(address, timeout=2 * deadline.seconds, connection_args=arguments) as server:
            return str((await server.identity())["type"])

    async def identify_in_time() -> str:
        answer = asyncio.ensure_future(identify())
        try:
            while not (await asyncio.wait({answer}, timeout=POLL_SECONDS))[0]:
                if deadline.has_passed(f"the scheduler at {address}"):
                    # Dask does not say why it cannot connect; a plain connection raises the reason.
                    place = parse_host_port(parse_address(address)[1])
                    socket.create_connection(place, POLL_SECONDS).close()
                    raise OSError(f"no answer after {deadline.seconds:.0f} s")
            return answer.result()
        finally:
            answer.cancel()

    server_type = LoopRunner().run_sync(identify_in_time)
    if server_type != "Scheduler":
        raise OSError(f"it is a {server_type.lower()}")


def _no_scheduler(address: str, error: Exception) -> UnreachableError:
    problem = reason(error)
    if not isinstance(error, OSError):
        problem = "the server there is not a Dask scheduler"
    remedy = "If it uses TLS, give its tls:// address and the certificates."
    if address.startswith("tls://"):
        remedy = "Give the certificates with --tls-ca, --tls-cert and --tls-key."
    return UnreachableError(
        f"No compatible Dask scheduler responded at {address} ({problem}). "
        f"Check that it is running and reachable. {remedy}"
    )


class LocalCluster(Closing):
    """Worker processes of this machine with one thread each, and the directory of their files."""

    def __init__(self, options: ClusterOptions) -> None:
        """Start the processes; raise `UnreachableError` if the system lacks resources for them."""
        workers = options.workers or 0
        check_room(
            threads=THREADS + THREADS_PER_WORKER * workers,
            open_files=OPEN_FILES + OPEN_FILES_PER_WORKER * workers,
        )
        with ExitStack() as on_failure:
            directory = on_failure.enter_context(private_directory())
            try:
                self.dask = on_failure.enter_context(_start(options, directory))
            except Exception as error:  # Dask turns a lack of resources into many kinds of errors
                cause = _system_error(error)
                script = ""
                if cause is error:  # else the system refused something
                    script = ' In a Python script, connect below `if __name__ == "__main__":`.'
                raise UnreachableError(
                    f"Cannot start {counted(workers, 'worker')} ({reason(cause).rstrip('.')}). Use "
                    "fewer --workers, or raise the limits on processes (ulimit -u), open files "
                    f"(-n) and memory (-v).{script}"
                ) from error
            self._resources = on_failure.pop_all()

    def close(self) -> None:
        """End the processes and remove their directory."""
        with suppress(Exception):
            self.dask.close(timeout=CLOSE_SECONDS)
        self._resources.close()


@contextmanager
def private_directory() -> Iterator[Path]:
    """Make a temporary directory that only its owner can enter, locked while the block runs.

    Directories left behind by killed processes of the same user are removed.
    """
    base = Path(dask.config.get("temporary-directory", None) or tempfile.gettempdir())
    for left in base.glob(f"{DIRECTORY_PREFIX}*"):
        with suppress(OSError), _locked(left):
            if left.stat().st_uid == os.getuid():
                shutil.rmtree(left)
    unlocked = Path(tempfile.mkdtemp(prefix=f".{DIRECTORY_PREFIX}", dir=base))
    with _locked(unlocked):
        path = unlocked.rename(base / unlocked.name[1:])  # visible to others only once it is locked
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Lock a directory while the block runs; raise `OSError` if another process has locked it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _system_error(error: BaseException) -> BaseException:
    """Return the operating system's error among an error's causes; without one, the error."""
    system = (cause for cause in causes(error) if isinstance(cause, OSError) and cause.errno)
    return next(system, error)


def _start(options: ClusterOptions, directory: Path) -> distributed.LocalCluster:
    has_dashboard = find_spec("bokeh") is not None
    settings = dict(LOCAL_SETTINGS)
    if has_dashboard:
        settings["distributed.scheduler.http.routes"] = DASHBOARD_ROUTES
    with dask.config.set(settings), _signals_blocked():
        return distributed.LocalCluster(
            n_workers=options.workers,
            threads_per_worker=1,
            processes=True,
            host="tls://127.0.0.1",
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": has_dashboard},
            local_directory=str(directory),
            silence_logs=logging.CRITICAL,
            security=security_of(options) or Security.temporary(),
        )


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block SIGINT and SIGTERM, so that processes started in the block inherit the mask.

    Ctrl-C then does not reach them, not even while they import. A signal that arrives during the
    block is delivered to this process at its end. Python's resource tracker would clear the mask,
    so it is started first.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def security_of(options: ClusterOptions) -> Security | None:
    """Return TLS by the options; None leaves it to Dask's configuration."""
    if not options.tls_ca:
        return None
    pair = {
        f"tls_{side}_{part}": getattr(options, f"tls_{part}")
        for side in ("client", "scheduler", "worker")
        for part in ("cert", "key")
    }
    return Security(tls_ca_file=options.tls_ca, require_encryption=True, **pair)
