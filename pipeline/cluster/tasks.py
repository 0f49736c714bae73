"""Tasks on a cluster: submit, collect, retry; the conversion of parts; vectors in shared memory.

Dask runs the tasks of a lost worker again elsewhere. What it cannot repeat (data sent to that
worker, or a task that saw several workers die) is submitted anew from here. A task that fails by
itself three times ends the job with its own error.
"""

import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from distributed import Future, get_worker, wait
from distributed.scheduler import KilledWorker
from numpy.typing import NDArray

from pipeline.cluster.client import Cluster
from pipeline.cluster.worker import TaskFailedError, reason, run_task
from pipeline.convert import Conversion, convert_part
from pipeline.rows import check_seen
from pipeline.sources.splits import LoadedPart, Part, SplitSource
from storage.dataset_writer import ChunkRecord, SplitWriter
from storage.errors import BadDataError, ConflictError, PipelineError, UnreachableError, UsageError
from storage.location import Closing

TRIES = 3
"""How often a task may fail by itself, and how often Dask may give it up as a killer of workers."""
MOST_LOSSES = 50
"""How often one task is submitted in all."""
TASK_SECONDS = 1800.0
"""The longest that one task is waited for."""
POLL_SECONDS = 1.0
SLOW_SECONDS = 20.0
"""After so long a signal no longer lets the task finish: its worker may be stalled."""
FETCH_SECONDS = 2.0
"""How long a result is waited for once its task has ended, at first: the worker may die with it."""

ERRORS = {kind.exit_code: kind for kind in (UsageError, BadDataError, ConflictError)}


@dataclass(frozen=True)
class Task:
    """One call of a function of a module, for any worker."""

    name: str
    """What Dask's dashboard calls it: `score-chunk`."""
    what: str
    """What an error is to name: `rows 0..1999 of test`."""
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    worker: str | None = None
    """The worker to give it to; another one takes it where that is gone."""
    bulky: bool = False
    """Whether the arguments are to go straight to a worker, and not through the scheduler."""


class Pending:
    """A submitted task."""

    def __init__(self, cluster: Cluster, task: Task) -> None:
        """Submit the task."""
        self._cluster = cluster
        self._task = task
        self._pinned: str | None = None
        self._kills = self._losses = 0
        self._submit()

    def result(self) -> Any:
        """Return the task's result; raise its own error, or `UnreachableError` that names it."""
        began, patience = time.monotonic(), FETCH_SECONDS
        while True:
            try:
                self._wait(began)
                # Not `Future.result(timeout)`: where both limits pass at once it raises nonsense.
                result = self._cluster.ask(lambda client: client.gather(self._future), patience)
                self.release()
                return result
            except TaskFailedError as failure:
                kind = ERRORS.get(failure.exit_code, UnreachableError)
                place = f"at {failure.what}, on worker {failure.worker}"
                raise kind(f"{failure.text} ({place})") from None
            except TimeoutError as error:
                patience *= 2  # the result is long, or lost: then Dask computes it again
                if patience > self._cluster.timeout:
                    self._resubmit(error)
            except (OSError, CancelledError, KilledWorker) as error:  # lost with its worker
                self._resubmit(error)
            except PipelineError:
                raise
            except Exception as error:
                raise UnreachableError(
                    f"The cluster at {self._cluster.address} cannot do {self._task.what} "
                    f"({type(error).__name__}: {reason(error)}). {self._cluster.after_loss}"
                ) from error

    def _wait(self, began: float) -> None:
        """Wait until the task has ended, well or not; raise `CancelledError` for a lost one."""
        while not self._future.done():
            with suppress(TimeoutError), self._cluster.client.as_current():
                wait([self._future], timeout=POLL_SECONDS)
                return
            self._check_connected()
            self._cluster.wait_for_workers(until=self._future.done)
            if self._pinned and self._pinned not in self._cluster.workers():
                # Dask may have given it to another, or hold it for the one that is gone, for ever.
                raise CancelledError
            self._check_wait(began)

    def _check_connected(self) -> None:
        if not self._cluster.is_connected:
            raise self._cluster.lost()

    def _check_wait(self, began: float) -> None:
        """Raise where a wait that began then has lasted too long, or is to be stopped."""
        what, waited = self._task.what, time.monotonic() - began
        if waited > SLOW_SECONDS:
            self._cluster.check(f"Stopped while waiting for {what}. {self._cluster.after_loss}")
        if waited > TASK_SECONDS:
            raise UnreachableError(
                f"No worker finished {what} within {TASK_SECONDS:,.0f} s. Give the cluster faster "
                "workers or smaller chunks or batches."
            )

    def _resubmit(self, error: Exception) -> None:
        self._count_loss(error)
        self.release()
        self._submit()

    def _count_loss(self, error: Exception) -> None:
        """Count a loss of the task; raise `UnreachableError` where it is not the first by far."""
        self._check_connected()
        self._losses += 1
        self._kills += isinstance(error, KilledWorker)
        if self._losses >= MOST_LOSSES or self._kills >= TRIES:
            raise UnreachableError(
                f"The cluster at {self._cluster.address} lost {self._task.what} {self._losses} "
                f"times: worker after worker died or stalled ({reason(error)}). See the workers' "
                "logs: they may lack memory. Then run the same command again."
            ) from None

    def _submit(self) -> None:
        """Submit the task; where its arguments cannot be sent, look for another worker."""
        while True:
            self._cluster.wait_for_workers()
            try:
                self._future = self._send()
                return
            except (OSError, ValueError, KeyError) as error:  # what Dask makes of a lost worker
                self._count_loss(error)
            self._task = replace(self._task, worker=None)
            time.sleep(POLL_SECONDS / 4)
            self._cluster.workers(now=True)

    def _send(self) -> "Future[Any]":
        task, cluster = self._task, self._cluster
        self._pinned = task.worker if task.worker in cluster.workers() else None
        arguments = task.arguments
        if task.bulky:
            receiver = self._pinned or cluster.next_worker()
            arguments = cluster.ask(
                lambda client: client.scatter(
                    task.arguments,
                    workers=[receiver],  # all to one: the task goes where they are
                    direct=True,
                    hash=False,
                    timeout=POLL_SECONDS,  # of the wait for a worker, which may be gone
                )
            )
        cluster.keep_group(task.name)
        return cluster.client.submit(
            run_task,
            cluster.job,
            task.what,
            task.function,
            *arguments,
            key=cluster.key(task.name),
            pure=False,
            retries=TRIES - 1,
            workers=self._pinned and [self._pinned],
            allow_other_workers=self._pinned is not None,
        )

    def release(self) -> None:
        """Let the scheduler and the workers forget the task."""
        with suppress(Exception):
            self._future.release()

    def cancel(self) -> None:
        """Cancel the task, unless it has begun."""
        with suppress(Exception):
            self._future.cancel()
        self.release()


def results(cluster: Cluster, tasks: Iterable[Task], per_worker: int = 1) -> Iterator[Any]:
    """Yield the tasks' results in order, with so many of them in flight for each worker."""
    waiting: deque[Pending] = deque()
    try:
        for task in tasks:
            waiting.append(Pending(cluster, task))
            if len(waiting) >= per_worker * max(1, len(cluster.workers())):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for pending in waiting:
            pending.cancel()


MOST_MAPPED = 64
"""Vectors of other processes that stay mapped."""
PARTS_PER_WORKER = 2
"""Parts on their way to each worker: the one it writes, and the next."""


def convert_part_there(
    part: Part, writer: SplitWriter, conversion: Conversion
) -> tuple[int, list[ChunkRecord]]:
    """Convert a part on a worker that sees the dataset that the job has begun."""
    check_seen(writer.location)
    return convert_part(part, writer, conversion)


def convert_parts(
    cluster: Cluster, split: SplitSource, writer: SplitWriter, conversion: Conversion
) -> Generator[tuple[int, list[ChunkRecord]], None, None]:
    """Yield rows and chunk records of each part, in order.

    A compressed file is read here, once; its rows go straight to the worker that writes them.
    Digits are drawn by the worker. What a part becomes is the same wherever, and however often, it
    is written. If the ingest stops, its running tasks end before what they write is removed.
    """
    tasks = (
        Task(
            name="write-part",
            what=f"rows {part.start}..{part.stop - 1} of {split.name}",
            function=convert_part_there,
            arguments=(part, writer, conversion),
            bulky=isinstance(part, LoadedPart),
        )
        for part in split.parts(writer.part_rows)
    )
    try:
        yield from results(cluster, tasks, PARTS_PER_WORKER)
    except BaseException:
        cluster.let_tasks_end()
        raise


@dataclass(frozen=True)
class Handle:
    """How another process of this machine finds a shared vector."""

    path: str
    target: str
    """Where the path leads, which is drawn at random: a path means something else elsewhere."""
    size: int
    dtype: str

    def array(self) -> NDArray[Any]:
        """Map the vector `(size,)`; what is written to it is seen by the process that made it.

        Raises `OSError` where that process is gone, or on another machine.
        """
        if os.readlink(self.path) != self.target:
            raise OSError(f"{self.path} is not the memory that was shared")
        with open(self.path, "r+b", buffering=0) as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0), self.dtype, self.size)


class SharedVector(Closing):
    """A vector `(size,)` that other processes of the same user can map.

    Anonymous memory disappears with the last process that maps it, so a kill leaves nothing behind.
    To send parameters of 13 MB and fetch gradients made the steps of two workers 1.7 times as long.
    """

    def __init__(self, size: int, dtype: str) -> None:
        length = size * np.dtype(dtype).itemsize
        name = f"mnist-stream-{os.urandom(16).hex()}"
        self._descriptor = -1  # memory that no other process can map, without memfd (macOS)
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
            os.ftruncate(self._descriptor, length)
        self.array: NDArray[Any] = np.frombuffer(mmap.mmap(self._descriptor, length), dtype)
        path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        self.handle = Handle(path, f"/memfd:{name} (deleted)", size, dtype)

    def close(self) -> None:
        """Give the name up; the memory goes when the last array over it does."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True)
class VectorResult:
    """What a worker made of a vector: another one, and what there is to tell of it."""

    worker: str
    vector: Handle | NDArray[Any] | None = None
    """None where the worker cannot map the vector that was shared: it must be sent."""
    facts: Any = None


class MappedVectors:
    """Vectors of other processes, each mapped once: to map 11 MB anew takes 2 ms."""

    def __init__(self) -> None:
        self._arrays: dict[Handle, NDArray[Any]] = {}

    def array(self, handle: Handle) -> NDArray[Any]:
        """Return a vector `(size,)`; raise `OSError` where it cannot be mapped."""
        if handle not in self._arrays:
            while len(self._arrays) >= MOST_MAPPED:
                del self._arrays[next(iter(self._arrays))]
            self._arrays[handle] = handle.array()
        return self._arrays[handle]


class LentVectors(Closing):
    """A worker's vectors, all alike, which the client reads until it asks for a later turn.

    They are used again then: to write 11 MB to new memory takes 10 ms, to old memory one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mapped = MappedVectors()
        self._free: list[SharedVector] = []
        self._lent: list[tuple[int, SharedVector]] = []

    def answer(
        self,
        turn: int,
        vector: Handle | NDArray[Any],
        compute: Callable[[NDArray[Any], NDArray[Any]], Any],
    ) -> VectorResult:
        """Have `compute(vector, out)` write another vector; share it where the first was shared."""
        worker = get_worker().address
        if isinstance(vector, np.ndarray):
            out = np.empty_like(vector)
            return VectorResult(worker, out, compute(vector, out))
        try:
            array = self._mapped.array(vector)
        except OSError:
            return VectorResult(worker)
        shared = self._vector(turn, vector)
        facts = compute(array, shared.array)
        with self._lock:  # only now: nothing else may take it while a stalled task writes to it
            self._lent.append((turn, shared))
        return VectorResult(worker, shared.handle, facts)

    def _vector(self, turn: int, like: Handle) -> SharedVector:
        """Return a vector for a turn, which may be one that was lent for an earlier turn."""
        with self._lock:
            self._free += [vector for lent, vector in self._lent if lent < turn]
            self._lent = [(lent, vector) for lent, vector in self._lent if lent >= turn]
            return self._free.pop() if self._free else SharedVector(like.size, like.dtype)

    def close(self) -> None:
        """Let go of all of them."""
        for vector in [*self._free, *(vector for _, vector in self._lent)]:
            vector.close()


class VectorExchange:
    """Gives tasks vectors that are shared where they can be, else sent, and takes others back."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._apart: set[str] = set()
        """Workers that share no memory with this process: on other machines, as a rule."""
        self._mapped = MappedVectors()

    def results(
        self, tasks: Sequence[tuple[Task, SharedVector]]
    ) -> Iterator[tuple[Any, NDArray[Any]]]:
        """Yield what each task tells, and its vector, in order.

        The vector is a task's last argument, which is added here; its function returns what
        `LentVectors.answer` does. What is yielded holds until the next results are asked for.
        """
        begun = [self._begin(task, vector) for task, vector in tasks]
        try:
            for (task, vector), pending in zip(tasks, begun, strict=True):
                yield self._received(task, vector, pending.result())
        finally:
            for pending in begun:
                pending.release()

    def _begin(self, task: Task, vector: SharedVector) -> Pending:
        apart = task.worker in self._apart
        arguments = (*task.arguments, vector.array if apart else vector.handle)
        return Pending(self._cluster, replace(task, arguments=arguments, bulky=apart))

    def _received(
        self, task: Task, vector: SharedVector, result: VectorResult
    ) -> tuple[Any, NDArray[Any]]:
        """Return a result; where it cannot be had, send what was shared."""
        while True:
            if isinstance(result.vector, np.ndarray):
                return result.facts, result.vector
            if result.vector is not None:
                with suppress(OSError):  # the worker has died since, or cannot be looked into
                    return result.facts, self._mapped.array(result.vector)
            self._apart.add(result.worker)
            result = self._begin(replace(task, worker=result.worker), vector).result()
