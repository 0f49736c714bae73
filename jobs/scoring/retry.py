"""Retries after connection failures, and pauses that a signal ends."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from jobs.signals import StopSignal
from storage.errors import UnreachableError, as_pipeline_error
from storage.events import event

POLL_SECONDS = 0.2
"""Interval at which a pause looks for signals."""

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retry:
    """Call a function again after each connection failure, at most `retries` times."""

    retries: int
    wait: float
    """Seconds between two calls."""
    stop: StopSignal

    def __call__(self, function: Callable[[], Result]) -> Result:
        """Return the function's result, or raise its error once the retries are used up."""
        left = self.retries
        while True:
            try:
                return function()
            except Exception as error:
                failure = as_pipeline_error(error)
                if not isinstance(failure, UnreachableError) or not left:
                    raise
            text = f"{failure} Retrying in {self.wait:g} s; {left:,} left."
            facts = {"error": str(failure), "seconds": self.wait, "left": left}
            event(logger, "retry", text, logging.WARNING, **facts)
            left -= 1
            pause(self.wait, self.stop)


def pause(seconds: float, stop: StopSignal) -> None:
    """Sleep; raise `StoppedError` soon after a signal."""
    end = time.monotonic() + seconds
    while True:
        stop.check("Stopped while waiting; no partial output was left behind. Run it again.")
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, POLL_SECONDS))
