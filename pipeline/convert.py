"""One part of a split, from source to store: load, transform, check, write, anywhere."""

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
    """How the rows of one split are stored."""

    preparation: Preparation
    classes: NDArray[np.int64]
    """The labels that there are, sorted and distinct."""
    origin: str
    """Where the images come from, for messages."""


def convert_part(
    part: Part, writer: SplitWriter, conversion: Conversion
) -> tuple[int, list[ChunkRecord]]:
    """Load, transform, check and write one part; return its rows, and its chunks' records.

    Pure but for what it writes, and writing it twice gives the same bytes: it may run anywhere,
    and again. A chunk at a time is in memory, whatever the size of a part.
    """
    chunk_rows = writer.schema.chunk_rows
    chunks = (
        _transformed(part, start, min(start + chunk_rows, part.stop), conversion)
        for start in range(part.start, part.stop, chunk_rows)
    )
    return part.stop - part.start, writer.write_part(part.start // writer.part_rows, chunks)


def _transformed(part: Part, start: int, stop: int, conversion: Conversion) -> Block:
    """Return rows [start, stop) of the split as they are stored."""
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
