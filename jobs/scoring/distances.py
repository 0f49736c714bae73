"""Distances of distributions from a reference, each reduced by what chance explains.

See docs/explanation/drift.md.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.training.reference import Observation, Reference
from pipeline.statistics import STATISTICS

Counts = NDArray[np.int64]

GROUPS = 10
"""Groups of about equal numbers of the reference's rows, in which a histogram is compared."""
SIGMAS = 4.0
"""Chance exceeds the bound that is subtracted as often as a normal variable exceeds this."""
RIDGE = 1e-3
"""Added to the covariance, as a share of its mean variance, so that it can be inverted."""
LARGEST = 1e6
"""Larger distances in the hidden layer are recorded as this one."""


class Distances(NamedTuple):
    """The distances of all distributions from a reference."""

    psi: dict[str, float]
    """Population stability index of each statistic, the predicted classes and the confidence."""
    hidden: float | None
    """Mahalanobis distance of the hidden layer's mean output; None if it cannot be computed."""

    @property
    def all(self) -> dict[str, float]:
        """Every distance by name, largest first."""
        distances = self.psi | ({} if self.hidden is None else {"hidden": self.hidden})
        return dict(sorted(distances.items(), key=lambda item: -item[1]))

    @property
    def score(self) -> float:
        """The largest distance."""
        return max(self.all.values())


def distances(reference: Reference, observed: Observation) -> Distances:
    """Return the distances of observed rows from a reference."""
    psi = {}
    if reference.statistics is not None:
        pairs = zip(reference.statistics.counts, observed.images.counts, strict=True)
        psi = {name: grouped_psi(*pair) for name, pair in zip(STATISTICS, pairs, strict=True)}
    psi["predicted"] = stability_index(reference.predicted, observed.predicted)
    psi["confidence"] = grouped_psi(reference.confidence, observed.confidence)
    hidden = hidden_distance(reference, observed)
    return Distances(
        {name: round(value, 4) for name, value in psi.items()},
        None if hidden is None else round(hidden, 4),
    )


def grouped_psi(expected: Counts, observed: Counts) -> float:
    """Return the stability index of histograms, in groups of the expected one's quantiles."""
    shares = np.cumsum(expected) / expected.sum()
    ends = 1 + np.searchsorted(shares, np.arange(1, GROUPS) / GROUPS)
    starts = np.unique(np.concatenate([[0], ends[ends < len(expected)]]))
    return stability_index(np.add.reduceat(expected, starts), np.add.reduceat(observed, starts))


def stability_index(expected: Counts, observed: Counts) -> float:
    """Return the population stability index of counts, less what chance explains, at least 0.

    The index is the sum of (q - p) ln(q / p) over shares p and q, to which half a row is added in
    each group. By chance it is distributed like chi-squared with a degree of freedom less than
    groups, times 1 / rows + 1 / rows (Yurdakul, 2018).
    """
    groups = len(expected)
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * groups) for counts in (expected, observed))
    index = float(((q - p) * np.log(q / p)).sum())
    by_chance = 1 / int(expected.sum()) + 1 / int(observed.sum())
    return max(0.0, index - chi_squared_bound(groups - 1) * by_chance)


def chi_squared_bound(degrees: float) -> float:
    """Return what chi-squared exceeds by chance at `SIGMAS` (Wilson and Hilferty, 1931)."""
    if degrees <= 0:
        return 0.0
    spread = 2 / (9 * degrees)
    return float(degrees * (1 - spread + SIGMAS * math.sqrt(spread)) ** 3)


def hidden_distance(reference: Reference, observed: Observation) -> float | None:
    """Return how many standard deviations the mean hidden output is from the reference's.

    It is the Mahalanobis distance, less what chance explains, at least 0. None without a hidden
    layer, or if the reference has too few rows for the covariance.
    """
    units, rows = len(reference.hidden_mean), reference.rows
    variance = np.trace(reference.hidden_covariance) / max(units, 1)
    if rows <= units + 2 or variance <= 0:
        return None
    values, vectors = np.linalg.eigh(reference.hidden_covariance)
    inverse = 1 / (np.maximum(values, 0) + RIDGE * variance)
    offset = (observed.hidden_sum / observed.rows - reference.hidden_mean) @ vectors
    # The inverse of a covariance of few rows is too large on average (Hotelling, 1931).
    square = float((offset**2 * inverse).sum()) * (rows - units - 2) / (rows - 1)
    by_chance = 1 / observed.rows + 1 / rows
    distance = math.sqrt(max(0.0, square - chi_squared_bound(units) * by_chance))
    return min(distance, LARGEST)
