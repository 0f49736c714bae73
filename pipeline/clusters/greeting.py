"""The handshake with a scheduler: where it is, and whether it answers, before Dask's client tries.

Dask's client retries what cannot succeed until its time is over, and allocates whatever size the
other side claims. Here a connection is closed after `HEARD_BYTES`, and nothing is unpacked.
"""

import asyncio
import json
import os
import re
import ssl
import stat
import struct
import sys
import time
from pathlib import Path
from pickle import HIGHEST_PROTOCOL
from typing import Any

from distributed.comm.addressing import parse_address, parse_host_port
from distributed.protocol.core import dumps
from distributed.protocol.utils import pack_frames
from distributed.security import Security
from distributed.utils import LoopRunner

from pipeline.clusters.options import ClusterOptions
from pipeline.clusters.own import security_of
from pipeline.clusters.waiting import POLL_SECONDS, Waiting
from pipeline.clusters.worker_side import reason
from storage.errors import UnreachableError, UsageError

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


def greet(address: str, options: ClusterOptions, waiting: Waiting) -> None:
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
