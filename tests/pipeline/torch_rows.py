"""A stream as a dataset of PyTorch; imports torch, which is optional."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset

from pipeline.stream import BatchStream


class Rows(IterableDataset[Any]):
    """The row numbers of the remaining mini-batches of an epoch."""

    def __init__(self, stream: BatchStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Any]:
        for batch in self.stream:
            yield torch.from_numpy(batch.rows.copy())
