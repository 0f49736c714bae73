"""What a scoring came to, as its documents tell."""

from dataclasses import dataclass
from typing import Any

from jobs.scoring.gates import Verdict, missed
from jobs.scoring.metrics import check_quality
from storage.location import Location
from storage.scores import METRICS, Scores, open_scores


@dataclass(frozen=True)
class ScoreResult:
    """What a scoring came to."""

    scores: Scores
    """The predictions, to be read chunk by chunk, and metrics.json."""
    already_done: bool
    """True where the same model had scored the same rows before."""
    warnings: tuple[str, ...] = ()
    output: Location | None = None
    """The plain file that was asked for."""
    file: str | None = None
    """The inbox's file that the rows came from."""
    verdicts: tuple[Verdict, ...] = ()
    """What became of the gates, where the rows have labels."""

    @property
    def metrics(self) -> dict[str, Any]:
        """As in metrics.json; `quality` is None where there are no labels."""
        return {"quality": None} | self.scores.metrics

    @property
    def accuracy(self) -> float | None:
        """The share of rows that are right; None where there are no labels."""
        quality = self.metrics["quality"]
        return None if quality is None else float(quality["accuracy"])

    @property
    def missed(self) -> str | None:
        """What to say of gates that were missed."""
        return missed(self.verdicts)


def open_scored(home: Location) -> Scores:
    """Open a complete scoring; raise `BadDataError` where its quality is not what we write."""
    scores = open_scores(home)
    quality = scores.metrics.get("quality")
    if quality is not None:
        check_quality(quality, scores.schema.classes, f"{home}/{METRICS}")
    return scores
