"""Timing for a noisy machine: interleaved rounds, medians, ratios."""

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Contestant = Callable[[], float | None]
"""Does its work once; may return its own measurement in seconds, else the call is timed."""


Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Verdict:
    """A figure and its target."""

    name: str
    figure: float
    target: float | None
    """None for a figure that is only reported."""
    at_least: bool = False
    """Whether the target is a minimum; by default it is a maximum."""
    unit: str = "ratio"
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the target is met, if there is one."""
        if self.target is None:
            return True
        return self.figure >= self.target if self.at_least else self.figure <= self.target

    def to_json(self) -> dict[str, object]:
        """Return all fields and whether the target is met."""
        return {**vars(self), "met": self.met}


def race(contestants: Mapping[Name, Contestant], rounds: int) -> dict[Name, list[float]]:
    """Return each contestant's seconds in `rounds` interleaved rounds, after one to warm up.

    Each round begins with another contestant, so that none always follows the same one.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in contestants}
    for round_number in range(rounds + 1):
        names = list(contestants)
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            began = time.perf_counter()
            measured = contestants[name]()
            elapsed = time.perf_counter() - began
            if round_number:
                seconds[name].append(elapsed if measured is None else measured)
    return seconds


def medians(contestants: Mapping[Name, Contestant], rounds: int) -> dict[Name, float]:
    """Return each contestant's median seconds over `rounds` interleaved rounds."""
    seconds = race(contestants, rounds)
    return {name: statistics.median(values) for name, values in seconds.items()}
