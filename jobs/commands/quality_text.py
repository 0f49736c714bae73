"""How good predictions are, as text for people."""

from typing import Any

from jobs.commands.console import table
from jobs.printing import percent

SHOWN_CLASSES = 30
"""More classes than this are not listed one by one."""


def quality_text(quality: dict[str, Any]) -> str:
    """Accuracy, per-class figures and the confusion matrix."""
    names = [found["name"] for found in quality["classes"]]
    parts = [
        f"accuracy {percent(quality['accuracy'])}, cross-entropy {quality['cross_entropy']:.4f}",
        table(
            ["class", "precision", "recall", "F1", "rows"],
            [
                [
                    found["name"],
                    *(percent(found[figure]) for figure in ("precision", "recall", "f1")),
                    f"{found['rows']:,}",
                ]
                for found in quality["classes"]
            ],
        ),
    ]
    if len(names) <= SHOWN_CLASSES:
        rows = [[name, *row] for name, row in zip(names, quality["confusion"], strict=True)]
        parts.append(table(["true \\ predicted", *names], rows))
    return "\n\n".join(parts)
