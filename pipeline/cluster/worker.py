"""A worker's side of a job: what it is set to, what it holds between tasks, and how a task fails.

A job leaves one plugin on every worker, also on those that join later. Tasks are functions of
modules; what they want to keep from one to the next (an open dataset, a window, a model) they hold
by its description, so that two runs on one worker never take the one for the other.
"""

import asyncio
import re
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any, TypeVar

import zarr
from distributed import Worker, WorkerPlugin, get_worker
from threadpoolctl import threadpool_limits

from storage.errors import PipelineError, UnreachableError
from storage.location import Closing

Held = TypeVar("Held", bound=Closing)

PACKAGES = ("numpy", "zarr", "dask", "distributed", "mnist-stream")
"""Besides Python itself, what must be alike on every side for the bits and messages to be."""
MOST_HELD = 4
"""Things that a worker keeps open at once for a job, which has no more: what it trains on, and
up to three splits to evaluate. Of more the one used longest ago would make room."""
JOB_PREFIX = "mnist-stream-"
"""How the name of each job's plugin begins; the client's name follows."""
ENDING_SECONDS = 30.0
"""How long a worker that is to forget a job waits for its last tasks."""
ZARR_CONCURRENCY = 4
"""Reads of one array that Zarr does side by side; workers are many already."""


class TaskFailedError(Exception):
    """What became of a task that failed, in values that any side can unpickle."""

    def __init__(self, text: str, exit_code: int, what: str, worker: str) -> None:
        """`text` is the real error's; `exit_code` is 0 where it was none of ours."""
        super().__init__(text, exit_code, what, worker)
        self.text, self.exit_code, self.what, self.worker = text, exit_code, what, worker


def versions_here() -> dict[str, str]:
    """Of this process: Python and `PACKAGES`, by name; `missing` where one is not installed."""
    found = {"python": python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def reason(error: BaseException) -> str:
    """Return what an error says, without the internal objects that Dask names in it."""
    text = re.sub(r"\bin <[^\n]*?>: ", "", str(error))
    text = re.sub(r"<(?:\w+\.)*(\w+) object at 0x[0-9a-f]+>", r"\1", text)
    return re.sub(r" at 0x[0-9a-f]+", "", text) or type(error).__name__


class WorkerSide(WorkerPlugin):
    """The plugin: one BLAS thread, Zarr's concurrency, and what tasks hold between them."""

    def __init__(self, name: str, versions: dict[str, str], *, own: bool) -> None:
        """`name` is the job's own; `versions` are the client's; `own` workers are its processes."""
        self.name = name
        self._own = own
        self._versions = versions

    def setup(self, worker: Worker) -> None:
        """Set this process; Dask calls it on each worker."""
        self._held: OrderedDict[Hashable, Closing] = OrderedDict()
        self._lock = threading.Lock()
        self._running = 0
        # The bits of a product differ between one BLAS thread and several.
        self._limits = threadpool_limits(limits=1, user_api="blas")
        zarr.config.set({"async.concurrency": ZARR_CONCURRENCY})
        if self._own and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # the client's to heed: it ends its workers

    def check_versions(self) -> None:
        """Raise `UnreachableError` on a worker that joined later and is not like the client."""
        here = versions_here()
        differing = [
            f"{name} {here[name]} here, {there} at the client"
            for name, there in self._versions.items()
            if here[name] != there
        ]
        if differing:
            raise UnreachableError(
                f"This worker has other versions than the client ({'; '.join(differing)}). "
                "Install the same on every side."
            )

    def hold(self, description: Hashable, make: Callable[[], Held]) -> Held:
        """What `make` made for this description, now or before."""
        with self._lock:
            if description not in self._held:
                while len(self._held) >= MOST_HELD:
                    self._held.popitem(last=False)[1].close()
                self._held[description] = make()
            self._held.move_to_end(description)
            return self._held[description]  # type: ignore[return-value]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a task that runs, which cannot be interrupted."""
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    async def tasks_ended(self) -> None:
        """Wait until none of the job's tasks runs, for `ENDING_SECONDS` at most."""
        deadline = time.monotonic() + ENDING_SECONDS
        while self._running and time.monotonic() < deadline:  # noqa: ASYNC110 - threads run them
            await asyncio.sleep(0.01)

    async def teardown(self, worker: Worker) -> None:
        """Let the job's tasks end, then everything go; Dask calls it when job or worker ends."""
        await self.tasks_ended()
        while self._held:
            self._held.popitem()[1].close()


def hold(job: str, description: Hashable, make: Callable[[], Held]) -> Held:
    """For a task: what this worker holds for a job under a description; made where it is not."""
    return _side(get_worker(), job).hold(description, make)


def _side(worker: Worker, job: str) -> WorkerSide:
    side = worker.plugins.get(job)
    if not isinstance(side, WorkerSide):
        raise UnreachableError("The worker has not been set up for this job.")
    return side


async def tasks_ended(job: str, dask_worker: Worker) -> None:
    """For a worker, outside of any task: wait until none of the job's tasks runs."""
    await _side(dask_worker, job).tasks_ended()


def run_task(job: str, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a task; whatever goes wrong comes out as `TaskFailedError` that names worker and rows."""
    worker = get_worker()
    try:
        side = _side(worker, job)
        side.check_versions()
        with side.running():
            return function(*arguments)
    except PipelineError as error:
        raise TaskFailedError(str(error), error.exit_code, what, worker.address) from None
    except Exception as error:  # noqa: BLE001 - it is told as what it is, by the client
        text = f"{type(error).__name__}: {reason(error)}"
        with suppress(Exception):  # for the worker's own log, where details are looked for
            worker.log_event("mnist-stream", {"what": what, "error": text})
        raise TaskFailedError(text, 0, what, worker.address) from None
