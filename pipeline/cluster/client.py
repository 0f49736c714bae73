"""The client of a cluster: bounded waits that report progress, and workers that take tasks."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from distributed import Client, Future

from pipeline.cluster.worker import JOB_PREFIX, reason, tasks_ended
from storage.errors import PipelineError, UnreachableError
from storage.location import Closing

Announce = Callable[[str], None]
Check = Callable[[str], None]
"""Called now and then while there is nothing to do but wait; what it raises ends the wait.

It is told, in whole sentences, what is to be said of a job that is stopped there.
"""

STOPPED = "Stopped before there was a cluster; nothing was begun. Run the same command again."
SAY_SECONDS = 5.0
"""Between two lines that tell what is being waited for."""
POLL_SECONDS = 0.1


class Waiting:
    """A wait with a limit, that now and then says what it waits for."""

    def __init__(
        self, seconds: float, announce: Announce, check: Check, stopped: str = STOPPED
    ) -> None:
        """Begin now; `check` may end the wait, and is given `stopped` as the reason."""
        self.seconds = seconds
        self._stopped = stopped
        self._began = self._said = time.monotonic()
        self._announce = announce
        self._check = check

    def over(self, what: str) -> bool:
        """Return whether the limit is reached."""
        self._check(self._stopped)
        now = time.monotonic()
        left = self.seconds - (now - self._began)
        if now - self._said > SAY_SECONDS:
            self._said = now
            self._announce(f"waiting for {what}, {max(0.0, left):.0f} s left")
        return left <= 0


LOOK_SECONDS = 2.0
"""For how long the list of workers is believed."""
CLOSE_SECONDS = 5.0


class Cluster(Closing):
    """An open client with its workers made ready for one job."""

    def __init__(
        self,
        client: Client,
        own: Closing | None,
        timeout: float,
        announce: Announce,
        check: Check,
        after_loss: str,
    ) -> None:
        """Take over both, and close them in the end; `connect` makes one of these."""
        self.client = client
        self.timeout = timeout
        self.announce = announce
        self.check = check
        self.after_loss = after_loss
        """What is left of a job that lost its cluster, and how to go on; for people."""
        self.address = str(client.scheduler.address) if client.scheduler else ""
        self.job = f"{JOB_PREFIX}{client.id}-{uuid.uuid4().hex}"
        """The name under which workers hold what is this job's."""
        self.is_set_up = False
        """Whether the workers may have this job's plugin."""
        self._own = own
        self._gone = False
        self._numbers = 0
        self._turn = 0
        self._workers: list[str] = []
        self._paused = 0
        self._looked = -LOOK_SECONDS
        self._groups: dict[str, Future[int]] = {}

    def key(self, name: str) -> str:
        """A key that no other task has or had: `name` for people, the rest for Dask."""
        self._numbers += 1
        return f"{name}-{self.job[-8:]}-{self._numbers}"

    def keep_group(self, name: str) -> None:
        """Have the scheduler know of one task of this name for as long as the job lasts.

        With a group's last task it forgets the group, and with the next task begins another, of
        which something stays for ever (`distributed.spans`): 3 KB for each task that comes alone.
        """
        if name not in self._groups:
            self._groups[name] = self.client.submit(int, key=self.key(name), pure=False)

    def workers(self, *, now: bool = False) -> list[str]:
        """Return the sorted addresses of the workers that take tasks, as of `now` or just before.

        A paused worker takes none. Raises `UnreachableError` if the scheduler does not answer.
        """
        if now or time.monotonic() - self._looked > LOOK_SECONDS:
            with self.translate_os_errors("which workers there are"):
                identity = self.ask(lambda client: client.scheduler.identity(), self.timeout)
            states = {name: worker["status"] for name, worker in identity["workers"].items()}
            self._workers = sorted(name for name, state in states.items() if state == "running")
            self._paused = sum(state == "paused" for state in states.values())
            self._looked = time.monotonic()
        return self._workers

    def wait_for_workers(
        self, wanted: int = 1, *, stopped: str = "", until: Callable[[], bool] = lambda: False
    ) -> None:
        """Wait until `wanted` workers take tasks, or until something else makes that needless.

        Raises `UnreachableError` after the cluster's timeout; `stopped` is what to say if a signal
        ends the wait.
        """
        if len(self.workers()) >= wanted:
            return
        stopped = stopped or f"Stopped while no worker took tasks. {self.after_loss}"
        waiting = Waiting(self.timeout, self.announce, self.check, stopped)
        # An adaptive cluster starts workers only while there are tasks for them.
        with self.translate_os_errors("for a worker"):
            task = self.client.submit(int, key=self.key("wait-for-worker"), pure=False)
        try:
            while len(found := self.workers(now=True)) < wanted and not until():
                if waiting.over(self._waited_for(len(found), wanted)):
                    raise self._without_workers(len(found), wanted)
                time.sleep(POLL_SECONDS)
        finally:
            with suppress(Exception):
                task.release()

    def _waited_for(self, found: int, wanted: int) -> str:
        paused = f", {self._paused} paused for lack of memory" if self._paused else ""
        return f"workers of {self.address}: {found} of {wanted} running{paused}"

    def _without_workers(self, found: int, wanted: int) -> UnreachableError:
        count = f"only {found} of {wanted} workers" if found else "no worker"
        start = f"Start one with `dask worker {self.address}`."
        if self._paused:
            count += " that takes tasks"
            start = (
                f"{self._paused} paused for lack of memory: give each more (`dask worker "
                "--memory-limit`), or start others."
            )
        return UnreachableError(
            f"The cluster at {self.address} has had {count} for {self.timeout:.0f} s. {start} "
            f"{self.after_loss}"
        )

    def next_worker(self) -> str:
        """A worker that is there, each in turn; `OSError` where none is."""
        workers = self.workers()
        if not workers:
            raise OSError("there is no worker")
        self._turn += 1
        return workers[self._turn % len(workers)]

    def ask(self, question: Callable[[Any], Awaitable[Any]], seconds: float) -> Any:
        """What the client is answered; Dask's own calls would wait for it without a limit."""

        async def ask() -> Any:
            if self.client.scheduler is None:
                raise OSError("the client is closed")
            try:
                return await asyncio.wait_for(question(self.client), seconds)
            except TimeoutError as error:
                raise TimeoutError(str(error) or f"no answer for {seconds:.0f} s") from error

        return self.client.sync(ask)

    def let_tasks_end(self) -> None:
        """Wait, with a limit, for cancelled tasks that run: workers cannot interrupt them."""
        with suppress(Exception):
            self.ask(
                lambda client: client.run(tasks_ended, self.job, on_error="ignore"),
                2 * CLOSE_SECONDS,
            )

    @contextmanager
    def translate_os_errors(self, what: str) -> Iterator[None]:
        """Turn whatever Dask raises when it is asked `what` into `UnreachableError`."""
        try:
            yield
        except PipelineError:
            raise
        except Exception as error:
            raise self.lost(f"asked {what}: {reason(error)}") from error

    def lost(self, cause: object = "") -> UnreachableError:
        """What to raise where the scheduler is gone."""
        self._gone = True
        told = reason(cause) if isinstance(cause, Exception) else str(cause)
        told = f" ({told})" if told else ""
        return UnreachableError(
            f"Lost the Dask scheduler at {self.address}{told}. {self.after_loss}"
        )

    @property
    def is_there(self) -> bool:
        """Whether the connection to the scheduler stands."""
        return self.client.status == "running"

    @property
    def dashboard(self) -> str | None:
        """The address of Dask's dashboard, where there is one."""
        if self._own or find_spec("bokeh") is None:
            return None  # a job's own has none; without Bokeh its page says only that
        with suppress(Exception):
            return str(self.client.dashboard_link or "") or None
        return None

    def close(self) -> None:
        """Let go of the workers and, of a cluster of our own, end them."""
        self._groups.clear()
        with suppress(Exception):
            if self.is_set_up and self.is_there and not self._gone:
                job = self.job
                self.ask(
                    lambda client: client.scheduler.unregister_worker_plugin(name=job),
                    CLOSE_SECONDS,
                )
        with suppress(Exception):
            self.client.close(timeout=CLOSE_SECONDS)
        if self._own is not None:
            self._own.close()
            self._own = None
