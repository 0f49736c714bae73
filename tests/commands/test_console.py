"""Output streams: progress on a terminal, pipes without a reader, full disks."""

import os
import pty
import re
import signal
import sys
import threading
from pathlib import Path

import pytest

from tests.commands.conftest import SMALL
from tests.commands.process import Ended, assert_refused, run_pipeline

SCRIPT = """
from jobs.commands import console as module
module.REDRAW_SECONDS = -1.0
console = module.Console()
for done in (0, 500, 1_000):
    console.progress("epoch 1/2", done, 2_000, "loss 0.5000")
console.say("end")
console.close()
"""


def test_progress_stays_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress shows rows, rate and loss, cut to the terminal's width, and is removed."""
    written = bytearray()

    def read(master: int) -> bytes:
        data = os.read(master, 4096)
        written.extend(data)
        return data

    monkeypatch.setenv("COLUMNS", "60")
    status = pty.spawn([sys.executable, "-c", SCRIPT], read)
    assert status == 0, written.decode()
    *drawn, removed, end = written.decode().split("\r", 4)
    assert all(len(line) == 59 for line in drawn)
    assert re.match(r"epoch 1/2: 1,000 of 2,000 rows, [\d,]+ rows/s, 0 s left", drawn[-1])
    assert (" " * 59, "end\r\n") == (removed, end)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("inspect", "data/mnist"), ("train", *SMALL)], ids=str)
def test_broken_pipe(arguments: tuple[str, ...], dataset: Path) -> None:
    """If the reader of a pipe exits, the command ends with 128 + SIGPIPE and no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    ended = run_pipeline(*arguments, cwd=dataset.parent.parent, stdout=writing)
    os.close(writing)
    assert (128 + signal.SIGPIPE, "Stopped: the reader of the output closed it.\n") == (
        ended.code,
        ended.err,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_for_the_output(dataset: Path) -> None:
    """A full disk behind stdout is an error with a remedy."""
    with open("/dev/full", "w") as full:
        ended = run_pipeline("inspect", "data/mnist", cwd=dataset.parent.parent, stdout=full)
    assert_refused(
        Ended(ended.code, "", ended.err), 6, "No space left on device", "free some space"
    )


def test_progress_on_a_terminal(dataset: Path) -> None:
    """On a terminal one line shows rows and loss, and is removed at the end."""
    controlling, terminal = pty.openpty()
    shown = bytearray()
    reader = threading.Thread(target=_read_all, args=(controlling, shown))
    reader.start()
    ended = run_pipeline(
        "train",
        *SMALL,
        "--epochs",
        2,
        cwd=dataset.parent.parent,
        env={"TERM": "xterm"},
        stderr=terminal,
    )
    os.close(terminal)
    reader.join()
    os.close(controlling)
    assert ended.code == 0
    assert b"epoch 2/2" in shown
    assert b"of 300 rows" in shown
    assert b"loss" in shown
    assert shown.endswith(b" \r")
    assert b"\n" not in shown


def _read_all(descriptor: int, into: bytearray) -> None:
    while True:
        try:
            data = os.read(descriptor, 4096)
        except OSError:  # Linux: the other side has been closed
            return
        if not data:
            return
        into += data
