"""Connect to a Dask cluster, prepare its workers for one job, and wait for them with a limit."""

import asyncio
import logging
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeAlias

import dask
from distributed import Client, Future, Scheduler
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.core import rpc
from distributed.security import Security
from distributed.utils import LoopRunner

from pipeline.cluster.local_cluster import LocalCluster, security_of
from pipeline.cluster.options import ClusterOptions, address_in
from pipeline.cluster.worker import (
    ENDING_SECONDS,
    JOB_PREFIX,
    PACKAGES,
    JobPlugin,
    check_alike,
    reason,
    tasks_ended,
)
from storage.errors import PipelineError, UnreachableError, UsageError
from storage.events import event
from storage.location import Closing

Check = Callable[[str], None]
"""Called while there is nothing to do but wait; what it raises ends the wait.

Its argument tells, in whole sentences, what has become of a job that is stopped there.
"""

STOPPED = "Stopped before there was a cluster; nothing was begun. Run the same command again."
AFTER_LOSS = "What was saved is untouched; do the same again, on any cluster or on none."
SAY_SECONDS = 5.0
"""Between two lines that tell what is being waited for."""
POLL_SECONDS = 0.1
LOOK_SECONDS = 2.0
"""How long the list of workers counts as up to date."""
CLOSE_SECONDS = 5.0
SETTINGS = {"distributed.admin.large-graph-warning-threshold": "1 TB"}
"""A model's parameters pass the scheduler on purpose, once."""

logger = logging.getLogger(__name__)
LOGGERS = ("distributed", "distributed.client", "tornado.application", "asyncio")


class Deadline:
    """The end of a wait that can be cancelled and says now and then what it waits for."""

    def __init__(self, seconds: float, check: Check, stopped: str = STOPPED) -> None:
        """Begin now; `check` may end the wait, and is given `stopped` as the reason."""
        self.seconds = seconds
        self._began = self._said = time.monotonic()
        self._check = check
        self._stopped = stopped

    def has_passed(self, what: str) -> bool:
        """Return whether the limit is reached; `what` is being waited for."""
        self._check(self._stopped)
        now = time.monotonic()
        left = self.seconds - (now - self._began)
        if now - self._said > SAY_SECONDS:
            self._said = now
            event(logger, "waiting", f"waiting for {what}, {max(0.0, left):.0f} s left")
        return left <= 0


class Cluster(Closing):
    """An open client with its workers made ready for one job."""

    def __init__(
        self,
        client: Client,
        own: LocalCluster | None,
        timeout: float,
        check: Check,
        after_loss: str,
    ) -> None:
        """Take over client and processes, and close them in the end; `connect` calls this."""
        self.client = client
        self.timeout = timeout
        self.check = check
        self.after_loss = after_loss
        """What is left of a job that lost its cluster, and how to go on; for people."""
        self.address = str(client.scheduler.address) if client.scheduler else ""
        self.job = f"{JOB_PREFIX}{client.id}-{uuid.uuid4().hex}"
        """The name of this job's plugin on the workers."""
        self._own = own
        self._is_prepared = False
        self._is_lost = False
        self._numbers = 0
        self._workers: list[str] = []
        self._paused = 0
        self._looked = -LOOK_SECONDS
        self._groups: dict[str, Future[int]] = {}

    def key(self, name: str) -> str:
        """Return a key that no other task has or had: `name` for people, the rest for Dask."""
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
        """Return the sorted addresses of the workers that take tasks, as of `now` or just before.

        A paused worker takes none. Raises `UnreachableError` if the scheduler does not answer.
        """
        if now or time.monotonic() - self._looked > LOOK_SECONDS:
            with self.translate_errors("which workers there are"):
                identity = self.ask(lambda client: client.scheduler.identity(n_workers=-1))
            states = {name: worker["status"] for name, worker in identity["workers"].items()}
            self._workers = sorted(name for name, state in states.items() if state == "running")
            self._paused = sum(state == "paused" for state in states.values())
            self._looked = time.monotonic()
        return self._workers

    def next_worker(self) -> str:
        """Return one of the workers, each in turn; raise `OSError` where there is none."""
        workers = self.workers()
        if not workers:
            raise OSError("there is no worker")
        return workers[self._numbers % len(workers)]

    def wait_for_workers(
        self, wanted: int = 1, *, stopped: str = "", until: Callable[[], bool] = lambda: False
    ) -> None:
        """Wait until `wanted` workers take tasks, or until something else makes that needless.

        Raises `UnreachableError` after the cluster's timeout; `stopped` is what to say if a signal
        ends the wait.
        """
        if len(self.workers()) >= wanted:
            return
        stopped = stopped or f"Stopped while no worker took tasks. {self.after_loss}"
        deadline = Deadline(self.timeout, self.check, stopped)
        # An adaptive cluster starts workers only while there are tasks for them.
        with self.translate_errors("for a worker"):
            task = self.client.submit(int, key=self.key("wait-for-worker"), pure=False)
        try:
            while (count := len(self.workers(now=True))) < wanted and not until():
                paused = f", {self._paused} paused for lack of memory" if self._paused else ""
                state = f"{count} of {wanted} running{paused}"
                if deadline.has_passed(f"workers of {self.address}: {state}"):
                    raise self._without_workers(state)
                time.sleep(POLL_SECONDS)
        finally:
            with suppress(Exception):
                task.release()

    def _without_workers(self, state: str) -> UnreachableError:
        start = f"Start workers with `dask worker {self.address}`"
        if self._paused:
            start += ", or give each more memory (`dask worker --memory-limit`)"
        return UnreachableError(
            f"The cluster at {self.address} has had too few workers for {self.timeout:.0f} s: "
            f"{state}. {start}. {self.after_loss}"
        )

    def ask(self, question: Callable[[Any], Awaitable[Any]], seconds: float | None = None) -> Any:
        """Return the answer to a call of the client, which by itself would wait without a limit."""
        limit = seconds or self.timeout

        async def ask() -> Any:
            if self.client.scheduler is None:
                raise OSError("the client is closed")
            try:
                return await asyncio.wait_for(question(self.client), limit)
            except (TimeoutError, asyncio.CancelledError) as error:  # the latter is no `Exception`
                raise TimeoutError(str(error) or f"no answer for {limit:.0f} s") from error

        return self.client.sync(ask)

    def prepare(self) -> None:
        """Check the versions on every side, forget dead jobs, and set the workers up for this one.

        Raises `UnreachableError` that names the sides that differ, fail or do not answer.
        """
        self._check_versions()
        with suppress(Exception):  # whatever does not succeed is left to the next job
            self.ask(_end_dead_jobs, min(self.timeout, 2 * ENDING_SECONDS))
        plugin = JobPlugin(self.job, own=self._own is not None)
        self._is_prepared = True
        try:
            self.ask(lambda client: client.register_plugin(plugin))
        except OSError:
            pass  # a worker died or stalled on it: the scheduler has the plugin for the others
        except Exception as error:  # whatever a worker's own installation raises
            raise UnreachableError(
                f"A worker cannot be set up ({type(error).__name__}: {reason(error)}). Install "
                "the same version of this project on every side."
            ) from error

    def _check_versions(self) -> None:
        """Raise `UnreachableError` where a side has other versions, or a worker does not answer."""
        workers = self.workers(now=True)

        async def ask_all(client: Any) -> list[Any]:
            message = {"op": "versions", "packages": list(PACKAGES)}
            calls = [client.scheduler.broadcast(msg=message, workers=[one]) for one in workers]
            limited = [asyncio.wait_for(call, self.timeout) for call in calls]
            return await asyncio.gather(*limited, return_exceptions=True)

        with self.translate_errors("for the versions on every side"):
            scheduler = self.ask(lambda client: client.scheduler.versions(packages=list(PACKAGES)))
            answers = self.ask(ask_all, self.timeout + CLOSE_SECONDS)
        stalled = [
            worker
            for worker, answer in zip(workers, answers, strict=True)
            if isinstance(answer, TimeoutError)
        ]
        if stalled:
            raise UnreachableError(
                f"Workers of the cluster at {self.address} did not answer for "
                f"{self.timeout:.0f} s: {', '.join(stalled)}. Stop the stalled ones, then run the "
                "same command again."
            )
        sides = {self.address: scheduler}
        for answer in answers:
            if isinstance(answer, dict):  # else the worker died
                sides |= answer
        check_alike(sides)

    def let_tasks_end(self) -> None:
        """Wait, with a limit, for cancelled tasks that run: workers cannot interrupt them."""
        with suppress(Exception):
            self.ask(
                lambda client: client.run(tasks_ended, self.job, on_error="ignore"),
                2 * CLOSE_SECONDS,
            )

    @contextmanager
    def translate_errors(self, what: str) -> Iterator[None]:
        """Turn whatever Dask raises when it is asked `what` into `UnreachableError`."""
        try:
            yield
        except PipelineError:
            raise
        except Exception as error:
            raise self.lost(f"asked {what}: {reason(error)}") from error

    def lost(self, cause: object = "") -> UnreachableError:
        """Return what to raise where the scheduler is gone."""
        self._is_lost = True
        text = reason(cause) if isinstance(cause, Exception) else str(cause)
        text = f" ({text})" if text else ""
        return UnreachableError(
            f"Lost the Dask scheduler at {self.address}{text}. {self.after_loss}"
        )

    @property
    def is_connected(self) -> bool:
        """Whether the connection to the scheduler stands."""
        return self.client.status == "running"

    def close(self) -> None:
        """Let go of the workers and, of a cluster of the job's own, end them."""
        self._groups.clear()
        with suppress(Exception):
            if self._is_prepared and self.is_connected and not self._is_lost:
                self.ask(
                    lambda client: client.scheduler.unregister_worker_plugin(name=self.job),
                    CLOSE_SECONDS,
                )
        with suppress(Exception):
            self.client.close(timeout=CLOSE_SECONDS)
        if self._own is not None:
            self._own.close()


async def _end_dead_jobs(client: Any) -> None:
    """Have the workers forget jobs that were killed, once their last tasks have ended.

    Such a task may still write to what this job is about to remove, and what workers hold for a
    job takes memory for as long as they live.
    """
    jobs = await client.run_on_scheduler(_dead_jobs)
    ends = (client.scheduler.unregister_worker_plugin(name=job) for job in jobs)
    await asyncio.gather(*ends, return_exceptions=True)


def _dead_jobs(dask_scheduler: Scheduler) -> list[str]:
    """Return the jobs with a plugin on the workers, but no client any more."""
    return [
        name
        for name in dask_scheduler.worker_plugins
        if name.startswith(JOB_PREFIX) and not any(one in name for one in dask_scheduler.clients)
    ]


OpenCluster: TypeAlias = Callable[[], Cluster | None]
"""Opens the cluster when there is work for it, and gives the same one after that."""


def connect(
    options: ClusterOptions,
    check: Check = lambda text: None,
    after_loss: str = AFTER_LOSS,
) -> Cluster | None:
    """Open the cluster that the options, else Dask's own configuration, name; None for none.

    `check` is called here and, as long as the cluster is open, while there is no worker;
    `after_loss` is what to say where the cluster is lost: what is left of the job, and how to go
    on. Raises `UnreachableError` where no scheduler or no worker answers in time, or where the
    versions of Python, NumPy, Zarr, Dask or this project differ on any side.
    """
    for name in LOGGERS:  # a lost worker is told once, by this project, and without a traceback
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    dask.config.set(SETTINGS)
    with ExitStack() as on_failure:
        own = on_failure.enter_context(LocalCluster(options)) if options.workers else None
        client = _open_client(own, options, Deadline(options.timeout, check))
        if client is None:
            return None
        cluster = Cluster(client, own, options.timeout, check, after_loss)
        on_failure.enter_context(cluster)
        cluster.wait_for_workers(options.workers or 1, stopped=STOPPED)
        cluster.prepare()
        count = len(cluster.workers(now=True))
        text = f"cluster {cluster.address}, {count} worker{'' if count == 1 else 's'}"
        event(logger, "cluster", text, address=cluster.address, workers=count)
        check(STOPPED)
        on_failure.pop_all()
    return cluster


def _open_client(
    own: LocalCluster | None, options: ClusterOptions, deadline: Deadline
) -> Client | None:
    """Return a client of the scheduler that the options name; None where they name none."""
    address = own.dask.scheduler_address if own else _named_address(options, deadline)
    if address is None:
        return None
    client = Client.__new__(Client)
    try:
        if own is None:
            _check_scheduler(address, options, deadline)
        Client.__init__(
            client,
            own.dask if own else address,
            timeout=options.timeout,
            security=security_of(options),
            set_as_default=False,
            direct_to_workers=True,  # rows and gradients have no business at the scheduler
        )
    except BaseException as error:
        client.status = "closed"  # its finalizer would try to close it, wait, and print why not
        if isinstance(error, PipelineError) or not isinstance(error, Exception):
            raise
        raise _no_scheduler(address, error) from error
    return client


def _named_address(options: ClusterOptions, deadline: Deadline) -> str | None:
    """Return the scheduler's address; raise `UsageError` for what cannot be one."""
    if not options.scheduler_file:
        address = options.address
    else:
        while (address := address_in(file := options.scheduler_file)) is None:
            if deadline.has_passed(f"the scheduler file {file}"):
                raise UnreachableError(
                    f"There is no address in the scheduler file {file} after "
                    f"{deadline.seconds:.0f} s: it is missing or unfinished. Start a scheduler "
                    f"with `dask scheduler --scheduler-file {file}`."
                )
            time.sleep(POLL_SECONDS)
    if address is not None:
        _check_address(address)
    return address


def _check_address(address: str) -> None:
    """Raise `UsageError` for what is no address of a scheduler."""
    try:
        scheme, place = parse_address(address)
        if scheme not in {"tcp", "tls"}:
            raise ValueError(f"{scheme}:// is not supported")
        host, port = parse_host_port(place)
        if not host or not 0 < port < 65_536:
            raise ValueError(f"there is no host or port {place!r}")
    except ValueError as error:
        raise UsageError(
            f"The scheduler's address is {address!r} ({reason(error)}); expected one such as "
            "tcp://host:8786, by --scheduler, --scheduler-file or DASK_SCHEDULER_ADDRESS."
        ) from error


def _check_scheduler(address: str, options: ClusterOptions, deadline: Deadline) -> None:
    """Raise `OSError` unless a scheduler answers at an address.

    Dask's client cannot be stopped while it waits, and believes whatever answers.
    """
    _, place = parse_address(address)

    async def identify() -> str:
        security = security_of(options) or Security()  # the latter by Dask's own configuration
        arguments = security.get_connection_args("client")
        # The deadline ends the wait; Dask's own limit must not come first.
        async with rpc(address, timeout=2 * deadline.seconds, connection_args=arguments) as there:
            return str((await there.identity())["type"])

    async def identified() -> str:
        answer = asyncio.ensure_future(identify())
        try:
            while not (await asyncio.wait({answer}, timeout=POLL_SECONDS))[0]:
                if deadline.has_passed(f"the scheduler at {address}"):
                    # Dask keeps to itself why it cannot connect: this raises it.
                    socket.create_connection(parse_host_port(place), POLL_SECONDS).close()
                    raise OSError(f"no answer after {deadline.seconds:.0f} s")
            return answer.result()
        finally:
            answer.cancel()

    kind = LoopRunner().run_sync(identified)
    if kind != "Scheduler":
        raise OSError(f"it is a {kind.lower()}")


def _no_scheduler(address: str, error: Exception) -> UnreachableError:
    """Return what to raise if no client could be opened, with the reason."""
    problem = reason(error)
    if not isinstance(error, OSError):
        problem = "what answers is not a Dask scheduler"
    remedy = "If it listens with TLS, give its tls:// address and certificates."
    if address.startswith("tls://"):
        remedy = "Give the certificates with --tls-ca, --tls-cert and --tls-key."
    return UnreachableError(
        f"No Dask scheduler responded at {address} ({problem}). "
        f"Check that it runs and can be reached. {remedy}"
    )
