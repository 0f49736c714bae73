"""Learning-rate schedules: the rate of each step of a run."""

import math
from collections.abc import Sequence

INITIAL_DIVISOR = 25.0
"""A one-cycle run starts at the maximum divided by this."""
FINAL_DIVISOR = 1e4
"""A one-cycle run ends at its first rate divided by this."""


def learning_rate(
    schedule: str,
    maximum: float,
    step: int,
    cycles: Sequence[int],
    warm_up: float,
    restart_factor: float = 1.0,
) -> float:
    """Return the rate of step `step`, counted from 0, of a run.

    `cycles` are the steps of each cycle of the schedule, one unless it restarts, and `warm_up` is
    the share of a cycle in which the rate rises. `maximum` is the learning rate of the
    configuration: the peak of the first cycle, and with `restart_factor` that of the others.

    `constant` keeps the rate. `cosine` rises along a line, then falls to zero along half a cosine,
    in each cycle (Loshchilov and Hutter, SGDR, 2017, eq. 5). `one-cycle` rises from a 25th, then
    falls to almost zero, both along half a cosine (Smith, A disciplined approach to neural network
    hyper-parameters, 2018; the constants are those of PyTorch's OneCycleLR).
    """
    if schedule == "constant":
        return maximum
    if schedule == "one-cycle":
        return _one_cycle(maximum, step, sum(cycles), warm_up)
    for number, steps in enumerate(cycles):
        if step < steps:
            peak = maximum * restart_factor if number else maximum
            return _warm_cosine(peak, step, steps, round(warm_up * steps))
        step -= steps
    raise ValueError(f"step {step} after the end of {len(cycles)} cycles")


def _warm_cosine(peak: float, step: int, total_steps: int, warm_up_steps: int) -> float:
    """Return a rate of a line through the steps before the peak, then of half a cosine to 0."""
    if step < warm_up_steps:
        return peak * (step + 1) / (warm_up_steps + 1)
    return _cosine(peak, 0.0, (step - warm_up_steps) / (total_steps - warm_up_steps))


def _one_cycle(maximum: float, step: int, total_steps: int, warm_up: float) -> float:
    if total_steps == 1:
        return maximum
    initial = maximum / INITIAL_DIVISOR
    peak = warm_up * total_steps - 1
    last = total_steps - 1
    if step <= peak:
        return _cosine(initial, maximum, step / peak if peak else 1.0)
    return _cosine(maximum, initial / FINAL_DIVISOR, (step - peak) / (last - peak))


def _cosine(start: float, end: float, part: float) -> float:
    """Interpolate from `start` to `end` along half a cosine, at `part` in [0, 1] of the way."""
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
