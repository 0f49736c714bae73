"""Runs the real command, in another process or in this one."""

import contextlib
import io
import json
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
from jobs.signals import SIGNALS

REPOSITORY = Path(__file__).parents[2]

PYTHON = (sys.executable, "-W", "error")
"""This Python, with warnings as errors."""
MODULE = ("jobs.commands.cli",)
COMMAND = (*PYTHON, "-m", *MODULE)
"""The command `pipeline` of this checkout."""

NOT_INHERITED = ("MNIST_DIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")


@dataclass(frozen=True)
class Ended:
    """A finished command: exit code, stdout and stderr."""

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
    """Start `pipeline` in the directory `cwd`; `env` adds variables.

    `module` may be another module to run instead, with its first arguments.
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
    """Run `pipeline` and wait for it."""
    with start_pipeline(*arguments, cwd=cwd, env=env, **options) as process:
        out, err = process.communicate()
    return Ended(process.returncode, out, err)


def wait_for_line(process: "subprocess.Popen[str]", pattern: str) -> None:
    """Read stdout up to a line that matches `pattern`; fail if the process ends before."""
    assert process.stdout is not None
    line = process.stdout.readline()
    while not re.match(pattern, line):
        assert line, process.communicate()
        line = process.stdout.readline()


def kill_at_line(
    pattern: str, *arguments: object, cwd: Path, env: dict[str, str] | None = None
) -> int:
    """Start `pipeline`, kill it at a line that matches `pattern`, and return its process ID."""
    with start_pipeline(*arguments, cwd=cwd, env=env) as process:
        wait_for_line(process, pattern)
        process.kill()
        assert -signal.SIGKILL == process.wait()
    return process.pid


def run_here(*arguments: object) -> Ended:
    """Run the command in this process and capture its streams; signals are handled as before."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
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
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    raise AssertionError("the command did not end in an exit code")


def _written(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def limited_to(address_space: int) -> Callable[[], None]:
    """Return a `preexec_fn` that limits the address space, in bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))


def assert_refused(ended: Ended, code: int, *words: object) -> None:
    """Assert an exit code, no result, and a message of one line that contains the words."""
    assert code == ended.code, ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err
    usage, _, message = ended.err.rpartition("Error: ")
    assert usage == "" or usage.startswith("Usage: pipeline")
    assert message.count("\n") == 1, message
    assert usage or message.endswith((".\n", "?\n")), message
    for word in words:
        assert str(word) in message


def document(ended: Ended) -> dict[str, Any]:
    """Return the JSON document that a command printed; it succeeded without a warning."""
    assert (0, "") == (ended.code, ended.err)
    printed = json.loads(ended.out)
    assert isinstance(printed, dict)
    return printed


def succeeded(ended: Ended) -> str:
    """Return the output of a command that succeeded without a warning."""
    assert (0, "") == (ended.code, ended.err)
    return ended.out
