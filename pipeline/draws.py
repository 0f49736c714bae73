"""Random words by hashing a counter: any of them without those before, the same on any machine.

A word is a pure function of a text, such as "mnist-stream distortion 1|seed|epoch", a row number
and the word's place in the row.
"""

import hashlib
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.order import RowNumbers

ROW_STEP, WORD_STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03)

Words: TypeAlias = NDArray[np.uint64]


def random_words(text: str, rows: RowNumbers, count: int) -> Words:
    """Return `(rows, count)` random words: hashes of a counter, as in SplitMix64.

    Steele et al., "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    key = _key(text)
    starts = _mixed(rows.astype(np.uint64) * ROW_STEP + key[0])
    return _mixed(starts[:, None] + (np.arange(count, dtype=np.uint64) * WORD_STEP + key[1]))


@lru_cache(maxsize=8)
def _key(text: str) -> Words:
    """Return the two words that the words of all rows start from."""
    digest = hashlib.sha256(text.encode("ascii")).digest()
    return np.frombuffer(digest[:16], "<u8").astype(np.uint64)


def _mixed(words: Words) -> Words:
    """Mix the bits of words in place."""
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words
