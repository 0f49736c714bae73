"""The benchmarks' data: MNIST if MNIST_DIR is set, else generated digits."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.ingest import ingest
from storage.dataset import Dataset, open_dataset
from storage.places import open_location
from storage.preparation import ValueRange

SOURCE = "mnist" if os.environ.get("MNIST_DIR") else "synthetic"
NETWORK = "784-relu-200-sigmoid-80-softmax-10"
CORES = len(os.sched_getaffinity(0))


@dataclass
class Workplace:
    """A scratch directory with the dataset in it."""

    directory: Path
    quick: bool = False
    """Whether benchmarks take fewer rows, to see that they run."""

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset, ingested on first use by the first process that needs it."""
        place = self.directory / "data"
        if place.exists():
            return open_dataset(open_location(place))
        return ingest(SOURCE, place).dataset

    @property
    def scaling(self) -> ValueRange | None:
        """The range of stored inputs that is mapped to [0, 1]."""
        return self.dataset.preparation.scaling

    @cached_property
    def train_bytes(self) -> NDArray[np.uint8]:
        """The training split's inputs `(rows, 785)`, in memory."""
        return np.concatenate([block[0] for block in self._blocks])

    @cached_property
    def train_targets(self) -> NDArray[np.uint8]:
        """The training split's targets `(rows, 10)`, in memory."""
        return np.concatenate([block[1] for block in self._blocks])

    @cached_property
    def _blocks(self) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        split = self.dataset.split("train")
        blocks = [split.read_chunk(number) for number in range(split.schema.chunks)]
        return [(block.inputs, block.targets) for block in blocks if block.targets is not None]
