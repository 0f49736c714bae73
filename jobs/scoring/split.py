"""The scoring of one split: a model's probabilities for every row, published in one home."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from jobs.environment import one_blas_thread
from jobs.scoring.listener import ScoreListener
from jobs.scoring.metrics import ConfusionCounter
from jobs.scoring.result import ScoreResult, open_scored
from jobs.scoring.retry import wait_for_turn
from jobs.signals import StopSignal
from jobs.thread_map import Workers
from jobs.training.evaluate import Forward, predict
from jobs.training.memory import check_memory, score_memory
from jobs.training.model import Model, check_images
from jobs.training.step import thread_count
from pipeline.stream import Batch, BatchStream
from storage.dataset import Dataset
from storage.errors import BadDataError, UsageError
from storage.location import TakeOver
from storage.runs import SCORES, Run
from storage.scores import ScoresSchema, is_complete
from storage.scores_writer import ScoresWriter, score_into

if TYPE_CHECKING:
    from pipeline.cluster.client import Cluster, OpenCluster

Progress = Callable[[str, int, int], None]


def make_scores(
    run: Run,
    model: Model,
    dataset: Dataset,
    split: str,
    *,
    threads: int,
    wait: float,
    take_over: TakeOver | None,
    listener: ScoreListener,
    stop: StopSignal,
    cluster: "OpenCluster",
    output_memory: int,
) -> ScoreResult:
    """Score a split in its home, or go on where a scoring of it died, and publish it.

    Where another job has it in hand, wait for it for so many seconds. Raises `ConflictError` that
    names the other after that; what it has completed meanwhile is found.
    """
    schema = _schema(model, dataset, split)
    home = run.location.child(f"{SCORES}/{schema.home}")
    cores = thread_count(threads)
    memory = score_memory(model.network, dataset.split(split).schema, cores) + output_memory

    def work() -> None:
        listener.say(f"memory at most {check_memory(memory, cores) / 1e6:,.0f} MB")
        workers = cluster()
        with one_blas_thread(), score_into(home, schema, take_over) as writer:
            _score(writer, model, dataset, cores, listener.progress, stop, workers)

    already_done = not wait_for_turn(
        work, partial(is_complete, home), wait=wait, listener=listener, stop=stop
    )
    return ScoreResult(open_scored(home), already_done)


def _schema(model: Model, dataset: Dataset, split: str) -> ScoresSchema:
    """Return the shape of the scores; raise `PipelineError` if the model does not fit the split."""
    if split not in dataset.splits:
        raise UsageError(
            f"{dataset.location} has no split '{split}'; pass --split with one of those it has: "
            f"{', '.join(dataset.splits)}."
        )
    rows = dataset.split(split).schema
    check_images(model, str(dataset.location), dataset.image_shape, rows.dtype)
    _check_orientation(model, dataset)
    _check_classes(model, dataset)
    return ScoresSchema(
        model.digest,
        dataset.digest,
        split,
        rows.rows,
        model.network.layers[-1].outputs,
        rows.chunk_rows,
        model.class_names,
    )


def _check_orientation(model: Model, dataset: Dataset) -> None:
    """Refuse a dataset whose images lie the other way."""
    if dataset.preparation.transposed != model.preparation.transposed:
        ways = ("as they were published", "with height and width swapped")
        raise BadDataError(
            f"{dataset.location} holds images {ways[dataset.preparation.transposed]}; the run was "
            f"trained on images {ways[model.preparation.transposed]}. Ingest the files again "
            f"{'with' if model.preparation.transposed else 'without'} --transpose."
        )


def _check_classes(model: Model, dataset: Dataset) -> None:
    if strange := [name for name in dataset.class_names if name not in model.class_names]:
        more = ", ..." if len(strange) > 10 else ""
        raise UsageError(
            f"{dataset.location} has labels of classes that the model does not know: "
            f"{', '.join(strange[:10])}{more}; it knows {', '.join(model.class_names)}. Give rows "
            "of the classes that it was trained on."
        )


def _score(
    writer: ScoresWriter,
    model: Model,
    dataset: Dataset,
    threads: int,
    report: Progress,
    stop: StopSignal,
    cluster: "Cluster | None",
) -> None:
    """Score every chunk that is missing, then publish with the metrics of all of them."""
    began = time.perf_counter()
    schema = writer.schema
    count = ConfusionCounter(schema.class_names, dataset.class_names)
    done = 0
    for rows in _scored(writer, model, dataset, threads, count, cluster):
        done += rows
        report(f"score {schema.split}", done, schema.rows)
        stop.check("Stopped; the chunks scored so far are kept. Run the same command to go on.")
    labelled = bool(dataset.split(schema.split).schema.classes)
    writer.publish(
        {
            "model_digest": schema.model_digest,
            "dataset_digest": schema.dataset_digest,
            "split": schema.split,
            "rows": schema.rows,
            "checkpoint": str(model.checkpoint),
            "quality": count.result().to_json() if labelled else None,
            "seconds": round(time.perf_counter() - began, 3),
        }
    )


def _scored(
    writer: ScoresWriter,
    model: Model,
    dataset: Dataset,
    threads: int,
    count: ConfusionCounter,
    cluster: "Cluster | None",
) -> Iterator[int]:
    """See to it that each chunk is written and counted, in order; the rows of each."""
    if cluster is None:
        return _scored_here(writer, model, dataset, threads, count)
    from jobs.scoring.cluster import score_on_cluster

    return score_on_cluster(cluster, writer, model, dataset, count)


def _scored_here(
    writer: ScoresWriter, model: Model, dataset: Dataset, threads: int, count: ConfusionCounter
) -> Iterator[int]:
    """The same in this process, a chunk to a thread."""
    schema, missing = writer.schema, set(writer.missing)
    forward = Forward(model.network, model.parameters, model.preparation.scaling)

    def settle(batch: Batch) -> tuple[int, ConfusionCounter | None]:
        number = int(batch.rows[0]) // schema.chunk_rows
        if number in missing:
            predictions = predict(forward, batch.inputs)
            writer.write_chunk(number, *predictions)
        else:
            predictions = writer.read_chunk(number)
        counted = None
        if batch.targets is not None:
            counted = ConfusionCounter(schema.class_names, dataset.class_names)
            counted.add(*predictions, batch.targets)
        return len(batch.rows), counted

    chunks = BatchStream(
        dataset, schema.split, batch_size=schema.chunk_rows, shuffle=False, epochs=1
    )
    with chunks, Workers(settle, threads) as workers:
        for rows, counted in workers.map(iter(chunks)):
            if counted is not None:
                count.merge(counted)
            yield rows
