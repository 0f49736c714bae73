"""One part of a split, from source to store: load, transform, write, read back, anywhere."""

import numpy as np
from numpy.typing import NDArray

from pipeline.splits import Part
from pipeline.transforms import add_bias, one_hot
from storage.dataset import Block
from storage.dataset_writer import ChunkRecord, SplitWriter
from storage.errors import BadDataError


def convert_part(
    part: Part, writer: SplitWriter, classes: NDArray[np.int64]
) -> tuple[int, list[ChunkRecord]]:
    """Load, transform, write and read back one part; its rows, and its chunks' records.

    Pure but for what it writes, and writing it twice gives the same bytes: it may run anywhere,
    and again. A chunk at a time is in memory, whatever the size of a part.
    """
    chunk_rows = writer.schema.chunk_rows
    chunks = (
        _transformed(part, start, min(start + chunk_rows, part.stop), writer.name, classes)
        for start in range(part.start, part.stop, chunk_rows)
    )
    return part.stop - part.start, writer.write_part(part.start // writer.part_rows, chunks)


def _transformed(
    part: Part, start: int, stop: int, split: str, classes: NDArray[np.int64]
) -> Block:
    """Rows [start, stop) of the split, as they are to be stored."""
    images, labels = part.load(start, stop)
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        row = start + int(np.argmin(np.isfinite(images).reshape(len(images), -1).all(axis=1)))
        raise BadDataError(
            f"Row {row} of the {split} images holds a value that is not a finite number; "
            "nothing can be learned from it. Leave the row out, or give it a number."
        )
    return Block(add_bias(images), None if labels is None else one_hot(labels, classes))
