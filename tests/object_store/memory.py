"""A bucket in memory behind `S3Client`, for tests of every order of requests."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import IO, Any

from storage.s3 import S3Location
from storage.s3_client import S3Client


@dataclass
class Gate:
    """Records the requests of one writer, and blocks one of them."""

    stop: int = -1
    """The request, from 0, before which the writer waits."""
    sent: list[str] = field(default_factory=list)
    reached: threading.Event = field(default_factory=threading.Event)
    """Set once the writer waits."""
    opened: threading.Event = field(default_factory=threading.Event)
    """Set it to let the writer continue."""

    def pass_through(self, request: str) -> None:
        """Record a request; block if it is number `stop`."""
        if len(self.sent) == self.stop:
            self.reached.set()
            self.opened.wait()
        self.sent.append(request)


@dataclass(frozen=True)
class MemoryClient(S3Client):
    """One writer's client of a shared bucket; an object's tag is its content's digest."""

    bucket: str = "memory"
    objects: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)
    gate: Gate = field(default_factory=Gate, compare=False, repr=False)

    def place(self, prefix: str) -> S3Location:
        """Return a location in the bucket."""
        return S3Location(PurePosixPath(prefix), self)

    def _read(self, verb: str, key: str) -> bytes:
        self.gate.pass_through(f"{verb} {key}")
        try:
            return self.objects[key]
        except KeyError:
            raise FileNotFoundError(self.url(key)) from None

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        return self._read("get", key)[start:stop]

    def get_tagged(self, key: str) -> tuple[bytes, str] | None:
        try:
            content = self._read("get", key)
        except FileNotFoundError:
            return None
        return content, _tag(content)

    def head(self, key: str) -> Any:
        content = self._read("head", key)
        return {"size": len(content), "e_tag": _tag(content), "last_modified": datetime.now(UTC)}

    def put(self, key: str, data: bytes | memoryview | IO[bytes]) -> None:
        self.gate.pass_through(f"put {key}")
        if not isinstance(data, bytes | memoryview):
            data.seek(0)
            data = data.read()
        self.objects[key] = bytes(data)

    def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        self.gate.pass_through(f"put if {key}")
        content = self.objects.get(key)
        if tag != (None if content is None else _tag(content)):
            return False
        self.objects[key] = data
        return True

    def delete(self, keys: list[str]) -> None:
        if keys:
            self.gate.pass_through(f"delete {' '.join(keys)}")
        for key in keys:
            self.objects.pop(key, None)

    def list_all(self, prefix: str) -> dict[str, int]:
        self.gate.pass_through(f"list {prefix}")
        below = f"{prefix}/" if prefix else ""
        return {key: len(data) for key, data in self.objects.items() if key.startswith(below)}

    def list_level(self, prefix: str) -> list[str]:
        below = f"{prefix}/" if prefix else ""
        keys = (key.removeprefix(below) for key in self.list_all(prefix))
        return sorted({below + key.partition("/")[0] for key in keys})


def _tag(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def interleave(
    former: Callable[[], None],
    first_gate: Gate,
    other: Callable[[], None],
    second_gate: Gate,
    look: Callable[[], None],
) -> list[BaseException | None]:
    """Run one writer up to its gate, another up to its own, then the first, then the other.

    `look` is called once both wait or have ended. Returns the error of each, or None.
    """
    ends: list[BaseException | None] = [None, None]

    def run(number: int, act: Callable[[], None], gate: Gate) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            ends[number] = error
        gate.reached.set()

    threads = [
        threading.Thread(target=run, args=(number, act, gate))
        for number, (act, gate) in enumerate([(former, first_gate), (other, second_gate)])
    ]
    for thread, gate in zip(threads, (first_gate, second_gate), strict=True):
        thread.start()
        gate.reached.wait()
    look()
    for thread, gate in zip(threads, (first_gate, second_gate), strict=True):
        gate.opened.set()
        thread.join()
    return ends
