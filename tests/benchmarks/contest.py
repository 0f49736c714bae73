"""Timing for a noisy machine: interleaved rounds, medians, ratios."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

Contestant = Callable[[], float | None]
"""Does its work once; may return its own measurement in seconds, else the call is timed."""


@dataclass(frozen=True)
class Verdict:
    """A figure and its target."""

    name: str
    figure: float
    target: float
    at_least: bool = False
    """Whether the target is a minimum; by default it is a maximum."""
    unit: str = "ratio"
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.figure >= self.target if self.at_least else self.figure <= self.target

    def to_json(self) -> dict[str, object]:
        """Return all fields and whether the target is met."""
        return {**vars(self), "met": self.met}


def medians(contestants: dict[str, Contestant], rounds: int) -> dict[str, float]:
    """Return each contestant's median seconds over `rounds` interleaved rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(rounds + 1):
        for name, contestant in contestants.items():
            gc.collect()
            began = time.perf_counter()
            measured = contestant()
            elapsed = time.perf_counter() - began
            if round_number:  # the first round warms up
                seconds[name].append(elapsed if measured is None else measured)
    return {name: statistics.median(values) for name, values in seconds.items()}
