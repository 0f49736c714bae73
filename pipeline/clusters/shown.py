"""Vectors that workers are shown where they share memory with the client, and sent where not."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.clusters.client import Cluster
from pipeline.clusters.shared_memory import Handle, SharedElsewhere
from pipeline.clusters.tasks import Pending, Task
from storage.closing import Closing


class Shown(Protocol):
    """What a worker makes of a vector that it is shown or sent: another vector."""

    @property
    def vector(self) -> Handle | NDArray[Any] | None:
        """Shown where the given one was; None where that could not be seen from there."""

    @property
    def worker(self) -> str:
        """Its address."""


class Showing(Closing):
    """Hands out tasks whose last argument is a vector, and looks at the vectors that come back."""

    def __init__(self, cluster: Cluster) -> None:
        """Every worker is shown vectors until one cannot see them."""
        self._cluster = cluster
        self._elsewhere = SharedElsewhere()
        self._apart: set[str] = set()
        """Workers that share no memory with this process: on other machines, as a rule."""

    def results(
        self, tasks: Sequence[tuple[Task, Handle, NDArray[Any]]]
    ) -> list[tuple[Any, NDArray[Any]]]:
        """Each task's reply, which is `Shown`, and its vector, in order.

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
        self, task: Task, vector: NDArray[Any], reply: Shown
    ) -> tuple[Shown, NDArray[Any]]:
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
