"""The errors that every floor raises, each with the exit code that a user's script sees."""

import difflib
import errno
from collections.abc import Iterable, Iterator

SHOWN = 100
"""Characters of a word that are compared with those that are known."""


class PipelineError(Exception):
    """An error that a user can act on; its text is one or two whole sentences.

    The text names the place (file, row, chunk or field), what was found, what was
    expected, and what to do.
    """

    exit_code: int = 1


class InternalError(PipelineError):
    """A bug of this project, met at one of several items: the others were still worked on."""

    exit_code = 1


class UsageError(PipelineError):
    """A command, setting or argument that cannot be used as given."""

    exit_code = 2


class MissingExtraError(UsageError):
    """A library that this needs is not installed; one of the project's extras has it."""

    def __init__(self, what: str, library: str, extra: str) -> None:
        """Say what needs the library: `what` begins the sentence."""
        super().__init__(
            f"{what} needs the library {library}, which the extra '{extra}' installs: run "
            f"`pip install '.[{extra}]'` in a checkout of mnist-stream."
        )


class BadDataError(PipelineError):
    """Data that is damaged, incomplete, or not what it says it is."""

    exit_code = 3


class ConflictError(PipelineError):
    """Something else is in the way: a lock, an existing result, a recorded configuration."""

    exit_code = 4


class LockedError(ConflictError):
    """Another holds the lock of what is to be written."""

    def __init__(self, message: str, holder: str = "another process") -> None:
        """`holder` is who has it, as far as that is known, for those who say it in other words."""
        super().__init__(message)
        self.holder = holder


class QualityGateError(PipelineError):
    """The work is done and published, but misses the quality that was asked of it."""

    exit_code = 5


class UnreachableError(PipelineError):
    """Storage, network or cluster is unreachable or refuses; the same command may work later."""

    exit_code = 6


class StoppedError(PipelineError):
    """SIGINT or SIGTERM asked the job to stop; what was done is saved and can be resumed."""

    def __init__(self, message: str, signal_number: int) -> None:
        """`signal_number` sets the exit code by the shell's convention: 130 SIGINT, 143 SIGTERM."""
        super().__init__(message)
        self.exit_code = 128 + signal_number


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` with the known word nearest to `word`; empty where none is."""
    folded = {name.lower(): name for name in known}
    nearest = difflib.get_close_matches(word[:SHOWN].lower(), folded, n=1)
    return f" Did you mean {folded[nearest[0]]!r}?" if nearest else ""


SHORTAGES = {
    errno.EMFILE: "open files (ulimit -n)",
    errno.ENFILE: "open files: those of the whole machine are used up",
    errno.EAGAIN: "processes or threads, or no memory for them (ulimit -u, ulimit -v)",
    errno.ENOMEM: "memory (ulimit -v)",
}
"""What the system has no more of, and the limit that says so, by error number."""
SHORTAGES_IN_WORDS = {
    "can't start new thread": errno.EAGAIN,
    "Too many open files": errno.EMFILE,
    "Cannot allocate memory": errno.ENOMEM,
    "failed to map segment": errno.ENOMEM,
}
"""The same where a library has only words for it, as for a module that cannot be loaded."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, each once: an error may be its own cause."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def shortage(error: BaseException | None) -> str | None:
    """Return what the system did not give, and the limit's name; None for any other error.

    What an error was raised from counts as well.
    """
    for cause in causes(error):
        number = cause.errno if isinstance(cause, OSError) else None
        if isinstance(cause, MemoryError):
            number = errno.ENOMEM
        if isinstance(cause, RuntimeError | ImportError):
            words = (code for text, code in SHORTAGES_IN_WORDS.items() if text in str(cause))
            number = next(words, None)
        if number in SHORTAGES:
            return SHORTAGES[number]
    return None


def starved(what: str) -> UnreachableError:
    """Return the error for something that the system does not give; see `shortage`."""
    return UnreachableError(
        f"The system gives no more {what}. Raise the limit or end other processes, then run the "
        "same command again."
    )
