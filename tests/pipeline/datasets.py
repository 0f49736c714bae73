"""Small datasets on disk for the tests of streams, with their arrays."""

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.order import EpochOrder
from pipeline.transforms import add_bias, one_hot
from pipeline.windows import WindowLoader, WindowMemory
from storage.dataset import Block, Dataset
from storage.places import open_location
from storage.schema import DatasetSchema, SplitSchema
from tests.storage.artefacts import create_dataset, part_chunks, part_numbers

CLASSES = np.arange(4)
FEATURES = 5


@dataclass(frozen=True)
class Known:
    """A dataset on disk and the rows of its split `train`."""

    dataset: Dataset
    path: Path
    inputs: NDArray[Any]
    targets: NDArray[np.uint8] | None


def write_known(
    path: Path, rows: int, chunk_rows: int, *, labelled: bool = True, seed: int = 0
) -> Known:
    """Write a dataset of random bytes at `path`; many chunks make shards, as in an ingest."""
    random = np.random.default_rng([rows, seed])
    inputs = add_bias(random.integers(0, 256, (rows, FEATURES), np.uint8), 255)
    targets = one_hot(random.choice(CLASSES, rows), CLASSES) if labelled else None
    split = SplitSchema.plan(
        rows=rows,
        features=FEATURES,
        dtype="uint8",
        classes=len(CLASSES) if labelled else 0,
        chunk_rows=chunk_rows,
    )
    names = tuple(map(str, CLASSES)) if labelled else ()
    schema = DatasetSchema("known", names, (FEATURES,), (), {"train": split})
    with create_dataset(open_location(path), schema) as writer:
        split_writer = writer.split("train")
        records = []
        for number in part_numbers(split_writer):
            chunks = part_chunks(Block(inputs, targets), split_writer, number)
            records += split_writer.write_part(number, chunks)
        dataset = writer.publish({"train": records}, [], {})
    return Known(dataset, path, inputs, targets)


def load_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finish loading each window before `expect` returns, as if loading took no time."""
    expect = WindowLoader.expect

    def expect_and_wait(loader: WindowLoader, order: EpochOrder, number: int) -> None:
        expect(loader, order, number)
        loader._ahead.submit(int).result()  # a single thread: earlier loads are done

    monkeypatch.setattr(WindowLoader, "expect", expect_and_wait)


def watched_windows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets, for each new window, the number of other windows in memory."""
    windows: list[weakref.ref[Any]] = []
    others: list[int] = []
    array = WindowMemory.array

    def watched(memory: WindowMemory, size: int) -> NDArray[np.uint8]:
        others.append(sum(window() is not None for window in windows))
        window_array = array(memory, size)
        windows.append(weakref.ref(window_array))
        return window_array

    monkeypatch.setattr(WindowMemory, "array", watched)
    return others
