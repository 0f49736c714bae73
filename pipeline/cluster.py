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

from distributed import Client, Future, LocalCluster
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.comm.registry import get_backend
from distributed.core import rpc
from distributed.security import Security
from distributed.utils import LoopRunner

from pipeline.cluster_options import ClusterOptions
from pipeline.own_cluster import local_cluster, security_of
from pipeline.worker_side import PACKAGES, WorkerSide, versions_here
from storage.closing import Closing
from storage.errors import UnreachableError, UsageError

Announce = Callable[[str], None]
Check = Callable[[str], None]
"""Called now and then while there is nothing to do but wait; what it raises ends the wait.

It is told, in whole sentences, what is to be said of a job that is stopped there.
"""
AFTER_LOSS = "What was saved is untouched; do the same again, on any cluster or on none."
STOPPED = "Stopped before there was a cluster; nothing was begun. Run the same command again."

SAY_SECONDS = 5.0
"""Between two lines that tell what is being waited for."""
LOOK_SECONDS = 2.0
"""For how long the list of workers is believed."""
CLOSE_SECONDS = 5.0
POLL_SECONDS = 0.1
LOGGERS = ("distributed", "distributed.client", "tornado.application", "asyncio")


class Cluster(Closing):
    """An open client with its workers made ready for one job."""

    def __init__(
        self,
        client: Client,
        local: LocalCluster | None,
        timeout: float,
        check: Check,
        after_loss: str,
    ) -> None:
        """Takes over both, and closes them; `connect` makes one of these."""
        self.client = client
        self.timeout = timeout
        self.check = check
        self.after_loss = after_loss
        """What is left of a job that lost its cluster, and how to go on; for people."""
        self.address = str(client.scheduler.address) if client.scheduler else ""
        self.job = f"mnist-stream-{uuid.uuid4().hex}"
        """The name under which workers hold what is this job's."""
        self._local = local
        self._gone = False
        self._numbers = 0
        self._turn = 0
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
            with self.reaching("which workers there are"):
                found = self.ask(lambda client: client.scheduler.ncores(), self.timeout)
            self._workers = sorted(found)
            self._looked = time.monotonic()
        return self._workers

    def next_worker(self) -> str:
        """A worker that is there, each in turn; `OSError` where none is."""
        workers = self.workers()
        if not workers:
            raise OSError("there is no worker")
        self._turn += 1
        return workers[self._turn % len(workers)]

    def ask(self, question: Callable[[Any], Awaitable[Any]], seconds: float) -> Any:
        """What the client is answered; Dask's own calls would wait for it without a limit."""

        async def ask() -> Any:
            if self.client.scheduler is None:
                raise OSError("the client is closed")
            try:
                return await asyncio.wait_for(question(self.client), seconds)
            except TimeoutError as error:
                raise TimeoutError(str(error) or f"no answer for {seconds:.0f} s") from error

        return self.client.sync(ask)

    @contextmanager
    def reaching(self, what: str) -> Iterator[None]:
        """Turn what Dask raises where it was asked `what` and could not answer into our own."""
        try:
            yield
        except (OSError, TimeoutError) as error:
            raise self.lost(f"asked {what}: {error}") from error

    def lost(self, cause: object = "") -> UnreachableError:
        """What to raise where the scheduler is gone."""
        self._gone = True
        told = f" ({cause})" if str(cause) else ""
        return UnreachableError(
            f"Lost the Dask scheduler at {self.address}{told}. {self.after_loss}"
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
                self.ask(
                    lambda client: client.scheduler.unregister_worker_plugin(name=job),
                    CLOSE_SECONDS,
                )
        with suppress(Exception):
            self.client.close(timeout=CLOSE_SECONDS)
        if self._local is not None:
            with suppress(Exception):
                self._local.close(timeout=CLOSE_SECONDS)
            self._local = None


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
        logging.getLogger(name).setLevel(logging.CRITICAL)
    waiting = _Waiting(options.timeout, announce, check)
    address, local = _place(options, waiting)
    if address is None and local is None:
        return None
    try:
        if address is not None:
            _greet(address, options, waiting)
        client = Client(
            local if address is None else address,
            timeout=options.timeout,
            security=security_of(options),
            set_as_default=False,
            direct_to_workers=True,  # rows and gradients have no business at the scheduler
        )
    except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
        raise _no_scheduler(address, error) from error
    cluster = Cluster(client, local, options.timeout, check, after_loss)
    try:
        waiting = _Waiting(options.timeout, announce, check)
        _wait_for_workers(cluster, options.workers or 1, waiting)
        _check_versions(cluster)
        _set_workers_up(cluster, WorkerSide(cluster.job, versions_here(), own=local is not None))
        count = len(cluster.workers(now=True))
        announce(f"cluster {cluster.address}, {count} worker{'s' if count > 1 else ''}")
        if cluster.dashboard:
            announce(f"dashboard {cluster.dashboard}")
        check(STOPPED)
    except BaseException:
        cluster.close()
        raise
    return cluster


def _place(options: ClusterOptions, waiting: "_Waiting") -> tuple[str | None, LocalCluster | None]:
    """The scheduler's address, or a cluster of our own that was started; neither where none is."""
    if options.workers:
        return None, local_cluster(options)
    if options.scheduler_file:
        return _address_in(Path(options.scheduler_file), waiting), None
    return options.address, None


def _address_in(file: Path, waiting: "_Waiting") -> str:
    """The scheduler's address in the file that it writes when it has started."""
    while True:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads(file.read_text())["address"])
        if waiting.over(f"the scheduler file {file}"):
            raise UnreachableError(
                f"There is no scheduler file {file}, or no address in it, after "
                f"{waiting.seconds:.0f} s. Start one with `dask scheduler --scheduler-file {file}`."
            )
        time.sleep(POLL_SECONDS)


def _greet(address: str, options: ClusterOptions, waiting: "_Waiting") -> None:
    """See that a scheduler answers; raise `ValueError` for what is no address, else `OSError`.

    Dask's client would try what can never be until its time is over, and one that failed to start,
    or whose scheduler stands still, holds the whole process up for as long again.
    """
    scheme, place = parse_address(address)
    _, port = parse_host_port(place)
    if not 0 < port < 65_536:
        raise ValueError(f"there is no port {port}")
    get_backend(scheme).get_connector()
    security = security_of(options) or Security()  # the latter by Dask's own configuration
    arguments = security.get_connection_args("client")
    if scheme == "tls" and not arguments.get("ssl_context"):
        raise OSError("no certificates were given")

    async def identity() -> Any:
        async with rpc(address, timeout=options.timeout, connection_args=arguments) as there:
            return await there.identity()

    async def greet() -> str:
        answer = asyncio.ensure_future(identity())
        try:
            while not (await asyncio.wait({answer}, timeout=POLL_SECONDS))[0]:
                if waiting.over(f"the scheduler at {address}"):
                    raise TimeoutError(f"no answer after {waiting.seconds:.0f} s")
            return str(answer.result()["type"])
        finally:
            answer.cancel()

    try:
        found = LoopRunner().run_sync(greet)
    except OSError as error:  # Dask's own words hide the reason
        raise OSError(str(error.__cause__ or error)) from error
    if found != "Scheduler":
        raise OSError(f"it is a {found.lower()}")


def _no_scheduler(address: str | None, error: Exception) -> UnreachableError | UsageError:
    if isinstance(error, ValueError):
        return UsageError(
            f"The scheduler's address is {address!r} ({error}); expected one such as "
            "tcp://host:8786, by --scheduler, --scheduler-file or DASK_SCHEDULER_ADDRESS."
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

    def __init__(self, seconds: float, announce: Announce, check: Check) -> None:
        self.seconds = seconds
        self._began = self._said = time.monotonic()
        self._announce = announce
        self._check = check

    def over(self, what: str) -> bool:
        """Whether the limit is reached."""
        self._check(STOPPED)
        now = time.monotonic()
        left = self.seconds - (now - self._began)
        if now - self._said > SAY_SECONDS:
            self._said = now
            self._announce(f"waiting for {what}, {max(0.0, left):.0f} s left")
        return left <= 0


def _wait_for_workers(cluster: Cluster, wanted: int, waiting: _Waiting) -> None:
    while (found := len(cluster.workers(now=True))) < wanted:
        if waiting.over(f"workers of {cluster.address}: {found} of {wanted} are there"):
            raise UnreachableError(
                f"The scheduler at {cluster.address} has {found} of {wanted} workers after "
                f"{cluster.timeout:.0f} s. Start one with `dask worker {cluster.address}`."
            )
        time.sleep(POLL_SECONDS)


def _check_versions(cluster: Cluster) -> None:
    """Raise `UnreachableError` with a table where any side has another version of something."""
    with cluster.reaching("for the versions on every side"), _answered_by_all(cluster):
        found: Any = cluster.ask(
            lambda client: client.get_versions(packages=list(PACKAGES)), cluster.timeout
        )
    sides = {"client": found["client"], "scheduler": found["scheduler"], **found["workers"]}
    table = {name: _of_side(side) for name, side in sides.items()}
    if any(versions != table["client"] for versions in table.values()):
        raise UnreachableError(
            "The versions differ between the sides of the cluster; install the same on each.\n"
            + _version_table(table)
        )


def _set_workers_up(cluster: Cluster, side: WorkerSide) -> None:
    """Leave a job's plugin on every worker, also on those to come."""
    for last in (False, True):
        try:
            with _answered_by_all(cluster):
                cluster.ask(lambda client: client.register_plugin(side), cluster.timeout)
            return
        except UnreachableError:
            raise
        except OSError as error:  # a worker died on it: the scheduler has the plugin for the others
            if last:
                raise cluster.lost(error) from error
        except Exception as error:  # whatever a worker's own installation raises
            raise UnreachableError(
                f"A worker cannot be set up ({type(error).__name__}: {error}). See that this "
                "project is installed alike on every side, and can be imported there."
            ) from error


@contextmanager
def _answered_by_all(cluster: Cluster) -> Iterator[None]:
    """Tell which side it is that does not answer what all workers are asked."""
    try:
        yield
    except TimeoutError as error:
        silent = _silent(cluster)
        if not silent:
            raise cluster.lost(f"asked what every worker answers: {error}") from error
        raise UnreachableError(
            f"Of the cluster at {cluster.address} {', '.join(silent)} did not answer for "
            f"{cluster.timeout:.0f} s. End what stands still, then run the same command again."
        ) from error


def _silent(cluster: Cluster) -> list[str]:
    """The workers that do not answer; each is asked by itself."""

    async def asked(client: Any) -> list[Any]:
        return await asyncio.gather(
            *(
                asyncio.wait_for(
                    client.scheduler.broadcast(msg={"op": "identity"}, workers=[worker]),
                    SAY_SECONDS,
                )
                for worker in workers
            ),
            return_exceptions=True,
        )

    workers = cluster.workers(now=True)
    with cluster.reaching("which workers answer"):
        answers = cluster.ask(asked, 2 * SAY_SECONDS)
    pairs = zip(workers, answers, strict=True)
    return [worker for worker, answer in pairs if isinstance(answer, TimeoutError)]


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
