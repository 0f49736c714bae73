"""Quality gates: lower limits on the accuracy of scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.output import percent
from storage.errors import UsageError


@dataclass(frozen=True)
class Verdict:
    """The verdict of one gate."""

    gate: str
    """Name of the gate: `min-accuracy` or `max-drop`."""
    limit: float
    """The lowest accuracy that passes, in [0, 1]."""
    accuracy: float
    """The accuracy that was judged, in [0, 1]."""
    passed: bool
    """Whether it is at least the limit."""
    text: str
    """The message if the gate is missed."""

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as recorded in the ledger."""
        return {
            "gate": self.gate,
            "limit": self.limit,
            "found": self.accuracy,
            "passed": self.passed,
        }


@dataclass(frozen=True)
class Gates:
    """The gates of a job; None switches one off."""

    min_accuracy: float | None = None
    """The lowest share of correct rows that passes, in [0, 1]."""
    max_drop: float | None = None
    """How far the accuracy may fall below the previous one, in [0, 1]."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for a share outside [0, 1]."""
        for option, share in (("--min-accuracy", self.min_accuracy), ("--max-drop", self.max_drop)):
            if share is not None and not 0 <= share <= 1:
                raise UsageError(f"{option} is {share}; expected 0 to 1, such as 0.97.")

    @property
    def any(self) -> bool:
        """Whether there is a gate at all."""
        return self.min_accuracy is not None or self.max_drop is not None

    def judge(self, accuracy: float, before: float | None, name: str) -> tuple[Verdict, ...]:
        """Return a verdict on each gate that can be judged.

        A drop is measured from the accuracy `before`; if that is None, there is no verdict on it.
        """
        verdicts = []
        if self.min_accuracy is not None:
            why = "--min-accuracy"
            verdicts.append(at_least("min-accuracy", accuracy, self.min_accuracy, name, why))
        if self.max_drop is not None and before is not None:
            why = f"{percent(before)} before, with a drop of {percent(self.max_drop)} allowed"
            verdicts.append(at_least("max-drop", accuracy, before - self.max_drop, name, why))
        return tuple(verdicts)


def at_least(gate: str, accuracy: float, limit: float, name: str, why: str) -> Verdict:
    """Return the verdict on an accuracy that must not be below a limit."""
    text = f"{name} has accuracy {percent(accuracy)}; expected at least {percent(limit)} ({why})."
    # The tolerance is for limits given as decimals: 0.97 is not exactly 97 of 100 rows.
    return Verdict(gate, limit, accuracy, accuracy >= limit - 1e-12, text)


def missed(verdicts: Sequence[Verdict]) -> str | None:
    """Return a sentence for each missed gate; None if all passed."""
    texts = [verdict.text for verdict in verdicts if not verdict.passed]
    return " ".join(texts) or None
