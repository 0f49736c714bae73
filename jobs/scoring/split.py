"""Score one split: a model's probabilities for every row, published in one place."""

import logging
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeAlias

from jobs.scoring.config import ScoreConfig
from jobs.scoring.drift import drift_of
from jobs.scoring.metrics import ConfusionCounter, count_chunk, open_scored
from jobs.scoring.outputs import output_memory
from jobs.training.choose_model import recorded_runs
from jobs.training.environment import one_blas_thread
from jobs.training.memory import check_memory, score_memory
from jobs.training.model import Model
from jobs.training.reference import Observation, Observer, Reference
from jobs.training.signature import check_images
from jobs.training.step import thread_count
from jobs.training.thread_map import ThreadMap
from pipeline.stream import Batch, BatchStream
from storage.dataset import Dataset
from storage.errors import BadDataError, ConflictError, UsageError
from storage.events import Progress
from storage.location import Location
from storage.scores import Scores, ScoresSchema, ScoresWriter, is_complete, score_into

if TYPE_CHECKING:
    from pipeline.cluster.client import OpenCluster

logger = logging.getLogger(__name__)

Counted: TypeAlias = tuple[Observation, ConfusionCounter | None]
"""The distributions of a chunk's rows, and the counts of its predictions if it has labels."""


def score_split(
    config: ScoreConfig,
    place: Location,
    model: Model,
    dataset: Dataset,
    split: str,
    *,
    pause: Callable[[ConflictError], None],
    progress: Progress,
    cluster: "OpenCluster",
    reference: Reference | None,
) -> tuple[Scores, bool]:
    """Score a split, or continue an interrupted scoring, and publish the scores below `place`.

    If another job is scoring it, wait, calling `pause`: see `waiting_lock`. The rows are compared
    with the model's `reference`, if there is one. Returns the scores, and whether another job
    completed them during the wait.
    """
    schema = _schema(model, dataset, split)
    home = place.child(schema.home)
    cores = thread_count(config.threads)
    networks = [member.network for member in model.members]
    rows = dataset.split(split).schema
    memory = score_memory(networks, rows, cores, model.average_shifts)
    check_memory(memory + output_memory(str(config.out)), cores)
    began = time.perf_counter()
    count = ConfusionCounter(schema.class_names, dataset.class_names)
    observer = Observer(model.predictor, dataset.image_shape, schema.rows)
    observation = Observation.empty(observer.predictor)
    try:
        workers = cluster()
        held = score_into(home, schema, config.take_over, config.wait, pause)
        with one_blas_thread(), held as writer:
            if workers is None:
                chunks = _score_here(writer, observer, dataset, cores)
            else:
                from jobs.scoring.cluster import score_on_cluster

                chunks = score_on_cluster(workers, writer, model, dataset)
            with closing(chunks):  # the threads end before the lock is released
                for observed, counted in chunks:
                    observation.add(observed)
                    if counted is not None:
                        count.merge(counted)
                    progress(f"score {split}", observation.rows, schema.rows)
            drift = drift_of(reference, observation, model, dataset, split)
            seconds = round(time.perf_counter() - began, 3)
            metrics = _metrics(schema, model, dataset, count, seconds)
            writer.publish(metrics | {"drift": drift})
    except ConflictError:
        if not is_complete(home):
            raise
        logger.info("Another job completed the same scoring; its scores are used.")
        return open_scored(home), True
    return open_scored(home), False


def _schema(model: Model, dataset: Dataset, split: str) -> ScoresSchema:
    """Return the schema of the scores; raise `PipelineError` if the model does not fit."""
    rows = dataset.split(split).schema
    check_images(model, str(dataset.location), dataset.image_shape, rows.dtype)
    _check_orientation(model, dataset)
    _check_classes(model, dataset)
    return ScoresSchema(
        model.digest,
        dataset.digest,
        split,
        rows.rows,
        len(model.class_names),
        rows.chunk_rows,
        model.class_names,
        tuple(member.digest for member in model.members),
        model.average_shifts,
    )


def _check_orientation(model: Model, dataset: Dataset) -> None:
    if dataset.preparation.transposed != model.preparation.transposed:
        flags = ("without --transpose", "with --transpose")
        expected = flags[model.preparation.transposed]
        raise BadDataError(
            f"{dataset.location} was ingested {flags[dataset.preparation.transposed]}; the run was "
            f"trained on images ingested {expected}. Ingest the files again {expected}."
        )


def _check_classes(model: Model, dataset: Dataset) -> None:
    if unknown := [name for name in dataset.class_names if name not in model.class_names]:
        more = ", ..." if len(unknown) > 10 else ""
        raise UsageError(
            f"{dataset.location} has classes that the model was not trained on: "
            f"{', '.join(unknown[:10])}{more}; the model has {', '.join(model.class_names)}. Score "
            "rows of these classes only."
        )


def _metrics(
    schema: ScoresSchema, model: Model, dataset: Dataset, count: ConfusionCounter, seconds: float
) -> dict[str, Any]:
    labelled = bool(dataset.split(schema.split).schema.classes)
    return {
        "model_digest": schema.model_digest,
        "dataset_digest": schema.dataset_digest,
        "split": schema.split,
        "rows": schema.rows,
        "checkpoint": ",".join(str(member.checkpoint) for member in model.members),
        "members": list(schema.members),
        "average_shifts": model.average_shifts,
        **recorded_runs([member.run for member in model.members]),
        "quality": count.result() if labelled else None,
        "seconds": seconds,
    }


def _score_here(
    writer: ScoresWriter, observer: Observer, dataset: Dataset, threads: int
) -> Generator[Counted, None, None]:
    """Write the chunks in order, one per thread; yield the counts of each."""
    schema, missing = writer.schema, set(writer.missing)

    def score_chunk(batch: Batch) -> Counted:
        start, hidden = int(batch.rows[0]), None
        number = start // schema.chunk_rows
        if number in missing:
            predictions, hidden = observer.predictor.with_hidden(batch.inputs)
            writer.write_chunk(number, *predictions)
        else:
            predictions = writer.read_chunk(number)
        counted = count_chunk(schema, dataset.class_names, predictions, batch.targets)
        return observer.observe(start, batch.inputs, predictions, hidden), counted

    chunks = BatchStream(
        dataset,
        schema.split,
        batch_size=schema.chunk_rows,
        shuffle=False,
        epochs=1,
        busy_cores=threads,
    )
    with chunks, ThreadMap(score_chunk, threads) as scored:
        yield from scored.map(iter(chunks))
