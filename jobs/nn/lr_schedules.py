"""Learning-rate schedules: the rate of each step of a run."""

import math

WARM_UP = 0.3
"""The share of a one-cycle run in which the rate rises."""
INITIAL_DIVISOR = 25.0
"""A one-cycle run starts at the maximum divided by this."""
FINAL_DIVISOR = 1e4
"""A one-cycle run ends at its first rate divided by this."""


def learning_rate(schedule: str, maximum: float, step: int, total_steps: int) -> float:
    """Return the rate of step `step`, counted from 0, of `total_steps` steps.

    `maximum` is the learning rate of the configuration. `constant` keeps it; `cosine` falls from
    it to zero (Loshchilov and Hutter, SGDR, 2017, eq. 5, without restarts); `one-cycle` rises to
    it from a 25th, then falls to almost zero, both along a cosine (Smith, A disciplined approach
    to neural network hyper-parameters, 2018; the constants are those of PyTorch's OneCycleLR).
    """
    if schedule == "one-cycle":
        return _one_cycle(maximum, step, total_steps)
    return _cosine(maximum, 0.0, step / total_steps) if schedule == "cosine" else maximum


def _one_cycle(maximum: float, step: int, total_steps: int) -> float:
    if total_steps == 1:
        return maximum
    initial = maximum / INITIAL_DIVISOR
    peak = WARM_UP * total_steps - 1
    last = total_steps - 1
    if step <= peak:
        return _cosine(initial, maximum, step / peak if peak else 1.0)
    return _cosine(maximum, initial / FINAL_DIVISOR, (step - peak) / (last - peak))


def _cosine(start: float, end: float, part: float) -> float:
    """Interpolate from `start` to `end` along half a cosine, at `part` in [0, 1] of the way."""
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
