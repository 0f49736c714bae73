"""What a scoring tells people when it ends."""

from jobs.report import Report, quality_text
from jobs.score import ScoreResult


def score_report(result: ScoreResult) -> Report:
    """Where the scores are and, where there are labels, how good they are."""
    scores = result.scores
    document = result.metrics | {
        "location": str(scores.location),
        "scores_digest": scores.digest,
        "already_done": result.already_done,
        "output": str(result.output) if result.output else None,
    }
    lines = []
    if result.already_done:
        lines.append("Scored already with this model:")
    quality = result.metrics["quality"]
    lines.append(quality_text(quality) if quality else "The split has no labels: no metrics.")
    lines.append(f"\n{scores.schema.rows:,} rows are in {scores.location}")
    if result.output:
        lines.append(f"and in {result.output}")
    return Report(document, "\n".join(lines))
