"""Which rows a training visits, told so that any worker finds them."""

from jobs.config import TrainConfig
from pipeline.rows import OrderedRows
from pipeline.stream import chunks_per_window
from storage.dataset import Dataset


def ordered_rows(config: TrainConfig, dataset: Dataset) -> OrderedRows:
    """The rows that a training visits, for workers to find."""
    schema = dataset.split("train").schema
    return OrderedRows(
        dataset=dataset.location.absolute(),
        dataset_digest=dataset.digest,
        split="train",
        seed=config.seed,
        rows=schema.rows - config.holdout,
        shuffle=config.shuffle,
        window_chunks=chunks_per_window(schema, config.shuffle_memory, config.shuffle),
        epochs=config.epochs,
    )
