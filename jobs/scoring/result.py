"""What a scoring job came to: each scoring, what went wrong, and the error to end with."""

from dataclasses import dataclass, field
from typing import Any

from jobs.scoring.gates import Verdict, missed
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
from storage.scores import Scores

GRAVEST_FIRST = (BadDataError, QualityGateError, InternalError, UnreachableError, ConflictError)
"""Error types in order of severity: the first that occurred gives the exit code."""
INTERNAL_ERROR = "internal error (please report it)"
SHOWN_NAMES = 10
"""More files than this are not named in a message."""


@dataclass(frozen=True)
class ScoreResult:
    """What a scoring came to."""

    scores: Scores
    """The predictions, to be read chunk by chunk, and metrics.json."""
    already_done: bool
    """True where the same model had scored the same rows before."""
    output: Location | None = None
    """The plain file that was asked for."""
    file: str | None = None
    """The inbox's file that the rows came from."""
    verdicts: tuple[Verdict, ...] = ()
    """The verdict of each gate, where the rows have labels."""

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
    def seconds(self) -> float | None:
        """How long it took; None where it was done before, by a job that may have died."""
        return None if self.already_done else float(self.metrics["seconds"])

    @property
    def missed(self) -> str | None:
        """What to say of gates that were missed."""
        return missed(self.verdicts)


@dataclass
class ScoringResult:
    """What a scoring job came to."""

    run: Run
    model_digest: str
    checkpoint: str
    results: list[ScoreResult] = field(default_factory=list)
    errors: list[PipelineError] = field(default_factory=list)
    """Errors of what could not be scored, and missed gates."""
    failed: list[dict[str, str]] = field(default_factory=list)
    """The inbox's bad files: `file` and `error`."""
    left: list[dict[str, str]] = field(default_factory=list)
    """The inbox's files that were left for the next run: `file` and `reason`."""
    unjudged: list[str] = field(default_factory=list)
    """The inbox's files that no gate could judge: they have no labels, as a rule."""

    @property
    def error(self) -> PipelineError | None:
        """The error to end with: the gravest, whose text has those of its kind."""
        for kind in GRAVEST_FIRST:
            texts = [str(error) for error in self.errors if isinstance(error, kind)]
            more = f" And {len(texts) - 3:,} more." if len(texts) > 3 else ""
            if texts:
                return kind(" ".join(texts[:3]) + more)
        return None
