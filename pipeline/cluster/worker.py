"""A worker's side of a job: its settings, what it keeps between tasks, and how a task fails.

A job leaves one plugin on every worker, also on those that join later. Tasks are functions of
modules; what they keep from one to the next (an open dataset, a window, a model) is held by its
description, so that two runs on one worker are never confused.
"""

import asyncio
import re
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import zarr
from distributed import Worker, WorkerPlugin, get_worker
from distributed.versions import get_versions
from threadpoolctl import threadpool_limits

from storage.errors import PipelineError, UnreachableError
from storage.location import Closing

Held = TypeVar("Held", bound=Closing)

PACKAGES = ("numpy", "zarr", "dask", "distributed", "mnist-stream")
"""Besides Python itself, what must be alike on every side for the same bits and messages."""
MOST_HELD = 4
"""Things that a worker keeps open at once for a job; it closes the least recently used one."""
JOB_PREFIX = "mnist-stream-"
"""How the name of each job's plugin begins; the client's name follows."""
ENDING_SECONDS = 30.0
"""How long a worker that is to forget a job waits for its last tasks."""
ZARR_CONCURRENCY = 4
"""Reads of one array that Zarr does side by side; workers are many already."""


class TaskFailedError(Exception):
    """The failure of a task, in values that any side can unpickle."""

    def __init__(self, text: str, exit_code: int, what: str, worker: str) -> None:
        """`text` is the real error's; `exit_code` is 0 where it is no `PipelineError`."""
        super().__init__(text, exit_code, what, worker)
        self.text, self.exit_code, self.what, self.worker = text, exit_code, what, worker


def versions_of(side: Any) -> dict[str, str]:
    """Return the versions of Python and `PACKAGES` out of what Dask tells of a side."""
    packages = side["packages"] if side else {}
    return {name: str(packages.get(name) or "missing") for name in ("python", *PACKAGES)}


def check_alike(sides: Mapping[str, Any], expected: dict[str, str] | None = None) -> None:
    """Raise `UnreachableError` where a side's versions differ from this process's, or `expected`.

    `sides` are what Dask tells of each, by name.
    """
    expected = expected or versions_of(get_versions(PACKAGES))
    problems = [
        f"{side}: {name} {version}, the job has {expected[name]}"
        for side, found in sides.items()
        for name, version in versions_of(found).items()
        if version != expected[name]
    ]
    if problems:
        raise UnreachableError(
            f"The versions differ on the cluster ({'; '.join(problems)}). Install the same on "
            "every side."
        )


def reason(error: BaseException) -> str:
    """Return what an error says, without the internal objects that Dask names in it."""
    text = re.sub(r"\bin <[^\n]*?>: ", "", getattr(error, "strerror", None) or str(error))
    text = re.sub(r"<(?:\w+\.)*(\w+) object at 0x[0-9a-f]+>", r"\1", text)
    return re.sub(r" at 0x[0-9a-f]+", "", text) or type(error).__name__


class JobPlugin(WorkerPlugin):
    """One job on one worker: one BLAS thread, Zarr's concurrency, and what its tasks hold."""

    def __init__(self, name: str, *, own: bool) -> None:
        """`name` is the job's own; `own` workers are processes that the job started itself."""
        self.name = name
        self._own = own
        self._versions = versions_of(get_versions(PACKAGES))

    def setup(self, worker: Worker) -> None:
        """Set this process; Dask calls it on each worker."""
        self._held: OrderedDict[Hashable, Closing] = OrderedDict()
        self._lock = threading.Lock()
        # The bits of a product differ between one BLAS thread and several.
        self._limits = threadpool_limits(limits=1, user_api="blas")
        zarr.config.set({"async.concurrency": ZARR_CONCURRENCY})
        if self._own and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # the client handles them and ends workers

    def hold(self, description: Hashable, make: Callable[[], Held]) -> Held:
        """Return what `make` made for this description, now or before."""
        with self._lock:
            if description not in self._held:
                while len(self._held) >= MOST_HELD:
                    self._held.popitem(last=False)[1].close()
                self._held[description] = make()
            self._held.move_to_end(description)
            return self._held[description]  # type: ignore[return-value]

    def check_versions(self) -> None:
        """Raise `UnreachableError` on a worker that joined later and has other versions."""
        check_alike({"this worker": get_versions(PACKAGES)}, self._versions)

    def running(self, worker: Worker) -> int:
        """Return how many of the job's tasks are running, cancelled ones included."""
        return sum(self.name[-8:] in str(task.key) for task in worker.state.executing)

    async def tasks_ended(self, worker: Worker) -> None:
        """Wait until none of the job's tasks runs, for `ENDING_SECONDS` at most."""
        deadline = time.monotonic() + ENDING_SECONDS
        while self.running(worker) and time.monotonic() < deadline:  # noqa: ASYNC110 - threads run them
            await asyncio.sleep(0.01)

    async def teardown(self, worker: Worker) -> None:
        """Let the job's tasks end, then close what they held; Dask calls it."""
        await self.tasks_ended(worker)
        while self._held:
            self._held.popitem()[1].close()


def _plugin(worker: Worker, job: str) -> JobPlugin:
    plugin = worker.plugins.get(job)
    if not isinstance(plugin, JobPlugin):
        raise UnreachableError("The worker has not been set up for this job.")
    return plugin


def hold(job: str, description: Hashable, make: Callable[[], Held]) -> Held:
    """Return, in a task, what this worker holds for a job, or what `make` makes of it."""
    return _plugin(get_worker(), job).hold(description, make)


async def tasks_ended(job: str, dask_worker: Worker) -> None:
    """Wait, on a worker but outside of any task, until none of the job's tasks runs."""
    await _plugin(dask_worker, job).tasks_ended(dask_worker)


def run_task(job: str, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a task; raise `TaskFailedError`, which names worker and rows, for any error."""
    worker = get_worker()
    try:
        _plugin(worker, job).check_versions()
        return function(*arguments)
    except PipelineError as error:
        raise TaskFailedError(str(error), error.exit_code, what, worker.address) from None
    except Exception as error:  # noqa: BLE001 - the client raises it as what it is
        text = f"{type(error).__name__}: {reason(error)}"
        with suppress(Exception):  # for the worker's own log, where details are looked for
            worker.log_event("mnist-stream", {"what": what, "error": text})
        raise TaskFailedError(text, 0, what, worker.address) from None
