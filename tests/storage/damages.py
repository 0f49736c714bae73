"""Damage to a file's bytes: flipped bits and truncation."""

import random
from collections.abc import Iterator

STEP = 4096
"""A file system's block size in bytes; a crash truncates files to a multiple of it."""


def with_flipped_bit(data: bytes, chance: random.Random) -> bytes:
    """Return a strategy for the bytes (at least one) with a single bit flipped anywhere."""
    damaged = bytearray(data)
    damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def truncations(size: int) -> Iterator[int]:
    """Return lengths to which a file of `size` bytes (at least one) may be cut."""
    yield from range(0, size, STEP)
    if (size - 1) % STEP:
        yield size - 1
