"""The source `synthetic[:TRAIN[,TEST]]`: digits that are generated when a part is loaded."""

import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.sources.digits import CLASSES, DIGITS_VERSION, SIDE, draw_digits
from pipeline.sources.splits import Part, Rows, SourceFile, SplitSource
from storage.errors import UsageError
from storage.events import Progress

DEFAULT_ROWS = (60_000, 10_000)
"""Rows of the train and test splits, as in MNIST."""

_SPEC = re.compile(r"synthetic(?::([0-9_]{1,19})(?:,([0-9_]{1,19}))?)?")


@dataclass(frozen=True)
class DrawnPart(Part):
    """A part that pickles only its row numbers; the images are drawn on loading."""

    holds_data = False
    seed: int
    split: str

    def load(self, start: int, stop: int) -> Rows:
        return draw_digits(self.seed, self.split, start, stop)


class SyntheticSplit(SplitSource):
    """A split of generated digits."""

    image_shape = (SIDE, SIDE)
    dtype = np.dtype(np.uint8)
    has_labels = True

    def __init__(self, name: str, rows: int, seed: int) -> None:
        self.name, self.rows, self._seed = name, rows, seed
        self.origin = f"generated digits of {name}"

    def label_values(self, progress: Progress) -> list[int]:
        return list(range(CLASSES))

    def parts(self, rows_per_part: int) -> Generator[Part, None, None]:
        for start in range(0, self.rows, rows_per_part):
            yield DrawnPart(start, min(start + rows_per_part, self.rows), self._seed, self.name)

    def files(self) -> list[SourceFile]:
        drawn = f"{self.rows} digits of {self.name}, version {DIGITS_VERSION}, seed {self._seed}"
        return [SourceFile(drawn, "generated")]

    def fingerprint(self, progress: Progress) -> dict[str, Any]:
        return {"digits_version": DIGITS_VERSION, "seed": self._seed, "rows": self.rows}


def open_synthetic(spec: str, seed: int) -> tuple[SplitSource, ...]:
    """Return the splits that `spec` describes; raise `UsageError` if it is malformed."""
    match = _SPEC.fullmatch(spec)
    train, test = DEFAULT_ROWS
    try:
        if match is not None and match[1]:
            train = int(match[1])
            test = int(match[2]) if match[2] else max(1, train // 6)
    except ValueError:  # an underscore in the wrong place
        match = None
    if match is None or not train:
        raise UsageError(
            f"SOURCE {spec[:80]!r} is malformed: expected synthetic, synthetic:TRAIN or "
            "synthetic:TRAIN,TEST, with numbers of rows and at least one for TRAIN, such as "
            "synthetic:6000,1000."
        )
    counts = {"train": train, "test": test}
    return tuple(SyntheticSplit(name, rows, seed) for name, rows in counts.items() if rows)
