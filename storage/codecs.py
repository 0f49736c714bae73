"""How chunks are compressed: by LZ4 in Blosc's container, or by Zstandard.

A chunk begins with what tells the two apart, so whoever reads need not be told. MNIST, of 47 MB
(one core): `lz4` makes 14 MB of it and decodes them in 14 ms, `lz4hc` 11 MB in 9 ms, but takes six
times as long to encode, `zstd` 10 MB in 34 ms.
"""

from typing import Any

import numpy as np
from numcodecs import blosc
from numcodecs.blosc import NOSHUFFLE, SHUFFLE, Blosc
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from storage.schema import LZ4, LZ4HC, ZSTD

blosc.use_threads = False  # as Zarr has it: chunks are what is done side by side

LEVELS = {LZ4: 9, LZ4HC: 5, ZSTD: 1}
"""The level of each: what comes next costs far more time than it saves bytes."""

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""How a Zstandard frame begins (RFC 8878)."""
BLOSC_VERSION = 2
"""The first byte of a chunk of Blosc 1."""
BLOSC_HEADER_BYTES = 16
"""Versions, flags and element size, then decoded, block and stored bytes, little-endian uint32."""


def encode(values: NDArray[np.generic], compression: str) -> bytes:
    """The values of a contiguous array, compressed; the same bytes on every machine.

    Blosc has the first bytes of all elements beside one another, then the second ones, and so on.
    """
    level, size = LEVELS[compression], values.itemsize
    codec = (
        Zstd(level, checksum=True)
        if compression == ZSTD
        else Blosc(compression, level, SHUFFLE if size > 1 else NOSHUFFLE, typesize=size)
    )
    encoded: bytes = codec.encode(values)
    return encoded


def decode(stored: memoryview, out: NDArray[np.uint8]) -> None:
    """Fill `out`, `(bytes,)`, with what `encode` was given.

    Raises RuntimeError or ValueError where the bytes are damaged or of another length.
    """
    if stored[:4] == ZSTD_MAGIC:
        Zstd().decode(stored, out=out)
        return
    # Blosc believes its header: lengths that are not ours would have it read or write elsewhere.
    if len(stored) < BLOSC_HEADER_BYTES or stored[0] != BLOSC_VERSION:
        raise ValueError("it is compressed neither by Blosc nor by Zstandard")
    decoded_bytes, _, stored_bytes = np.frombuffer(stored[4:BLOSC_HEADER_BYTES], "<u4").tolist()
    if (decoded_bytes, stored_bytes) != (len(out), len(stored)):
        raise ValueError(
            f"it says to be {decoded_bytes} bytes in {stored_bytes}, and is to be {len(out)} in "
            f"{len(stored)}"
        )
    Blosc().decode(stored, out=out)


def zarr_codec(compression: str, dtype: str) -> dict[str, Any]:
    """What `zarr.json` says of it, for elements of this type: Zarr reads and writes the same."""
    level, size = LEVELS[compression], np.dtype(dtype).itemsize
    if compression == ZSTD:
        return {"name": "zstd", "configuration": {"level": level, "checksum": True}}
    configuration = {
        "typesize": size,
        "cname": compression,
        "clevel": level,
        "shuffle": "shuffle" if size > 1 else "noshuffle",
        "blocksize": 0,
    }
    return {"name": "blosc", "configuration": configuration}
