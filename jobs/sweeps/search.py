"""The configurations of a sweep: all points of a grid, or points drawn from lists and ranges.

Both are pure functions of what was asked for.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any

from jobs.training.config import TrainConfig
from jobs.training.presets import flat_settings
from jobs.training.settings import setting_type
from storage.errors import UsageError, counted, did_you_mean

Configuration = dict[str, Any]
"""The settings in which a configuration differs from the others."""

SETTINGS = {setting.name: setting for setting in fields(TrainConfig)}
LOGARITHMIC = {"learning_rate", "l2", "outer_learning_rate"}
"""Settings whose ranges are drawn from evenly by their logarithm, if they begin above 0."""
DIGITS = 4
"""Significant digits of a number that is drawn."""
TRIES = 1000
"""Draws for each point of a sample, which must differ from the others."""
MOST_CONFIGURATIONS = 10_000
NOT_VARIED = {
    "seed": "Use --seeds for several seeds.",
    "arithmetic": "A process computes in one way.",
    "holdout": "All trials are compared on the same rows.",
}
"""Settings that cannot vary, each with the reason or what to do."""


@dataclass(frozen=True)
class Search:
    """What configurations to try."""

    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Values to try, by the names of their settings."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Lowest and highest number to draw, by the names of their settings."""
    sample: int | None = None
    """Number of configurations to draw; None for the whole grid."""
    sample_seed: int = 0

    def __post_init__(self) -> None:
        """Raise `UsageError` for a setting that cannot vary, or a value out of its range."""
        grid = {name: _checked_values(name, values) for name, values in self.grid.items()}
        object.__setattr__(self, "grid", grid)
        for name, bounds in self.ranges.items():
            _check_bounds(name, bounds)
        if twice := sorted({*self.grid} & {*self.ranges}):
            raise UsageError(f"{twice[0]} has a list of values and a range; leave one out.")
        if self.ranges and self.sample is None:
            raise UsageError("A range needs --sample N, the number of configurations to draw.")
        if self.sample is not None and (self.sample < 1 or not {*self.grid, *self.ranges}):
            raise UsageError(
                f"--sample is {self.sample}; expected at least 1, and a --range or --grid to draw "
                "from."
            )

    def to_json(self) -> dict[str, Any]:
        """Return the search as it is recorded."""
        return {
            "grid": {name: list(values) for name, values in self.grid.items()},
            "ranges": {name: list(bounds) for name, bounds in self.ranges.items()},
            "sample": self.sample,
            "sample_seed": self.sample_seed if self.sample else None,
        }

    def configurations(self) -> list[Configuration]:
        """Return all configurations, each with its settings in the same order."""
        if self.sample:
            return list(self._drawn(self.sample))
        count = math.prod(len(values) for values in self.grid.values())
        if count > MOST_CONFIGURATIONS:
            raise UsageError(
                f"The grid has {count:,} configurations; expected at most "
                f"{MOST_CONFIGURATIONS:,}. Draw some of them with --sample N."
            )
        points = product(*self.grid.values())
        return [dict(zip(self.grid, point, strict=True)) for point in points]

    def _drawn(self, count: int) -> Iterator[Configuration]:
        # Python promises the same `random()` of an integer seed in all versions, and no more.
        draw = random.Random(self.sample_seed).random
        names = sorted({*self.grid, *self.ranges})  # whatever the order of the options
        drawn: set[tuple[Any, ...]] = set()
        for _ in range(TRIES * count):
            point = tuple(self._value(name, draw()) for name in names)
            if point not in drawn:
                drawn.add(point)
                yield dict(zip(names, point, strict=True))
            if len(drawn) == count:
                return
        raise UsageError(
            f"--sample is {count}; the lists and ranges have only "
            f"{counted(len(drawn), 'configuration')}."
        )

    def _value(self, name: str, share: float) -> Any:
        """Return the value of a setting at a share in [0, 1) of its list or range."""
        if name in self.grid:
            values = self.grid[name]
            return values[int(share * len(values))]
        low, high = self.ranges[name]
        if setting_type(SETTINGS[name]) is int:
            return int(low) + int(share * (high - low + 1))
        if name in LOGARITHMIC and low > 0:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        # The last digits of exp and log differ between machines.
        return min(max(float(f"{value:.{DIGITS}g}"), low), high)


def _check_name(name: str) -> None:
    if name in NOT_VARIED:
        raise UsageError(f"A sweep cannot vary {name}. {NOT_VARIED[name]}")
    if name in SETTINGS and SETTINGS[name].metadata["may_change"]:
        raise UsageError(f"A sweep cannot vary {name}: no result depends on it.")


def _checked_values(name: str, values: Sequence[Any]) -> list[Any]:
    """Return the values of a setting in its own type."""
    _check_name(name)
    if not values:
        raise UsageError(f"The grid has no values of {name}.")
    settings = [flat_settings({name: value}, "The grid") for value in values]
    # A recipe or a set of distortions stands for several settings, and stays a name.
    checked = [one[name] for one in settings] if name in SETTINGS else list(values)
    if len({*map(str, checked)}) < len(checked):
        raise UsageError(f"The grid gives a value of {name} twice.")
    return checked


def _check_bounds(name: str, bounds: tuple[float, float]) -> None:
    _check_name(name)
    if name not in SETTINGS or setting_type(SETTINGS[name]) not in (int, float):
        hint = did_you_mean(name, SETTINGS) if name not in SETTINGS else ""
        raise UsageError(f"A range needs a numeric setting; {name} is not one.{hint}")
    for value in bounds:
        flat_settings({name: value}, "The range")
    low, high = bounds
    if not low < high:
        raise UsageError(f"The range of {name} is {low:g}:{high:g}; expected LOW below HIGH.")
