"""Convert one part of a split, in any process: load, transform, check and write it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.examine import Examination, examine
from pipeline.sources.splits import Part
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


class Converted(NamedTuple):
    """The result of converting a part."""

    rows: int
    records: list[ChunkRecord]
    examinations: list[Examination]
    """What was noticed about the images of each chunk."""


def convert_part(part: Part, writer: SplitWriter, conversion: Conversion) -> Converted:
    """Load, transform, check, examine and write one part.

    Writing a part twice gives the same bytes, so a conversion can be repeated in any process. One
    chunk at a time is in memory.
    """
    chunk_rows = writer.schema.chunk_rows
    examinations: list[Examination] = []
    chunks = (
        _transformed(part, start, min(start + chunk_rows, part.stop), conversion, examinations)
        for start in range(part.start, part.stop, chunk_rows)
    )
    records = writer.write_part(part.start // writer.part_rows, chunks)
    return Converted(part.stop - part.start, records, examinations)


def _transformed(
    part: Part, start: int, stop: int, conversion: Conversion, examinations: list[Examination]
) -> Block:
    """Return rows [start, stop) of the split in stored form, and add their examination."""
    images, labels = part.load(start, stop)
    preparation = conversion.preparation
    if images.dtype != np.uint8 or preparation.scaling not in (BYTES, None):
        check_values(images, preparation.scaling, conversion.origin, start)
    if preparation.transposed:
        images = images.swapaxes(1, 2)
    targets = None if labels is None else one_hot(labels, conversion.classes, start)
    examinations.append(examine(start, images, targets))
    return Block(add_bias(images, preparation.bias(images.dtype)), targets)
