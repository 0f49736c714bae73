"""A job's connection to a Dask cluster: prepared workers, and waits with a limit."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from logging import getLogger
from typing import Any, TypeAlias

from distributed import Client, Future, Scheduler

from pipeline.cluster.worker import (
    ENDING_SECONDS,
    JOB_PREFIX,
    PACKAGES,
    JobPlugin,
    check_alike,
    reason,
    tasks_ended,
)
from storage.errors import PipelineError, UnreachableError
from storage.events import event
from storage.location import Closing

Check = Callable[[str], None]
"""Called during waits; what it raises ends the wait.

Its argument says, in whole sentences, in which state a job is that stops there.
"""

STOPPED = "Stopped before a cluster was available; no work was started. Run the same command again."
REPORT_SECONDS = 5.0
"""Time between two lines that report a wait."""
POLL_SECONDS = 0.1
REFRESH_SECONDS = 2.0
"""How long a list of workers counts as current."""
CLOSE_SECONDS = 5.0

logger = getLogger(__name__)


class Deadline:
    """A time limit for a wait that can be cancelled and reports what it waits for."""

    def __init__(self, seconds: float, check: Check, stopped: str = STOPPED) -> None:
        """Start now; `check` may end the wait, and receives `stopped`."""
        self.seconds = seconds
        self._began = self._reported = time.monotonic()
        self._check = check
        self._stopped = stopped

    def has_passed(self, what: str) -> bool:
        """Return whether the limit is reached; `what` is being waited for."""
        self._check(self._stopped)
        now = time.monotonic()
        left = self.seconds - (now - self._began)
        if now - self._reported > REPORT_SECONDS:
            self._reported = now
            seconds = max(0, round(left))
            event(logger, "waiting", f"waiting for {what}, {seconds} s left", seconds=seconds)
        return left <= 0


class Cluster(Closing):
    """An open client whose workers are prepared for one job; `connect` makes it."""

    def __init__(
        self,
        client: Client,
        resources: ExitStack,
        owns_workers: bool,
        timeout: float,
        check: Check,
        after_loss: str,
    ) -> None:
        """Take over `client` and `resources`, which are closed after it.

        `owns_workers` says whether the job started the workers.
        """
        self.client = client
        self.timeout = timeout
        self.check = check
        self.after_loss = after_loss
        """The end of a message about a lost cluster: what is left, and how to continue."""
        self.address = str(client.scheduler.address) if client.scheduler else ""
        self.job = f"{JOB_PREFIX}{client.id}-{uuid.uuid4().hex}"
        """The name of this job's plugin on the workers."""
        self._resources = resources
        self._owns_workers = owns_workers
        self._is_prepared = False
        self._is_lost = False
        self._numbers = 0
        self._workers: list[str] = []
        self._paused = 0
        self._refreshed = -REFRESH_SECONDS
        self._groups: dict[str, Future[int]] = {}

    def __repr__(self) -> str:
        return f"<Cluster at {self.address}>"

    def key(self, name: str) -> str:
        """Return a task key that is never used again; it begins with `name`, for people."""
        self._numbers += 1
        return f"{name}-{self.job[-8:]}-{self._numbers}"

    def keep_group(self, name: str) -> None:
        """Keep one task of this name on the scheduler until the job ends.

        The scheduler forgets a task group with its last task and starts another for the next task.
        Each group leaves 3 KB behind (`distributed.spans`).
        """
        if name not in self._groups:
            self._groups[name] = self.client.submit(int, key=self.key(name), pure=False)

    def workers(self, *, now: bool = False) -> list[str]:
        """Return the sorted addresses of the running workers, current or `REFRESH_SECONDS` old.

        A paused worker takes no tasks and is left out. Raises `UnreachableError` if the scheduler
        does not answer.
        """
        if now or time.monotonic() - self._refreshed > REFRESH_SECONDS:
            with self.translate_errors("listing its workers"):
                identity = self.ask(lambda client: client.scheduler.identity(n_workers=-1))
            states = {name: worker["status"] for name, worker in identity["workers"].items()}
            self._workers = sorted(name for name, state in states.items() if state == "running")
            self._paused = sum(state == "paused" for state in states.values())
            self._refreshed = time.monotonic()
        return self._workers

    def next_worker(self) -> str:
        """Return the running workers in turn; raise `OSError` if there is none."""
        workers = self.workers()
        if not workers:
            raise OSError("there is no worker")
        return workers[self._numbers % len(workers)]

    def wait_for_workers(
        self, wanted: int = 1, *, stopped: str = "", until: Callable[[], bool] = lambda: False
    ) -> None:
        """Wait for `wanted` running workers, or until `until` returns true.

        Raises `UnreachableError` after the cluster's timeout. `stopped` is the message if a signal
        ends the wait.
        """
        if len(self.workers()) >= wanted:
            return
        stopped = stopped or f"Stopped while no worker took tasks. {self.after_loss}"
        deadline = Deadline(self.timeout, self.check, stopped)
        # An adaptive cluster starts workers only while there are tasks for them.
        with self.translate_errors("requesting a worker"):
            task = self.client.submit(int, key=self.key("wait-for-worker"), pure=False)
        try:
            while (count := len(self.workers(now=True))) < wanted and not until():
                paused = f", {self._paused} paused for lack of memory" if self._paused else ""
                state = f"{count} of {wanted} running{paused}"
                if deadline.has_passed(f"workers of {self.address}: {state}"):
                    raise self._too_few_workers(state)
                time.sleep(POLL_SECONDS)
        finally:
            with suppress(Exception):
                task.release()

    def _too_few_workers(self, state: str) -> UnreachableError:
        start = f"Start workers with `dask worker {self.address}`"
        if self._paused:
            start += ", or give each more memory (`dask worker --memory-limit`)"
        return UnreachableError(
            f"The cluster at {self.address} has had too few workers for {self.timeout:.0f} s: "
            f"{state}. {start}. {self.after_loss}"
        )

    def ask(self, question: Callable[[Any], Awaitable[Any]], seconds: float | None = None) -> Any:
        """Return the result of an asynchronous call of the client, with a time limit."""
        limit = seconds or self.timeout

        async def ask() -> Any:
            if self.client.scheduler is None:
                raise OSError("the client is closed")
            try:
                return await asyncio.wait_for(question(self.client), limit)
            except (TimeoutError, asyncio.CancelledError) as error:  # the latter is no `Exception`
                raise TimeoutError(str(error) or f"no answer for {limit:.0f} s") from error

        return self.client.sync(ask)

    def prepare(self) -> None:
        """Check versions, make workers forget dead jobs, and set them up for this job.

        Raises `UnreachableError` that names the processes that differ, fail or do not answer.
        """
        self._check_versions()
        with suppress(Exception):  # a job that is left over is forgotten by the next one
            self.ask(_end_dead_jobs, min(self.timeout, 2 * ENDING_SECONDS))
        plugin = JobPlugin(self.job, ignores_signals=self._owns_workers)
        self._is_prepared = True
        try:
            self.ask(lambda client: client.register_plugin(plugin))
        except OSError:
            pass  # a worker died or stalled; the scheduler has the plugin for the others
        except Exception as error:  # anything that a worker's installation raises
            raise UnreachableError(
                f"A worker cannot be set up ({type(error).__name__}: {reason(error)}). Install "
                "the same version of this project for the scheduler, the workers and the job."
            ) from error

    def _check_versions(self) -> None:
        """Raise `UnreachableError` if a process has other versions, or a worker does not answer."""
        workers = self.workers(now=True)

        async def ask_all(client: Any) -> list[Any]:
            message = {"op": "versions", "packages": list(PACKAGES)}
            calls = [client.scheduler.broadcast(msg=message, workers=[one]) for one in workers]
            limited = [asyncio.wait_for(call, self.timeout) for call in calls]
            return await asyncio.gather(*limited, return_exceptions=True)

        with self.translate_errors("comparing versions"):
            scheduler = self.ask(lambda client: client.scheduler.versions(packages=list(PACKAGES)))
            answers = self.ask(ask_all, self.timeout + CLOSE_SECONDS)
        stalled = [
            worker
            for worker, answer in zip(workers, answers, strict=True)
            if isinstance(answer, TimeoutError)
        ]
        if stalled:
            raise UnreachableError(
                f"Workers of the cluster at {self.address} did not answer for "
                f"{self.timeout:.0f} s: {', '.join(stalled)}. Stop the stalled ones, then run the "
                "same command again."
            )
        processes = {self.address: scheduler}
        for answer in answers:
            if isinstance(answer, dict):  # else the worker died
                processes |= answer
        check_alike(processes)

    def let_tasks_end(self) -> None:
        """Wait, with a limit, for cancelled tasks that run: workers cannot interrupt them."""
        with suppress(Exception):
            self.ask(
                lambda client: client.run(tasks_ended, self.job, on_error="ignore"),
                2 * CLOSE_SECONDS,
            )

    @contextmanager
    def translate_errors(self, action: str) -> Iterator[None]:
        """Turn any error that Dask raises during an action into `UnreachableError`."""
        try:
            yield
        except PipelineError:
            raise
        except Exception as error:
            raise self.lost(f"{action}: {reason(error)}") from error

    def lost(self, cause: object = "") -> UnreachableError:
        """Return the error for a scheduler that is gone."""
        self._is_lost = True
        text = reason(cause) if isinstance(cause, Exception) else str(cause)
        text = f" ({text})" if text else ""
        return UnreachableError(
            f"Lost the Dask scheduler at {self.address}{text}. {self.after_loss}"
        )

    @property
    def is_connected(self) -> bool:
        return self.client.status == "running"

    def close(self) -> None:
        """Release the workers; end those that the job started."""
        self._groups.clear()
        with suppress(Exception):
            if self._is_prepared and self.is_connected and not self._is_lost:
                self.ask(
                    lambda client: client.scheduler.unregister_worker_plugin(name=self.job),
                    CLOSE_SECONDS,
                )
        with suppress(Exception):
            self.client.close(timeout=CLOSE_SECONDS)
        self._resources.close()


async def _end_dead_jobs(client: Any) -> None:
    """Make the workers forget jobs that were killed, once their last tasks have ended.

    Such a task may still write to files that this job is about to remove, and what workers keep for
    a job takes memory until they exit.
    """
    jobs = await client.run_on_scheduler(_dead_jobs)
    ends = (client.scheduler.unregister_worker_plugin(name=job) for job in jobs)
    await asyncio.gather(*ends, return_exceptions=True)


def _dead_jobs(dask_scheduler: Scheduler) -> list[str]:
    """Return the jobs that have a plugin on the workers, but no client any more."""
    return [
        name
        for name in dask_scheduler.worker_plugins
        if name.startswith(JOB_PREFIX) and not any(one in name for one in dask_scheduler.clients)
    ]


OpenCluster: TypeAlias = Callable[[], Cluster | None]
"""Opens the cluster on its first call, and returns the same one after that."""
