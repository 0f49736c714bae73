"""Score a split on a cluster: one task per chunk reads, scores, writes and counts it."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

from jobs.nn.network import Network
from jobs.nn.parameters import Floats
from jobs.scoring.metrics import ConfusionCounter, count_chunk
from jobs.training.evaluate import Predictor, TrainedNetwork
from jobs.training.model import Model
from jobs.training.reference import Observation, Observer
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
"""Chunks submitted to each worker: the one that it scores, and the next."""


@dataclass(frozen=True)
class ScoreTask:
    """The arguments that all chunks of a scoring share."""

    dataset: Location
    dataset_digest: str
    class_names: tuple[str, ...]
    """The dataset's classes, a subset of the model's."""
    home: Location
    schema: ScoresSchema
    networks: tuple[Network, ...]
    """The network of each member."""
    scaling: ValueRange | None
    image_shape: tuple[int, ...]


@dataclass(frozen=True)
class ChunkResult:
    """The result of scoring one chunk."""

    observed: Observation
    digest: str
    counted: ConfusionCounter | None
    """None if the split has no labels."""


class ScoreWorkerState(Closing):
    """State that a worker keeps between the chunks of one scoring."""

    def __init__(self, task: ScoreTask, parameters: list[Floats]) -> None:
        """Open the dataset, and check that this worker sees the place of the scores too."""
        check_seen(task.home)
        self.split = open_split(task.dataset, task.dataset_digest, task.schema.split)
        self.scratch = Scratch(self.split)
        members = tuple(map(TrainedNetwork, task.networks, parameters))
        shifts = task.image_shape, task.schema.average_shifts
        predictor = Predictor(members, task.scaling, *shifts)
        self.observer = Observer(predictor, task.image_shape, task.schema.rows)

    def close(self) -> None:
        """Do nothing: the state holds memory only."""


def score_chunk(
    job: str, task: ScoreTask, number: int, digest: str | None, parameters: list[Floats]
) -> ChunkResult:
    """Score, write and count chunk `number`; existing scores with a `digest` are only counted.

    Raises `BadDataError` if the chunk or its existing scores are damaged.
    """
    state = hold(job, task, lambda: ScoreWorkerState(task, parameters))
    block = state.split.read_chunk(number, state.scratch.chunk)
    start, hidden = task.schema.chunk_bounds(number)[0], None
    if digest is None:
        predictions, hidden = state.observer.predictor.with_hidden(block.inputs)
        digest = write_arrays(task.home, task.schema, number, *predictions)
    else:
        predictions = read_arrays(task.home, task.schema, number, digest)
    counted = count_chunk(task.schema, task.class_names, predictions, block.targets)
    observed = state.observer.observe(start, block.inputs, predictions, hidden)
    return ChunkResult(observed, digest, counted)


def score_on_cluster(
    cluster: Cluster, writer: ScoresWriter, model: Model, dataset: Dataset
) -> Generator[tuple[Observation, ConfusionCounter | None], None, None]:
    """Write the chunks in order; yield the counts of each."""
    schema = writer.schema
    task = ScoreTask(
        dataset=dataset.location,
        dataset_digest=dataset.digest,
        class_names=dataset.class_names,
        home=writer.location,
        schema=schema,
        networks=tuple(member.network for member in model.members),
        scaling=model.preparation.scaling,
        image_shape=dataset.image_shape,
    )
    # As a task's result, the parameters are copied between workers and recomputed if lost.
    vectors = [member.parameters for member in model.members]
    parameters = cluster.client.submit(list[Floats], vectors, key=cluster.key("model"), pure=False)
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
    with closing(results(cluster, tasks, CHUNKS_PER_WORKER)) as replies:
        for number, reply in enumerate(replies):
            writer.digests.setdefault(number, reply.digest)
            yield reply.observed, reply.counted
