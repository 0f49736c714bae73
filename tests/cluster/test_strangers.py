"""What answers at a scheduler's address and is none, and files that name no scheduler."""

import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from distributed.protocol.core import dumps
from distributed.protocol.utils import pack_frames

from pipeline.cluster.client import Waiting
from pipeline.cluster.connect import address_in
from pipeline.cluster.worker import reason
from storage.errors import UsageError
from tests.cluster.test_failures import assert_told
from tests.commands.process import limited_to, run_pipeline

LIMIT = ("--cluster-timeout", "2")
MEMORY = 10**9
"""An address space in which the command starts, and does not take what is claimed."""
TOO_MUCH = 2**62
"""A message's length that nobody has."""


def framed(content: object) -> bytes:
    """A message as Dask's servers send it."""
    packed = pack_frames(dumps(content))
    return struct.pack("Q", len(packed)) + packed


HELLO = framed({"compression": None, "python": (3, 11, 0), "pickle-protocol": 5})
WEB = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


def flood(connection: socket.socket) -> None:
    """A gigabyte, that is announced and sent."""
    connection.sendall(HELLO + struct.pack("Q", 2**30))
    for _ in range(2**10):
        connection.sendall(b"\1" * 2**20)


def trickle(connection: socket.socket) -> None:
    """A byte now and then, as of a message that might be Dask's."""
    for byte in HELLO[:16]:
        connection.sendall(bytes([byte]))
        threading.Event().wait(0.5)


def hold(connection: socket.socket) -> None:
    """Nothing, until the other side goes."""
    while connection.recv(2**16):
        pass


@contextmanager
def served(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """The address of a server that treats each connection alike."""

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            answer(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda c: c.sendall(WEB), "it is a Web server"),
        (lambda c: c.sendall(os.urandom(7) + b"\xff" * 100), "it is not a Dask server"),
        (
            lambda c: c.sendall(struct.pack("Q", TOO_MUCH) + b"\0" * 10**6),
            "it is not a Dask server",
        ),
        (flood, "it is not a Dask server"),
        (trickle, "no answer after 2 s"),
        (hold, "no answer after 2 s"),
        (lambda c: None, "it closed the connection"),
        (lambda c: (c.sendall(HELLO + b"\1"), hold(c)), "no answer after 2 s"),
    ],
    ids=["web", "garbage", "huge", "flood", "trickle", "silent", "closed", "half"],
)
def test_no_dask_scheduler(
    answer: Callable[[socket.socket], object], words: str, tmp_path: Path
) -> None:
    """Exit 6 with the address and what is there, in time and without memory for it."""
    space = {"preexec_fn": limited_to(MEMORY), "env": {"OPENBLAS_NUM_THREADS": "1"}}
    with served(answer) as address:
        ended = run_pipeline("train", "--scheduler", address, *LIMIT, cwd=tmp_path, **space)
    assert_told(ended, 6, address, words)
    assert 1 == ended.err.count("\n")


IDENTITY = framed({"type": "Scheduler", "id": "x"})


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (struct.pack("Q", TOO_MUCH), "it announces a message that is larger than memory"),
        (struct.pack("QQQ", 18, 1, 2) + b"\1\1", "what it sends is not a scheduler's"),
        (HELLO + IDENTITY, "what it sends is not a scheduler's"),
    ],
    ids=["huge", "garbled", "other"],
)
def test_a_liar_that_says_it_is_a_scheduler(lie: bytes, words: str, tmp_path: Path) -> None:
    """What it sends once Dask's own client listens is told without a traceback: exit 6 as well."""
    answers = iter([HELLO + IDENTITY, lie])

    def answer(connection: socket.socket) -> None:
        connection.sendall(next(answers, lie))
        hold(connection)

    with served(answer) as address:
        ended = run_pipeline("train", "--scheduler", address, *LIMIT, cwd=tmp_path)
    assert_told(ended, 6, address, words)
    assert 1 == ended.err.count("\n")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"address":' * 50_000, "nested too deeply"),
        (b"no JSON", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1, 2]", "no address"),
        (b'{"address": 5}', "no address"),
        (b" " * (2**20 + 1), "more than 1,048,576 bytes"),
    ],
)
def test_no_scheduler_file(content: bytes, problem: str, tmp_path: Path) -> None:
    """Wrong usage, told at once with the file's name."""
    file = tmp_path / "scheduler.json"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=problem) as raised:
        address_in(file, Waiting(60, lambda text: None, lambda text: None))
    assert str(file) in str(raised.value)


def test_a_scheduler_file_that_is_a_pipe(tmp_path: Path) -> None:
    """What is no regular file is refused, and never waited for."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        ended = run_pipeline("train", "--scheduler-file", name, cwd=tmp_path)
        assert_told(ended, 2, "is not a scheduler file: it is not a regular file")


def test_an_unfinished_scheduler_file(tmp_path: Path) -> None:
    """It may still be written: it is waited for, with the limit."""
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": "tcp://127.0.0.1:1"})[:-3])
    ended = run_pipeline("train", "--scheduler-file", file, *LIMIT, cwd=tmp_path)
    assert_told(ended, 6, str(file), "empty or unfinished")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "in <distributed.comm.tcp.TCPConnector object at 0x7f01>: ConnectionRefusedError: no",
            "ConnectionRefusedError: no",
        ),
        (
            "in <TCP (closed) Worker->Scheduler local=tcp://a:1 remote=tcp://b:2>: it is closed",
            "it is closed",
        ),
        ("cannot pickle <a.b.C object at 0xabc>", "cannot pickle C"),
        ("no <function f at 0x12>", "no <function f>"),
        ("", "ValueError"),
    ],
)
def test_reasons(text: str, expected: str) -> None:
    """No addresses of objects in memory reach a message."""
    assert expected == reason(ValueError(text))
