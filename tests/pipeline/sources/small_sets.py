"""Small sets of images, and the rows that a source reads: for the tests of all formats."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.sources.formats import SourceOptions
from pipeline.sources.source import open_source
from pipeline.sources.splits import SplitSource
from storage.errors import BadDataError, PipelineError
from storage.events import no_progress
from tests.storage.idx_files import MNIST_NAMES, write_files


def images(rows: int, *row_shape: int) -> NDArray[Any]:
    shape = (rows, *(row_shape or (4, 3)))
    return np.random.default_rng(rows).integers(0, 256, shape, np.uint8)


def labels(rows: int, classes: int = 10) -> NDArray[Any]:
    return (np.arange(rows) % classes).astype(np.uint8)


def write_set(directory: Path, names: tuple[str, ...] = MNIST_NAMES, ending: str = "") -> None:
    """Write 12 training and 5 test rows under `names`, in the order of MNIST_NAMES."""
    values = (images(12), labels(12), images(5), labels(5))
    write_files(directory, *values, names=names, ending=ending)


def splits_of(spec: Path | str, **options: Any) -> tuple[SplitSource, ...]:
    return open_source(str(spec), SourceOptions(**options)).splits


def read(split: SplitSource, rows_per_part: int = 5) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return all rows of a split and their labels; each part is loaded in two halves."""
    blocks = []
    for part in split.parts(rows_per_part):
        middle = (part.start + part.stop) // 2
        blocks += [part.load(part.start, middle), part.load(middle, part.stop)]
    label_blocks = [block for _, block in blocks if block is not None]
    together = np.concatenate(label_blocks) if label_blocks else None
    return np.concatenate([block for block, _ in blocks]), together


def refusal(
    spec: Path | str,
    error: type[PipelineError] = BadDataError,
    *,
    reading: bool = False,
    **options: Any,
) -> str:
    """Return the message with which a source is refused on opening, or also on reading."""
    with pytest.raises(error) as caught:
        splits = splits_of(spec, **options)
        for split in splits if reading else ():
            split.label_values(no_progress)
            read(split)
    return str(caught.value)
