"""A terminal session that runs the blocks of a page in order, as a reader would."""

import contextlib
import io
import logging
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from jobs.commands.logs import LOGGERS
from jobs.training.environment import environment
from tests.docs.blocks import Block

SHOWN_ON = {"numpy": "2.4.6", "blas_kernel": "SkylakeX"}
"""The platform on which the pages' digits were computed; other platforms may differ."""
TIMEOUT = 1200
_MEASURED = (
    r"\.\.\.",
    r"[\d.,]+ (?:s|min|MB|cores?|rows/s|% waiting)\b",
    r"\d{4}-\d\d-\d\d",
    r"\d\d:\d\d:\d\d\S*",
)
_COMPUTED = (r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b", r"\d+\.\d+", r"(?<!\S)\d+(?!\S)")


class Session:
    """Runs blocks in a directory; variables, `cd` and Python's names carry over to the next."""

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        self._directory = directory
        self._env = env
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._background: list[subprocess.Popen[bytes]] = []

    def run(self, block: Block) -> str:
        """Run a block and return what it printed; raise `AssertionError` if it fails."""
        if block.language == "python":
            return self._run_python(block)
        if block.marked("background"):
            self._background.append(self._start(block.code))
            return ""
        return self._run_shell(block)

    def close(self) -> None:
        """End the processes in the background, and remove the log handlers of Python blocks."""
        for name in LOGGERS:
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).setLevel(logging.NOTSET)
        for process in self._background:
            os.killpg(process.pid, signal.SIGTERM)
        for process in self._background:
            process.wait(TIMEOUT)

    def _start(self, code: str, **options: Any) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            ["bash", "-euc", code],
            cwd=self._directory,
            env=self._env,
            start_new_session=True,
            **options,
        )

    def _run_shell(self, block: Block) -> str:
        state = Path(self._env["HOME"]) / "state"
        state.unlink(missing_ok=True)
        code = f"trap '{{ pwd; env -0; }} > {state}' EXIT\n{block.code}"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self._start(code, **pipes) as process:
            out, err = (stream.decode() for stream in process.communicate(timeout=TIMEOUT))
        expected = int(block.marked("code") or 0)
        assert process.returncode == expected, f"{block}: exit {process.returncode}\n{out}{err}"
        directory, _, variables = state.read_text().partition("\n")
        self._directory = Path(directory)
        self._env = dict(pair.split("=", 1) for pair in variables.split("\0") if pair)
        return out + (err if expected else "")

    def _run_python(self, block: Block) -> str:
        code = compile("\n" * (block.line - 1) + block.code, str(block), "exec")
        out = io.StringIO()
        with (
            contextlib.chdir(self._directory),
            mock.patch.dict(os.environ, self._env, clear=True),
            contextlib.redirect_stdout(out),
        ):
            exec(code, self._names)
        return out.getvalue()


@contextlib.contextmanager
def session(directory: Path, env: dict[str, str]) -> Iterator[Session]:
    """Open a session, and end its background processes afterwards."""
    opened = Session(directory, env)
    try:
        yield opened
    finally:
        opened.close()


def pattern_of(expected: str, *, exact: bool | None = None) -> re.Pattern[str]:
    """Return a pattern that matches the outputs equivalent to a page's sample output.

    `...` stands for any text in a line, and for any lines if it is the whole line. Times, sizes and
    core counts match any others; digests, fractions and counts do so unless `exact`.
    """
    if exact is None:
        exact = environment() == environment() | SHOWN_ON
    varying = "|".join(_MEASURED if exact else [*_MEASURED, *_COMPUTED])
    lines = [" ".join(line.split()) for line in expected.splitlines()]
    return re.compile("".join(_line_pattern(line, varying) for line in lines))


def _line_pattern(line: str, varying: str) -> str:
    if line == "...":
        return r"(?:.*\n)*?"
    pieces = re.split(f"({varying})", line)
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            pieces[index] = re.escape(piece).replace(r"\ ", r"\s+")
        else:
            pieces[index] = ".*?" if piece == "..." else re.sub(r"\S+", r"\\S+", piece)
    return rf" *{''.join(pieces)} *\n"
