"""Dropout version 1: the outputs of hidden layers that a training row leaves out.

They depend on the seed, the epoch, the row number, the layer and the unit alone.
"""

from dataclasses import dataclass

import numpy as np

from jobs.nn.network import Network, Workspace
from jobs.nn.parameters import Floats
from pipeline.draws import random_words
from pipeline.order import RowNumbers

DROPOUT_VERSION = 1
LEVELS = 2**16
"""Values of a unit's draw, which has 16 bits."""
DRAWS = 4
"""Draws in a word."""
DRAWING_MEMORY = 6
"""Bytes of a unit while masks are drawn: words of two bytes a unit, and two copies."""


@dataclass(frozen=True)
class Dropout:
    """The random masks of a run's hidden layers (Srivastava et al., JMLR 15, 2014)."""

    share: float
    """The share of units left out, which is rounded to a multiple of 1/65,536."""
    seed: int

    def masks(
        self, network: Network, epoch: int, rows: RowNumbers, workspace: Workspace
    ) -> list[Floats]:
        """Return the factors of each hidden layer's outputs: 0, or 1 / (1 - share) if kept.

        So the expected sums are those without dropout. A unit is left out if its draw is below
        the share. Draws are the words of `mnist-stream dropout 1|{seed}|{epoch}`, lowest 16 bits
        first; each layer begins with a new word.
        """
        limit = round(self.share * LEVELS)
        widths = [layer.outputs for layer in network.layers[:-1]]
        words = [-(-width // DRAWS) for width in widths]
        text = f"mnist-stream dropout {DROPOUT_VERSION}|{self.seed}|{epoch}"
        draws = random_words(text, rows, sum(words)).astype("<u8", copy=False).view("<u2")
        factor = LEVELS / (LEVELS - limit)
        masks: list[Floats] = []
        start = 0
        for number, (width, count) in enumerate(zip(widths, words, strict=True)):
            kept = draws[:, start : start + width] >= limit
            mask = workspace.array(f"mask-{number}", kept.shape, network.dtype)
            masks.append(np.multiply(kept, factor, out=mask, dtype=network.dtype))
            start += count * DRAWS
        return masks


def dropout_memory(network: Network, rows: int) -> int:
    """Return the bytes of the masks of `rows`, and of the outputs that they are applied to."""
    units = sum(layer.outputs + DRAWS for layer in network.layers[:-1])
    return rows * units * (2 * network.dtype.itemsize + DRAWING_MEMORY)
