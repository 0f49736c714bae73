"""Schedules at the points that define them; every step is compared with PyTorch elsewhere."""

import pytest

from jobs.nn.choices import SCHEDULES
from jobs.nn.lr_schedules import learning_rate


def test_constant_keeps_the_rate() -> None:
    """With a constant schedule every step has the maximum rate."""
    assert [0.1, 0.1, 0.1] == [learning_rate("constant", 0.1, step, 3) for step in range(3)]


def test_cosine_falls_from_the_maximum_to_zero() -> None:
    """Cosine starts at the maximum, is half of it half-way, and would be zero after the end."""
    assert 0.4 == learning_rate("cosine", 0.4, 0, 8)
    assert pytest.approx(0.2) == learning_rate("cosine", 0.4, 4, 8)
    assert 0 < learning_rate("cosine", 0.4, 7, 8) < 0.02


def test_one_cycle_rises_and_falls() -> None:
    """One-cycle starts at a 25th, peaks after 30 % of the steps and ends at a 250,000th."""
    rates = [learning_rate("one-cycle", 1.0, step, 100) for step in range(100)]
    assert pytest.approx(1 / 25) == rates[0]
    assert pytest.approx(1.0) == rates[29] == max(rates)
    assert pytest.approx(1 / 250_000) == rates[-1]
    assert sorted(rates[:30]) == rates[:30]
    assert sorted(rates[29:], reverse=True) == rates[29:]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_short_runs_have_positive_rates(schedule: str) -> None:
    """For any number of steps the rates are above zero, and the largest is the maximum."""
    for total_steps in range(1, 12):
        rates = [learning_rate(schedule, 0.1, step, total_steps) for step in range(total_steps)]
        assert all(0 < rate <= 0.1 for rate in rates)
    assert 0.1 == learning_rate(schedule, 0.1, 0, 1)
