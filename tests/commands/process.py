"""The real command, in a process of its own or in this one, and what came of it."""

import contextlib
import io
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from jobs.commands.cli import main

REPOSITORY = Path(__file__).parents[2]

PYTHON = (sys.executable, "-W", "error")
"""This Python, with warnings as errors."""
MODULE = ("jobs.commands.cli",)
COMMAND = (*PYTHON, "-m", *MODULE)
"""`pipeline`, of this checkout."""

NOT_INHERITED = ("MNIST_DIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def start_pipeline(
    *arguments: object,
    cwd: Path,
    env: dict[str, str] | None = None,
    module: tuple[str, ...] = MODULE,
    **options: Any,
) -> "subprocess.Popen[str]":
    """Start `pipeline` with arguments in a directory; `env` adds to a plain environment.

    Another `module`, with what it takes before the arguments, may stand for the command's own.
    """
    inherited = {
        name: value for name, value in os.environ.items() if name.upper() not in NOT_INHERITED
    }
    plain = {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "80"}
    return subprocess.Popen(
        [*PYTHON, "-m", *module, *map(str, arguments)],
        cwd=cwd,
        env=inherited | plain | (env or {}),
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
    )


def run_pipeline(
    *arguments: object, cwd: Path, env: dict[str, str] | None = None, **options: Any
) -> Ended:
    """Run `pipeline` to its end."""
    with start_pipeline(*arguments, cwd=cwd, env=env, **options) as process:
        out, err = process.communicate()
    return Ended(process.returncode, out, err)


def wait_for_line(process: "subprocess.Popen[str]", pattern: str) -> None:
    """Read what a process prints up to a line that begins so; it is not to end before."""
    assert process.stdout is not None
    line = process.stdout.readline()
    while not re.match(pattern, line):
        assert line, process.communicate()
        line = process.stdout.readline()


def kill_at_line(
    pattern: str, *arguments: object, cwd: Path, env: dict[str, str] | None = None
) -> int:
    """Start `pipeline` and kill it once it has printed such a line; returns its process."""
    with start_pipeline(*arguments, cwd=cwd, env=env) as process:
        wait_for_line(process, pattern)
        process.kill()
        assert -signal.SIGKILL == process.wait()
    return process.pid


def run_here(*arguments: object) -> Ended:
    """Run the command in this process, with its streams caught."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(2)]
    with (
        mock.patch.object(sys, "argv", ["pipeline", *map(str, arguments)]),
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
    ):
        try:
            main()
        except SystemExit as leaving:
            assert isinstance(leaving.code, int), leaving.code
            return Ended(leaving.code, *map(_written, streams))
    raise AssertionError("the command did not end in an exit code")


def _written(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def limited_to(address_space: int) -> Callable[[], None]:
    """For `preexec_fn`: an upper bound of the process's address space, in bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))


def without_plan(out: str) -> str:
    """What a command printed, but for the memory that it said before it would keep to."""
    lines = out.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("memory at most "))


def assert_refused(ended: Ended, code: int, *words: object) -> None:
    """The command ended with a code, no result, and a message in one line that has the words."""
    assert code == ended.code, ended.err
    assert without_plan(ended.out) == ""
    assert "Traceback" not in ended.err
    usage, _, message = ended.err.rpartition("Error: ")
    assert usage == "" or usage.startswith("Usage: pipeline")
    assert message.count("\n") == 1, message
    assert usage or message.endswith((".\n", "?\n")), message
    for word in words:
        assert str(word) in message
