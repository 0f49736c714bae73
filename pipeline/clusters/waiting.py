"""Bounded waits for a cluster, which report progress and can be cancelled."""

import time
from collections.abc import Callable

Announce = Callable[[str], None]
Check = Callable[[str], None]
"""Called now and then while there is nothing to do but wait; what it raises ends the wait.

It is told, in whole sentences, what is to be said of a job that is stopped there.
"""

STOPPED = "Stopped before there was a cluster; nothing was begun. Run the same command again."
SAY_SECONDS = 5.0
"""Between two lines that tell what is being waited for."""
POLL_SECONDS = 0.1


class Waiting:
    """A wait with a limit, that now and then says what it waits for."""

    def __init__(
        self, seconds: float, announce: Announce, check: Check, stopped: str = STOPPED
    ) -> None:
        """Begin now; `check` may end the wait, and is given `stopped` as the reason."""
        self.seconds = seconds
        self._stopped = stopped
        self._began = self._said = time.monotonic()
        self._announce = announce
        self._check = check

    def over(self, what: str) -> bool:
        """Return whether the limit is reached."""
        self._check(self._stopped)
        now = time.monotonic()
        left = self.seconds - (now - self._began)
        if now - self._said > SAY_SECONDS:
            self._said = now
            self._announce(f"waiting for {what}, {max(0.0, left):.0f} s left")
        return left <= 0
