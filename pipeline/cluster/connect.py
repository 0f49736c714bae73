"""Connect to a Dask cluster: a bounded handshake, the client, and workers prepared for the job.

Dask's client would retry a hopeless address until its timeout, and a client that failed to start
holds up the process for as long again; so the scheduler is asked for a handshake first.
"""

import asyncio
import json
import logging
import os
import re
import ssl
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from pickle import HIGHEST_PROTOCOL
from typing import Any, TypeAlias

from distributed import Client, Scheduler
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.protocol.core import dumps
from distributed.protocol.utils import pack_frames
from distributed.security import Security
from distributed.utils import LoopRunner

from pipeline.cluster.client import POLL_SECONDS, STOPPED, Announce, Check, Cluster, Waiting
from pipeline.cluster.local_cluster import OwnCluster, security_of
from pipeline.cluster.options import ClusterOptions
from pipeline.cluster.worker import (
    ENDING_SECONDS,
    JOB_PREFIX,
    PACKAGES,
    WorkerSide,
    reason,
    versions_here,
)
from storage.errors import PipelineError, UnreachableError, UsageError

ONE_ANSWER_SECONDS = 5.0
"""How long a worker may take that is asked by itself whether it is there."""


def check_versions(cluster: Cluster) -> None:
    """Raise `UnreachableError` with a table where any side has another version of something."""
    with cluster.translate_os_errors("for the versions on every side"), _answered_by_all(cluster):
        found: Any = cluster.ask(
            lambda client: client.get_versions(packages=list(PACKAGES)), cluster.timeout
        )
    sides = {"client": found["client"], "scheduler": found["scheduler"], **found["workers"]}
    table = {name: _of_side(side) for name, side in sides.items()}
    if any(versions != table["client"] for versions in table.values()):
        error = UnreachableError(
            "The versions differ between the sides of the cluster; install the same on each."
        )
        error.add_note(_version_table(table))
        raise error


def end_dead_jobs(cluster: Cluster) -> None:
    """Have the workers forget jobs that were killed, once their last tasks have ended.

    Such a task may still write to what this job is about to remove, and what workers hold for a
    job takes memory for as long as they live. Whatever does not succeed is left to the next job.
    """

    async def end(client: Any) -> None:
        jobs = await client.run_on_scheduler(dead_jobs)
        ends = (client.scheduler.unregister_worker_plugin(name=job) for job in jobs)
        await asyncio.gather(*ends, return_exceptions=True)

    with suppress(Exception):
        cluster.ask(end, min(cluster.timeout, 2 * ENDING_SECONDS))


def dead_jobs(dask_scheduler: Scheduler) -> list[str]:
    """For the scheduler: the jobs with a plugin on the workers, but no client any more."""
    return [
        name
        for name in dask_scheduler.worker_plugins
        if name.startswith(JOB_PREFIX) and not any(one in name for one in dask_scheduler.clients)
    ]


def set_workers_up(cluster: Cluster, side: WorkerSide) -> None:
    """Leave a job's plugin on every worker, also on those to come."""
    cluster.is_set_up = True
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
                f"A worker cannot be set up ({type(error).__name__}: {reason(error)}). Install "
                "the same version of this project on every side."
            ) from error


@contextmanager
def _answered_by_all(cluster: Cluster) -> Iterator[None]:
    """Tell which side it is that does not answer what all workers are asked."""
    try:
        yield
    except TimeoutError as error:
        silent = _silent(cluster)
        if not silent:
            raise cluster.lost(f"asked all workers: {reason(error)}") from error
        raise UnreachableError(
            f"Workers of the cluster at {cluster.address} did not answer for "
            f"{cluster.timeout:.0f} s: {', '.join(silent)}. Stop the stalled ones, then run the "
            "same command again."
        ) from error


def _silent(cluster: Cluster) -> list[str]:
    """The workers that do not answer; each is asked by itself."""

    async def asked(client: Any) -> list[Any]:
        return await asyncio.gather(
            *(
                asyncio.wait_for(
                    client.scheduler.broadcast(msg={"op": "identity"}, workers=[worker]),
                    ONE_ANSWER_SECONDS,
                )
                for worker in workers
            ),
            return_exceptions=True,
        )

    workers = cluster.workers(now=True)
    with cluster.translate_os_errors("which workers answer"):
        answers = cluster.ask(asked, 2 * ONE_ANSWER_SECONDS)
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


FILE_BYTES = 2**20
"""The longest scheduler file; Dask writes about 1 KB."""
HEARD_BYTES = 2**13
"""How much of an answer is read; who answers stands in the first 300 bytes."""
FRAMES_BYTES = 2**20
"""The largest first message that a Dask server could send: who it is takes 100 bytes."""
SERVER_TYPE = re.compile(rb"\xa4type([\xa0-\xbf])([A-Za-z]+)")
"""The key `type` with its value in msgpack: the length in five bits, then the text."""


def address_in(file: Path, waiting: Waiting) -> str:
    """Return the scheduler's address from the file that it writes when it has started.

    A file that is missing or unfinished is waited for. Raises `UsageError` for any other content.
    """
    while True:
        try:
            return _address(file, _content(file))
        except OSError as error:
            problem = error.strerror or str(error)
        if waiting.over(f"the scheduler file {file}"):
            raise UnreachableError(
                f"There is no address in the scheduler file {file} after {waiting.seconds:.0f} s "
                f"({problem}). Start a scheduler with `dask scheduler --scheduler-file {file}`."
            )
        time.sleep(POLL_SECONDS)


def _content(file: Path) -> bytes:
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise _no_scheduler_file(file, "it is not a regular file")
    # A named pipe that has come since is not waited for.
    with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
        content = opened.read(FILE_BYTES + 1)
    if len(content) > FILE_BYTES:
        raise _no_scheduler_file(file, f"it has more than {FILE_BYTES:,} bytes")
    return content


def _address(file: Path, content: bytes) -> str:
    try:
        document = json.loads(content)
    except ValueError as error:
        if content.lstrip()[:1] in {b"", b"{"}:
            raise OSError("it is empty or unfinished") from error
        raise _no_scheduler_file(file, "it is not JSON") from error
    except RecursionError as error:
        raise _no_scheduler_file(file, "it is nested too deeply") from error
    address = document.get("address") if isinstance(document, dict) else None
    if not isinstance(address, str):
        raise _no_scheduler_file(file, "it has no address")
    return address


def _no_scheduler_file(file: Path, problem: str) -> UsageError:
    return UsageError(
        f"{file} is not a scheduler file: {problem}. Give the file that "
        "`dask scheduler --scheduler-file FILE` writes."
    )


def handshake(address: str, options: ClusterOptions, waiting: Waiting) -> None:
    """Check that a scheduler answers; raise `ValueError` for a wrong address, else `OSError`."""
    scheme, place = parse_address(address)
    if scheme not in {"tcp", "tls"}:
        raise ValueError(f"{scheme}:// is not supported")
    host, port = parse_host_port(place)
    if not host or not 0 < port < 65_536:
        raise ValueError(f"there is no host or port {place!r}")
    context = _tls_context(options) if scheme == "tls" else None
    problems = ["no answer"]

    async def answered() -> str:
        answer = asyncio.ensure_future(_server_type(host, port, context, problems))
        try:
            while not (await asyncio.wait({answer}, timeout=POLL_SECONDS))[0]:
                if waiting.over(f"the scheduler at {address}"):
                    raise TimeoutError(f"{problems[-1]} after {waiting.seconds:.0f} s")
            return answer.result()
        finally:
            answer.cancel()

    found = LoopRunner().run_sync(answered)
    if found != "Scheduler":
        raise OSError(f"it is a {found.lower()}")


def _tls_context(options: ClusterOptions) -> ssl.SSLContext:
    security = security_of(options) or Security()  # the latter by Dask's own configuration
    context: ssl.SSLContext | None = security.get_connection_args("client").get("ssl_context")
    if context is None:
        raise OSError("no certificates were given")
    return context


async def _server_type(
    host: str, port: int, context: ssl.SSLContext | None, problems: list[str]
) -> str:
    """Return what kind of Dask server answers; tell `problems` why it has not yet."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            break
        except ssl.SSLError:
            raise
        except OSError as error:  # it may be about to start
            known = error.errno is not None and error.errno > 0
            problems.append(os.strerror(error.errno or 0) if known else str(error))
            await asyncio.sleep(POLL_SECONDS)
    problems.append("no answer")
    try:
        hello = {
            "compression": None,
            "python": tuple(sys.version_info)[:3],
            "pickle-protocol": HIGHEST_PROTOCOL,
        }
        writer.write(_message(hello) + _message({"op": "identity", "reply": True}))
        heard = b""
        while len(heard) < HEARD_BYTES and _may_be_dask(heard):
            try:
                more = await reader.read(HEARD_BYTES - len(heard))
            except ConnectionError:
                more = b""
            if not more:
                raise OSError("it closed the connection")
            heard += more
            found = SERVER_TYPE.search(heard)
            if found and len(found[2]) >= (length := found[1][0] & 0x1F):
                return found[2][:length].decode()
        what = "a Web server" if heard.startswith(b"HTTP") else "not a Dask server"
        raise OSError(f"it is {what}")
    finally:
        writer.transport.abort()


def _may_be_dask(heard: bytes) -> bool:
    """Return whether the answer begins with the length of a message that Dask could send."""
    length = struct.unpack("Q", heard[:8])[0] if len(heard) >= 8 else 0
    return bool(length <= FRAMES_BYTES)


def _message(content: dict[str, Any]) -> bytes:
    """Return a message as Dask's servers read it: its length, then its frames."""
    packed = pack_frames(dumps(content))
    return struct.pack("Q", len(packed)) + packed


def no_scheduler(address: str | None, error: Exception) -> UnreachableError | UsageError:
    """Return what to raise if no client could be opened, with the reason."""
    if isinstance(error, ValueError):
        return UsageError(
            f"The scheduler's address is {address!r} ({reason(error)}); expected one such as "
            "tcp://host:8786, by --scheduler, --scheduler-file or DASK_SCHEDULER_ADDRESS."
        )
    problem = reason(error)
    if isinstance(error, TimeoutError):
        problem = str(error) or "no answer"
    elif isinstance(error, MemoryError):
        problem = "it announces a message that is larger than memory"
    elif not isinstance(error, OSError):
        problem = f"what it sends is not a scheduler's: {problem}"
    tls = str(address).startswith("tls://")
    remedy = (
        "Give the certificates with --tls-ca, --tls-cert and --tls-key."
        if tls
        else "If it listens with TLS, give its tls:// address and certificates."
    )
    return UnreachableError(
        f"No Dask scheduler responded at {address} ({problem}). "
        f"Check that it runs and can be reached. {remedy}"
    )


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
                handshake(address, options, waiting)
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
