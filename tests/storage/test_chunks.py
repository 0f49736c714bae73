"""ChunkedArray: what it reads is what Zarr reads, and what is damaged does not pass."""

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from zarr.codecs import ZstdCodec

from storage.chunks import ChunkedArray
from storage.dataset import Split
from storage.errors import BadDataError
from storage.location import Location
from storage.places import open_location
from storage.schema import COMPRESSIONS, ELEMENT_TYPES, LZ4, ZSTD
from tests.storage.artefacts import dataset_schema, make_dataset, rows_of


def make_split(
    path: Path,
    dtype: str = "uint8",
    rows: int = 11,
    chunks_per_shard: int = 1,
    compression: str = LZ4,
) -> Split:
    """The training split of a dataset in chunks of four rows."""
    schema = dataset_schema(
        dtype=dtype, rows=rows, chunks_per_shard=chunks_per_shard, compression=compression
    )
    return make_dataset(open_location(path), schema).split("train")


@pytest.fixture(params=[LZ4, ZSTD])
def sharded(tmp_path: Path, request: pytest.FixtureRequest) -> ChunkedArray:
    """A reader of 19 rows in 5 chunks, in shards of 3."""
    split = make_split(tmp_path / "set", rows=19, chunks_per_shard=3, compression=request.param)
    return split.arrays["inputs"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(
    ("dtype", "rows", "chunks_per_shard"),
    [
        *((dtype, 11, 1) for dtype in ELEMENT_TYPES),
        *((dtype, 11, 2) for dtype in ("uint8", "float64")),
        *(("uint8", rows, chunks_per_shard) for rows in (12, 3) for chunks_per_shard in (1, 3)),
    ],
)
def test_every_chunk_is_what_zarr_reads(
    tmp_path: Path, dtype: str, rows: int, chunks_per_shard: int, compression: str
) -> None:
    """All arrays of a split, plain and in shards, the last chunk short or whole."""
    split = make_split(tmp_path / "set", dtype, rows, chunks_per_shard, compression)
    assert {"inputs", "targets", "chunk_digests", "chunk_class_counts"} == split.arrays.keys()
    for name, reader in split.arrays.items():
        array = zarr.open_array(str(reader.location), mode="r")
        assert (array.shape, array.dtype) == (reader.shape, np.dtype(reader.dtype))
        for start in range(0, reader.rows, reader.chunk_rows):
            expected = np.asarray(array[start : start + reader.chunk_rows])
            found = reader.read(start // reader.chunk_rows)
            assert (expected.dtype, expected.shape) == (found.dtype, found.shape), name
            assert expected.tobytes() == found.tobytes(), name


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", ELEMENT_TYPES)
@pytest.mark.parametrize(("rows", "chunks_per_shard"), [(11, 1), (12, 1), (19, 3), (24, 3)])
def test_writes_the_bytes_that_zarr_writes(
    tmp_path: Path, dtype: str, rows: int, chunks_per_shard: int, compression: str
) -> None:
    """Every object of a split, plain or a shard, is what Zarr makes of the same array."""
    split = make_split(tmp_path / "set", dtype, rows, chunks_per_shard, compression)
    for name in ("inputs", "targets"):
        array = split.arrays[name]
        ours = zarr.open_array(str(array.location), mode="r")
        theirs = zarr.create_array(
            str(tmp_path / name),
            shape=ours.shape,
            dtype=ours.dtype,
            chunks=ours.chunks,
            shards=ours.shards,
            compressors=ours.compressors,
            chunk_key_encoding={"name": "default", "separator": "."},
            fill_value=0,
            config={"write_empty_chunks": True},
        )
        theirs[:] = ours[:]
        for key in array.keys:
            assert (tmp_path / name / key).read_bytes() == array.location.get(key), (name, key)


def test_refuses_another_shape(sharded: ChunkedArray) -> None:
    """What is not all rows of the chunk or shard is not written."""
    for shape in ((11, 7), (13, 7), (12, 6)):
        with pytest.raises(ValueError, match="rows of"):
            sharded.write(0, np.zeros(shape, "uint8"))


def test_the_keys_are_the_objects_that_zarr_wrote(tmp_path: Path) -> None:
    """`keys` names each chunk's object, or each shard's, and nothing else but metadata is there."""
    plain = make_split(tmp_path / "plain", rows=19).arrays["inputs"]
    sharded = make_split(tmp_path / "sharded", rows=19, chunks_per_shard=3).arrays["inputs"]
    assert ["c.0.0", "c.1.0", "c.2.0", "c.3.0", "c.4.0"] == plain.keys
    assert ["c.0.0", "c.1.0"] == sharded.keys
    assert [*plain.keys, "zarr.json"] == plain.location.names()
    assert [*sharded.keys, "zarr.json"] == sharded.location.names()


@pytest.mark.parametrize("number", [0, 4])
def test_a_missing_object_is_named(sharded: ChunkedArray, number: int) -> None:
    """Where Zarr would give zeros, the chunk and its object are named."""
    key = f"c.{number // 3}.0"
    sharded.location.delete(key)
    with pytest.raises(BadDataError, match=f"Chunk {number} is missing: there is no .*{key}"):
        sharded.read(number)


def test_a_short_object_is_damaged(tmp_path: Path) -> None:
    """An object that was cut off anywhere, to nothing too, is no chunk."""
    reader = make_split(tmp_path / "set").arrays["inputs"]
    whole = reader.location.get("c.1.0")
    for length in range(len(whole)):
        reader.location.put("c.1.0", whole[:length])
        with pytest.raises(BadDataError, match=r"Chunk 1 in .*c\.1\.0 is damaged"):
            reader.read(1)


def test_an_object_of_zeros_is_damaged(tmp_path: Path) -> None:
    """Zeros, as a lost write leaves them, have a CRC-32C of zero only when there are none."""
    reader = make_split(tmp_path / "set").arrays["inputs"]
    for length in (4, 8, 100):
        reader.location.put("c.0.0", bytes(length))
        with pytest.raises(BadDataError, match="Chunk 0"):
            reader.read(0)


def test_no_bit_of_a_shard_flips_unseen(sharded: ChunkedArray) -> None:
    """Each flipped bit of a shard, its index too, is found by whoever opens it and reads."""
    whole = sharded.location.get("c.0.0")
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        sharded.location.path.joinpath("c.0.0").write_bytes(damaged)
        with pytest.raises(BadDataError, match=r"c\.0\.0 is damaged"):
            [replace(sharded, _indexes={}).read(number) for number in range(3)]


def test_a_shard_index_is_read_once(sharded: ChunkedArray, monkeypatch: pytest.MonkeyPatch) -> None:
    """To read all chunks of a shard reads each of its bytes once, and pickles without them."""
    read = 0
    get = type(sharded.location).get

    def counted(location: Location, *arguments: Any) -> bytes:
        nonlocal read
        data = get(location, *arguments)
        read += len(data)
        return data

    stored = sharded.location.size("c.0.0")
    small = len(pickle.dumps(sharded))
    monkeypatch.setattr(type(sharded.location), "get", counted)
    for number in range(3):
        sharded.read(number)
    assert stored == read
    assert small == len(pickle.dumps(sharded))


@pytest.mark.parametrize("entry", [(2**64 - 1, 2**64 - 1), (0, 2**63), (2**40, 8)])
def test_a_shard_index_that_points_outside_is_refused(
    sharded: ChunkedArray, entry: tuple[int, int]
) -> None:
    """An index with a right checksum and a wrong place in it allocates and reads nothing."""
    whole = sharded.location.get("c.0.0")
    index = bytearray(whole[-(3 * 16 + 4) : -4])
    index[16:32] = np.array(entry, "<u8").tobytes()
    checksum = google_crc32c.value(bytes(index)).to_bytes(4, "little")
    sharded.location.put("c.0.0", whole[: -(3 * 16 + 4)] + bytes(index) + checksum)
    with pytest.raises(BadDataError, match="points past the end of the shard"):
        sharded.read(1)


def test_a_chunk_that_decodes_to_more_than_its_rows_is_refused(tmp_path: Path) -> None:
    """The memory is of the size that the schema gives; a larger frame does not fit and is told."""
    large = zarr.create_array(
        str(tmp_path / "large"),
        shape=(8, 7),
        chunks=(8, 7),
        dtype="uint8",
        compressors=[ZstdCodec(checksum=True), zarr.codecs.Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    large[:] = rows_of("large", dataset_schema().splits["train"]).inputs[:8]
    reader = ChunkedArray(open_location(tmp_path / "large"), 4, 7, "uint8", 4)
    with pytest.raises(BadDataError, match="Chunk 0"):
        reader.read(0)


def test_chunks_without_number_are_a_claim(sharded: ChunkedArray) -> None:
    """Where there are far fewer files than chunks are claimed, that is told before any is read."""
    sharded.check_claim()
    with pytest.raises(BadDataError, match=r"inputs holds 3 files; its .* rows should fill"):
        replace(sharded, rows=2**47).check_claim()


def test_a_file_that_is_too_long_is_not_read_whole(tmp_path: Path) -> None:
    """No more than the longest chunk is read of a file that says to have a terabyte."""
    reader = make_split(tmp_path / "set").arrays["inputs"]
    os.truncate(tmp_path / "set" / "train" / "inputs" / "c.1.0", 2**40)
    with pytest.raises(BadDataError, match=r"Chunk 1 in .* is damaged \(its CRC-32C"):
        reader.read(1)
