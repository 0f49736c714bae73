"""The ingest on a cluster: a task per chunk-aligned part, which its worker writes to the store."""

from collections.abc import Generator
from dataclasses import replace

from pipeline.clusters.client import Cluster
from pipeline.clusters.tasks import Task, results
from pipeline.parts import Conversion, convert_part
from pipeline.rows import check_seen
from pipeline.splits import LoadedPart, Part, SplitSource
from storage.dataset_writer import ChunkRecord, SplitWriter

PARTS_PER_WORKER = 2
"""Parts on their way to each worker: the one it writes, and the next."""


def convert_part_there(
    part: Part, writer: SplitWriter, conversion: Conversion
) -> tuple[int, list[ChunkRecord]]:
    """For a worker: a part converted, where the dataset is seen that the job has begun."""
    check_seen(writer.location)
    return convert_part(part, writer, conversion)


def convert_parts(
    cluster: Cluster, split: SplitSource, writer: SplitWriter, conversion: Conversion
) -> Generator[tuple[int, list[ChunkRecord]], None, None]:
    """Yield rows and chunk records of each part, in order.

    A compressed file is read here, once; its rows go straight to the worker that writes them.
    Digits are drawn by the worker. What a part becomes is the same wherever, and however often, it
    is written. If the ingest stops, its running tasks end before what they write is removed.
    """
    writer = replace(writer, location=writer.location.absolute())
    tasks = (
        Task(
            name="write-part",
            what=f"rows {part.start}..{part.stop - 1} of {split.name}",
            function=convert_part_there,
            arguments=(part, writer, conversion),
            bulky=isinstance(part, LoadedPart),
        )
        for part in split.parts(writer.part_rows)
    )
    try:
        yield from results(cluster, tasks, PARTS_PER_WORKER)
    except BaseException:
        cluster.let_tasks_end()
        raise
