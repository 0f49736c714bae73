"""Events: log records with a name and facts, and the callback that follows progress."""

import logging
from typing import Any, Protocol


class Progress(Protocol):
    """Called as work advances. It may raise to stop the work."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` rows of a stage are finished; `note` is shown with it."""


def no_progress(stage: str, done: int, total: int, note: str = "") -> None:
    """Report nothing."""


def event(
    logger: logging.Logger, name: str, text: str, level: int = logging.INFO, **facts: Any
) -> None:
    """Log a sentence for people together with its name and facts for programs.

    The record has the attributes `event` (the name), `text` (the sentence, empty where the event is
    for programs alone) and `facts` (a dictionary for JSON).
    """
    message = text or f"{name}: {facts}"
    logger.log(level, "%s", message, extra={"event": name, "text": text, "facts": facts})
