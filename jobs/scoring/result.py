"""What a scoring job came to: each scoring, what went wrong, and the error to end with."""

from dataclasses import dataclass, field
from typing import Any

from jobs.scoring.gates import Verdict, missed
from jobs.scoring.metrics import check_quality
from storage.errors import (
    BadDataError,
    ConflictError,
    InternalError,
    PipelineError,
    QualityGateError,
    UnreachableError,
)
from storage.location import Location
from storage.runs import Run
from storage.scores import METRICS, Scores, open_scores

GRAVEST_FIRST = (BadDataError, QualityGateError, InternalError, UnreachableError, ConflictError)
"""Of several things that went wrong, the first of these gives the exit code."""


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


@dataclass
class ScoringResult:
    """What a batch job came to."""

    run: Run
    model_digest: str
    checkpoint: str
    results: list[ScoreResult] = field(default_factory=list)
    errors: list[PipelineError] = field(default_factory=list)
    """Of what could not be scored, and of missed gates."""
    failed: list[dict[str, str]] = field(default_factory=list)
    """The inbox's bad files: `file` and `error`."""
    left: list[dict[str, str]] = field(default_factory=list)
    """The inbox's files that were left for the next time: `file` and `reason`."""
    unjudged: list[str] = field(default_factory=list)
    """The inbox's files of which no gate could be judged: they have no labels, as a rule."""
    warnings: tuple[str, ...] = ()

    @property
    def error(self) -> PipelineError | None:
        """What the job ends with: the gravest error, in whose text are those of its kind."""
        for kind in GRAVEST_FIRST:
            texts = [str(error) for error in self.errors if isinstance(error, kind)]
            if texts:
                return kind(texts[0] if len(texts) == 1 else _several(texts))
        return None


def _several(texts: list[str]) -> str:
    shown = " ".join(texts[:3])
    return shown if len(texts) <= 3 else f"{shown} And {len(texts) - 3:,} more."
