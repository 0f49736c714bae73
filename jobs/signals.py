"""SIGINT and SIGTERM: the first asks a job to stop where it can be resumed, the second ends it."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from storage.errors import StoppedError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = b"\x1b[?25h\n"


class StopSignal:
    """Whether a job has been asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def requested(self) -> bool:
        """Whether to stop at the next place from which the job can be resumed."""
        return self.number is not None

    def raise_stopped(self, message: str) -> NoReturn:
        """Raise `StoppedError` with the exit code of the signal that came."""
        raise StoppedError(message, self.number or signal.SIGTERM)

    def check(self, message: str) -> None:
        """Raise `StoppedError` where a signal has come."""
        if self.requested:
            self.raise_stopped(message)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if sys.stderr.isatty():
                os.write(2, SHOW_CURSOR)  # a progress bar may have hidden it
            os._exit(128 + number)  # at once: the user asked twice
        self.number = number


@contextmanager
def stop_on_signals() -> Iterator[StopSignal]:
    """Listen for SIGINT and SIGTERM while the block runs; for the main thread of a process."""
    stop = StopSignal()
    with handle_signals(stop._handle):
        yield stop


@contextmanager
def handle_signals(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call `handle` for SIGINT and SIGTERM while the block runs; in the main thread."""
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
