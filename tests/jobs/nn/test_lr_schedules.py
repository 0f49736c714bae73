"""Schedules at the points that define them; every step is compared with PyTorch elsewhere."""

import pytest

from jobs.nn.choices import SCHEDULES
from jobs.nn.lr_schedules import learning_rate


def all_rates(
    schedule: str, maximum: float, *cycles: int, warm_up: float = 0.0, restart_factor: float = 1.0
) -> list[float]:
    """Return the rate of each step of a run with cycles of these steps."""
    return [
        learning_rate(schedule, maximum, step, cycles, warm_up, restart_factor)
        for step in range(sum(cycles))
    ]


def test_constant_keeps_the_rate() -> None:
    """With a constant schedule every step has the maximum rate."""
    assert [0.1, 0.1, 0.1] == all_rates("constant", 0.1, 3)


def test_cosine_falls_from_the_maximum_to_zero() -> None:
    """Cosine starts at the maximum, is half of it half-way, and would be zero after the end."""
    rates = all_rates("cosine", 0.4, 8)
    assert 0.4 == rates[0]
    assert pytest.approx(0.2) == rates[4]
    assert 0 < rates[7] < 0.02


def test_cosine_with_warm_up_and_restarts() -> None:
    """Each cycle rises in a line to its peak, then falls along half a cosine: worked by hand."""
    rates = all_rates("cosine", 0.8, 12, 6, 6, warm_up=0.3, restart_factor=0.25)
    # round(0.3 * 12) = 4 steps below the peak, then (1 + cos(pi k / 8)) / 2
    first = [0.16, 0.32, 0.48, 0.64, 0.8, 0.769552, 0.682843, 0.553073, 0.4]
    first += [0.246927, 0.117157, 0.030448]
    # round(0.3 * 6) = 2 steps below 0.25 * 0.8, then (1 + cos(pi k / 4)) / 2
    other = [0.066667, 0.133333, 0.2, 0.170711, 0.1, 0.029289]
    assert pytest.approx(first + other + other, abs=1e-6) == rates


def test_one_cycle_rises_and_falls() -> None:
    """One-cycle starts at a 25th, peaks after the warm-up and ends at a 250,000th."""
    for share, peak in ((0.3, 29), (0.6, 59)):
        rates = all_rates("one-cycle", 1.0, 100, warm_up=share)
        assert pytest.approx(1 / 25) == rates[0]
        assert pytest.approx(1.0) == rates[peak] == max(rates)
        assert pytest.approx(1 / 250_000) == rates[-1]
        assert sorted(rates[: peak + 1]) == rates[: peak + 1]
        assert sorted(rates[peak:], reverse=True) == rates[peak:]


@pytest.mark.parametrize("warm_up", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_short_runs_have_positive_rates(schedule: str, warm_up: float) -> None:
    """For any number of steps the rates are above zero and at most the maximum."""
    for total_steps in range(1, 12):
        rates = all_rates(schedule, 0.1, total_steps, warm_up=warm_up)
        assert all(0 < rate <= 0.1 for rate in rates)
    if warm_up < 0.5:
        assert [0.1] == all_rates(schedule, 0.1, 1, warm_up=warm_up)
