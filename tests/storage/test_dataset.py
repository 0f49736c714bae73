"""The dataset format: read exactly, by this project and by Zarr, in any process, or refused."""

import json
import multiprocessing
import os
import pickle
import re
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from storage import chunks, local
from storage.chunks import ChunkedArray
from storage.dataset import Block, Dataset, Split, open_dataset
from storage.dataset_writer import ChunkRecord
from storage.errors import BadDataError
from storage.location import Location
from storage.places import open_location
from storage.schema import ELEMENT_TYPES, FORMAT_VERSION, SplitSchema
from tests.storage.artefacts import (
    FINGERPRINT,
    SOURCES,
    assert_holds_its_rows,
    contents,
    create_dataset,
    dataset_schema,
    make_dataset,
    part_numbers,
    part_of,
    rows_of,
    write_part,
    write_parts,
)


@pytest.fixture
def place(tmp_path: Path) -> Location:
    return open_location(tmp_path / "set")


@pytest.fixture
def dataset(dataset_place: Location) -> Dataset:
    """Publish a dataset at `place`."""
    return open_dataset(dataset_place)


@pytest.mark.parametrize("dtype", ELEMENT_TYPES)
@pytest.mark.parametrize(("classes", "chunks_per_shard"), [(3, 1), (0, 2)])
def test_round_trip(place: Location, dtype: str, classes: int, chunks_per_shard: int) -> None:
    """Rows of every element type are read back, with and without labels and shards."""
    schema = dataset_schema(dtype=dtype, classes=classes, chunks_per_shard=chunks_per_shard)
    make_dataset(place, schema)
    opened = open_dataset(place)
    assert_holds_its_rows(opened, schema)
    assert np.dtype(dtype) == opened.split("train").read_chunk(0).inputs.dtype


def test_attributes(place: Location, dataset: Dataset) -> None:
    """Names, shapes, sources and class counts are read back."""
    opened = open_dataset(place)
    assert dataset.digest == opened.digest
    assert ("tiny", ("0", "1", "2"), (2, 3)) == (
        opened.name,
        opened.class_names,
        opened.image_shape,
    )
    assert (tuple(SOURCES), FINGERPRINT) == (opened.sources, opened.fingerprint)
    targets = rows_of("train", opened.split("train").schema).targets
    assert targets is not None
    assert tuple(targets.sum(axis=0)) == opened.split("train").record.class_counts
    with pytest.raises(BadDataError, match="no split 'valid'; it has train, test"):
        opened.split("valid")


def test_the_digest_is_pinned(dataset: Dataset) -> None:
    """The digest is the same on every machine and with every release."""
    expected = "bcfefdf69a9ea6ad68398deabcfa4cc0e64e0a1456bbe227f3eee92ae446b1a4"
    assert expected == dataset.digest


def test_the_digest_depends_on_the_content(tmp_path: Path, dataset: Dataset) -> None:
    """Other rows, chunk sizes, shard sizes or meanings give another digest."""
    others = [
        dataset_schema(test_rows=6),
        dataset_schema(chunk_rows=5),
        dataset_schema(chunks_per_shard=2),
        dataset_schema(dtype="int16"),
    ]
    made = [
        make_dataset(open_location(tmp_path / str(number)), schema).digest
        for number, schema in enumerate(others)
    ]
    assert 5 == len({dataset.digest, *made})


@pytest.mark.parametrize(("threads", "chunks_per_shard"), [(1, 1), (4, 1), (4, 2)])
def test_the_order_of_writing_does_not_matter(
    tmp_path: Path, threads: int, chunks_per_shard: int
) -> None:
    """Parts written backwards and in parallel give the same files and digest."""
    schema = dataset_schema(rows=35, chunks_per_shard=chunks_per_shard)
    expected = make_dataset(open_location(tmp_path / "forwards"), schema)
    target = open_location(tmp_path / "backwards")
    with create_dataset(target, schema) as writer, ThreadPoolExecutor(threads) as pool:
        records: dict[str, list[ChunkRecord]] = {}
        for name in reversed(list(schema.splits)):
            split = writer.split(name)
            written = pool.map(partial(write_part, split), reversed(part_numbers(split)))
            records[name] = [record for part in written for record in part]
        opened = writer.publish(records, SOURCES, FINGERPRINT)
    assert expected.digest == opened.digest
    assert contents(expected.location) == contents(opened.location)


def test_writing_a_part_twice(place: Location) -> None:
    """A part that is written twice, as after a worker's death, has the same records and bytes."""
    with create_dataset(place, dataset_schema()) as writer:
        split = writer.split("train")
        chunks = part_of(split, 1)
        first, again = split.write_part(1, chunks), split.write_part(1, chunks)
    assert first == again


@pytest.mark.parametrize("chunks_per_shard", [1, 2])
def test_a_wrong_encoding_is_detected(
    place: Location, monkeypatch: pytest.MonkeyPatch, chunks_per_shard: int
) -> None:
    """A chunk that memory or the codec changed is detected before it is written."""
    encode = ChunkedArray.encode
    monkeypatch.setattr(
        ChunkedArray, "encode", lambda array, values: encode(array, np.flip(values, axis=0))
    )
    with (
        create_dataset(place, dataset_schema(chunks_per_shard=chunks_per_shard)) as writer,
        pytest.raises(BadDataError, match="possible faulty memory"),
    ):
        split = writer.split("train")
        write_part(split, 0)


def test_a_part_is_written_chunk_by_chunk(place: Location) -> None:
    """Only one chunk of a shard is in memory at a time; too few or too many are refused."""
    alive: list[weakref.ref[Block]] = []
    with create_dataset(place, dataset_schema(chunks_per_shard=2)) as writer:
        split = writer.split("train")
        chunks = part_of(split, 0)

        def one_by_one() -> Iterator[Block]:
            while chunks:
                assert [] == [block for block in alive if block() is not None]
                chunk = chunks.pop(0)
                alive.append(weakref.ref(chunk))
                yield chunk
                del chunk

        assert [0, 1] == [record.number for record in split.write_part(0, one_by_one())]
        for wrong in (part_of(split, 0)[:1], part_of(split, 0) * 2):
            with pytest.raises(ValueError, match="chunks for 8 rows"):
                split.write_part(0, wrong)


def digest_of(split: Split, number: int) -> bytes:
    """Read a chunk, in another process."""
    return split.read_chunk(number).digest()


@pytest.fixture(scope="module")
def other_process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.slow
def test_another_process_writes_and_reads(
    tmp_path: Path, other_process: ProcessPoolExecutor
) -> None:
    """A split's writer and an open split can be pickled and used in another process."""
    schema = dataset_schema(chunks_per_shard=2)
    expected = make_dataset(open_location(tmp_path / "here"), schema)
    with create_dataset(open_location(tmp_path / "elsewhere"), schema) as writer:
        written = write_parts(writer)
        split = writer.split("train")
        for key in split.arrays["inputs"].keys:
            split.arrays["inputs"].location.delete(key)
        parts = [
            other_process.submit(write_part, split, number).result()
            for number in part_numbers(split)
        ]
        written["train"] = [record for part in parts for record in part]
        opened = writer.publish(written, SOURCES, FINGERPRINT)
    assert expected.digest == opened.digest
    train = opened.split("train")
    assert train.read_chunk(2).digest() == other_process.submit(digest_of, train, 2).result()


def test_a_used_split_is_pickled(dataset: Dataset) -> None:
    """A split's pickle stays small after it has read digests and opened arrays."""
    split = dataset.split("train")
    assert len(pickle.dumps(split)) < 5_000
    split.read_chunk(0)
    assert (11, 7) == split.inputs.shape
    copy = pickle.loads(pickle.dumps(split))
    assert split.read_chunk(2).digest() == copy.read_chunk(2).digest()
    assert np.array_equal(split.inputs[:], copy.inputs[:])


def test_chunks_are_read_into_given_arrays(dataset: Dataset) -> None:
    """Chunks that are read into the same arrays have the same values as in new arrays."""
    split = dataset.split("train")
    out = split.empty_chunk()
    for number in (1, split.schema.chunks - 1, 0):
        expected, actual = split.read_chunk(number), split.read_chunk(number, out)
        assert np.shares_memory(out.inputs, actual.inputs)
        assert np.array_equal(expected.inputs, actual.inputs)
        assert actual.targets is not None
        assert expected.targets is not None
        assert np.array_equal(expected.targets, actual.targets)


@pytest.mark.parametrize(("dtype", "chunks_per_shard"), [("uint8", 1), ("uint8", 2), ("int16", 1)])
def test_xarray_reads_by_the_cf_convention(
    place: Location, dtype: str, chunks_per_shard: int
) -> None:
    """Bytes decode to floats in [0, 1], the bias to exactly 1.0; other types are unscaled."""
    schema = dataset_schema(dtype=dtype, chunks_per_shard=chunks_per_shard)
    make_dataset(place, schema)
    with xarray.open_zarr(str(place), group="train", chunks=None) as opened:
        assert ("sample", "feature") == opened["inputs"].dims
        values, targets = opened["inputs"].values, opened["targets"].values
    rows = rows_of("train", schema.splits["train"])
    assert [1.0] == np.unique(values[:, 0]).tolist()
    if dtype == "uint8":
        assert values.dtype.kind == "f"
        assert 0.0 <= values.min() <= values.max() <= 1.0
        values = np.rint(values * 255)
    assert np.array_equal(rows.inputs, values)
    assert rows.targets is not None
    assert np.array_equal(rows.targets, targets)


def test_a_missing_chunk_is_an_error_for_zarr_too(place: Location, dataset: Dataset) -> None:
    """A split's Zarr array raises an error that names the chunk, instead of returning zeros."""
    place.delete("train/inputs/c.1.0")
    with pytest.raises(BadDataError, match=r"train/inputs/c\.1\.0 .*is missing"):
        _ = dataset.split("train").inputs[:]
    with pytest.raises(BadDataError, match=r"Chunk 1 is missing: .*train/inputs/c\.1\.0"):
        dataset.split("train").read_chunk(1)


def test_chunks_that_were_swapped_are_reported(place: Location, dataset: Dataset) -> None:
    """A sound chunk in the place of another one is refused, because its digest differs."""
    place.put("train/inputs/c.0.0", place.get("train/inputs/c.1.0"))
    with pytest.raises(BadDataError, match=r"Chunk 0 \(rows 0..3\) .* recorded digest"):
        dataset.split("train").read_chunk(0)


def test_sound_bytes_are_not_hashed_again(
    place: Location, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are hashed when first read; later, only if the stored bytes differ."""
    hashed: list[Block] = []
    digest = Block.digest
    monkeypatch.setattr(Block, "digest", lambda block: hashed.append(block) or digest(block))
    split = dataset.split("train")
    first = split.read_chunk(0)
    assert first.inputs.tobytes() == split.read_chunk(0).inputs.tobytes()
    assert len(hashed) == 1

    for name in ("inputs", "targets"):
        key = f"train/{name}/c.0.0"
        sound = place.get(key)
        place.put(key, place.get(f"train/{name}/c.1.0"))
        with pytest.raises(BadDataError, match=r"Chunk 0 \(rows 0..3\) .* recorded digest"):
            split.read_chunk(0)
        place.put(key, sound)
        split.read_chunk(0)
    assert len(hashed) == 3


def write_in_place(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def write_beside(path: Path, content: bytes) -> None:
    path.with_name("new").write_bytes(content)
    path.with_name("new").rename(path)


@pytest.mark.parametrize("write", [write_in_place, write_beside])
@pytest.mark.parametrize("name", ["inputs", "targets"])
def test_a_changed_file_is_hashed_again(
    place: Location,
    dataset: Dataset,
    name: str,
    write: Callable[[Path, bytes], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unchanged files are read without SHA-256; other bytes are found, whatever their times say."""
    monkeypatch.setattr(local, "SETTLED_SECONDS", -1.0)
    split, path = dataset.split("train"), place.path / "train" / name / "c.0.0"
    expected = split.read_chunk(0).digest()
    with monkeypatch.context() as patched:
        patched.delattr(chunks.hashlib, "sha256")
        split.read_chunk(0)
    time.sleep(0.02)  # the clock of a file system may advance in such steps
    status, sound = path.stat(), path.read_bytes()
    write(path, path.with_name("c.1.0").read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(BadDataError, match=r"Chunk 0 \(rows 0..3\) .* recorded digest"):
        split.read_chunk(0)
    write(path, sound)
    assert expected == split.read_chunk(0).digest()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"attributes": []}', b"\xff" * 9])
def test_an_invalid_root(place: Location, dataset: Dataset, content: bytes) -> None:
    """For any content of the root's `zarr.json`, opening it ends in exit 3 and names the place."""
    place.put("zarr.json", content)
    with pytest.raises(BadDataError, match=str(place)):
        open_dataset(place)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"sources": []},
        {"fingerprint": {}},
        {"class_names": ["a", "b", "c"]},
        {"image_shape": [3, 2]},
        {"digest": "0" * 64},
        {"metadata_digests": {}},
        {"seal": None},
        {"format_version": FORMAT_VERSION + 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_attribute_is_reported(
    place: Location, dataset: Dataset, change: dict[str, Any]
) -> None:
    """Any change to the root's attributes is detected; a newer format is named."""
    document = json.loads(place.get("zarr.json"))
    document["attributes"] |= change
    place.put("zarr.json", json.dumps(document).encode())
    message = "is damaged: its seal|has format version 4; this release reads up to 3"
    with pytest.raises(BadDataError, match=rf"zarr\.json ({message})"):
        open_dataset(place)


def test_a_file_is_not_a_dataset(place: Location) -> None:
    """A path to a file is reported as not a dataset, not as unreachable."""
    place.path.write_text("x")
    with pytest.raises(BadDataError, match="is not a dataset"):
        open_dataset(place)


def test_an_opened_dataset_is_read_only(dataset: Dataset) -> None:
    """The Zarr arrays of an open dataset are read-only."""
    with pytest.raises(ValueError, match="read-only"):
        dataset.split("train").inputs[0] = 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rows": 0}, "rows is 0; expected an integer from 1"),
        ({"rows": 2.0}, "rows is 2.0; expected an integer"),
        ({"rows": True}, "rows is True; expected an integer"),
        ({"classes": -1}, "classes is -1; expected an integer from 0"),
        ({"dtype": "object"}, "dtype is 'object'"),
        ({"chunks_per_shard": 0}, "chunks_per_shard is 0"),
        ({"features": 2**26}, "bytes, inputs and targets; expected at"),
        ({"chunk_rows": 2**28}, "expected at most 1,073,741,824. Use fewer rows per chunk."),
    ],
)
def test_an_invalid_schema(fields: dict[str, Any], words: str) -> None:
    """Claimed sizes are checked before anything is allocated for them."""
    with pytest.raises(BadDataError, match=re.escape(words)):
        SplitSchema(**vars(dataset_schema().splits["train"]) | fields)


def test_mnist_has_thirty_chunks_and_a_large_dataset_has_shards() -> None:
    """By default, a chunk has 2,000 rows of MNIST; more than 1,000 chunks are sharded."""
    plan = partial(SplitSchema.plan, features=784, dtype="uint8", classes=10)
    mnist = plan(rows=60_000)
    assert (2000, 30, 1) == (mnist.chunk_rows, mnist.chunks, mnist.chunks_per_shard)
    assert 8 == plan(rows=10_000_000).chunks_per_shard
    assert 5 == plan(rows=5).chunk_rows


def test_a_dataset_with_a_damaged_root_can_be_replaced(place: Location, dataset: Dataset) -> None:
    """`overwrite` recognises a dataset even if its root `zarr.json` is cut off."""
    place.put("zarr.json", place.get("zarr.json")[:-40])
    with pytest.raises(BadDataError):
        open_dataset(place)
    assert dataset.digest == make_dataset(place, overwrite=True).digest
