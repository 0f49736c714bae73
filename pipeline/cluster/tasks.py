"""Tasks on a cluster: submit, collect, retry; converting parts and loading windows among them.

Dask runs the tasks of a lost worker again elsewhere. What it cannot repeat (data sent to that
worker, or a task that saw several workers die) is submitted anew from here. A task that fails by
itself three times ends the job with its own error.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from distributed import Future, wait
from distributed.scheduler import KilledWorker

from pipeline.cluster.client import Cluster
from pipeline.cluster.worker import TaskFailedError, hold, reason, run_task
from pipeline.convert import Conversion, convert_part
from pipeline.order import EpochOrder, Window
from pipeline.rows import READING_THREADS, check_seen, open_split
from pipeline.sources.splits import LoadedPart, Part, SplitSource
from pipeline.windows import WindowLoader
from storage.dataset import Block, Dataset, Split
from storage.dataset_writer import ChunkRecord, SplitWriter
from storage.errors import BadDataError, ConflictError, PipelineError, UnreachableError, UsageError
from storage.location import Closing, Location

TRIES = 3
"""How often a task may fail by itself, and how often it may be handed out and kill its workers."""
MOST_LOSSES = 50
"""How often one task is handed out in all."""
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
    """A task on its way."""

    def __init__(self, cluster: Cluster, task: Task) -> None:
        """Hand the task out."""
        self._cluster = cluster
        self._task = task
        self._pinned: str | None = None
        self._killed = 0
        self._losses = 0
        self._future = self._submit()

    def result(self) -> Any:
        """Return the task's result; raise its own error, or `UnreachableError` that names it."""
        began, patience = time.monotonic(), FETCH_SECONDS
        while True:
            try:
                self._wait(began)
                found = self._future.result(timeout=min(patience, self._cluster.timeout))
                self.release()
                return found
            except PipelineError:
                raise
            except CancelledError:
                pass  # its data went with a worker; Dask's own is one of these
            except TimeoutError:
                if self._cluster.is_there and patience < self._cluster.timeout:
                    patience *= 2  # it is long, or lost: then the task is to be waited for again
                    continue
            except Exception as error:  # noqa: BLE001 - raised as what it is, or a worker was lost
                self._check_lost(error)
            self._again()

    def _check_lost(self, error: Exception) -> None:
        """Return if the task was lost with its worker; else raise what its failure means."""
        if isinstance(error, TaskFailedError):
            raise self._failed(error) from None
        if isinstance(error, KilledWorker):
            self._killed += 1
            if self._killed >= TRIES:
                raise UnreachableError(
                    f"Worker after worker died at {self._task.what}, the last one "
                    f"{error.last_worker.address}. Look at its log: it may lack memory. Then "
                    "run the same command again."
                ) from None
        elif not self._cluster.is_there:
            raise self._cluster.lost(error) from error
        elif not isinstance(error, OSError):
            raise UnreachableError(
                f"The cluster at {self._cluster.address} cannot do {self._task.what} "
                f"({type(error).__name__}: {reason(error)}). {self._cluster.after_loss}"
            ) from error

    def release(self) -> None:
        """Let the scheduler and the workers forget the task."""
        with suppress(Exception):
            self._future.release()

    def cancel(self) -> None:
        """Have it not done, where that can still be."""
        with suppress(Exception):
            self._future.cancel()
        self.release()

    def _again(self) -> None:
        if not self._cluster.is_there:
            raise self._cluster.lost()
        self._losses += 1
        if self._losses >= MOST_LOSSES:
            raise UnreachableError(
                f"The cluster at {self._cluster.address} lost {self._task.what} "
                f"{self._losses} times. See why its workers die, then run the same command again."
            )
        self.release()
        self._cluster.wait_for_workers()
        self._future = self._submit()

    def _submit(self) -> "Future[Any]":
        """Hand the task out; where its data cannot be sent, look for another worker."""
        began = time.monotonic()
        while True:
            self._cluster.wait_for_workers()
            try:
                return self._sent()
            except PipelineError:
                raise
            except Exception as error:
                if not self._cluster.is_there:
                    raise self._cluster.lost(error) from error
                if not isinstance(error, OSError | TimeoutError | ValueError | KeyError):
                    raise  # no sign that a worker went away
                if time.monotonic() - began > TRIES * self._cluster.timeout:
                    raise UnreachableError(
                        f"No worker of the cluster at {self._cluster.address} takes "
                        f"{self._task.what} ({reason(error)}). Stop stalled "
                        "workers, then run the same command again."
                    ) from error
            self._task = replace(self._task, worker=None)
            time.sleep(POLL_SECONDS / 4)
            self._cluster.workers(now=True)

    def _sent(self) -> "Future[Any]":
        task, cluster = self._task, self._cluster
        there = task.worker in cluster.workers()
        workers = [task.worker] if there else None
        self._pinned = task.worker if there else None
        arguments = task.arguments
        if task.bulky:
            receiver = task.worker if there else cluster.next_worker()
            arguments = tuple(
                cluster.ask(
                    lambda client: client.scatter(
                        list(task.arguments),
                        workers=[receiver],  # all to one: the task goes where they are
                        direct=True,
                        hash=False,
                        timeout=POLL_SECONDS,  # of the wait for a worker, which may be gone
                    ),
                    cluster.timeout,  # for sending: the worker may have stalled
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
            workers=workers,
            allow_other_workers=there,
        )

    def _wait(self, began: float) -> None:
        """Until the task has ended, well or not; every limit is kept."""
        while not self._future.done():
            with suppress(TimeoutError), self._cluster.client.as_current():
                wait([self._future], timeout=POLL_SECONDS)
                return
            if not self._cluster.is_there:
                raise self._cluster.lost()
            self._cluster.wait_for_workers(until=self._future.done)
            if self._pinned and self._pinned not in self._cluster.workers():
                # Dask may have given it to another, or hold it for the one that is gone, for ever.
                raise CancelledError
            waited = time.monotonic() - began
            if waited > SLOW_SECONDS:
                self._cluster.check(
                    f"Stopped while waiting for {self._task.what}. {self._cluster.after_loss}"
                )
            if waited > TASK_SECONDS:
                raise UnreachableError(
                    f"No worker finished {self._task.what} within {TASK_SECONDS:,.0f} s. "
                    "Give the cluster faster workers or smaller chunks or batches."
                )

    def _failed(self, failure: TaskFailedError) -> PipelineError:
        """The real error, with the worker and the rows; one of ours keeps its kind."""
        kind = ERRORS.get(failure.exit_code, UnreachableError)
        return kind(f"{failure.text} (at {failure.what}, on worker {failure.worker})")


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


PARTS_PER_WORKER = 2
"""Parts on their way to each worker: the one it writes, and the next."""


def convert_part_there(
    part: Part, writer: SplitWriter, conversion: Conversion
) -> tuple[int, list[ChunkRecord]]:
    """For a worker: a part converted, where the dataset is seen that the job has begun."""
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


class OpenSplit(Closing):
    """What a worker keeps from window to window of one split."""

    def __init__(self, dataset: Location, digest: str, split: str) -> None:
        """Opens the dataset."""
        self._loader = WindowLoader(open_split(dataset, digest, split), READING_THREADS)
        self._lock = threading.Lock()

    def load(self, order: EpochOrder, number: int) -> Block:
        """A window's rows; one window at a time, whatever the number of the worker's threads."""
        with self._lock:
            return self._loader.take(order, number)[1]

    def close(self) -> None:
        """Stop the threads."""
        self._loader.close()


def load_window_there(
    job: str, dataset: Location, digest: str, split: str, order: EpochOrder, number: int
) -> Block:
    """For a worker: a window's rows in their shuffled order, each chunk checked."""
    key = ("windows", dataset, digest, split)
    return hold(job, key, lambda: OpenSplit(dataset, digest, split)).load(order, number)


class ClusterWindows(WindowLoader):
    """Has windows loaded by workers, at most one ahead of the one that is in use."""

    def __init__(self, split: Split, cluster: Cluster, dataset: Dataset) -> None:
        """Of a split of `dataset`; `BatchStream` takes `functools.partial` of this as `loader`."""
        super().__init__(split, threads=1)
        self._cluster = cluster
        self._place = (dataset.location, dataset.digest, split.name)
        self._pending: dict[tuple[int, int], Pending] = {}

    def expect(self, order: EpochOrder, number: int) -> None:
        """Have a window loaded, unless it is on its way already."""
        key = (order.epoch, number)
        if key in self._pending:
            return
        task = Task(
            name="load-window",
            what=f"window {number} of epoch {order.epoch + 1} of {self.split.name}",
            function=load_window_there,
            arguments=(self._cluster.job, *self._place, order, number),
        )
        self._pending[key] = Pending(self._cluster, task)

    def take(self, order: EpochOrder, number: int) -> tuple[Window, Block]:
        """A window and its rows in shuffled order; waits for it where need be."""
        self.expect(order, number)
        began = time.perf_counter()
        try:
            block: Block = self._pending.pop((order.epoch, number)).result()
            return order.window(number), block
        finally:
            self.seconds_waited += time.perf_counter() - began

    def close(self) -> None:
        """Drop what is on its way; the cluster stays."""
        for pending in self._pending.values():
            pending.cancel()
        self._pending.clear()
        super().close()
