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
BLOSC_HEADER_BYTES = 16
"""Version, version of the format within, flags and element size; then decoded, block and stored
bytes, little-endian uint32."""
BLOSC_VERSIONS = (2, 1)
"""Of Blosc 1 and of LZ4 in it."""
BLOSC_SHUFFLED, BLOSC_LZ4 = 0x01, 0x20
"""Flags that are set, or not, by the element size alone."""
BLOSC_FREE = 0x02 | 0x10
"""Flags that Blosc sets as it likes: stored as it is, and blocks that are not split."""


def encode(values: NDArray[np.generic], compression: str) -> bytes:
    """The values of a contiguous array, compressed.

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


def decode(stored: memoryview, out: NDArray[np.generic]) -> None:
    """Fill all of `out`, which is contiguous, with what `encode` was given.

    Raises RuntimeError or ValueError where the bytes are damaged or of another length, or where
    anything but `encode` made them: what is accepted decodes to the same values each time.
    """
    raw = out.reshape(-1).view(np.uint8)
    if stored[:4] == ZSTD_MAGIC:
        _check_zstd(stored, len(raw))
        Zstd().decode(stored, out=raw)
    else:
        _check_blosc(stored, len(raw), out.itemsize)
        Blosc().decode(stored, out=raw)


def _check_zstd(stored: memoryview, size: int) -> None:
    """Raise ValueError for a frame of another size: a shorter one leaves the rest as it was.

    The header is that of RFC 8878, section 3.1.1.1.
    """
    descriptor = stored[4] if len(stored) > 4 else 0
    single_segment = descriptor >> 5 & 1
    length = (single_segment, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    found = int.from_bytes(stored[start : start + length], "little") + 256 * (length == 2)
    if not length or found != size:
        raise ValueError(f"it says to be {found} bytes, and is to be {size}")


def _check_blosc(stored: memoryview, size: int, itemsize: int) -> None:
    """Raise ValueError for a header that `encode` does not write for elements of this size.

    Blosc believes it: other lengths would have it read or write elsewhere, and a block that does
    not divide by the element size leaves bytes as they were.
    """
    header = bytes(stored[:BLOSC_HEADER_BYTES])
    flags = BLOSC_LZ4 | (BLOSC_SHUFFLED if itemsize > 1 else 0)
    layout = (*BLOSC_VERSIONS, flags, itemsize)
    if len(header) < BLOSC_HEADER_BYTES or layout != (
        *header[:2],
        header[2] & ~BLOSC_FREE,
        header[3],
    ):
        raise ValueError("it is neither Zstandard nor LZ4 in Blosc's container, as we write them")
    decoded, block, there = np.frombuffer(header[4:], "<u4").tolist()
    if (decoded, there) != (size, len(stored)) or not block or block % itemsize:
        raise ValueError(
            f"it says to be {decoded} bytes in {there}, by blocks of {block}, and is to be {size} "
            f"in {len(stored)}"
        )


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
