"""The scoring on a cluster: a task per chunk, which its worker reads, scores, writes and counts."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jobs.nn.architecture import format_network, parse_network
from jobs.nn.network import Network
from jobs.nn.parameters import Floats
from jobs.scoring.metrics import ConfusionCounter, count_chunk
from jobs.training.evaluate import Predictor
from jobs.training.model import Model
from pipeline.cluster.client import Cluster
from pipeline.cluster.tasks import Task, results
from pipeline.cluster.worker import hold
from pipeline.rows import check_seen, open_split
from pipeline.windows import Scratch
from storage.dataset import Dataset
from storage.location import Closing, Location
from storage.preparation import ValueRange
from storage.scores import ScoresSchema, ScoresWriter, read_arrays, write_arrays

CHUNKS_PER_WORKER = 2
"""Chunks on their way to each worker: the one it scores, and the next."""


@dataclass(frozen=True)
class ScoreTask:
    """All that the chunks of a scoring have in common."""

    dataset: Location
    dataset_digest: str
    class_names: tuple[str, ...]
    """Names of the dataset's classes, which may lack some of the model's."""
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

    def __init__(self, task: ScoreTask, parameters: Floats) -> None:
        """Open the dataset, and check that the scoring's home can be seen too."""
        check_seen(task.home)
        self.split = open_split(task.dataset, task.dataset_digest, task.schema.split)
        self.scratch = Scratch(self.split)
        network = Network(parse_network(task.network), task.dtype)
        self.predict = Predictor(network, parameters, task.scaling)

    def close(self) -> None:
        """Let go of nothing but memory."""


def score_chunk(
    job: str, task: ScoreTask, number: int, digest: str | None, parameters: Floats
) -> ChunkResult:
    """Score and write chunk `number`, or count it alone where it is written, with that `digest`.

    Raises `BadDataError` where the chunk, or what was written of it, is damaged.
    """
    state = hold(job, task, lambda: ScoreWorkerState(task, parameters))
    block = state.split.read_chunk(number, state.scratch.chunk)
    if digest is None:
        predictions = state.predict(block.inputs)
        digest = write_arrays(task.home, task.schema, number, *predictions)
    else:
        predictions = read_arrays(task.home, task.schema, number, digest)
    counted = count_chunk(task.schema, task.class_names, predictions, block.targets)
    return ChunkResult(len(block.inputs), digest, counted)


def score_on_cluster(
    cluster: Cluster, writer: ScoresWriter, model: Model, dataset: Dataset, count: ConfusionCounter
) -> Iterator[int]:
    """Write and count each chunk, in order; yield the rows of each."""
    schema = writer.schema
    task = ScoreTask(
        dataset=dataset.location,
        dataset_digest=dataset.digest,
        class_names=dataset.class_names,
        home=writer.location,
        schema=schema,
        network=format_network(model.network.layers),
        dtype=str(model.network.dtype),
        scaling=model.preparation.scaling,
    )
    # The parameters are a task's result: workers pass them on, and Dask recomputes a lost one.
    parameters = cluster.client.submit(
        np.asarray, model.parameters, key=cluster.key("model"), pure=False
    )
    tasks = (
        Task(
            name="score-chunk",
            what=f"rows {start}..{stop - 1} of {schema.split}",
            function=score_chunk,
            arguments=(cluster.job, task, number, writer.digests.get(number), parameters),
        )
        for number in range(schema.chunks)
        for start, stop in [schema.chunk_bounds(number)]
    )
    for number, reply in enumerate(results(cluster, tasks, CHUNKS_PER_WORKER)):
        writer.digests.setdefault(number, reply.digest)
        if reply.counted is not None:
            count.merge(reply.counted)
        yield reply.rows
