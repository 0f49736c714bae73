"""ChunkedArray reads and writes the same bytes as Zarr, and detects damage."""

import itertools
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from numcodecs.zstd import Zstd
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from storage import chunks, documents, trees
from storage.chunks import ChunkedArray, array_metadata
from storage.dataset import Split, open_dataset
from storage.errors import BadDataError
from storage.location import Location, Version
from storage.places import open_location
from storage.schema import COMPRESSIONS, ELEMENT_TYPES, LZ4, ZSTD
from storage.trees import group_metadata
from tests.storage.artefacts import assert_holds_its_rows, dataset_schema, make_dataset

ATTRIBUTES = {"scale_factor": 1 / 255, "name": "Ziffern 数字"}
DAMAGED = r"Chunk 1 in .* is damaged"


@pytest.fixture
def place(tmp_path: Path) -> Location:
    return open_location(tmp_path / "set")


@pytest.fixture(params=[LZ4, ZSTD])
def sharded(place: Location, request: pytest.FixtureRequest) -> ChunkedArray:
    """Return a reader of 19 rows in 5 chunks, in shards of 3."""
    split = make_split(place, rows=19, chunks_per_shard=3, compression=request.param)
    return split.arrays["inputs"]


def make_split(place: Location, **fields: Any) -> Split:
    """Return the training split of a dataset in chunks of four rows."""
    return make_dataset(place, dataset_schema(**fields)).split("train")


def with_checksum(chunk: bytes) -> bytes:
    return chunk + google_crc32c.value(chunk).to_bytes(4, "little")


def compressor(compression: str, dtype: str) -> Any:
    """Return Zarr's own codec."""
    itemsize = np.dtype(dtype).itemsize
    if compression == ZSTD:
        return ZstdCodec(level=1, checksum=True)
    shuffle = "noshuffle" if itemsize == 1 else "shuffle"
    level = {"lz4": 9, "lz4hc": 5}[compression]
    return BloscCodec(cname=compression, clevel=level, shuffle=shuffle, typesize=itemsize)


SHAPES = [(11, 1, 7), (12, 1, None), (19, 3, 7), (24, 3, 7), (3, 3, 7)]
"""Rows, chunks of four rows in a shard, and columns (None for one dimension)."""
TYPES = itertools.product([*ELEMENT_TYPES, "int64"], COMPRESSIONS)


@pytest.mark.parametrize(
    ("dtype", "compression", "rows", "per_shard", "columns"),
    [(*types, *shape) for types, shape in zip(TYPES, itertools.cycle(SHAPES), strict=False)],
)
def test_zarr_writes_and_reads_the_same(
    tmp_path: Path, dtype: str, compression: str, rows: int, per_shard: int, columns: int | None
) -> None:
    """Every document and object is the same, with and without shards and a short last chunk."""
    shape = (rows,) if columns is None else (rows, columns)
    dimensions = ("sample", "feature")[: len(shape)]
    theirs = zarr.create_array(
        str(tmp_path / "theirs"),
        shape=shape,
        dtype=dtype,
        chunks=(4, *shape[1:]),
        shards=(4 * per_shard, *shape[1:]) if per_shard > 1 else None,
        compressors=[compressor(compression, dtype), Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=dimensions,
        attributes=ATTRIBUTES,
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    values = (np.arange(rows * (columns or 1)) * 37 % 101).astype(dtype).reshape(shape)
    theirs[:] = values
    place = open_location(tmp_path / "ours")
    ours = ChunkedArray(place, rows, columns or 1, dtype, 4, dimensions, per_shard, compression)
    values = values.reshape(rows, -1)
    for number, start in enumerate(range(0, rows, ours.rows_per_object)):
        ours.write(number, values[start : start + ours.rows_per_object])
    assert ours.keys == place.names()
    for key in ours.keys:
        assert (tmp_path / "theirs" / key).read_bytes() == place.get(key), key
    chunks = [ours.read(number) for number in range(-(-rows // 4))]
    assert values.dtype == chunks[0].dtype
    assert values.tobytes() == np.concatenate(chunks).tobytes()
    expected = json.loads((tmp_path / "theirs" / "zarr.json").read_text())
    document = array_metadata(ours) | {"attributes": ATTRIBUTES}
    assert expected == json.loads(json.dumps(document))
    assert list(expected) == list(document)


def test_a_group() -> None:
    """The `zarr.json` is the one that Zarr writes."""
    written: dict[str, Any] = {}
    zarr.create_group(MemoryStore(written), attributes=ATTRIBUTES)
    assert json.loads(written["zarr.json"].to_bytes()) == group_metadata(ATTRIBUTES)


def test_refuses_another_shape(sharded: ChunkedArray) -> None:
    """An array that is not all rows of the chunk or shard is refused."""
    for shape in ((11, 7), (13, 7), (12, 6)):
        with pytest.raises(ValueError, match="rows of"):
            sharded.write(0, np.zeros(shape, "uint8"))


def test_compression_is_recognised_from_the_chunk(place: Location) -> None:
    """A chunk is decoded by its own first bytes, not by the array's compression for new chunks."""
    split = make_split(place, dtype="float32")
    expected = split.read_chunk(1).inputs
    stored = set()
    for compression in COMPRESSIONS:
        array = replace(split.arrays["inputs"], compression=compression)
        array.write(1, expected)
        stored.add(array.location.get("c.1.0"))
        assert expected.tobytes() == split.read_chunk(1).inputs.tobytes()
    assert len(stored) > 1


@pytest.mark.parametrize("number", [0, 4])
def test_a_missing_object_is_named(sharded: ChunkedArray, number: int) -> None:
    """An error names the chunk and its object, where Zarr would return zeros."""
    key = f"c.{number // 3}.0"
    sharded.location.delete(key)
    with pytest.raises(BadDataError, match=f"Chunk {number} is missing: there is no .*{key}"):
        sharded.read(number)


def test_a_short_object_is_damaged(place: Location) -> None:
    """An object that was cut off anywhere, or replaced by zeros, is refused."""
    reader = make_split(place).arrays["inputs"]
    whole = reader.location.get("c.1.0")
    cut = [whole[:length] for length in range(len(whole))]
    for content in (*cut, bytes(4), bytes(8), bytes(100)):
        reader.location.put("c.1.0", content)
        with pytest.raises(BadDataError, match=DAMAGED):
            reader.read(1)


def test_a_header_that_is_cut_off_is_damaged(place: Location) -> None:
    """Bytes that are too short for a header are refused, although the CRC-32C is right."""
    reader = make_split(place).arrays["inputs"]
    header = reader.location.get("c.1.0")[:16]
    for length in range(1, 17):
        reader.location.put("c.1.0", with_checksum(header[:length]))
        with pytest.raises(BadDataError, match=DAMAGED):
            reader.read(1)


def test_flipped_bits_of_a_shard(sharded: ChunkedArray) -> None:
    """Each flipped bit of a shard, or of its index, is detected by a new reader."""
    whole = sharded.location.get("c.0.0")
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        sharded.location.path.joinpath("c.0.0").write_bytes(damaged)
        with pytest.raises(BadDataError, match=r"c\.0\.0 is damaged"):
            [replace(sharded, _indexes={}).read(number) for number in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_random_damage(place: Location, compression: str) -> None:
    """Random changes with a matching CRC-32C are refused, or decode to the same rows."""
    split = make_split(place, dtype="int32", rows=400, compression=compression)
    array, expected = split.arrays["inputs"], split.read_chunk(1).inputs.tobytes()
    whole = array.location.get("c.1.0")[:-4]
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        chunk = bytearray(whole)
        for at in random.integers(0, len(chunk), 3):
            chunk[at] = random.integers(256)
        array.location.put("c.1.0", with_checksum(bytes(chunk)))
        try:
            assert expected == split.read_chunk(1).inputs.tobytes()
        except BadDataError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        *(
            (at, value, "it is neither a Zstandard frame nor LZ4")
            for at, value in ((0, 3), (1, 2), (2, 0x21), (2, 0x24), (2, 0x80), (3, 0x10))
        ),
        (4, 29, "claims 29 bytes"),
        (4, 27, "claims 27 bytes"),
        (12, 2**31 - 1, "in 2147483647, by blocks of 28; expected 28 in"),
        (8, 2**31 - 1, "blosc decompression"),
        (8, 0, "by blocks of 0"),
    ],
)
def test_a_header_with_wrong_sizes(place: Location, at: int, value: int, message: str) -> None:
    """Wrong sizes in a header are refused, although the CRC-32C is right."""
    reader = make_split(place).arrays["inputs"]
    chunk = bytearray(reader.location.get("c.1.0")[:-4])
    size = 1 if at < 4 else 4
    chunk[at : at + size] = value.to_bytes(size, "little")
    reader.location.put("c.1.0", with_checksum(bytes(chunk)))
    with pytest.raises(BadDataError, match=f"{DAMAGED} .*{message}"):
        reader.read(1)


def test_a_block_size_that_does_not_divide(place: Location) -> None:
    """A block size that is not whole elements is refused: Blosc would leave bytes unset."""
    reader = make_split(place, dtype="float32").arrays["inputs"]
    chunk = bytearray(reader.location.get("c.1.0")[:-4])
    chunk[8] -= 1
    reader.location.put("c.1.0", with_checksum(bytes(chunk)))
    with pytest.raises(BadDataError, match="by blocks of 111; expected 112 in"):
        reader.read(1)


@pytest.mark.parametrize("rows", [0, 3, 8])
def test_a_frame_of_another_size(place: Location, rows: int) -> None:
    """A shorter chunk decoded into a buffer that still has the full rows would seem complete."""
    split = make_split(place, compression=ZSTD)
    out = split.empty_chunk()
    inputs = split.read_chunk(1, out).inputs
    frame = Zstd(1, checksum=True).encode(np.resize(inputs, (rows, inputs.shape[1])))
    place.put("train/inputs/c.1.0", with_checksum(frame))
    with pytest.raises(BadDataError, match=rf"Chunk 1 .* claims {7 * rows} bytes; expected 28"):
        split.read_chunk(1, out)


@pytest.mark.parametrize("size", [1, 200, 255, 256, 300, 65_791, 65_792, 70_000, 2**20])
def test_zstandard_of_any_size(size: int) -> None:
    """A frame's size may take one, two or four bytes, with and without a window descriptor."""
    values = np.arange(size, dtype=np.uint8)
    for level in (1, 19):
        out = np.zeros_like(values)
        chunks.decode(memoryview(Zstd(level).encode(values)), out)
        assert values.tobytes() == out.tobytes()
        for other in (size - 1, size + 1):
            with pytest.raises(ValueError, match=f"{size} bytes; expected {other}"):
                chunks.decode(memoryview(Zstd(level).encode(values)), np.zeros(other, np.uint8))


def test_a_shard_index_is_read_once(sharded: ChunkedArray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading all chunks of a shard reads each byte once; the index is not pickled."""
    read = 0
    get = type(sharded.location).get_with_version

    def counted(location: Location, *arguments: Any) -> tuple[bytes, Version | None]:
        nonlocal read
        data, version = get(location, *arguments)
        read += len(data)
        return data, version

    stored = sharded.location.size("c.0.0")
    small = len(pickle.dumps(sharded))
    monkeypatch.setattr(type(sharded.location), "get_with_version", counted)
    for number in range(3):
        sharded.read(number)
    assert stored == read
    assert small == len(pickle.dumps(sharded))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((2**64 - 1, 2**64 - 1), "points past the end"),
        ((0, 2**63), "points past the end"),
        ((2**40, 8), "points past the end"),
        ((5000, 8), "it has 0 bytes"),
    ],
)
def test_a_shard_index_that_points_outside_is_refused(
    sharded: ChunkedArray, entry: tuple[int, int], message: str
) -> None:
    """An index with a valid checksum and a wrong offset causes no allocation and no read."""
    whole = sharded.location.get("c.0.0")
    index = bytearray(whole[-(3 * 16 + 4) : -4])
    index[16:32] = np.array(entry, "<u8").tobytes()
    sharded.location.put("c.0.0", whole[: -(3 * 16 + 4)] + with_checksum(bytes(index)))
    with pytest.raises(BadDataError, match=f"{DAMAGED} .*{message}"):
        sharded.read(1)


def test_far_too_few_files(sharded: ChunkedArray) -> None:
    """If there are far fewer files than the metadata claims, no chunk is read."""
    sharded.check_claim()
    with pytest.raises(BadDataError, match=r"inputs holds 3 files; its .* rows should fill"):
        replace(sharded, rows=2**47).check_claim()


def test_a_file_that_is_too_long_is_not_read_whole(place: Location) -> None:
    """No more than the longest possible chunk is read from a file of a terabyte."""
    reader = make_split(place).arrays["inputs"]
    os.truncate(place.path / "train" / "inputs" / "c.1.0", 2**40)
    with pytest.raises(BadDataError, match=rf"{DAMAGED} \(its CRC-32C"):
        reader.read(1)


def reseal(place: Location, **attributes: Any) -> None:
    """Change attributes of a dataset's root, and seal it."""
    document = json.loads(place.get("zarr.json"))
    del document["attributes"]["seal"]
    changed = document["attributes"] | attributes
    document["attributes"] = {key: value for key, value in changed.items() if value != "gone"}
    place.put("zarr.json", documents.document_bytes(trees.seal_group(document)))


def test_a_dataset_of_the_first_version_is_read(place: Location) -> None:
    """A version 1 dataset does not record its compression, Zstandard; its digest is the same."""
    schema = dataset_schema(compression=ZSTD)
    expected = make_dataset(place, schema).digest
    reseal(place, compression="gone", format_version=1)
    opened = open_dataset(place)
    assert (expected, ZSTD) == (opened.digest, opened.compression)
    assert_holds_its_rows(opened, schema)


@pytest.mark.parametrize("compression", ["gzip", None, []])
def test_an_unknown_compression_is_refused(place: Location, compression: Any) -> None:
    """A sealed root with an unknown compression is refused."""
    make_dataset(place)
    reseal(place, compression=compression)
    with pytest.raises(BadDataError, match="do not fit 'mnist-stream dataset'"):
        open_dataset(place)


def test_the_digest_does_not_depend_on_the_compression(tmp_path: Path) -> None:
    """The same rows have the same digest with any compression."""
    digests = {
        make_dataset(open_location(tmp_path / name), dataset_schema(compression=name)).digest
        for name in COMPRESSIONS
    }
    assert len(digests) == 1
