"""The scoring on a cluster: a task per chunk, which its worker reads, scores, writes and counts."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from jobs.nn.architecture import format_network, parse_network
from jobs.nn.network import Network
from jobs.nn.parameters import Floats
from jobs.scoring.metrics import ConfusionCounter
from jobs.training.evaluate import Forward, predict
from jobs.training.model import Model
from pipeline.cluster.connect import Cluster
from pipeline.cluster.tasks import Pending, Task
from pipeline.cluster.worker import hold
from pipeline.rows import check_seen, open_split
from pipeline.windows import Scratch
from storage.dataset import Dataset
from storage.location import Closing, Location
from storage.preparation import ValueRange
from storage.scores import ScoresSchema, read_arrays
from storage.scores_writer import ScoresWriter, write_arrays

CHUNKS_PER_WORKER = 2
"""Chunks on their way to each worker: the one it scores, and the next."""


@dataclass(frozen=True)
class ScoreTask:
    """All that the chunks of a scoring have in common."""

    dataset: Location
    dataset_digest: str
    class_names: tuple[str, ...]
    """Of the dataset, which may lack some of the model's."""
    home: Location
    schema: ScoresSchema
    network: str
    dtype: str
    scaling: ValueRange | None


@dataclass(frozen=True)
class ChunkResult:
    """What a worker made of a chunk."""

    rows: int
    digest: str
    counted: ConfusionCounter | None
    """None where the split has no labels."""


class ScoreWorkerState(Closing):
    """What a worker keeps from chunk to chunk of one scoring."""

    def __init__(self, work: ScoreTask, parameters: Floats) -> None:
        """Opens the dataset, and sees that the scoring's home is there too."""
        check_seen(work.home)
        self.split = open_split(work.dataset, work.dataset_digest, work.schema.split)
        self.scratch = Scratch(self.split)
        network = Network(parse_network(work.network), work.dtype)
        self.forward = Forward(network, parameters, work.scaling)

    def close(self) -> None:
        """There is nothing but memory."""


class _NotHereError(Exception):
    """The worker has not been sent the model yet."""


def score_chunk(
    job: str, work: ScoreTask, number: int, digest: str | None, parameters: Floats | None
) -> ChunkResult | None:
    """Score and write chunk `number`, or count it alone where it is written, with that `digest`.

    None where the worker is to be sent the model's `parameters` first. Raises `BadDataError` where
    the chunk, or what was written of it, is damaged.
    """

    def make() -> ScoreWorkerState:
        if parameters is None:
            raise _NotHereError
        return ScoreWorkerState(work, parameters)

    try:
        bench = hold(job, work, make)
    except _NotHereError:
        return None
    block = bench.split.read_chunk(number, bench.scratch.chunk)
    if digest is None:
        predictions = predict(bench.forward, block.inputs)
        digest = write_arrays(work.home, work.schema, number, *predictions)
    else:
        predictions = read_arrays(work.home, work.schema, number, digest)
    counted = None
    if block.targets is not None:
        counted = ConfusionCounter(work.schema.class_names, work.class_names)
        counted.add(*predictions, block.targets)
    return ChunkResult(len(block.inputs), digest, counted)


def score_on_cluster(
    cluster: Cluster, writer: ScoresWriter, model: Model, dataset: Dataset, count: ConfusionCounter
) -> Iterator[int]:
    """See to it that each chunk is written and counted, in order; the rows of each."""
    work = ScoreTask(
        dataset=dataset.location,
        dataset_digest=dataset.digest,
        class_names=dataset.class_names,
        home=writer.location,
        schema=writer.schema,
        network=format_network(model.network.layers),
        dtype=str(model.network.dtype),
        scaling=model.preparation.scaling,
    )
    waiting: deque[tuple[int, Pending]] = deque()

    def begin(number: int, parameters: Floats | None = None) -> Pending:
        return Pending(cluster, _task(cluster, work, number, writer, parameters))

    def finish() -> int:
        number, pending = waiting.popleft()
        reply = pending.result()
        while reply is None:
            reply = begin(number, model.parameters).result()
        if writer.recorded_digest(number) is None:
            writer.record_chunk(number, reply.digest)
        if reply.counted is not None:
            count.merge(reply.counted)
        rows: int = reply.rows
        return rows

    try:
        for number in range(work.schema.chunks):
            waiting.append((number, begin(number)))
            if len(waiting) >= CHUNKS_PER_WORKER * max(1, len(cluster.workers())):
                yield finish()
        while waiting:
            yield finish()
    finally:
        for _, pending in waiting:
            pending.cancel()


def _task(
    cluster: Cluster,
    work: ScoreTask,
    number: int,
    writer: ScoresWriter,
    parameters: Floats | None,
) -> Task:
    start, stop = work.schema.chunk_bounds(number)
    return Task(
        name="score-chunk",
        what=f"rows {start}..{stop - 1} of {work.schema.split}",
        function=score_chunk,
        arguments=(cluster.job, work, number, writer.recorded_digest(number), parameters),
        bulky=parameters is not None,
    )
