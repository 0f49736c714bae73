"""Windows that a cluster's workers load, check and gather, for a stream that is used here."""

import threading
import time

from pipeline.clusters.client import Cluster
from pipeline.clusters.tasks import Pending, Task
from pipeline.clusters.worker_side import hold
from pipeline.order import EpochOrder, Window
from pipeline.rows import READING_THREADS, open_split
from pipeline.windows import WindowLoader
from storage.closing import Closing
from storage.dataset import Block, Dataset, Split
from storage.objects import Location


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
        self._place = (dataset.location.absolute(), dataset.digest, split.name)
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
