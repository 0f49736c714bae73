"""Printing for commands and jobs: escaped for the terminal and flushed at once."""

import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from storage.errors import StoppedError, UnreachableError, counted

PLAIN_SECONDS = 10.0
"""Seconds between two lines of progress when stderr is not a terminal."""
UNREAD_OUTPUT = "Stopped: the reader of the output closed it."
LAYOUT = "\n\t"
"""Characters that lay out a text of several lines; a single line holds neither."""
UNDECODED = range(0xDC80, 0xDD00)
"""Code points that `os.fsdecode` uses for bytes that are not UTF-8."""


def printable(text: str) -> str:
    """Escape every character that a terminal would interpret or hide, except line feeds and tabs.

    File and key names may contain control characters, bidirectional marks, line separators and
    bytes that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character in LAYOUT or character.isprintable() else _escaped(character)
        for character in text
    )


def one_line(text: str) -> str:
    """Escape like `printable`, line feeds and tabs too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _escaped(character: str) -> str:
    code = ord(character)
    if code in UNDECODED:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode()


def print_line(text: str) -> None:
    """Print to stdout and flush; raise `StoppedError` or `UnreachableError` on failure."""
    with _translate_output_errors():
        print(printable(text), flush=True)


def print_exactly(text: str) -> None:
    """Print to stdout as UTF-8 without escaping, for text that another program reads."""
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
    except BrokenPipeError as error:  # exit as other commands do in `| head`
        sys.stdout = None  # keeps Python from flushing it again at exit
        raise StoppedError(UNREAD_OUTPUT, signal.SIGPIPE) from error
    except OSError as error:
        sys.stdout = None
        raise UnreachableError(
            f"Cannot write the output: {error.strerror}; free some space, or send the output "
            "elsewhere."
        ) from error


def print_aside(text: str, end: str = "\n") -> None:
    """Print to stderr and flush; after a failure, discard this and all later output."""
    try:
        print(printable(text), file=sys.stderr, end=end, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - stays open until exit


def average_text(members: int, average_shifts: int, names: Sequence[str] = ()) -> str:
    """Return over what a model averages probabilities, as a text; empty for a single network.

    `names` are those of the members, if they are of several runs: see `member_names`.
    """
    pixels = counted(average_shifts, "pixel")
    listed = f" ({', '.join(names)})" if names else ""
    parts = [f"{members} checkpoints{listed}"] if members > 1 else []
    parts += [f"shifts of up to {pixels}"] if average_shifts else []
    return f"average over {' and '.join(parts)}" if parts else ""


def member_names(runs: Sequence[str], checkpoints: str) -> list[str]:
    """Return the run and checkpoint of each member; none if the runs are not given."""
    names = checkpoints.split(",") if runs else []
    return [f"{run} {name}" for run, name in zip(runs, names, strict=True)]


def percent(share: float, digits: int = 2) -> str:
    """Format a share in [0, 1] as `98.21 %`, with `digits` after the point."""
    return f"{100 * share:.{digits}f} %"
