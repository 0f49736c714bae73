"""What may happen to a file's bytes: a bit that flips, an end that is missing."""

import random
from collections.abc import Iterator

STEP = 4096
"""A block of a file system, in bytes: what a crash cuts a file to a multiple of."""


def with_flipped_bit(data: bytes, chance: random.Random) -> bytes:
    """The bytes, at least one, with a single bit flipped, anywhere in them."""
    damaged = bytearray(data)
    damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def truncations(size: int) -> Iterator[int]:
    """The lengths a file of `size` bytes, at least one, may be cut to: each step, and 1 less."""
    yield from range(0, size, STEP)
    if (size - 1) % STEP:
        yield size - 1
