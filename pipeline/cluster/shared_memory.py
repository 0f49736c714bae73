"""Vectors shared by the client and the workers of one machine.

Sending a parameter vector of 28 MB to a worker over loopback takes 15 ms and fetching it 40 ms,
more than computing the gradient. Anonymous memory (`memfd_create`) is mapped by processes of the
same user and disappears with the last of them, so a kill leaves nothing behind.
"""

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.cluster.client import Cluster
from pipeline.cluster.tasks import Pending, Task
from storage.location import Closing

MOST_MAPPED = 64
"""Blocks of other processes that stay mapped; the one used longest ago makes room."""


@dataclass(frozen=True)
class Handle:
    """How another process of this machine finds a vector."""

    process: int
    descriptor: int
    token: bytes
    """Drawn when the block was made: another block in the same place has another."""
    size: int
    dtype: str


NAME = "mnist-stream"
TOKEN_BYTES = 16
HEADER_BYTES = mmap.PAGESIZE
"""The token stands in a page of its own before the vector, which is aligned so."""


class SharedVector(Closing):
    """A vector `(size,)` of this process that others may map."""

    def __init__(self, size: int, dtype: str) -> None:
        """Zeros."""
        length = HEADER_BYTES + size * np.dtype(dtype).itemsize
        self._descriptor = -1  # memory that no other process can map, without memfd (macOS)
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create(NAME, os.MFD_CLOEXEC)
            os.ftruncate(self._descriptor, length)
        self._memory = mmap.mmap(self._descriptor, length)
        token = os.urandom(TOKEN_BYTES)
        self._memory[:TOKEN_BYTES] = token
        self.array: NDArray[Any] = np.frombuffer(self._memory, dtype, size, HEADER_BYTES)
        self.handle = Handle(os.getpid(), self._descriptor, token, size, dtype)

    def close(self) -> None:
        """Give the name up; the memory goes when the last array over it does."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class SharedBufferPool(Closing):
    """Vectors of this process, all alike, that another looks at until it asks for a later one."""

    def __init__(self, size: int, dtype: str) -> None:
        """None yet; each is `(size,)`."""
        self._size, self._dtype = size, dtype
        self._lock = threading.Lock()
        self._free: list[SharedVector] = []
        self._lent: list[tuple[int, SharedVector]] = []

    def borrow(self, step: int) -> SharedVector:
        """A vector for what this step comes to, or for a part of that.

        Whoever asks for a step has done with the ones before: their vectors are used again.
        """
        with self._lock:
            self._free += [vector for lent, vector in self._lent if lent < step]
            self._lent = [(lent, vector) for lent, vector in self._lent if lent >= step]
            if self._free:
                return self._free.pop()
        return SharedVector(self._size, self._dtype)

    def lend(self, step: int, vector: SharedVector) -> Handle:
        """Leave a finished vector to the other until it asks for a later step."""
        with self._lock:
            self._lent.append((step, vector))
        return vector.handle

    def give_back(self, vector: SharedVector) -> None:
        """Take back a vector that was borrowed and is not lent."""
        with self._lock:
            self._free.append(vector)

    def close(self) -> None:
        """Let go of all of them."""
        for vector in [*self._free, *(vector for _, vector in self._lent)]:
            vector.close()
        self._free, self._lent = [], []


class RemoteBuffers(Closing):
    """The vectors of other processes that this one has mapped."""

    def __init__(self) -> None:
        """None yet."""
        self._mapped: OrderedDict[Handle, NDArray[Any]] = OrderedDict()

    def array(self, handle: Handle) -> NDArray[Any]:
        """The vector `(size,)`; whoever made it sees what is written to it.

        Raises `OSError` where it cannot be had: its process is gone, or on another machine.
        """
        if handle not in self._mapped:
            while len(self._mapped) >= MOST_MAPPED:
                self._mapped.popitem(last=False)
            self._mapped[handle] = _mapped(handle)
        self._mapped.move_to_end(handle)
        return self._mapped[handle]

    def close(self) -> None:
        """Let the memory of other processes go."""
        self._mapped.clear()


def _mapped(handle: Handle) -> NDArray[Any]:
    path = f"/proc/{handle.process}/fd/{handle.descriptor}"
    if not os.readlink(path).startswith(f"/memfd:{NAME} "):  # on another machine, something else
        raise OSError(f"{path} is not the memory that was shared")
    with open(path, "r+b", buffering=0) as file:
        length = HEADER_BYTES + handle.size * np.dtype(handle.dtype).itemsize
        if os.fstat(file.fileno()).st_size != length:
            raise OSError(f"{path} is not the memory that was shared")
        memory = mmap.mmap(file.fileno(), length)
    if memory[:TOKEN_BYTES] != handle.token:
        raise OSError(f"{path} is not the memory that was shared")
    return np.frombuffer(memory, handle.dtype, handle.size, HEADER_BYTES)


class VectorResult(Protocol):
    """What a worker makes of a vector that it is shown or sent: another vector."""

    @property
    def vector(self) -> Handle | NDArray[Any] | None:
        """Shown where the given one was; None where that could not be seen from there."""

    @property
    def worker(self) -> str:
        """Its address."""


class SharedVectorTransport(Closing):
    """Hands out tasks whose last argument is a vector, and looks at the vectors that come back."""

    def __init__(self, cluster: Cluster) -> None:
        """Every worker is shown vectors until one cannot see them."""
        self._cluster = cluster
        self._elsewhere = RemoteBuffers()
        self._apart: set[str] = set()
        """Workers that share no memory with this process: on other machines, as a rule."""

    def results(
        self, tasks: Sequence[tuple[Task, Handle, NDArray[Any]]]
    ) -> list[tuple[Any, NDArray[Any]]]:
        """Each task's reply, which is `VectorResult`, and its vector, in order.

        A task is given without its last argument, which is added here: the handle, or the vector.
        """
        begun = [self._begun(*task) for task in tasks]
        try:
            return [
                self._received(task, vector, pending.result())
                for (task, _, vector), pending in zip(tasks, begun, strict=True)
            ]
        finally:
            for pending in begun:
                pending.release()

    def _begun(self, task: Task, handle: Handle, vector: NDArray[Any]) -> Pending:
        if task.worker in self._apart:
            return self._sent(task, vector)
        return Pending(self._cluster, replace(task, arguments=(*task.arguments, handle)))

    def _sent(self, task: Task, vector: NDArray[Any]) -> Pending:
        arguments = (*task.arguments, vector)
        return Pending(self._cluster, replace(task, arguments=arguments, bulky=True))

    def _received(
        self, task: Task, vector: NDArray[Any], reply: VectorResult
    ) -> tuple[VectorResult, NDArray[Any]]:
        """The reply with its vector; asked for again where that cannot be had."""
        while True:
            if isinstance(reply.vector, np.ndarray):
                return reply, reply.vector
            if isinstance(reply.vector, Handle):
                try:
                    return reply, self._elsewhere.array(reply.vector)
                except OSError:  # the worker has died since, or cannot be looked into
                    pass
            self._apart.add(reply.worker)
            reply = self._sent(replace(task, worker=reply.worker), vector).result()

    def close(self) -> None:
        """Let the workers' memory go."""
        self._elsewhere.close()
