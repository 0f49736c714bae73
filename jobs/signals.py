"""SIGINT and SIGTERM: the first asks a job to save its state and stop, the second ends it."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from storage.errors import RestartError, StoppedError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Whether a job has been asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def requested(self) -> bool:
        """Whether the job should stop as soon as it can be resumed."""
        return self.number is not None

    def raise_stopped(self, message: str) -> NoReturn:
        """Raise `StoppedError` with the exit code of the received signal."""
        raise StoppedError(message, self.number or signal.SIGTERM)

    def check(self, message: str) -> None:
        """Raise `StoppedError` if a signal was received."""
        if self.requested:
            self.raise_stopped(message)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if sys.stderr.isatty():
                os.write(2, b"\n")  # the shell prompt starts below the progress line
            os._exit(128 + number)  # at once: the user asked twice
        self.number = number


@contextmanager
def stop_on_signals() -> Iterator[StopSignal]:
    """Record SIGINT and SIGTERM from the start of the block to the end of the process.

    So a job that is done prints its result and keeps its exit code, whenever the signal comes.
    """
    stop = StopSignal()
    handle_signals(stop._handle)
    try:
        yield stop
    except RestartError:
        stop.check("Stopped before any work was started. Run the same command again.")
        raise


def handle_signals(handle: Callable[[int, FrameType | None], None]) -> None:
    """Call `handle` for SIGINT and SIGTERM from now on, in the main thread."""
    for number in SIGNALS:
        signal.signal(number, handle)
