"""What is printed, by commands and by jobs that log: a line at once, a share for people."""

import signal
import sys

from storage.errors import StoppedError, UnreachableError

PLAIN_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""


def print_line(text: str) -> None:
    """Print on stdout, at once. Raises `StoppedError` or `UnreachableError` where that fails."""
    try:
        print(text, flush=True)
    except BrokenPipeError as error:  # as other commands end when `head` has seen enough
        sys.stdout = None  # or Python tries to flush it once more
        raise StoppedError("Stopped: nobody reads the output.", signal.SIGPIPE) from error
    except OSError as error:
        sys.stdout = None
        raise UnreachableError(
            f"Cannot write the output: {error.strerror}. What was complete before is untouched; "
            "free some space, or send the output elsewhere."
        ) from error


def percent(share: float) -> str:
    """A share in [0, 1] for people: `98.21 %`."""
    return f"{100 * share:.2f} %"
