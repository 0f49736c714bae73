"""An open cluster, as a job sees it: its workers, its names of tasks, and what to say of a loss."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from distributed import Client, Future, LocalCluster

from pipeline.clusters.waiting import Check
from storage.closing import Closing
from storage.errors import UnreachableError

LOOK_SECONDS = 2.0
"""For how long the list of workers is believed."""
CLOSE_SECONDS = 5.0


class Cluster(Closing):
    """An open client with its workers made ready for one job."""

    def __init__(
        self,
        client: Client,
        local: LocalCluster | None,
        timeout: float,
        check: Check,
        after_loss: str,
    ) -> None:
        """Takes over both, and closes them; `connect` makes one of these."""
        self.client = client
        self.timeout = timeout
        self.check = check
        self.after_loss = after_loss
        """What is left of a job that lost its cluster, and how to go on; for people."""
        self.address = str(client.scheduler.address) if client.scheduler else ""
        self.job = f"mnist-stream-{uuid.uuid4().hex}"
        """The name under which workers hold what is this job's."""
        self._local = local
        self._gone = False
        self._numbers = 0
        self._turn = 0
        self._workers: list[str] = []
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
        """The addresses of the workers that are there, sorted; looked up `now` or a moment ago.

        Raises `UnreachableError` where the scheduler does not answer.
        """
        if now or time.monotonic() - self._looked > LOOK_SECONDS:
            with self.reaching("which workers there are"):
                found = self.ask(lambda client: client.scheduler.ncores(), self.timeout)
            self._workers = sorted(found)
            self._looked = time.monotonic()
        return self._workers

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

    @contextmanager
    def reaching(self, what: str) -> Iterator[None]:
        """Turn what Dask raises where it was asked `what` and could not answer into our own."""
        try:
            yield
        except (OSError, TimeoutError) as error:
            raise self.lost(f"asked {what}: {error}") from error

    def lost(self, cause: object = "") -> UnreachableError:
        """What to raise where the scheduler is gone."""
        self._gone = True
        told = f" ({cause})" if str(cause) else ""
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
        if find_spec("bokeh") is None:
            return None  # then the scheduler's page says only that there is none
        with suppress(Exception):
            return str(self.client.dashboard_link or "") or None
        return None

    def close(self) -> None:
        """Let go of the workers and, of a cluster of our own, end them."""
        self._groups.clear()
        with suppress(Exception):
            if self.is_there and not self._gone:
                job = self.job
                self.ask(
                    lambda client: client.scheduler.unregister_worker_plugin(name=job),
                    CLOSE_SECONDS,
                )
        with suppress(Exception):
            self.client.close(timeout=CLOSE_SECONDS)
        if self._local is not None:
            with suppress(Exception):
                self._local.close(timeout=CLOSE_SECONDS)
            self._local = None
