"""Each operation that changes the disk is made to fail: once, or from then on."""

import errno
import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from storage.errors import UnreachableError
from tests.chaos.scenarios import SCENARIOS, Stage, stage
from tests.chaos.seam import Operation, operations_through
from tests.chaos.tally import Experiment
from tests.commands.process import run_here

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)
MODES = ("once", "from then on")


def _try_fault(stage: Stage, case: int, chance: random.Random) -> str:
    """Fail an operation; the command reports it, damages nothing, and succeeds when run again."""
    case, mode = divmod(case, len(MODES))
    number, code = divmod(case, len(ERRORS))
    with stage.subject() as subject:
        command = stage.command(subject)
        files = _open_files()
        with failing(number, ERRORS[code], MODES[mode], chance) as failed:
            ended = run_here(*command)
        assert failed, f"there is no operation {number}: {ended}"
        doing = (
            f"operation {number}, {failed[0]}, fails {MODES[mode]} ({os.strerror(ERRORS[code])})"
        )
        try:
            if ended.code != 0:
                check_refusal(ended.code, ended.err, ERRORS[code])
            stage.check_between(subject)
            assert files >= _open_files(), "a file stays open"
            again = run_here(*command)
            assert 0 == again.code, f"run again: {again.code} {again.err}"
            stage.check_done(subject)
        except AssertionError as error:
            raise AssertionError(f"{doing}: {error}") from error
        return "survived" if ended.code else "harmless"


@contextmanager
def failing(
    number: int, error_number: int, mode: str, chance: random.Random
) -> Iterator[list[str]]:
    """Let operation `number` fail, and with `mode` "from then on" all later ones too.

    Yields the names of those that failed. A failing write writes a part; a failing close closes the
    file, as on Linux.
    """
    failed: list[str] = []
    count = 0

    def around(name: str, real: Operation, arguments: tuple[Any, ...]) -> Any:
        nonlocal count
        count += 1
        if count - 1 < number or (failed and mode == "once"):
            return real(*arguments)
        failed.append(name)
        if name == "close":
            real(*arguments)
        if name == "write":
            descriptor, data = arguments
            real(descriptor, memoryview(data).cast("B")[: chance.randint(0, len(data))])
        raise OSError(error_number, os.strerror(error_number))

    with operations_through(around):
        yield failed


def check_refusal(code: int, text: str, error_number: int) -> None:
    """Check the exit code, and that the message is one or two sentences with place and cause."""
    assert UnreachableError.exit_code == code, f"exit code {code}: {text}"
    assert "Traceback" not in text, text
    assert text.startswith("Error: Cannot "), text
    assert 1 == text.count("\n"), text
    assert os.strerror(error_number) in text, text
    sentences = re.findall(r"[.?](?:\s|$)", text)
    assert 1 <= len(sentences) <= 2, f"{len(sentences)} sentences: {text}"


def _open_files() -> int:
    """Return the number of open files and directories, without the pipes of Zarr's threads."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of this listing
            count += os.readlink(descriptor).startswith("/")
    return count


EXPERIMENTS = tuple(
    Experiment(
        f"fault-{name}",
        _try_fault,
        0,
        partial(stage, name),
        total=lambda stage: stage.operations * len(ERRORS) * len(MODES),
    )
    for name in SCENARIOS
)
