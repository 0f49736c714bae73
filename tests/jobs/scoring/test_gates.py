"""Gates: limits on an accuracy, and on its drop."""

import pytest

from jobs.scoring.gates import Gates, missed
from storage.errors import UsageError


@pytest.mark.parametrize(
    ("gates", "accuracy", "before", "passed"),
    [
        (Gates(), 0.1, 0.9, []),
        (Gates(min_accuracy=0.9), 0.9, None, [True]),
        (Gates(min_accuracy=0.9), 0.8999, None, [False]),
        (Gates(max_drop=0.02), 0.95, 0.97, [True]),
        (Gates(max_drop=0.02), 0.9499, 0.97, [False]),
        (Gates(max_drop=0.0), 0.99, 0.97, [True]),
        (Gates(max_drop=0.02), 0.1, None, []),
        (Gates(min_accuracy=0.5, max_drop=0.1), 0.6, 0.8, [True, False]),
    ],
)
def test_verdicts(gates: Gates, accuracy: float, before: float | None, passed: list[bool]) -> None:
    """Each gate that can be judged has a verdict."""
    verdicts = gates.judge(accuracy, before, "test")
    assert passed == [verdict.passed for verdict in verdicts]
    assert (missed(verdicts) is None) == all(passed)


def test_rounding_is_tolerated() -> None:
    """An accuracy that equals the limit except for rounding passes."""
    (verdict,) = Gates(max_drop=0.1).judge(0.7, 0.8, "test")
    assert verdict.passed


def test_message_of_a_missed_gate() -> None:
    """The message has the accuracy, the limit, and the origin of the limit."""
    text = missed(Gates(max_drop=0.01).judge(0.9, 0.95, "test"))
    assert text is not None
    for part in ("test has accuracy 90.00 %", "at least 94.00 %", "95.00 % before"):
        assert part in text


@pytest.mark.parametrize(
    ("score", "passed"), [(2.0, [True]), (3.0, [True]), (3.1, [False]), (None, [])]
)
def test_drift(score: float | None, passed: list[bool]) -> None:
    """Drift is judged without labels, but not without a score; the message says what differs."""
    drift = {"score": score, "text": "Brightness 3.1 from training."}
    verdicts = Gates(max_drift=3.0, min_accuracy=0.9).judge(None, None, "a.npz", drift)
    assert passed == [verdict.passed for verdict in verdicts]
    assert () == Gates(max_drift=3.0).judge(1.0, None, "a.npz", None)
    if passed == [False]:
        assert missed(verdicts) == (
            "a.npz has drift 3.10; expected at most 3 (--max-drift). Brightness 3.1 from training."
        )


@pytest.mark.parametrize("limit", [-0.1, float("nan"), float("inf")])
def test_invalid_drift(limit: float) -> None:
    """A limit that nothing could miss, or everything, is refused."""
    with pytest.raises(UsageError, match="expected 0 or more"):
        Gates(max_drift=limit)


@pytest.mark.parametrize("share", [-0.1, 1.1, 97.0, float("nan")])
def test_invalid_shares(share: float) -> None:
    """A gate outside [0, 1] is refused: 97 does not mean 97 %."""
    with pytest.raises(UsageError, match="expected 0 to 1"):
        Gates(min_accuracy=share)
    with pytest.raises(UsageError, match="expected 0 to 1"):
        Gates(max_drop=share)
