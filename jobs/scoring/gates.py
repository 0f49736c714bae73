"""Quality gates: what a scoring's accuracy must come to, and what it is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.output import percent
from storage.errors import UsageError


@dataclass(frozen=True)
class Verdict:
    """The verdict of one gate; the text of a miss is a whole sentence."""

    gate: str
    limit: float
    """The least accuracy that passes, in [0, 1]."""
    found: float
    passed: bool
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as a line of the ledger has it."""
        return {name: value for name, value in vars(self).items() if name != "text"}


@dataclass(frozen=True)
class Gates:
    """What an accuracy is held against; None asks for nothing."""

    min_accuracy: float | None = None
    """The least share of rows that must be right, in [0, 1]."""
    max_drop: float | None = None
    """How far the accuracy may fall below the one before, in [0, 1]."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for what is no share."""
        for option, share in (("--min-accuracy", self.min_accuracy), ("--max-drop", self.max_drop)):
            if share is not None and not 0 <= share <= 1:
                raise UsageError(f"{option} is {share}; expected 0 to 1, such as 0.97.")

    @property
    def any(self) -> bool:
        """Whether anything is asked for."""
        return self.min_accuracy is not None or self.max_drop is not None

    def judge(self, accuracy: float, before: float | None, what: str) -> tuple[Verdict, ...]:
        """Return a verdict for each gate; `before` is the accuracy that a drop is measured from.

        Where there is none before, a drop cannot be: that gate has no verdict.
        """
        verdicts = []
        if self.min_accuracy is not None:
            verdicts.append(at_least("min-accuracy", accuracy, self.min_accuracy, what, "asked"))
        if self.max_drop is not None and before is not None:
            why = f"{percent(before)} before, less the drop of {percent(self.max_drop)} allowed"
            verdicts.append(at_least("max-drop", accuracy, before - self.max_drop, what, why))
        return tuple(verdicts)


def at_least(gate: str, found: float, limit: float, what: str, why: str) -> Verdict:
    """Return the verdict on an accuracy that must not be below a limit."""
    text = f"{what} has accuracy {percent(found)}; expected at least {percent(limit)} ({why})."
    # Shares of rows are written as decimals: what differs by rounding alone does not differ.
    return Verdict(gate, limit, found, found >= limit - 1e-12, text)


def missed(verdicts: Sequence[Verdict]) -> str | None:
    """Return what to say of the gates that were missed; None where there are none."""
    texts = [verdict.text for verdict in verdicts if not verdict.passed]
    return " ".join(texts) or None
