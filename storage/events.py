"""Events: log records with a name and facts, the callback that follows progress, times."""

import logging
from datetime import UTC, datetime, tzinfo
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


def for_people(logger: logging.Logger, text: str, level: int = logging.INFO) -> None:
    """Log a line that logs for programs leave out, such as the header of a table."""
    logger.log(level, "%s", text, extra={"for_people": True})


def local_time(moment: datetime | str, zone: tzinfo | None = None) -> str:
    """Return a time for people, with its offset from UTC: `2026-11-27 18:02:21+00:00`.

    `moment` may be a text in ISO 8601; without an offset it is in UTC. `zone` is this machine's
    unless given. Raises `ValueError` for any other text.
    """
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(zone).isoformat(sep=" ", timespec="seconds")
