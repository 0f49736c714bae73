"""What a worker computes for a data-parallel step: gradient sums over rows that it reads itself.

Rows are named by their positions in the order. The worker reads them from the store and keeps its
window from one step to the next.
"""

import threading
from dataclasses import dataclass

from distributed import get_worker

from jobs.nn.architecture import parse_network
from jobs.nn.network import Network, Workspace
from jobs.nn.parameters import Floats
from jobs.training.config import TrainConfig
from jobs.training.step import gradient_of_subtree, ignore_overflow
from pipeline.cluster.shared_memory import Handle, RemoteBuffers, SharedBufferPool
from pipeline.cluster.worker import hold
from pipeline.rows import OrderedRows, RowReader
from pipeline.stream import chunks_per_window
from storage.dataset import Dataset
from storage.location import Closing
from storage.preparation import ValueRange


def ordered_rows(config: TrainConfig, dataset: Dataset) -> OrderedRows:
    """The rows that a training visits, for workers to find."""
    schema = dataset.split("train").schema
    return OrderedRows(
        dataset=dataset.location,
        dataset_digest=dataset.digest,
        split="train",
        seed=config.seed,
        rows=schema.rows - config.holdout,
        shuffle=config.shuffle,
        window_chunks=chunks_per_window(schema, config.shuffle_memory, config.shuffle),
        epochs=config.epochs,
    )


Span = tuple[int, int]
"""The places [start, stop) of a micro-batch's rows in an epoch."""


@dataclass(frozen=True)
class GradientTask:
    """All that the gradients of a training have in common."""

    rows: OrderedRows
    network: str
    dtype: str
    scaling: ValueRange | None


@dataclass(frozen=True)
class GradientResult:
    """The gradient sum of some micro-batches that follow one another."""

    vector: Handle | Floats | None
    """None where the worker cannot map the parameters that it was shown: it is to be sent them."""
    loss: float
    """Summed in the fixed tree, as the gradient is."""
    correct: int
    worker: str


class GradientWorkerState(Closing):
    """What a worker keeps between the steps of one training."""

    def __init__(self, work: GradientTask) -> None:
        """Opens the dataset."""
        self.network = Network(parse_network(work.network), work.dtype)
        self.reader = RowReader(work.rows)
        self.parameters = RemoteBuffers()
        self.local = threading.local()
        """Of each thread of the worker: its `workspace`."""
        self.sums = SharedBufferPool(self.network.parameter_count, str(self.network.dtype))

    def workspace(self) -> Workspace:
        """The scratch arrays of the calling thread."""
        if not hasattr(self.local, "workspace"):
            self.local.workspace = Workspace()
        workspace: Workspace = self.local.workspace
        return workspace

    def close(self) -> None:
        """Let go of the window and of all vectors."""
        self.reader.close()
        self.parameters.close()
        self.sums.close()


def gradient_sum(
    job: str,
    work: GradientTask,
    step: int,
    epoch: int,
    spans: tuple[Span, ...],
    batch_rows: int,
    parameters: Handle | Floats,
) -> GradientResult:
    """What the micro-batches add to the gradient of their mini-batch, which has `batch_rows` rows.

    They are one subtree of the fixed tree. Where the parameters were shown and not sent, so is the
    sum. Raises `BadDataError` where the rows cannot be read.
    """
    bench = hold(job, work, lambda: GradientWorkerState(work))
    worker = get_worker().address
    shown = isinstance(parameters, Handle)
    if isinstance(parameters, Handle):
        try:
            parameters = bench.parameters.array(parameters)
        except OSError:
            return GradientResult(None, 0.0, 0, worker)

    vector = bench.sums.borrow(step)
    with ignore_overflow():
        found = gradient_of_subtree(
            bench.network,
            work.scaling,
            parameters,
            (bench.reader.take(epoch, *span) for span in spans),
            batch_rows,
            vector.array,
            bench.workspace(),
        )
    if shown:
        return GradientResult(bench.sums.lend(step, vector), found.loss_sum, found.correct, worker)
    gradient = vector.array.copy()
    bench.sums.give_back(vector)
    return GradientResult(gradient, found.loss_sum, found.correct, worker)
