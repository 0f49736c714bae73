"""A dataset of arrays in memory, for the streams that otherwise read one from disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.order import RowNumbers
from storage.dataset import Block, Dataset, Split
from storage.local import LocalLocation
from storage.preparation import Preparation, ValueRange
from storage.schema import LZ4, SplitRecord, SplitSchema

PLACE = LocalLocation(Path("arrays in memory"))
"""What messages say where others name the dataset's directory; it is never read."""
NO_DIGEST = "arrays in memory"
"""Instead of digests: nothing is recorded that a later read could be compared with."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ArraySplit(Split):
    """Some rows of arrays, in the chunks that the same rows have in a dataset on disk."""

    values: NDArray[Any]
    """`(samples, features)`, in one of `ELEMENT_TYPES`; never copied as a whole."""
    labels: NDArray[np.intp]
    """`(samples,)`: the index of each sample's class."""
    samples: RowNumbers
    """`(rows,)`: the sample in each row of the split."""
    bias: float
    """The stored value of the bias column."""

    def check_claim(self) -> None:
        """Do nothing: the rows are present."""

    def empty_chunk(self) -> Block:
        schema = self.schema
        return Block(
            np.empty((schema.chunk_rows, schema.columns), schema.dtype),
            np.empty((schema.chunk_rows, schema.classes), np.uint8),
        )

    def read_chunk(self, number: int, out: Block | None = None) -> Block:
        start, stop = self.schema.chunk_bounds(number)
        whole, samples = out or self.empty_chunk(), self.samples[start:stop]
        assert whole.targets is not None  # the split has labels
        inputs, targets = whole.inputs[: stop - start], whole.targets[: stop - start]
        inputs[:, 0] = self.bias
        inputs[:, 1:] = self.values[samples]
        targets[:] = 0
        targets[np.arange(stop - start), self.labels[samples]] = 1
        return Block(inputs, targets)


def array_dataset(
    values: NDArray[Any],
    labels: NDArray[np.intp],
    class_names: tuple[str, ...],
    scaling: ValueRange | None,
    splits: Mapping[str, RowNumbers],
) -> Dataset:
    """Return a dataset of `values` `(samples, features)`, with the samples of each split by name.

    Raises `BadDataError` if there are too many features or classes.
    """
    preparation = Preparation(scaling)
    features = values.shape[1]

    def split(name: str, samples: RowNumbers) -> ArraySplit:
        schema = SplitSchema.plan(
            rows=len(samples),
            features=features,
            dtype=values.dtype.name,
            classes=len(class_names),
        )
        counts = np.bincount(labels[samples], minlength=len(class_names)).tolist()
        return ArraySplit(
            location=PLACE,
            name=name,
            record=SplitRecord(schema, tuple(counts), NO_DIGEST, NO_DIGEST),
            dataset_digest=NO_DIGEST,
            place=PLACE,
            values=values,
            labels=labels,
            samples=samples,
            bias=preparation.bias(values.dtype),
        )

    return Dataset(
        location=PLACE,
        tree=PLACE,
        name=NO_DIGEST,
        class_names=class_names,
        labels=(),
        image_shape=(features,),
        transforms=preparation.names,
        preparation=preparation,
        compression=LZ4,
        sources=(),
        fingerprint={},
        digest=NO_DIGEST,
        splits={name: split(name, samples) for name, samples in splits.items()},
        findings=None,
        statistics=None,
    )
