"""Quality gates: limits on the accuracy of scores, and on their drift from training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.output import percent
from storage.errors import UsageError


@dataclass(frozen=True)
class Verdict:
    """The verdict of one gate."""

    gate: str
    """Name of the gate: `min-accuracy`, `max-drop` or `max-drift`."""
    limit: float
    """The lowest accuracy that passes, in [0, 1], or the largest drift."""
    value: float
    """The accuracy or the drift that was judged."""
    passed: bool
    """Whether the limit is kept."""
    text: str
    """The message if the gate is missed."""

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as recorded in the ledger."""
        return {
            "gate": self.gate,
            "limit": self.limit,
            "found": self.value,
            "passed": self.passed,
        }


@dataclass(frozen=True)
class Gates:
    """The gates of a job; None switches one off."""

    min_accuracy: float | None = None
    """The lowest share of correct rows that passes, in [0, 1]."""
    max_drop: float | None = None
    """How far the accuracy may fall below the previous one, in [0, 1]."""
    max_drift: float | None = None
    """The largest drift score that passes; 3 is rarely exceeded by rows like those of training."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for a share outside [0, 1]."""
        for option, share in (("--min-accuracy", self.min_accuracy), ("--max-drop", self.max_drop)):
            if share is not None and not 0 <= share <= 1:
                raise UsageError(f"{option} is {share}; expected 0 to 1, such as 0.97.")
        if self.max_drift is not None and not 0 <= self.max_drift < math.inf:
            raise UsageError(f"--max-drift is {self.max_drift}; expected 0 or more, such as 3.")

    @property
    def any(self) -> bool:
        """Whether there is a gate at all."""
        return self.need_labels or self.max_drift is not None

    @property
    def need_labels(self) -> bool:
        """Whether there is a gate on the accuracy."""
        return self.min_accuracy is not None or self.max_drop is not None

    def judge(
        self,
        accuracy: float | None,
        before: float | None,
        name: str,
        drift: Mapping[str, Any] | None = None,
    ) -> tuple[Verdict, ...]:
        """Return a verdict on each gate that can be judged.

        A drop is measured from the accuracy `before`; if that is None, there is no verdict on it.
        Nor is there one on the accuracy of rows without labels, or on a `drift` without a score.
        """
        verdicts = [] if accuracy is None else self._judge_accuracy(accuracy, before, name)
        score = None if drift is None else drift["score"]
        if self.max_drift is not None and drift is not None and score is not None:
            text = (
                f"{name} has drift {score:.2f}; expected at most {self.max_drift:g} (--max-drift)."
            )
            text = f"{text} {drift['text']}" if drift["text"] else text
            passed = score <= self.max_drift
            verdicts.append(Verdict("max-drift", self.max_drift, score, passed, text))
        return tuple(verdicts)

    def _judge_accuracy(self, accuracy: float, before: float | None, name: str) -> list[Verdict]:
        verdicts = []
        if self.min_accuracy is not None:
            why = "--min-accuracy"
            verdicts.append(at_least("min-accuracy", accuracy, self.min_accuracy, name, why))
        if self.max_drop is not None and before is not None:
            why = f"{percent(before)} before, with a drop of {percent(self.max_drop)} allowed"
            verdicts.append(at_least("max-drop", accuracy, before - self.max_drop, name, why))
        return verdicts


def at_least(gate: str, accuracy: float, limit: float, name: str, why: str) -> Verdict:
    """Return the verdict on an accuracy that must not be below a limit."""
    text = f"{name} has accuracy {percent(accuracy)}; expected at least {percent(limit)} ({why})."
    # The tolerance is for limits given as decimals: 0.97 is not exactly 97 of 100 rows.
    return Verdict(gate, limit, accuracy, accuracy >= limit - 1e-12, text)


def missed(verdicts: Sequence[Verdict]) -> str | None:
    """Return a sentence for each missed gate; None if all passed."""
    texts = [verdict.text for verdict in verdicts if not verdict.passed]
    return " ".join(texts) or None
