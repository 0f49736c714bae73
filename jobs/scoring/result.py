"""The result of a scoring job: scores, errors, and the error that decides the exit code."""

from collections.abc import Sequence
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
    UsageError,
)
from storage.location import Location
from storage.runs import Run
from storage.scores import Scores

SEVERITY = (
    BadDataError,
    QualityGateError,
    InternalError,
    UnreachableError,
    ConflictError,
    UsageError,
)
"""Error types, most severe first: the first one that occurred gives the exit code."""
INTERNAL_ERROR = "internal error (please report it)"
SHOWN_NAMES = 10
"""Number of files that a message names at most."""


@dataclass(frozen=True, repr=False)
class ScoreResult:
    """The scores of one split or file."""

    scores: Scores
    """The predictions, read chunk by chunk, and their metrics."""
    already_done: bool
    """Whether the same model had scored the same rows before."""
    output: Location | None = None
    """The file written for `out`."""
    file: str | None = None
    """The inbox's file that the rows came from."""
    verdicts: tuple[Verdict, ...] = ()
    """The verdict of each gate; empty for rows without labels."""

    def __repr__(self) -> str:
        """Return the place of the scores, their rows and accuracy, on one line."""
        rows, done = self.scores.schema.rows, ", already done" * self.already_done
        accuracy = "no labels" if self.accuracy is None else f"accuracy {self.accuracy:.4f}"
        return f"<ScoreResult {self.scores.location}: {rows:,} rows, {accuracy}{done}>"

    @property
    def metrics(self) -> dict[str, Any]:
        """The contents of metrics.json; `quality` is None for rows without labels."""
        return {"quality": None, "drift": None} | self.scores.metrics

    @property
    def drift(self) -> dict[str, Any] | None:
        """How far the rows are from training, as metrics.json records it; None if unknown."""
        drift: dict[str, Any] | None = self.metrics["drift"]
        return drift

    @property
    def drift_score(self) -> float | None:
        """The largest distance of the rows from training; None if unknown, or if they are few."""
        return None if self.drift is None else self.drift["score"]

    @property
    def drift_text(self) -> str | None:
        """What differs from training; None if nothing does much."""
        return None if self.drift is None else self.drift["text"]

    @property
    def accuracy(self) -> float | None:
        """The share of correct rows; None without labels."""
        quality = self.metrics["quality"]
        return None if quality is None else float(quality["accuracy"])

    @property
    def seconds(self) -> float | None:
        """How long the scoring took; None if it was done before."""
        return None if self.already_done else float(self.metrics["seconds"])

    @property
    def missed(self) -> str | None:
        """A sentence for each missed gate; None if all passed."""
        return missed(self.verdicts)


@dataclass(repr=False)
class ScoringResult:
    """The outcome of one scoring job."""

    runs: Sequence[Run]
    """The run of each checkpoint; the scores are kept below the first one."""
    model_digest: str
    """Digest of the model."""
    checkpoint: str
    """Name of its checkpoint, `EPOCH-STEP`; several with commas for their average."""
    average_shifts: int
    """The largest shift in pixels of the images that are averaged; 0 for none."""
    results: list[ScoreResult] = field(default_factory=list)
    """The scores of each split or file, new and existing."""
    errors: list[PipelineError] = field(default_factory=list)
    """Errors of splits and files that could not be scored, and missed gates."""
    failed: list[dict[str, str]] = field(default_factory=list)
    """The inbox's bad files: `file` and `error`."""
    left: list[dict[str, str]] = field(default_factory=list)
    """The inbox's files that were left for the next run: `file` and `reason`."""
    unjudged: list[str] = field(default_factory=list)
    """The inbox's files that no gate could judge, usually because they have no labels."""

    def __repr__(self) -> str:
        """Return the model and the counts, on one line."""
        model = f"model {self.model_digest[:12]} of {self.run.location}"
        counts = f"{len(self.results):,} results, {len(self.errors):,} errors"
        return f"<ScoringResult {model}: {counts}, {len(self.left):,} left>"

    @property
    def run(self) -> Run:
        """The run below which the scores are kept."""
        return self.runs[0]

    @property
    def error(self) -> PipelineError | None:
        """The error that decides the exit code: of the most severe type, up to three messages."""
        for error_type in SEVERITY:
            errors = [error for error in self.errors if isinstance(error, error_type)]
            texts = list(dict.fromkeys(map(str, errors)))
            more = f" And {len(texts) - 3:,} more." if len(texts) > 3 else ""
            if texts:
                return error_type(" ".join(texts[:3]) + more)
        return None
