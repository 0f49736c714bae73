"""Convert one part of a split, in any process: load, transform, check and write it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.examine import Examination, examine
from pipeline.sources.splits import Part
from pipeline.statistics import ImageStatistics, is_sampled
from pipeline.transforms import add_bias, one_hot
from pipeline.values import check_values
from storage.dataset import Block
from storage.dataset_writer import ChunkRecord, SplitWriter
from storage.preparation import BYTES, Preparation


@dataclass(frozen=True)
class Conversion:
    """The settings for converting a split."""

    preparation: Preparation
    classes: NDArray[np.int64]
    """The distinct labels, sorted."""
    origin: str
    """The file of the images, for messages."""
    counted_rows: int
    """Rows of the split if statistics of its images are counted, else 0."""


class Converted(NamedTuple):
    """The result of converting a part."""

    rows: int
    records: list[ChunkRecord]
    examinations: list[Examination]
    """What was noticed about the images of each chunk."""
    statistics: ImageStatistics


def convert_part(part: Part, writer: SplitWriter, conversion: Conversion) -> Converted:
    """Load, transform, check, examine and write one part.

    Writing a part twice gives the same bytes, so a conversion can be repeated in any process. One
    chunk at a time is in memory.
    """
    chunk_rows = writer.schema.chunk_rows
    result = Converted(part.stop - part.start, [], [], ImageStatistics.empty())
    chunks = (
        _transformed(part, start, min(start + chunk_rows, part.stop), conversion, result)
        for start in range(part.start, part.stop, chunk_rows)
    )
    result.records.extend(writer.write_part(part.start // writer.part_rows, chunks))
    return result


def _transformed(
    part: Part, start: int, stop: int, conversion: Conversion, result: Converted
) -> Block:
    """Return rows [start, stop) of the split in stored form; add what is known of them."""
    images, labels = part.load(start, stop)
    preparation = conversion.preparation
    if images.dtype != np.uint8 or preparation.scaling not in (BYTES, None):
        check_values(images, preparation.scaling, conversion.origin, start)
    if preparation.transposed:
        images = images.swapaxes(1, 2)
    targets = None if labels is None else one_hot(labels, conversion.classes, start)
    result.examinations.append(examine(start, images, targets))
    if conversion.counted_rows:
        sampled = is_sampled(start, stop, conversion.counted_rows)
        counted = ImageStatistics.of(images, images.shape[1:], preparation.scaling, sampled)
        result.statistics.add(counted)
    return Block(add_bias(images, preparation.bias(images.dtype)), targets)
