"""What is printed, by commands and by jobs that log: always printable, written at once."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from storage.errors import StoppedError, UnreachableError

PLAIN_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""
UNREAD_OUTPUT = "Stopped: the reader of the output closed it."
LAYOUT = "\n\t"
"""Characters that lay out a text of several lines; a single line holds neither."""
UNDECODED = range(0xDC80, 0xDD00)
"""What `os.fsdecode` puts in the place of a byte that is not UTF-8."""


def printable(text: str) -> str:
    """Return a text with every character escaped that a terminal would obey or hide.

    These are control and escape characters, marks that reorder what follows, line separators
    and bytes that are not text; names of files and keys may hold them all. Line feeds and tabs
    stay.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character in LAYOUT or character.isprintable() else _escaped(character)
        for character in text
    )


def one_line(text: str) -> str:
    """Return a text as `printable` does, with its line feeds and tabs escaped too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _escaped(character: str) -> str:
    code = ord(character)
    if code in UNDECODED:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode()


def print_line(text: str) -> None:
    """Print on stdout, at once. Raises `StoppedError` or `UnreachableError` where that fails."""
    with _translate_output_errors():
        print(printable(text), flush=True)


def print_exactly(text: str) -> None:
    """Print on stdout as UTF-8, character by character: the text is for another program."""
    with _translate_output_errors():
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.flush()
            sys.stdout.buffer.write(text.encode() + b"\n")
            sys.stdout.buffer.flush()
        else:
            print(text, flush=True)


@contextmanager
def _translate_output_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:  # as other commands end when `head` has seen enough
        sys.stdout = None  # or Python tries to flush it once more
        raise StoppedError(UNREAD_OUTPUT, signal.SIGPIPE) from error
    except OSError as error:
        sys.stdout = None
        raise UnreachableError(
            f"Cannot write the output: {error.strerror}; free some space, or send the output "
            "elsewhere."
        ) from error


def print_aside(text: str) -> None:
    """Print on stderr, at once; where that cannot be written, drop it and all that follows."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives


def percent(share: float) -> str:
    """Return a share in [0, 1] as `98.21 %`."""
    return f"{100 * share:.2f} %"
