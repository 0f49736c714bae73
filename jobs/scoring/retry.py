"""Waiting: for work that another job has in hand, and for storage that is out of reach."""

import time
from collections.abc import Callable
from typing import TypeVar

from jobs.scoring.listener import ScoreListener
from jobs.signals import StopSignal
from storage.errors import ConflictError, UnreachableError
from storage.files import naming_shortages

POLL_SECONDS = 0.2
"""Between two looks, so that a signal is heeded at once."""

Result = TypeVar("Result")


def wait_for_turn(
    work: Callable[[], object],
    is_done: Callable[[], bool],
    *,
    wait: float,
    listener: ScoreListener,
    stop: StopSignal,
) -> bool:
    """Do work that is done under a lock, waiting so many seconds for another that holds it.

    Returns whether it was done here; False where the other has done it meanwhile. Raises the
    `ConflictError` that names the other where neither has come of it.
    """
    deadline = time.monotonic() + wait
    told = False
    while True:
        try:
            work()
        except ConflictError as conflict:
            if is_done():
                listener.say("Another job has finished the same scoring; its result is used.")
                return False
            if time.monotonic() >= deadline:
                raise
            if not told:
                told = True
                listener.event("waiting", seconds=wait, text=f"Waiting: {conflict}")
        else:
            return True
        pause(min(POLL_SECONDS, wait), stop)


def try_again(
    attempt: Callable[[], Result],
    *,
    retries: int,
    retry_wait: float,
    listener: ScoreListener,
    stop: StopSignal,
) -> Result:
    """What `attempt` returns; what is out of reach (exit 6) is tried so many times more."""
    attempt = naming_shortages()(attempt)
    for left in range(retries, 0, -1):
        try:
            return attempt()
        except UnreachableError as error:
            text = f"{error} Trying again in {retry_wait:g} s; {left} more."
            listener.event(
                "retry", error=str(error), seconds=retry_wait, left=left, text=text, warning=True
            )
            pause(retry_wait, stop)
    return attempt()


def pause(seconds: float, stop: StopSignal) -> None:
    """Let time pass; raises `StoppedError` soon after a signal."""
    end = time.monotonic() + seconds
    while True:
        stop.check("Stopped while waiting; nothing was left half. Run the same command again.")
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, POLL_SECONDS))
