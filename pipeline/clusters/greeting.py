"""The first word with a scheduler: where it is, and whether it answers, before Dask's client tries.

The client would try what can never be until its time is over, and one that failed to start, or
whose scheduler stands still, holds the whole process up for as long again.
"""

import asyncio
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from distributed.comm.addressing import parse_address, parse_host_port
from distributed.comm.registry import get_backend
from distributed.core import rpc
from distributed.security import Security
from distributed.utils import LoopRunner

from pipeline.clusters.options import ClusterOptions
from pipeline.clusters.own import security_of
from pipeline.clusters.waiting import POLL_SECONDS, Waiting
from storage.errors import UnreachableError, UsageError


def address_in(file: Path, waiting: Waiting) -> str:
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


def greet(address: str, options: ClusterOptions, waiting: Waiting) -> None:
    """See that a scheduler answers; raise `ValueError` for what is no address, else `OSError`."""
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

    async def answered() -> str:
        answer = asyncio.ensure_future(identity())
        try:
            while not (await asyncio.wait({answer}, timeout=POLL_SECONDS))[0]:
                if waiting.over(f"the scheduler at {address}"):
                    raise TimeoutError(f"no answer after {waiting.seconds:.0f} s")
            return str(answer.result()["type"])
        finally:
            answer.cancel()

    try:
        found = LoopRunner().run_sync(answered)
    except OSError as error:  # Dask's own words hide the reason
        raise OSError(str(error.__cause__ or error)) from error
    if found != "Scheduler":
        raise OSError(f"it is a {found.lower()}")


def no_scheduler(address: str | None, error: Exception) -> UnreachableError | UsageError:
    """What to raise where no client could be opened, and why that was."""
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
