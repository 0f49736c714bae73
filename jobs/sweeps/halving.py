"""Compare configurations over their seeds, and stop the worse half of them early."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

from storage.sweeps import FAILED, TRAINED, Sweep, TrialResult

Results = Mapping[str, TrialResult]
"""The results of a sweep by the names of their trials."""


@dataclass(frozen=True)
class Summary:
    """The results of one configuration over its seeds."""

    number: int
    configuration: dict[str, Any]
    results: tuple[TrialResult, ...]
    """The results of the trials that have not failed."""
    trials: int

    @property
    def rank(self) -> tuple[int, float]:
        """The sort key: fewest trials without a result, then the lowest mean cross-entropy."""
        missing = self.trials - len(self.results)
        return missing, self.figures("cross_entropy")[0] if self.results else 0.0

    @property
    def epochs(self) -> int:
        """The most epochs of a trial."""
        return max((len(result.accuracy) for result in self.results), default=0)

    def figures(self, name: str) -> tuple[float, float | None]:
        """Return the mean and the sample standard deviation over seeds; None for one seed.

        `name` is `accuracy` or `cross_entropy`. The values are those of each trial's best epoch.
        """
        values = [getattr(result, name)[result.best] for result in self.results]
        return mean(values), stdev(values) if len(values) > 1 else None


def summarise(sweep: Sweep, results: Results, until: int | None = None) -> list[Summary]:
    """Return a summary of each configuration, by losses of the first `until` epochs if given."""
    summaries = []
    for number, configuration in enumerate(sweep.configurations):
        names = [trial.name for trial in sweep.trials_of(number)]
        sound = [
            replace(results[name], cross_entropy=results[name].cross_entropy[:until])
            for name in names
            if name in results and results[name].state != FAILED
        ]
        summaries.append(Summary(number, configuration, tuple(sound), len(names)))
    return summaries


def rungs(epochs: int, configurations: int) -> list[int]:
    """Return the epochs after which the worse half stops, so that one reaches the last epoch.

    With few epochs there are fewer rungs, and several configurations reach it.
    """
    halvings = (configurations - 1).bit_length()
    return sorted({epochs >> step for step in range(1, halvings + 1) if epochs >> step})


def survivors(sweep: Sweep, results: Results) -> tuple[set[int], int | None]:
    """Return the numbers of the configurations to train, and the epoch until which.

    None is the last epoch. A rung halves them, of an odd number to the larger part, once all of
    their trials have reached it.
    """
    alive = set(range(len(sweep.configurations)))
    for rung in sweep.rungs:
        trials = [trial for trial in sweep.trials if trial.configuration in alive]
        if not all(has_reached(results.get(trial.name), rung) for trial in trials):
            return alive, rung
        compared = [one for one in summarise(sweep, results, rung) if one.number in alive]
        compared.sort(key=lambda one: one.rank)
        alive = {one.number for one in compared[: (len(compared) + 1) // 2]}
    return alive, None


def has_reached(result: TrialResult | None, until: int | None) -> bool:
    """Return whether a trial has ended, or trained until an epoch."""
    if result is None:
        return False
    return result.state != TRAINED or (until is not None and len(result.accuracy) >= until)
