"""Error types, each with its exit code, and the translation of the operating system's errors."""

import difflib
import errno
import os
import signal
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

COMPARED = 100
"""Characters of a word that are compared with the known ones."""


class PipelineError(Exception):
    """An error that a user can act on.

    Its text is one or two whole sentences that name the place (file, row, chunk or field), the
    value read, the value expected, and a remedy.
    """

    exit_code: int = 1


class InternalError(PipelineError):
    """A bug of this project that affected one of several items; the others were processed."""

    exit_code = 1


class UsageError(PipelineError):
    """A command, setting or argument that cannot be used as given."""

    exit_code = 2


class MissingExtraError(UsageError):
    """A library is not installed; one of the project's extras installs it."""

    def __init__(self, what: str, library: str, extra: str) -> None:
        """Name the feature (`what`), its library and the extra that installs it."""
        super().__init__(
            f"{what} needs the library {library}, which the extra '{extra}' installs: run "
            f"`pip install '.[{extra}]'` in a checkout of mnist-stream."
        )


class RestartError(UsageError):
    """The process must start anew with other environment variables.

    The command `pipeline` does so by itself; a Python program has to be started again.
    """

    def __init__(self, message: str, variables: Mapping[str, str | None]) -> None:
        """`variables` are the variables to set; None stands for one to unset."""
        super().__init__(message)
        self.variables = variables


class BadDataError(PipelineError):
    """Data is damaged, incomplete, or in another format."""

    exit_code = 3


class ConflictError(PipelineError):
    """A lock, an existing result or a recorded configuration is in the way."""

    exit_code = 4


class LockedError(ConflictError):
    """Another process holds the lock."""

    def __init__(self, message: str, holder: str = "another process") -> None:
        """`holder` describes the other process, as far as it is known."""
        super().__init__(message)
        self.holder = holder


class QualityGateError(PipelineError):
    """The result is published but missed a quality gate."""

    exit_code = 5


class UnreachableError(PipelineError):
    """Storage, network or cluster is unreachable or refuses; the same command may work later."""

    exit_code = 6


class StoppedError(PipelineError):
    """SIGINT or SIGTERM stopped the job; completed work is saved and can be resumed."""

    def __init__(self, message: str, signal_number: int) -> None:
        """`signal_number` sets the exit code by the shell's convention: 130 SIGINT, 143 SIGTERM."""
        super().__init__(message)
        self.exit_code = 128 + signal_number


def did_you_mean(word: str, known: Iterable[str], parent: str = "") -> str:
    """Return ` Did you mean 'x'?`, or an empty string.

    `x` is the first known word that begins with `word`, or else the nearest one. Case and the
    dashes of options are ignored.
    """
    word = word[:COMPARED].lower().lstrip("-")
    folded = {name.lower().lstrip("-"): name for name in known}
    begun = [name for name in folded if word and name.startswith(word)]
    nearest = begun or difflib.get_close_matches(word, folded, n=1)
    return f" Did you mean {parent + folded[nearest[0]]!r}?" if nearest else ""


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: `1 row`, `1,000 rows`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first names, and the number of the others: `a, b and 3 more`."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def nearest_place(place: str) -> str:
    """Return ` Did you mean 'runs/mnist'?` for a misspelt local path, or an empty string."""
    parent, name = os.path.split(place)
    try:
        names = [] if "://" in place else os.listdir(parent or ".")
    except OSError:
        return ""
    others = (other for other in names if other != name and other[0] != ".")
    return did_you_mean(name, others, os.path.join(parent, ""))


SHORTAGES = {
    errno.EMFILE: "open files (ulimit -n)",
    errno.ENFILE: "open files: the limit of the whole machine is reached",
    errno.EAGAIN: "processes or threads, or no memory for them (ulimit -u, ulimit -v)",
    errno.ENOMEM: "memory (ulimit -v)",
}
"""Exhausted resources and the limit to raise, by error number."""
SHORTAGE_MESSAGES = {
    "can't start new thread": errno.EAGAIN,
    "Too many open files": errno.EMFILE,
    "Cannot allocate memory": errno.ENOMEM,
    "failed to map segment": errno.ENOMEM,
}
"""Texts of errors that have no number, such as a module that cannot be loaded."""
REMEDY = {
    errno.ENOSPC: "free some space and run the same command again.",
    errno.EDQUOT: "free some space and run the same command again.",
    errno.EACCES: "check the permissions and run the same command again.",
    errno.EPERM: "check the permissions and run the same command again.",
    errno.EROFS: "choose a writable place, or remount it, and run the same command again.",
    errno.EEXIST: "a file is in the place of a directory: choose another place.",
    errno.ENAMETOOLONG: "choose a shorter name.",
    errno.ELOOP: "the symbolic links there form a loop: choose another place.",
    errno.ENOTDIR: "a file is in the place of a directory: choose another place.",
}
REMOVED_DIRECTORY = "The current directory has been removed: change to one that exists."
UNUSABLE_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EINVAL)
"""Errors that another try with the same name cannot fix."""
SHOWN = 200
"""Characters of a name that a message shows."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its chain of causes, each once: a chain may be a circle."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def shortage(error: BaseException | None) -> str | None:
    """Return which resource is exhausted, with its limit; None for any other error.

    The error's chain of causes is searched too.
    """
    for cause in causes(error):
        number = cause.errno if isinstance(cause, OSError) else None
        if isinstance(cause, MemoryError):
            number = errno.ENOMEM
        if isinstance(cause, RuntimeError | ImportError):
            numbers = (code for text, code in SHORTAGE_MESSAGES.items() if text in str(cause))
            number = next(numbers, None)
        if number in SHORTAGES:
            return SHORTAGES[number]
    return None


def starved(resource: str) -> UnreachableError:
    """Return the error for an exhausted resource: see `shortage`."""
    return UnreachableError(
        f"The system has no more {resource}. Raise the limit or end other processes, then run the "
        "same command again."
    )


def as_pipeline_error(  # noqa: PLR0911 - an answer for each kind of error
    error: BaseException,
) -> PipelineError | None:
    """Return the error to show for an exception; None for a bug.

    This is the last resort: code that knows more about an error raises a better message itself.
    """
    resource = shortage(error)
    match error:
        case PipelineError():
            return error
        case _ if resource is not None:
            return starved(resource)
        case RecursionError():
            return BadDataError("A file or an argument is nested too deeply to be read.")
        case UnicodeError():
            name = ascii(getattr(error, "object", ""))[:SHOWN]
            return UsageError(f"The name {name} is not valid UTF-8. Rename it, and try again.")
        case FileNotFoundError() if not is_directory_there():
            return UsageError(REMOVED_DIRECTORY)
        case OSError():
            error_type = UsageError if error.errno in UNUSABLE_NAME else UnreachableError
            name = str(error.filename)[:SHOWN] if error.filename else "The system refuses"
            remedy = REMEDY.get(error.errno or 0, "check it and run the same command again.")
            return error_type(f"{name}: {error.strerror or error}; {remedy}")
    return None


def exit_code_of(error: BaseException | None) -> int:
    """Return a command's exit code for the exception that ended it; 0 for None."""
    match error:
        case None:
            return 0
        case KeyboardInterrupt():
            return 128 + signal.SIGINT
        case SystemExit():  # click exits like this after a broken pipe
            return 128 + signal.SIGPIPE
        case Exception() if known := as_pipeline_error(error):
            return known.exit_code
    return 1


def is_directory_there() -> bool:
    """Return whether the current directory still exists."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


@contextmanager
def translate_os_errors(verb: str, path: Path) -> Iterator[None]:
    """Raise `UnreachableError` for an `OSError`, but let `FileNotFoundError` pass."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        resource = shortage(error)
        if resource is not None:
            raise starved(resource) from error
        remedy = REMEDY.get(error.errno or 0, "check the disk or mount and run again.")
        raise UnreachableError(
            f"Cannot {verb} {path}: {error.strerror or error}. {remedy[0].upper()}{remedy[1:]}"
        ) from error


@contextmanager
def temporary_space() -> Iterator[None]:
    """Raise `UnreachableError` if a temporary file cannot be written."""
    try:
        yield
    except OSError as error:
        place = tempfile.tempdir or os.environ.get("TMPDIR", "the temporary directory")
        raise UnreachableError(
            f"Cannot write a temporary file to {place}: {error.strerror or error}. Free some space "
            "there, or set TMPDIR to another directory, and run the same command again."
        ) from error
