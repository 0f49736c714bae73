"""Small datasets, runs and scores for the tests of `storage`, identical at every call."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from storage.checkpoints import CheckpointName, Tensors, save_checkpoint
from storage.dataset import Block, Dataset, Split
from storage.dataset_writer import (
    ChunkRecord,
    DatasetWriter,
    SplitWriter,
    dataset_lock,
    stage_dataset,
)
from storage.location import Location
from storage.preparation import BYTES, Preparation
from storage.runs import SCORES, Run, create_run
from storage.schema import LZ4, DatasetSchema, SplitSchema
from storage.scores import Scores, ScoresSchema, ScoresWriter, score_into

REPOSITORY = Path(__file__).parents[2]
MODEL_DIGEST = "d" * 64
SOURCES = [{"split": "train", "name": "train-images", "decoded_sha256": "5" * 64}]
FINGERPRINT = {"kind": "test", "seed": 1}


def split_schema(rows: int = 11, **fields: Any) -> SplitSchema:
    """Return a split of few rows in chunks of four; the last chunk is short."""
    tiny = SplitSchema(rows, features=6, dtype="uint8", classes=3, chunk_rows=4, chunks_per_shard=1)
    return replace(tiny, **fields)


def dataset_schema(*, test_rows: int = 5, compression: str = LZ4, **fields: Any) -> DatasetSchema:
    """Return a dataset with 11 training rows and some test rows."""
    train = split_schema(**fields)
    scaling = BYTES if train.dtype == "uint8" else None
    return DatasetSchema(
        name="tiny",
        class_names=("0", "1", "2") if train.classes else (),
        image_shape=(2, 3),
        transforms=Preparation(scaling).names,
        splits={"train": train, "test": split_schema(**fields | {"rows": test_rows})},
        compression=compression,
    )


def rows_of(name: str, split: SplitSchema) -> Block:
    """Return all rows of a split, which follow from its name, bias column included."""
    first = sum(name.encode())
    counted = (first + 37 * np.arange(split.rows * split.columns)) % 100
    values = counted.reshape(split.rows, split.columns).astype(split.dtype)
    values[:, 0] = 255 if split.dtype == "uint8" else 1
    if not split.classes:
        return Block(values, None)
    labels = (first + np.arange(split.rows) ** 2) % split.classes
    return Block(values, np.eye(split.classes, dtype=np.uint8)[labels])


def part_of(writer: SplitWriter, number: int) -> list[Block]:
    """Return the chunks of part `number`."""
    return part_chunks(rows_of(writer.name, writer.schema), writer, number)


def part_chunks(rows: Block, writer: SplitWriter, number: int) -> list[Block]:
    """Return the chunks of part `number`, cut from all rows of a split."""
    end = min((number + 1) * writer.part_rows, writer.schema.rows)
    chunks = [
        slice(start, min(start + writer.schema.chunk_rows, end))
        for start in range(number * writer.part_rows, end, writer.schema.chunk_rows)
    ]
    return [
        Block(rows.inputs[chunk], None if rows.targets is None else rows.targets[chunk])
        for chunk in chunks
    ]


def part_numbers(writer: SplitWriter) -> range:
    return range(-(-writer.schema.rows // writer.part_rows))


@contextmanager
def create_dataset(
    target: Location, schema: DatasetSchema, *, overwrite: bool = False
) -> Iterator[DatasetWriter]:
    """Yield a writer of a dataset, under the lock of `target`."""
    with (
        dataset_lock(target) as locked,
        stage_dataset(locked, schema, overwrite=overwrite) as writer,
    ):
        yield writer


def make_dataset(
    location: Location, schema: DatasetSchema | None = None, *, overwrite: bool = False
) -> Dataset:
    """Write and publish a dataset."""
    with create_dataset(location, schema or dataset_schema(), overwrite=overwrite) as writer:
        return write_dataset(writer)


def write_part(writer: SplitWriter, number: int) -> list[ChunkRecord]:
    return writer.write_part(number, part_of(writer, number))


def write_parts(writer: DatasetWriter) -> dict[str, list[ChunkRecord]]:
    """Write every part of a dataset; return the records of its chunks."""
    splits = {name: writer.split(name) for name in writer.schema.splits}
    return {
        name: [record for number in part_numbers(split) for record in write_part(split, number)]
        for name, split in splits.items()
    }


def write_dataset(writer: DatasetWriter) -> Dataset:
    """Write all rows of a dataset and publish it."""
    return writer.publish(write_parts(writer), SOURCES, FINGERPRINT)


def stored_rows(split: Split) -> Block:
    """Return all rows of a split, read chunk by chunk."""
    blocks = [split.read_chunk(number) for number in range(split.schema.chunks)]
    targets = [block.targets for block in blocks if block.targets is not None]
    return Block(
        np.concatenate([block.inputs for block in blocks]),
        np.concatenate(targets) if targets else None,
    )


def assert_holds_its_rows(dataset: Dataset, schema: DatasetSchema) -> None:
    """Assert that a dataset is what `make_dataset` writes for a schema."""
    assert schema.splits == {name: split.schema for name, split in dataset.splits.items()}
    for name, split in dataset.splits.items():
        assert rows_of(name, split.schema).digest() == stored_rows(split).digest()


def contents(location: Location) -> dict[str, bytes]:
    """Return every object below a location, by key."""
    return {key: location.get(key) for key in location.objects()}


def metrics_line(epoch: int) -> dict[str, Any]:
    """Return the metrics of an epoch, counted from 1."""
    return {"epoch": epoch, "loss": 1 / epoch, "order_digest": f"{epoch:064x}"}


def tensors_of(epoch: int) -> Tensors:
    """Return a tiny network's parameters and optimizer state, different in each epoch."""
    generator = np.random.default_rng(epoch)
    return {
        "layer.0": generator.normal(size=(7, 3)).astype(np.float32),
        "optimizer.velocity": generator.normal(size=21).astype(np.float32),
    }


def begin_run(location: Location, dataset_digest: str = "0" * 64) -> Run:
    """Create a run without epochs."""
    return create_run(
        location,
        configuration={"network": "6-3", "epochs": 3, "learning_rate": 0.1},
        dataset_digest=dataset_digest,
        dataset={"class_names": ["0", "1", "2"], "transforms": ["bias-column"]},
        versions={"order": 1, "step": 1},
        environment={"numpy": "2"},
    )


def save_epoch(run: Run, epoch: int, metrics: list[dict[str, Any]] | None = None) -> CheckpointName:
    """Save the checkpoint of an epoch, counted from 1, with the metrics up to it."""
    name = CheckpointName(epoch, 0)
    save_checkpoint(
        run,
        name,
        tensors_of(epoch),
        parameters_digest=f"{epoch:064x}",
        config_digest="c" * 64,
        progress={"metrics": metrics or [metrics_line(number) for number in range(1, epoch + 1)]},
    )
    return name


def make_run(location: Location, dataset_digest: str = "0" * 64, epochs: int = 3) -> Run:
    """Create a run with a line of metrics and a checkpoint for each epoch."""
    run = begin_run(location, dataset_digest)
    for epoch in range(1, epochs + 1):
        run.append_metrics(metrics_line(epoch))
        save_epoch(run, epoch)
    return run


def scores_schema(rows: int = 5, split: str = "test", **fields: Any) -> ScoresSchema:
    """Return the schema of few rows in chunks of two; the last chunk is short."""
    tiny = ScoresSchema(MODEL_DIGEST, "0" * 64, split, rows, 3, 2, ("0", "1", "2"))
    return replace(tiny, **fields)


def write_scores(writer: ScoresWriter, numbers: Sequence[int]) -> None:
    """Write some chunks of scores, with values that follow from their number."""
    for number in numbers:
        start, stop = writer.schema.chunk_bounds(number)
        generator = np.random.default_rng([number, len(writer.schema.split)])
        probabilities = generator.random((stop - start, writer.schema.classes), np.float32)
        writer.write_chunk(number, probabilities, probabilities.argmax(axis=1).astype(np.int32))


def make_scores(place: Location, schema: ScoresSchema | None = None) -> Scores:
    """Publish scores below `place`, which is a run's directory."""
    schema = schema or scores_schema()
    with score_into(place.child(f"{SCORES}/{schema.home}"), schema) as writer:
        write_scores(writer, writer.missing)
        return writer.publish({"rows": schema.rows, "accuracy": 0.5})
