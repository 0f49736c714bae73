"""Compression of chunks: any is read without being told, and what is damaged does not pass."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from numcodecs.zstd import Zstd

from storage import chunks, documents
from storage.dataset import Split, open_dataset
from storage.errors import BadDataError
from storage.location import Location
from storage.places import open_location
from storage.schema import COMPRESSIONS, ZSTD
from tests.storage.artefacts import assert_holds_its_rows, dataset_schema, make_dataset


@pytest.fixture
def place(tmp_path: Path) -> Location:
    return open_location(tmp_path / "set")


def make_split(place: Location, **fields: Any) -> Split:
    """The training split of a dataset in chunks of four rows."""
    return make_dataset(place, dataset_schema(**fields)).split("train")


def with_checksum(chunk: bytes) -> bytes:
    """A chunk with its CRC-32C."""
    return chunk + google_crc32c.value(chunk).to_bytes(4, "little")


def test_whoever_reads_need_not_be_told(place: Location) -> None:
    """A chunk says itself how it is compressed, whatever the reader would write."""
    split = make_split(place, dtype="float32")
    expected = split.read_chunk(1).inputs
    chunks = set()
    for compression in COMPRESSIONS:
        array = replace(split.arrays["inputs"], compression=compression)
        array.write(1, expected)
        chunks.add(array.location.get("c.1.0"))
        assert expected.tobytes() == split.read_chunk(1).inputs.tobytes()
    assert len(chunks) > 1


@pytest.mark.parametrize(
    ("at", "value", "told"),
    [
        (0, b"\x03", "it is neither Zstandard nor LZ4"),
        (1, b"\x02", "it is neither Zstandard nor LZ4"),
        (2, b"\x21", "it is neither Zstandard nor LZ4"),
        (2, b"\x24", "it is neither Zstandard nor LZ4"),
        (2, b"\x80", "it is neither Zstandard nor LZ4"),
        (3, b"\x10", "it is neither Zstandard nor LZ4"),
        (4, b"\x1d\0\0\0", "claims 29 bytes"),
        (4, b"\x1b\0\0\0", "claims 27 bytes"),
        (12, b"\xff\xff\xff\x7f", "in 2147483647, by blocks of 28; expected 28 in"),
        (8, b"\xff\xff\xff\x7f", "blosc decompression"),
        (8, bytes(4), "by blocks of 0"),
    ],
)
def test_a_header_that_lies_is_not_believed(
    place: Location, at: int, value: bytes, told: str
) -> None:
    """Lengths that are not the chunk's are told, though the CRC-32C is right."""
    reader = make_split(place).arrays["inputs"]
    chunk = bytearray(reader.location.get("c.1.0")[:-4])
    chunk[at : at + len(value)] = value
    reader.location.put("c.1.0", with_checksum(bytes(chunk)))
    with pytest.raises(BadDataError, match=f"Chunk 1 in .* is damaged .*{told}"):
        reader.read(1)


def test_a_block_that_does_not_divide_is_not_believed(place: Location) -> None:
    """It would leave the rest of the block as it was."""
    reader = make_split(place, dtype="float32").arrays["inputs"]
    chunk = bytearray(reader.location.get("c.1.0")[:-4])
    chunk[8] -= 1
    reader.location.put("c.1.0", with_checksum(bytes(chunk)))
    with pytest.raises(BadDataError, match="by blocks of 111; expected 112 in"):
        reader.read(1)


@pytest.mark.parametrize("rows", [0, 3, 8])
def test_a_frame_of_another_size_is_no_chunk(place: Location, rows: int) -> None:
    """Decoded into the rows of the very chunk, a shorter one would pass for all of them."""
    split = make_split(place, compression=ZSTD)
    out = split.empty_chunk()
    inputs = split.read_chunk(1, out).inputs
    frame = Zstd(1, checksum=True).encode(np.resize(inputs, (rows, inputs.shape[1])))
    place.put("train/inputs/c.1.0", with_checksum(frame))
    with pytest.raises(
        BadDataError, match=rf"Chunk 1 .* is damaged .*{7 * rows} bytes; expected 28"
    ):
        split.read_chunk(1, out)


@pytest.mark.parametrize("size", [1, 200, 255, 256, 300, 65_791, 65_792, 70_000, 2**20])
def test_zstandard_of_any_size(size: int) -> None:
    """A frame says its size in one, two or four bytes, and in a window of its own or not."""
    values = np.arange(size, dtype=np.uint8)
    for level in (1, 19):
        out = np.zeros_like(values)
        chunks.decode(memoryview(Zstd(level).encode(values)), out)
        assert values.tobytes() == out.tobytes()
        for other in (size - 1, size + 1):
            with pytest.raises(ValueError, match=f"{size} bytes; expected {other}"):
                chunks.decode(memoryview(Zstd(level).encode(values)), np.zeros(other, np.uint8))


def test_a_header_that_is_cut_off_is_damaged(place: Location) -> None:
    """What is too short to say how long it is, is no chunk, though the CRC-32C is right."""
    reader = make_split(place).arrays["inputs"]
    header = reader.location.get("c.1.0")[:16]
    for length in range(1, 17):
        reader.location.put("c.1.0", with_checksum(header[:length]))
        with pytest.raises(BadDataError, match=r"Chunk 1 in .* is damaged"):
            reader.read(1)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_no_damage_is_taken_for_rows(place: Location, compression: str) -> None:
    """Bytes changed at random, the CRC-32C made to fit: refused, or the very rows."""
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


def test_a_dataset_of_the_first_version_is_read(place: Location) -> None:
    """It says nothing of its compression, which is Zstandard; its digest is the same."""
    schema = dataset_schema(compression=ZSTD)
    expected = make_dataset(place, schema).digest
    document = json.loads(place.get("zarr.json"))
    del document["attributes"]["compression"], document["attributes"]["seal"]
    document["attributes"]["format_version"] = 1
    place.put("zarr.json", documents.document_bytes(documents.seal_group(document)))
    found = open_dataset(place)
    assert (expected, ZSTD) == (found.digest, found.compression)
    assert_holds_its_rows(found, schema)


@pytest.mark.parametrize("compression", ["gzip", None, []])
def test_a_compression_that_is_none_is_told(place: Location, compression: Any) -> None:
    """A root that names another one, as only a hostile file does, ends in exit 3."""
    make_dataset(place)
    document = json.loads(place.get("zarr.json"))
    del document["attributes"]["seal"]
    document["attributes"]["compression"] = compression
    place.put("zarr.json", documents.document_bytes(documents.seal_group(document)))
    with pytest.raises(BadDataError, match="are not those of a dataset"):
        open_dataset(place)


def test_the_digest_is_not_of_the_compression(tmp_path: Path) -> None:
    """The same rows have the same digest, however they are stored."""
    digests = {
        make_dataset(open_location(tmp_path / name), dataset_schema(compression=name)).digest
        for name in COMPRESSIONS
    }
    assert len(digests) == 1
