"""Retries after connection failures, and pauses that a signal ends."""

import logging
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from jobs.signals import StopSignal
from storage.errors import UnreachableError
from storage.events import event
from storage.files import as_pipeline_error

POLL_SECONDS = 0.2
"""Between two looks, so that a signal ends a wait at once."""

logger = logging.getLogger(__name__)


class Attempts:
    """Attempts at some work: the first, then one more after each connection failure.

    ::

        for attempt in Attempts(retries, retry_wait, stop):
            with attempt:
                ...
    """

    def __init__(self, retries: int, retry_wait: float, stop: StopSignal) -> None:
        """At most `retries` more, `retry_wait` seconds after the one before."""
        self._left = retries
        self._seconds = retry_wait
        self._stop = stop
        self._is_over = False

    def __iter__(self) -> Iterator[Self]:
        """Yield itself until an attempt comes to its end."""
        while not self._is_over:
            yield self

    def __enter__(self) -> Self:
        """Begin an attempt."""
        self._is_over = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Pause and allow another attempt, or let the error pass."""
        known = as_pipeline_error(error) if error else None
        if not isinstance(known, UnreachableError) or not self._left:
            return False
        event(
            logger,
            "retry",
            f"{known} Trying again in {self._seconds:g} s; {self._left} more.",
            logging.WARNING,
            error=str(known),
            seconds=self._seconds,
            left=self._left,
        )
        self._left -= 1
        self._is_over = False
        pause(self._seconds, self._stop)
        return True


def pause(seconds: float, stop: StopSignal) -> None:
    """Let time pass; raise `StoppedError` soon after a signal."""
    end = time.monotonic() + seconds
    while True:
        stop.check("Stopped while waiting; no partial output was left behind. Run it again.")
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, POLL_SECONDS))
