"""Submit tasks to a cluster, collect and retry them; convert parts; share vectors in memory.

Dask runs the tasks of a lost worker again on another one. Tasks that it cannot repeat (because
their data was sent to that worker, or several workers died of them) are submitted again here. A
task that fails three times by itself ends the job with its own error.
"""

import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from distributed import Future, get_worker, wait
from distributed.scheduler import KilledWorker
from numpy.typing import NDArray

from pipeline.cluster.client import Cluster
from pipeline.cluster.worker import TaskFailedError, reason, run_task
from pipeline.convert import Conversion, Converted, convert_part
from pipeline.rows import check_seen
from pipeline.sources.splits import Part, SplitSource
from storage.dataset_writer import SplitWriter
from storage.errors import BadDataError, ConflictError, PipelineError, UnreachableError, UsageError
from storage.location import Closing

TRIES = 3
"""Limit of a task's own failures, and of times that Dask drops it for killing its workers."""
MOST_LOSSES = 50
"""Limit of submissions of one task."""
TASK_SECONDS = 1800.0
"""Time limit of one task, unless it has none."""
POLL_SECONDS = 1.0
SLOW_SECONDS = 20.0
"""After this time a signal ends the wait for a task: its worker may be stalled."""
FETCH_SECONDS = 2.0
"""First time limit for fetching a finished task's result: its worker may have died."""

ERRORS = {error.exit_code: error for error in (UsageError, BadDataError, ConflictError)}


@dataclass(frozen=True)
class Task:
    """A call of a module-level function, for any worker."""

    name: str
    """Name on Dask's dashboard, such as `score-chunk`."""
    what: str
    """Description for errors, such as `rows 0..1999 of test`."""
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    worker: str | None = None
    """The preferred worker; another one takes the task if it is gone."""
    bulky: bool = False
    """Whether to send the arguments directly to a worker, not through the scheduler."""
    seconds: float | None = TASK_SECONDS
    """Time limit, for tasks that `result` waits for; None for a task that takes any time."""


class Pending:
    """A submitted task."""

    def __init__(self, cluster: Cluster, task: Task) -> None:
        self._cluster = cluster
        self.task = task
        self._pinned: str | None = None
        self._kills = self._losses = 0
        self._submit()

    def result(self) -> Any:
        """Return the task's result; raise its own error, or `UnreachableError` that names it."""
        began, patience = time.monotonic(), FETCH_SECONDS
        while True:
            try:
                self._wait(began)
                # Not `Future.result(timeout)`, which raises the wrong error if both limits pass.
                result = self._cluster.ask(lambda client: client.gather(self.future), patience)
                self.release()
                return result
            except TaskFailedError as failure:
                error_type = ERRORS.get(failure.exit_code, UnreachableError)
                place = f"at {failure.what}, on worker {failure.worker}"
                raise error_type(f"{failure.text} ({place})") from None
            except TimeoutError as error:
                patience *= 2  # the result is large, or lost, and Dask computes it again
                if patience > self._cluster.timeout:
                    self._resubmit(error)
            except (OSError, CancelledError, KilledWorker) as error:  # lost with its worker
                self._resubmit(error)
            except PipelineError:
                raise
            except Exception as error:
                raise UnreachableError(
                    f"The cluster at {self._cluster.address} cannot do {self.task.what} "
                    f"({type(error).__name__}: {reason(error)}). {self._cluster.after_loss}"
                ) from error

    def _wait(self, began: float) -> None:
        """Wait until the task has succeeded or failed; raise `CancelledError` if it is lost."""
        while not self.future.done():
            with suppress(TimeoutError), self._cluster.client.as_current():
                wait([self.future], timeout=POLL_SECONDS)
                return
            self._check_connected()
            self._cluster.wait_for_workers(until=self.future.done)
            if self._pinned and self._pinned not in self._cluster.workers():
                # Dask may have moved it to another worker, or keep it for the lost one forever.
                raise CancelledError
            self._check_wait(began)

    def _check_connected(self) -> None:
        if not self._cluster.is_connected:
            raise self._cluster.lost()

    def _check_wait(self, began: float) -> None:
        """Raise if a wait since `began` has lasted too long, or must be stopped."""
        what, waited = self.task.what, time.monotonic() - began
        if waited > SLOW_SECONDS:
            self._cluster.check(f"Stopped while waiting for {what}. {self._cluster.after_loss}")
        if self.task.seconds is not None and waited > self.task.seconds:
            raise UnreachableError(
                f"No worker finished {what} within {self.task.seconds:,.0f} s. Use faster workers, "
                "or smaller chunks or batches."
            )

    def _resubmit(self, error: Exception) -> None:
        self._count_loss(error)
        self.release()
        self._submit()

    def _count_loss(self, error: Exception) -> None:
        """Count a loss of the task; raise `UnreachableError` after too many."""
        self._check_connected()
        self._losses += 1
        self._kills += isinstance(error, KilledWorker)
        if self._losses >= MOST_LOSSES or self._kills >= TRIES:
            raise UnreachableError(
                f"The cluster at {self._cluster.address} lost {self.task.what} {self._losses} "
                f"times: worker after worker died or stalled ({reason(error)}). Check the workers' "
                "logs, they may lack memory; then run the same command again."
            ) from None

    def _submit(self) -> None:
        """Submit the task; if its arguments cannot be sent, try another worker."""
        while True:
            self._cluster.wait_for_workers()
            try:
                self.future = self._send()
                return
            except (OSError, ValueError, KeyError) as error:  # Dask's errors for a lost worker
                self._count_loss(error)
            self.task = replace(self.task, worker=None)
            time.sleep(POLL_SECONDS / 4)
            self._cluster.workers(now=True)

    def _send(self) -> "Future[Any]":
        task, cluster = self.task, self._cluster
        self._pinned = task.worker if task.worker in cluster.workers() else None
        arguments = task.arguments
        if task.bulky:
            receiver = self._pinned or cluster.next_worker()
            arguments = cluster.ask(
                lambda client: client.scatter(
                    task.arguments,
                    workers=[receiver],  # the task follows its arguments
                    direct=True,
                    hash=False,
                    timeout=POLL_SECONDS,  # the worker may be gone
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
        """Make the scheduler and the workers forget the task."""
        with suppress(Exception):
            self.future.release()

    def cancel(self) -> None:
        """Cancel the task, unless it is running."""
        with suppress(Exception):
            self.future.cancel()
        self.release()


def results(
    cluster: Cluster, tasks: Iterable[Task], per_worker: int = 1
) -> Generator[Any, None, None]:
    """Yield the tasks' results in order, with `per_worker` tasks in flight for each worker."""
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


def ended(cluster: Cluster, tasks: Iterable[Task]) -> Generator[Pending, None, None]:
    """Yield tasks as they end, in any order, with one in flight for each worker.

    Tasks may take any time. If the caller stops, waits for the running ones to notice.
    """
    left, waiting = iter(tasks), list[Pending]()
    try:
        while True:
            free = max(1, len(cluster.workers())) - len(waiting)
            waiting += [Pending(cluster, task) for task in islice(left, max(0, free))]
            if not waiting:
                return
            with suppress(TimeoutError), cluster.client.as_current():
                wait([one.future for one in waiting], POLL_SECONDS, "FIRST_COMPLETED")
            if not cluster.is_connected:
                raise cluster.lost()
            cluster.check(f"Stopped while tasks were running. {cluster.after_loss}")
            done = [one for one in waiting if one.future.done()]
            if not done:
                cluster.wait_for_workers()
            for one in done:
                waiting.remove(one)
                yield one
    finally:
        for one in waiting:
            one.cancel()
        if waiting:
            cluster.let_tasks_end()


MOST_MAPPED = 64
"""Most vectors of other processes to keep mapped."""
PARTS_PER_WORKER = 2
"""Parts in flight for each worker: one being written, and the next."""


def convert_part_on_worker(part: Part, writer: SplitWriter, conversion: Conversion) -> Converted:
    """Convert a part on a worker, if it sees the job's dataset."""
    check_seen(writer.location)
    return convert_part(part, writer, conversion)


def convert_parts(
    cluster: Cluster, split: SplitSource, writer: SplitWriter, conversion: Conversion
) -> Generator[Converted, None, None]:
    """Convert each part, and yield the results in order.

    Files are read here, once, and their content is sent to the worker that writes the rows;
    generated digits are drawn by the worker. If the ingest stops, its running tasks end before
    their output is removed.
    """
    with closing(split.parts(writer.part_rows)) as parts:
        tasks = (
            Task(
                name="write-part",
                what=f"rows {part.start}..{part.stop - 1} of {split.name}",
                function=convert_part_on_worker,
                arguments=(part, writer, conversion),
                bulky=part.holds_data,
            )
            for part in parts
        )
        try:
            yield from results(cluster, tasks, PARTS_PER_WORKER)
        except BaseException:
            cluster.let_tasks_end()
            raise


@dataclass(frozen=True)
class Handle:
    """The address of a shared vector for other processes of this machine."""

    path: str
    target: str
    """Target of the path, which contains a random name: another machine has another target."""
    size: int
    dtype: str

    def array(self) -> NDArray[Any]:
        """Map the vector `(size,)`; all processes see what is written to it.

        Raises `OSError` if its process is gone or on another machine.
        """
        if os.readlink(self.path) != self.target:
            raise OSError(f"{self.path} is not the shared memory")
        with open(self.path, "r+b", buffering=0) as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0), self.dtype, self.size)


class SharedVector(Closing):
    """A vector `(size,)` that other processes of the same user can map.

    Anonymous memory disappears with the last process that maps it, so a kill leaves nothing behind.
    Sending 13 MB of parameters and gradients made steps of two workers 1.7 times as long.
    """

    def __init__(self, size: int, dtype: str) -> None:
        length = size * np.dtype(dtype).itemsize
        name = f"mnist-stream-{os.urandom(16).hex()}"
        self._descriptor = -1  # without memfd (macOS) no other process can map it
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
            os.ftruncate(self._descriptor, length)
        self.array: NDArray[Any] = np.frombuffer(mmap.mmap(self._descriptor, length), dtype)
        path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        self.handle = Handle(path, f"/memfd:{name} (deleted)", size, dtype)

    def close(self) -> None:
        """Close the file; the memory is freed with the last array that uses it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True)
class VectorResult:
    """A vector that a worker computed from another one, with further results."""

    worker: str
    vector: Handle | NDArray[Any] | None = None
    """None if the worker cannot map the shared input, which must then be sent."""
    facts: Any = None


class RemoteBuffers:
    """Vectors of other processes, each mapped once: mapping 11 MB takes 2 ms."""

    def __init__(self) -> None:
        self._arrays: dict[Handle, NDArray[Any]] = {}

    def array(self, handle: Handle) -> NDArray[Any]:
        """Return a vector `(size,)`; raise `OSError` if it cannot be mapped."""
        if handle not in self._arrays:
            while len(self._arrays) >= MOST_MAPPED:
                del self._arrays[next(iter(self._arrays))]
            self._arrays[handle] = handle.array()
        return self._arrays[handle]


class SharedBufferPool(Closing):
    """A worker's output vectors of one size, reused once the client asks for a later turn.

    Writing 11 MB takes 10 ms to new memory, and 1 ms to reused memory.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mapped = RemoteBuffers()
        self._free: list[SharedVector] = []
        self._lent: list[tuple[int, SharedVector]] = []

    def answer(
        self,
        turn: int,
        vector: Handle | NDArray[Any],
        compute: Callable[[NDArray[Any], NDArray[Any]], Any],
    ) -> VectorResult:
        """Call `compute(vector, out)`; return `out`, shared in memory if `vector` was."""
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
        with self._lock:  # only now, so that no other task takes it while this one writes
            self._lent.append((turn, shared))
        return VectorResult(worker, shared.handle, facts)

    def _vector(self, turn: int, like: Handle) -> SharedVector:
        """Return a new vector, or one that was lent for an earlier turn."""
        with self._lock:
            self._free += [vector for lent, vector in self._lent if lent < turn]
            self._lent = [(lent, vector) for lent, vector in self._lent if lent >= turn]
            return self._free.pop() if self._free else SharedVector(like.size, like.dtype)

    def close(self) -> None:
        """Close all vectors."""
        for vector in [*self._free, *(vector for _, vector in self._lent)]:
            vector.close()


class SharedVectorTransport:
    """Pass vectors to tasks and back, in shared memory if possible, else as messages."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._remote: set[str] = set()
        """Workers that share no memory with this process, usually on other machines."""
        self._mapped = RemoteBuffers()

    def results(
        self, tasks: Sequence[tuple[Task, SharedVector]]
    ) -> Iterator[tuple[Any, NDArray[Any]]]:
        """Yield each task's facts and result vector, in order.

        A task gets its vector as an additional last argument, and returns the result of
        `SharedBufferPool.answer`. Yielded vectors are valid until the next call.
        """
        begun = [self._begin(task, vector) for task, vector in tasks]
        try:
            for (task, vector), pending in zip(tasks, begun, strict=True):
                yield self._received(task, vector, pending.result())
        finally:
            for pending in begun:
                pending.release()

    def _begin(self, task: Task, vector: SharedVector) -> Pending:
        remote = task.worker in self._remote
        arguments = (*task.arguments, vector.array if remote else vector.handle)
        return Pending(self._cluster, replace(task, arguments=arguments, bulky=remote))

    def _received(
        self, task: Task, vector: SharedVector, result: VectorResult
    ) -> tuple[Any, NDArray[Any]]:
        """Return a result; if memory cannot be shared, run the task again with messages."""
        while True:
            if isinstance(result.vector, np.ndarray):
                return result.facts, result.vector
            if result.vector is not None:
                with suppress(OSError):  # the worker has died since, or its memory is not readable
                    return result.facts, self._mapped.array(result.vector)
            self._remote.add(result.worker)
            result = self._begin(replace(task, worker=result.worker), vector).result()
