"""Convert one part of a split, in any process: load, transform, check and write it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def convert_part(
    part: Part, writer: SplitWriter, conversion: Conversion
) -> tuple[int, list[ChunkRecord]]:
    """Load, transform, check and write one part; return its row count and its chunks' records.

    Writing a part twice gives the same bytes, so a conversion can be repeated in any process. One
    chunk at a time is in memory.
    """
    chunk_rows = writer.schema.chunk_rows
    chunks = (
        _transformed(part, start, min(start + chunk_rows, part.stop), conversion)
        for start in range(part.start, part.stop, chunk_rows)
    )
    return part.stop - part.start, writer.write_part(part.start // writer.part_rows, chunks)


def _transformed(part: Part, start: int, stop: int, conversion: Conversion) -> Block:
    """Return rows [start, stop) of the split in stored form."""
    images, labels = part.load(start, stop)
    preparation = conversion.preparation
    if images.dtype != np.uint8 or preparation.scaling not in (BYTES, None):
        check_values(images, preparation.scaling, conversion.origin, start)
    if preparation.transposed:
        images = images.swapaxes(1, 2)
    return Block(
        add_bias(images, preparation.bias(images.dtype)),
        None if labels is None else one_hot(labels, conversion.classes, start),
    )
