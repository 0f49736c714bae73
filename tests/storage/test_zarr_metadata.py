"""The `zarr.json` documents: those that Zarr itself writes, for all that is ever stored."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from storage.chunks import ChunkedArray, array_metadata, group_metadata
from storage.places import open_location
from storage.schema import COMPRESSIONS, ELEMENT_TYPES, ZSTD

ATTRIBUTES = {"scale_factor": 1 / 255, "name": "Ziffern 数字"}


def compressor(compression: str, dtype: str) -> Any:
    """Zarr's own codec."""
    itemsize = np.dtype(dtype).itemsize
    if compression == ZSTD:
        return ZstdCodec(level=1, checksum=True)
    shuffle = "noshuffle" if itemsize == 1 else "shuffle"
    level = {"lz4": 9, "lz4hc": 5}[compression]
    return BloscCodec(cname=compression, clevel=level, shuffle=shuffle, typesize=itemsize)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", [*ELEMENT_TYPES, "int64"])
@pytest.mark.parametrize(("two_dimensional", "per_shard"), [(True, 1), (True, 3), (False, 1)])
def test_an_array(
    tmp_path: Path, dtype: str, compression: str, two_dimensional: bool, per_shard: int
) -> None:
    """Every element type and compression, plain and in shards, of one dimension and of two."""
    columns = 7 if two_dimensional else 1
    ours = ChunkedArray(
        open_location(tmp_path),
        50,
        columns,
        dtype,
        4,
        per_shard,
        two_dimensional,
        compression,
    )
    rest = (columns,) if two_dimensional else ()
    dimensions = ("sample", "feature")[: 1 + len(rest)]
    documents: dict[str, Any] = {}
    theirs = zarr.create_array(
        MemoryStore(documents),
        shape=(50, *rest),
        dtype=dtype,
        chunks=(4, *rest),
        shards=(4 * per_shard, *rest) if per_shard > 1 else None,
        compressors=[
            compressor(compression, dtype),
            Crc32cCodec(),
        ],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=dimensions,
        attributes=ATTRIBUTES,
        fill_value=0,
    )
    assert ours.shape == theirs.shape
    expected = json.loads(documents["zarr.json"].to_bytes())
    found = array_metadata(ours, dimensions, ATTRIBUTES)
    assert expected == json.loads(json.dumps(found))
    assert list(expected) == list(found)


def test_a_group() -> None:
    """Its attributes, and what makes it a group."""
    documents: dict[str, Any] = {}
    zarr.create_group(MemoryStore(documents), attributes=ATTRIBUTES)
    expected = json.loads(documents["zarr.json"].to_bytes())
    assert expected == group_metadata(ATTRIBUTES)
