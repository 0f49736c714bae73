"""The worker's side of a job: its settings, what it keeps between tasks, and how tasks fail.

A job registers one plugin on every worker, also on workers that join later. Objects that a task
keeps for the next one (an open dataset, a window, a model) are stored under a full description, so
that two runs on one worker are never confused.
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

from distributed import Status, Worker, WorkerPlugin, get_worker
from distributed.versions import get_versions
from threadpoolctl import threadpool_limits

from storage.errors import PipelineError, UnreachableError
from storage.location import Closing

Held = TypeVar("Held", bound=Closing)

PACKAGES = ("numpy", "zarr", "dask", "distributed", "mnist-stream")
"""Packages that, like Python itself, must have one version everywhere for the same bits."""
MOST_HELD = 4
"""Objects that a worker keeps for a job; the least recently used one is closed."""
JOB_PREFIX = "mnist-stream-"
"""The start of every plugin name; the client's id follows."""
ENDING_SECONDS = 30.0
"""How long a worker waits for a job's last tasks before it forgets the job."""


class TaskFailedError(Exception):
    """A task's failure, in plain values that any process can unpickle."""

    def __init__(self, text: str, exit_code: int, what: str, worker: str) -> None:
        """`text` is the original error's; `exit_code` is 0 unless it is a `PipelineError`."""
        super().__init__(text, exit_code, what, worker)
        self.text, self.exit_code, self.what, self.worker = text, exit_code, what, worker


def versions_of(process: Any) -> dict[str, str]:
    """Return the versions of Python and `PACKAGES` from Dask's report on a process."""
    packages = process["packages"] if process else {}
    return {name: str(packages.get(name) or "missing") for name in ("python", *PACKAGES)}


def check_alike(processes: Mapping[str, Any], expected: dict[str, str] | None = None) -> None:
    """Raise `UnreachableError` if a process's versions differ from `expected`, or from this one's.

    `processes` maps names to Dask's reports.
    """
    expected = expected or versions_of(get_versions(PACKAGES))
    differences = [
        f"{process}: {name} {version}, the job has {expected[name]}"
        for process, report in processes.items()
        for name, version in versions_of(report).items()
        if version != expected[name]
    ]
    if differences:
        raise UnreachableError(
            f"Versions differ across the cluster ({'; '.join(differences)}). Install the same "
            "versions for the scheduler, the workers and the job."
        )


def reason(error: BaseException) -> str:
    """Return an error's text without the internal objects that Dask names in it."""
    text = re.sub(r"\bin <[^\n]*?>: ", "", getattr(error, "strerror", None) or str(error))
    text = re.sub(r"<(?:\w+\.)*(\w+) object at 0x[0-9a-f]+>", r"\1", text)
    return re.sub(r" at 0x[0-9a-f]+", "", text) or type(error).__name__


class JobPlugin(WorkerPlugin):
    """One job on one worker: one BLAS thread, and objects kept for tasks."""

    def __init__(self, name: str, *, ignores_signals: bool) -> None:
        """`ignores_signals` is for workers that the job started: it ends them itself."""
        self.name = name
        self._ignores_signals = ignores_signals
        self._versions = versions_of(get_versions(PACKAGES))

    def setup(self, worker: Worker) -> None:
        """Configure this process; Dask calls it on each worker."""
        self._held: OrderedDict[Hashable, Closing] = OrderedDict()
        self._lock = threading.Lock()
        # The bits of a product differ between one BLAS thread and several.
        self._limits = threadpool_limits(limits=1, user_api="blas")
        if self._ignores_signals and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)

    def hold(self, description: Hashable, make: Callable[[], Held]) -> Held:
        """Return the object that `make` made for this description, now or earlier."""
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
        """Return the number of the job's running tasks, including cancelled ones."""
        return sum(self.name[-8:] in str(task.key) for task in worker.state.executing)

    async def tasks_ended(self, worker: Worker) -> None:
        """Wait until no task of the job runs, for at most `ENDING_SECONDS`."""
        deadline = time.monotonic() + ENDING_SECONDS
        while self.running(worker) and time.monotonic() < deadline:  # noqa: ASYNC110 - threads run them
            await asyncio.sleep(0.01)

    async def teardown(self, worker: Worker) -> None:
        """Let the job's tasks end, then close the objects kept for them; Dask calls it."""
        await self.tasks_ended(worker)
        while self._held:
            self._held.popitem()[1].close()


def _plugin(worker: Worker, job: str) -> JobPlugin:
    plugin = worker.plugins.get(job)
    if not isinstance(plugin, JobPlugin):
        raise UnreachableError("The worker has not been set up for this job.")
    return plugin


def hold(job: str, description: Hashable, make: Callable[[], Held]) -> Held:
    """Return, in a task, the object that this worker keeps for a job under a description."""
    return _plugin(get_worker(), job).hold(description, make)


def wanted(job: str) -> Callable[[], bool]:
    """Return a function that tells, during a task, whether its job still waits for the result.

    Dask cancels a task on its worker if the client releases it, disconnects or dies.
    """
    worker, key = get_worker(), get_worker().get_current_task()

    def is_wanted() -> bool:
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled" or job not in worker.plugins:
            return False
        return worker.status in (Status.running, Status.paused)  # else the worker is closing

    return is_wanted


async def tasks_ended(job: str, dask_worker: Worker) -> None:
    """Wait, on a worker but outside any task, until no task of the job runs."""
    await _plugin(dask_worker, job).tasks_ended(dask_worker)


def run_task(job: str, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a task; turn any error into a `TaskFailedError` that names the worker and the rows."""
    worker = get_worker()
    try:
        _plugin(worker, job).check_versions()
        return function(*arguments)
    except PipelineError as error:
        raise TaskFailedError(str(error), error.exit_code, what, worker.address) from None
    except Exception as error:  # noqa: BLE001 - the client raises it again
        text = f"{type(error).__name__}: {reason(error)}"
        with suppress(Exception):  # for the worker's own log
            worker.log_event("mnist-stream", {"what": what, "error": text})
        raise TaskFailedError(text, 0, what, worker.address) from None
